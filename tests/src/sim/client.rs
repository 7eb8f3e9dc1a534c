//! A client: it finds the node that leads a key's range, tries again, and gives up.
//!
//! It asks nodes as if it called them: what it asks runs on the node's host, by its clock, waits
//! while the node is paused, and ends with it. A write that is lost with its node is tried again
//! under its session pair, like the real client's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::{Error, Fate};
use rangedb_engine::request::{Outcome, ScanReply, ScanRequest, SessionPair, Write};
use rangedb_engine::shard::{Shard, WriteRequest, WriteSink};
use rangedb_engine::types::{ClientId, Timestamp};
use tokio::sync::oneshot;

use super::cluster::Cluster;
use super::executor::{self, Host, OnHost};
use super::random::Random;
use super::runtime::SimRuntime;
use super::seen::Seen;
use super::world::SimEnv;

/// A client gives up a write after this.
pub const GIVE_UP: Duration = Duration::from_secs(8);
/// It gives up one try after this.
pub const TRY: Duration = Duration::from_millis(1500);
/// It tries again after this.
const RETRY: Duration = Duration::from_millis(20);

/// A shard that can be asked now.
pub struct Reached {
    host: Host,
    shard: Shard<SimEnv>,
}

impl Reached {
    /// Asks at once. Only right after it was reached: by then it may be paused, or gone.
    pub fn ask<R>(&self, question: impl FnOnce(&Shard<SimEnv>) -> R) -> R {
        executor::current().on_host(self.host, || question(&self.shard))
    }

    /// Asks what takes time.
    async fn wait<R>(&self, question: impl Future<Output = R>) -> Option<R> {
        let asked = OnHost::new(self.host, question);
        SimRuntime::timeout(TRY, asked).await.ok()
    }
}

struct Once(RefCell<Option<oneshot::Sender<Result<Outcome, Error>>>>);

impl WriteSink for Once {
    fn complete(&self, _: u64, result: Result<Outcome, Error>) {
        let sender = self
            .0
            .borrow_mut()
            .take()
            .expect("a write is answered once");
        // The client may have given up.
        let _ = sender.send(result);
    }
}

/// One client.
pub struct SimClient {
    /// Its number.
    pub number: u32,
    cluster: Rc<Cluster>,
    pub(super) seen: Rc<Seen>,
    pub(super) random: Random,
    pub(super) stop: Rc<Cell<bool>>,
    id: ClientId,
    /// Its last write.
    pub(super) sequence: Cell<u64>,
    unanswered: RefCell<BTreeSet<u64>>,
    /// The last cluster time seen, and when.
    time: Cell<(Timestamp, Duration)>,
    /// So many registers of each kind it knows.
    pub(super) registers: u64,
    /// The node that it asks.
    node: Cell<u64>,
}

/// How a try ended.
enum Tried {
    /// With this.
    Known(Result<Outcome, Error>),
    /// With the node.
    Lost,
    /// There was no node.
    NoNode,
}

impl SimClient {
    /// A client of a cluster.
    pub fn new(
        number: u32,
        cluster: Rc<Cluster>,
        seen: Rc<Seen>,
        seed: u64,
        stop: Rc<Cell<bool>>,
    ) -> SimClient {
        let random = Random::new(seed, 1000 + u64::from(number));
        let machines = u64::from(cluster.machines());
        SimClient {
            number,
            cluster,
            seen,
            id: ClientId(u128::from(random.next()) << 64 | u128::from(number)),
            registers: random.between(1, 6),
            node: Cell::new(1 + random.below(machines)),
            random,
            stop,
            sequence: Cell::new(0),
            unanswered: RefCell::default(),
            time: Cell::new((Timestamp::ZERO, Duration::ZERO)),
        }
    }

    /// The shard of the asked node that has the key's range, when the node runs.
    pub(super) async fn reach(&self, key: &[u8]) -> Option<Reached> {
        let found = self.try_reach(key).await;
        if found.is_none() {
            self.go_elsewhere(None);
        }
        found
    }

    /// From now on it asks the node that an error names, or any.
    fn go_elsewhere(&self, error: Option<&Error>) {
        let leader = match error {
            Some(Error::NotLeader(Some(route)) | Error::Moved(Some(route))) => route.leader,
            _ => None,
        };
        // The leader named may be long gone.
        let named = leader.filter(|_| !self.random.once_in(4));
        let any = 1 + self.random.below(self.cluster.machines().into()) as u16;
        let any = self.cluster.on(any).map_or(1, |node| u64::from(node.id));
        self.node.set(named.map_or(any, |place| place.node.0));
    }

    async fn try_reach(&self, key: &[u8]) -> Option<Reached> {
        let node = self.cluster.node(self.node.get())?;
        let (host, shards) = (node.host(), node.shards()?);
        let runs = OnHost::new(host, std::future::ready(()));
        SimRuntime::timeout(TRY, runs).await.ok()?;
        let has = |shard: &&Shard<SimEnv>| {
            let routes = shard.routes();
            routes.iter().any(|route| route.keys.contains(key))
        };
        let shard = shards.iter().find(has)?.clone();
        let reached = Reached { host, shard };
        self.observe(&reached);
        Some(reached)
    }

