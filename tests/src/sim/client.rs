//! A client: it sends requests to the gateway of a node, retries, and gives up.
//!
//! The seed decides whether it follows routes. One that does asks the shard that has the key's range,
//! on the node that leads it as far as the client knows. One that does not asks any shard of any node,
//! and its requests are forwarded. Its writes travel on a [`road`](super::road). A write that is lost on the way, or with its node,
//! is retried under the same session pair, as the real client does it. Many writes of one client
//! may be under way at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::{Error, Fate};
use rangedb_engine::gateway::Gateway;
use rangedb_engine::gateway::message::{Body, Found};
use rangedb_engine::gateway::request::Caller;
use rangedb_engine::mutant::{self, Mutant};
use rangedb_engine::range::Route;
use rangedb_engine::request::{Batch, Outcome, ScanReply, ScanRequest, SessionPair, Target};
use rangedb_engine::types::{Blob, ClientId, Epoch, RangeId, Timestamp};
use tokio::sync::oneshot;

use super::cluster::Cluster;
use super::executor::{self, OnHost};
use super::random::Random;
use super::road::{Asked, Reached, Road, TRY, Told};
use super::runtime::SimRuntime;
use super::seen::Seen;
use super::world::SimEnv;

/// A client gives up a write without a deadline after this time.
pub const GIVE_UP: Duration = Duration::from_secs(8);
/// The pause before a retry.
pub const RETRY: Duration = Duration::from_millis(20);
/// If the client has heard no cluster time for longer than this, it adds the time beyond to the
/// last one.
const TOLD_LATELY: Duration = Duration::from_secs(60);

/// The effort that a client makes for a write.
#[derive(Clone, Copy)]
pub struct Effort {
    /// The deadline, which the request carries. After it the client gives up.
    pub deadline: Option<Duration>,
    /// The longest pause before a retry.
    pub retry: Duration,
}

/// A simulated client.
pub struct SimClient {
    /// The client's number.
    pub number: u32,
    cluster: Rc<Cluster>,
    pub(super) seen: Rc<Seen>,
    pub(super) random: Random,
    pub(super) stop: Rc<Cell<bool>>,
    id: ClientId,
    caller: Caller,
    /// The sequence number of its last write.
    sequence: Cell<u64>,
    unanswered: RefCell<BTreeSet<u64>>,
    /// The last cluster time that it has seen, and when it saw it.
    time: Cell<(Timestamp, Duration)>,
    /// How many registers of each kind it uses.
    pub(super) registers: u64,
    /// How many things it does at a time, apart from bursts of writes.
    pub(super) hands: u64,
    /// How many values it has made.
    pub(super) values: Cell<u64>,
    /// Whether a write of its pair is under way.
    pub(super) writes_pair: Cell<bool>,
    road: Road,
    /// The last epoch that it has heard of, for each range.
    epochs: RefCell<BTreeMap<RangeId, Epoch>>,
    /// The node that it sends requests to.
    node: Cell<u64>,
}

/// The result of one try.
enum Tried {
    /// The node answered.
    Known(Result<Outcome, Error>),
    /// The request or its answer was lost, or the node ended.
    Lost,
    /// No node could be reached.
    NoNode,
}

impl SimClient {
    /// Makes a client of a cluster.
    pub fn new(
        number: u32,
        cluster: Rc<Cluster>,
        seen: Rc<Seen>,
        seed: u64,
        stop: Rc<Cell<bool>>,
    ) -> Rc<SimClient> {
        let random = Random::new(seed, 1000 + u64::from(number));
        let machines = u64::from(cluster.machines());
        Rc::new(SimClient {
            number,
            cluster,
            seen,
            id: ClientId(u128::from(random.next()) << 64 | u128::from(number)),
            caller: Caller {
                follows_routes: random.once_in(2),
            },
            registers: random.between(1, 6),
            hands: [1, 1, 1, 2, 3][random.below(5) as usize],
            values: Cell::new(0),
            writes_pair: Cell::new(false),
            road: Road::new(&random),
            epochs: RefCell::default(),
            node: Cell::new(1 + random.below(machines)),
            random,
            stop,
            sequence: Cell::new(0),
            unanswered: RefCell::default(),
            time: Cell::new((Timestamp::ZERO, Duration::ZERO)),
        })
    }

    /// The size of a log segment, in bytes; an entry must fit into one.
    pub(super) fn segment_bytes(&self) -> usize {
        self.cluster.sizes.segment_bytes
    }