    fn observe(&self, reached: &Reached) {
        let now = reached.ask(Shard::now);
        if now > self.time.get().0 {
            self.time.set((now, executor::current().now()));
        }
    }

    /// The cluster's time as the client reckons.
    fn reckoned(&self) -> Timestamp {
        let (seen, at) = self.time.get();
        seen.plus_ms((executor::current().now() - at).as_millis() as u64)
    }

    async fn try_write(&self, key: &[u8], write: &Write, session: SessionPair) -> Tried {
        let Some(reached) = self.reach(key).await else {
            return Tried::NoNode;
        };
        let (sender, receiver) = oneshot::channel();
        let request = WriteRequest {
            target: None,
            session,
            deadline: None,
        };
        let sink = Rc::new(Once(RefCell::new(Some(sender))));
        reached.ask(|shard| shard.write(write.clone(), request, sink, 1));
        drop(reached);
        let tried = match SimRuntime::timeout(TRY, receiver).await {
            Ok(Ok(result)) => Tried::Known(result),
            Ok(Err(_)) | Err(_) => Tried::Lost,
        };
        match &tried {
            Tried::Known(Ok(_)) => {}
            Tried::Known(Err(error)) => self.go_elsewhere(Some(error)),
            Tried::Lost | Tried::NoNode => self.go_elsewhere(None),
        }
        tried
    }

    /// Writes until the outcome is known or the client gives up. `Err(true)`: it is not known.
    pub(super) async fn write(&self, key: &[u8], write: Write) -> Result<Outcome, bool> {
        // The first try is made by a cluster time that was asked for.
        while self.time.get().0 == Timestamp::ZERO {
            drop(self.reach(key).await);
            if self.stop.get() {
                return Err(false);
            }
            SimRuntime::sleep(RETRY).await;
        }
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        self.unanswered.borrow_mut().insert(sequence);
        let first_tried = self.reckoned();
        let began = executor::current().now();
        let mut in_doubt = false;
        let result = loop {
            let lowest_unanswered = self
                .unanswered
                .borrow()
                .first()
                .copied()
                .unwrap_or(sequence);
            let session = SessionPair {
                client: self.id,
                sequence,
                lowest_unanswered,
                first_tried,
            };
            match self.try_write(key, &write, session).await {
                Tried::Known(Ok(outcome)) => break Ok(outcome),
                Tried::Known(Err(Error::NotANumber | Error::NumberOverflow)) => {
                    break Err(in_doubt);
                }
                // It may be applied yet; the session table tells the next try.
                Tried::Known(Err(Error::Unknown(_))) => in_doubt = true,
                Tried::Known(Err(error)) if error.fate() == Fate::Unknown => break Err(true),
                Tried::Known(Err(_)) | Tried::NoNode => {}
                Tried::Lost => in_doubt = true,
            }
            if executor::current().now() - began > GIVE_UP {
                break Err(in_doubt);
            }
            SimRuntime::sleep(RETRY).await;
        };
        self.unanswered.borrow_mut().remove(&sequence);
        let count = if result.is_ok() {
            &self.seen.done
        } else {
            &self.seen.failed
        };
        count.set(count.get() + 1);
        result
    }

    /// Reads a key: by the leader's lease, or with the help of others.
    ///
    /// # Errors
    /// The asked node cannot say.
    pub(super) async fn read<R>(
        &self,
        key: &[u8],
        look: impl Fn(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<R, Error> {
        let Some(reached) = self.reach(key).await else {
            return Err(Error::NotLeader(None));
        };
        let read = match reached.ask(|shard| shard.get(key, None, &look)) {
            Err(Error::LeaseExpired) => {
                let confirmed = async {
                    reached.shard.confirm(key, None).await?;
                    reached.shard.get_confirmed(key, None, &look)
                };
                let confirmed = reached.wait(confirmed).await;
                confirmed.unwrap_or(Err(Error::DeadlineExceeded))
            }
            read => read,
        };
        if let Err(error) = &read {
            self.go_elsewhere(Some(error));
        }
        read
    }

    /// Reads a key, on whatever node can; `None`: none can.
    pub async fn read_patiently(&self, key: &str) -> Option<Option<String>> {
        for _ in 0..200 {
            let read = self.read(key.as_bytes(), |found| {
                found.map(|(value, _)| String::from_utf8_lossy(value).into_owned())
            });
            if let Ok(found) = read.await {
                return Some(found);
            }
            SimRuntime::sleep(RETRY).await;
        }
        None
    }

    /// Reads one page of a scan.
    pub(super) async fn scan(&self, scan: ScanRequest) -> Option<ScanReply> {
        let key = scan.start.clone().unwrap_or_default();
        let reached = self.reach(&key).await?;
        match reached.wait(reached.shard.scan(scan, None, None)).await {
            Some(Ok(reply)) => Some(reply),
            Some(Err(error)) => {
                self.go_elsewhere(Some(&error));
                None
            }
            None => {
                self.go_elsewhere(None);
                None
            }
        }
    }
}