    /// A gateway of the client's node, if that node runs: that of the shard which has the key's range,
    /// or any if the client does not follow routes.
    pub(super) async fn reach(&self, key: &[u8]) -> Option<Reached> {
        let found = self.try_reach(key).await;
        if found.is_none() {
            self.go_elsewhere(None);
        }
        found
    }

    /// Chooses the node for the next requests: in most cases the one that the error names,
    /// otherwise any.
    fn go_elsewhere(&self, error: Option<&Error>) {
        let leader = match error {
            Some(Error::NotLeader(Some(route)) | Error::Moved(Some(route))) => {
                self.learn(route);
                route.leader
            }
            _ => None,
        };
        // The named leader may be gone for long.
        let named = leader.filter(|_| !self.random.once_in(4));
        let any = 1 + self.random.below(self.cluster.machines().into()) as u16;
        let any = self.cluster.on(any).map_or(1, |node| u64::from(node.id));
        self.node.set(named.map_or(any, |place| place.node.0));
    }

    async fn try_reach(&self, key: &[u8]) -> Option<Reached> {
        let node = self.cluster.node(self.node.get())?;
        let (host, gateways) = (node.host(), node.gateways()?);
        let runs = OnHost::new(host, std::future::ready(()));
        SimRuntime::timeout(TRY, runs).await.ok()?;
        let has = |gateway: &&Gateway<SimEnv>| {
            let routes = gateway.shard().routes();
            routes.iter().any(|route| route.keys.contains(key))
        };
        let gateway = match self.caller.follows_routes {
            true => gateways.iter().find(has)?,
            false => gateways.get(self.random.below(gateways.len() as u64) as usize)?,
        };
        let gateway = gateway.clone();
        let reached = Reached { host, gateway };
        self.observe(reached.ask(|gateway| gateway.shard().now()));
        Some(reached)
    }

    fn observe(&self, now: Timestamp) {
        if now >= self.time.get().0 {
            self.time.set((now, executor::current().now()));
        }
    }

    /// The client's estimate of the cluster's time.
    fn reckoned(&self) -> Timestamp {
        let (seen, at) = self.time.get();
        let since = (executor::current().now() - at).saturating_sub(TOLD_LATELY);
        seen.plus_ms(since.as_millis() as u64)
    }

    fn learn(&self, route: &Route) {
        self.epochs.borrow_mut().insert(route.range, route.epoch);
    }

    /// Names the range of about every other request. The epoch may be an old one.
    fn target(&self, reached: &Reached, key: &[u8]) -> Option<Target> {
        if self.random.once_in(2) {
            return None;
        }
        let directory = reached.ask(Gateway::directory);
        let route = directory.find(key)?;
        let mut epochs = self.epochs.borrow_mut();
        let epoch = *epochs.entry(route.range).or_insert(route.epoch);
        let range = route.range;
        Some(Target { range, epoch })
    }

    /// Tries a write once. Also returns whether the request may arrive a second time, later than
    /// its answer.
    async fn try_write(
        &self,
        key: &[u8],
        write: &Batch,
        session: SessionPair,
        patience: Option<Duration>,
    ) -> (Tried, bool) {
        let Some(reached) = self.reach(key).await else {
            return (Tried::NoNode, false);
        };
        let batch = write.clone();
        let asked = Asked {
            body: Body::Write { batch, session },
            caller: self.caller,
            target: self.target(&reached, key),
            patience,
        };
        let (receiver, comes_twice) = self.road.send(&reached, asked);
        drop(reached);
        let tried = match self.answer(receiver).await {
            Some(Ok(Found::Written(outcome))) => Tried::Known(Ok(outcome)),
            Some(Ok(_)) => Tried::Lost,
            Some(Err(error)) => Tried::Known(Err(error)),
            None => Tried::Lost,
        };
        match &tried {
            Tried::Known(Ok(_)) => {}
            Tried::Known(Err(error)) => self.go_elsewhere(Some(error)),
            Tried::Lost | Tried::NoNode => self.go_elsewhere(None),
        }
        (tried, comes_twice)
    }

    /// Waits for the answer to one try, and takes the time that it brings; `None` if none came.
    async fn answer(&self, receiver: oneshot::Receiver<Told>) -> Option<Result<Found, Error>> {
        let told = SimRuntime::timeout(TRY, receiver).await.ok()?.ok()?;
        let now = told.reply.now;
        match &told.reply.result {
            // The node finds the client's time too far ahead of its own.
            Err(Error::ClockOutOfBounds { .. }) => {
                self.time.set((now, executor::current().now()));
            }
            _ => self.observe(now),
        }
        let confirmed = self.seen.confirmed.get() + u64::from(told.was_confirmed);
        self.seen.confirmed.set(confirmed);
        Some(told.reply.result)
    }

    /// Sends a read to a gateway.
    async fn ask(&self, key: &[u8], body: Body) -> Result<Found, Error> {
        let Some(reached) = self.reach(key).await else {
            return Err(Error::NotLeader(None));
        };
        let asked = Asked {
            body,
            caller: self.caller,
            target: self.target(&reached, key),
            patience: None,
        };
        let receiver = self.road.send_read(&reached, asked);
        drop(reached);
        let answer = self.answer(receiver).await;
        let answer = answer.unwrap_or(Err(Error::DeadlineExceeded));
        if let Err(error) = &answer {
            self.go_elsewhere(Some(error));
        }
        answer
    }

    /// The session pair for a try that starts now.
    fn name(&self, sequence: u64, first_tried: Timestamp) -> SessionPair {
        let unanswered = self.unanswered.borrow();
        SessionPair {
            client: self.id,
            sequence,
            lowest_unanswered: unanswered.first().copied().unwrap_or(sequence),
            first_tried,
        }
    }

    fn next_sequence(&self) -> u64 {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        self.unanswered.borrow_mut().insert(sequence);
        sequence
    }

    /// Writes until the outcome is known or the client gives up. `Err(true)` if the write may have
    /// been applied; `Err(false)` if it is not applied and never will be.
    pub(super) async fn write(
        &self,
        key: &[u8],
        write: Batch,
        effort: Effort,
    ) -> Result<Outcome, bool> {
        // The time of the first try must be one that a node has told.
        while self.time.get().0 == Timestamp::ZERO {
            drop(self.reach(key).await);
            if self.stop.get() {
                return Err(false);
            }
            SimRuntime::sleep(RETRY).await;
        }
        let result = self.write_under(key, &write, effort).await;
        let count = if result.is_ok() {
            &self.seen.done
        } else {
            &self.seen.failed
        };
        count.set(count.get() + 1);
        result
    }

    async fn write_under(
        &self,
        key: &[u8],
        write: &Batch,
        effort: Effort,
    ) -> Result<Outcome, bool> {
        let mut sequence = self.next_sequence();
        let mut first_tried = self.reckoned();
        let until = executor::current().now() + effort.deadline.unwrap_or(GIVE_UP);
        let mut in_doubt = false;
        let result = loop {
            let left = until.saturating_sub(executor::current().now());
            let patience = effort.deadline.map(|_| left);
            first_tried = first_tried.min(self.reckoned());
            let session = self.name(sequence, first_tried);
            let (tried, comes_twice) = self.try_write(key, write, session, patience).await;
            in_doubt |= comes_twice;
            match tried {
                Tried::Known(Ok(outcome)) => break Ok(outcome),
                Tried::Known(Err(Error::NotANumber | Error::NumberOverflow)) => {
                    break Err(in_doubt);
                }
                // The write may still be applied; the session table decides at the next try.
                Tried::Known(Err(Error::Unknown(_))) => in_doubt = true,
                Tried::Known(Err(error)) if error.fate() == Fate::Unknown => break Err(true),
                Tried::Known(Err(_)) | Tried::NoNode => {}
                Tried::Lost => in_doubt = true,
            }
            if executor::current().now() >= until {
                break Err(in_doubt);
            }
            let pause = effort.retry.as_micros() as u64;
            SimRuntime::sleep(Duration::from_micros(self.random.between(pause / 2, pause))).await;
            if mutant::is(Mutant::RetryUnderNewPair) {
                self.unanswered.borrow_mut().remove(&sequence);
                sequence = self.next_sequence();
            }
        };
        self.unanswered.borrow_mut().remove(&sequence);
        result
    }

    /// Reads a key from the leader: by its lease, or after a majority has confirmed that it leads.
    ///
    /// # Errors
    /// The node cannot answer.
    pub(super) async fn read<R>(
        &self,
        key: &[u8],
        look: impl Fn(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<R, Error> {
        let body = Body::Get {
            key: Blob::copy_from_slice(key),
        };
        match self.ask(key, body).await? {
            Found::Value(found) => Ok(look(
                found.as_ref().map(|found| (&*found.value, found.version)),
            )),
            Found::Written(_) | Found::Rows(_) => Err(Error::NotLeader(None)),
        }
    }

    /// Reads a key, on any node, until one answers; `None` after many tries.
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
        let key = scan.first_key();
        match self.ask(&key, Body::Scan(scan)).await {
            Ok(Found::Rows(reply)) => Some(reply),
            Ok(_) | Err(_) => None,
        }
    }
}
