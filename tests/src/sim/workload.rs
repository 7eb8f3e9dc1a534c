//! What the simulated clients do, and what they remember for the invariants.
//!
//! Each client does one thing after the other: reads, conditional and plain writes of registers,
//! increments of counters, writes of pairs that must stay equal, and scans of the pairs in pages.
//! A write that is lost with its node is tried again under its session pair, like the real
//! client's.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::{Error, Fate};
use rangedb_engine::request::{
    Condition, Mutation, Outcome, ScanRequest, SessionPair, Versioned, Write,
};
use rangedb_engine::shard::{Shard, WriteRequest, WriteSink};
use rangedb_engine::types::{Blob, ClientId, Timestamp};
use rangedb_loadgen::check::Checker;
use rangedb_loadgen::check::history::{Action, Expected, Operation};
use tokio::sync::oneshot;

use super::cluster::Cluster;
use super::executor;
use super::random::Random;
use super::runtime::SimRuntime;
use super::world::SimEnv;

/// A client gives up a write after this.
const GIVE_UP: Duration = Duration::from_secs(8);
/// It gives up one try of a write after this.
const TRY: Duration = Duration::from_millis(1500);
/// It tries again after this.
const RETRY: Duration = Duration::from_millis(20);

/// What all clients have seen.
#[derive(Default)]
pub struct Seen {
    /// Gets and writes of registers.
    pub history: RefCell<Checker<String>>,
    /// Of each counter: what was acknowledged, and what may have been added beyond.
    pub counters: RefCell<BTreeMap<String, (i64, i64)>>,
    /// Of each pair: its acknowledged number, the highest that may be there.
    pub pairs: RefCell<BTreeMap<u64, (u64, u64)>>,
    /// The highest version acknowledged or read, of each key.
    pub versions: RefCell<BTreeMap<String, Timestamp>>,
    /// What must not have happened.
    pub violations: RefCell<Vec<String>>,
    /// Operations that ended well.
    pub done: Cell<u64>,
    /// Operations that failed for a while or for good.
    pub failed: Cell<u64>,
    /// Replicas that took over a snapshot.
    pub snapshots: Cell<u64>,
}

impl Seen {
    /// Notes a violation.
    pub fn violation(&self, what: String) {
        self.violations.borrow_mut().push(what);
    }

    /// A version was acknowledged or read; `least` is what was known before the call.
    fn version(&self, key: &str, version: Timestamp, least: Timestamp) {
        if version < least {
            self.violation(format!("{key}: version {version} after {least} was known"));
        }
        let mut versions = self.versions.borrow_mut();
        let known = versions.entry(key.to_owned()).or_default();
        *known = version.max(*known);
    }

    fn known(&self, key: &str) -> Timestamp {
        self.versions.borrow().get(key).copied().unwrap_or_default()
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
    seen: Rc<Seen>,
    random: Random,
    stop: Rc<Cell<bool>>,
    id: ClientId,
    sequence: Cell<u64>,
    unanswered: RefCell<BTreeSet<u64>>,
    /// The last cluster time seen, and when.
    time: Cell<(Timestamp, Duration)>,
    registers: u64,
    /// The node that it asks.
    node: Cell<u64>,
}

fn nanos() -> u64 {
    executor::current().now().as_nanos() as u64
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
        let cluster_len = cluster.nodes.len();
        SimClient {
            number,
            cluster,
            seen,
            id: ClientId(u128::from(random.next()) << 64 | u128::from(number)),
            registers: random.between(1, 6),
            node: Cell::new(1 + random.below(cluster_len as u64)),
            random,
            stop,
            sequence: Cell::new(0),
            unanswered: RefCell::default(),
            time: Cell::new((Timestamp::ZERO, Duration::ZERO)),
        }
    }

    /// Works until told to stop.
    pub async fn run(self) {
        while !self.stop.get() {
            SimRuntime::sleep(Duration::from_micros(self.random.between(10, 20_000))).await;
            match self.random.below(20) {
                0..7 => self.read_register().await,
                7..13 => self.write_register().await,
                13..16 => self.increment().await,
                16..18 => self.write_pair().await,
                _ => self.scan_pairs().await,
            }
        }
    }

    /// The shard of the asked node that has the key's range.
    fn shard_of(&self, key: &[u8]) -> Option<Shard<SimEnv>> {
        let found = self.try_shard_of(key);
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
        let any = 1 + self.random.below(self.cluster.nodes.len() as u64);
        self.node.set(named.map_or(any, |place| place.node.0));
    }

    fn try_shard_of(&self, key: &[u8]) -> Option<Shard<SimEnv>> {
        let shards = self.cluster.node(self.node.get())?.shards()?;
        let owner = shards
            .iter()
            .find(|shard| shard.routes().iter().any(|route| route.keys.contains(key)));
        owner.cloned()
    }

    fn observe(&self, shard: &Shard<SimEnv>) {
        let now = shard.now();
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
        let Some(shard) = self.shard_of(key) else {
            return Tried::NoNode;
        };
        self.observe(&shard);
        let (sender, receiver) = oneshot::channel();
        let request = WriteRequest {
            target: None,
            session,
            deadline: None,
        };
        shard.write(
            write.clone(),
            request,
            Rc::new(Once(RefCell::new(Some(sender)))),
            1,
        );
        drop(shard);
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
    async fn write(&self, key: &[u8], write: Write) -> Result<Outcome, bool> {
        // The first try is made by a cluster time that was asked for.
        while self.time.get().0 == Timestamp::ZERO {
            if let Some(shard) = self.shard_of(key) {
                self.observe(&shard);
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

    fn register(&self) -> String {
        let letter = char::from(b'a' + self.random.below(26) as u8);
        // Few keys, spread over all shards.
        format!(
            "{}r{}",
            if self.random.once_in(2) { 'c' } else { 'x' },
            self.random.below(self.registers)
        )
        .replace('x', if letter < 'n' { "g" } else { "x" })
    }

    /// Reads a key on a shard: by its lease, or with the help of others.
    async fn read<R>(
        &self,
        shard: &Shard<SimEnv>,
        key: &[u8],
        look: impl Fn(Option<(&[u8], Timestamp)>) -> R,
    ) -> Result<R, Error> {
        let read = match shard.get(key, None, &look) {
            Err(Error::LeaseExpired) => {
                match SimRuntime::timeout(TRY, shard.confirm(key, None)).await {
                    Ok(Ok(())) => shard.get_confirmed(key, None, &look),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(Error::DeadlineExceeded),
                }
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
            if let Some(shard) = self.shard_of(key.as_bytes()) {
                let read = self.read(&shard, key.as_bytes(), |found| {
                    found.map(|(value, _)| String::from_utf8_lossy(value).into_owned())
                });
                if let Ok(found) = read.await {
                    return Some(found);
                }
            }
            SimRuntime::sleep(RETRY).await;
        }
        None
    }

    async fn read_register(&self) {
        let key = self.register();
        let (invoked, least) = (nanos(), self.seen.known(&key));
        let Some(shard) = self.shard_of(key.as_bytes()) else {
            return;
        };
        self.observe(&shard);
        let read = self.read(&shard, key.as_bytes(), |found| {
            found.map(|(value, version)| (number(value), version))
        });
        let Ok(found) = read.await else { return };
        if let Some((_, version)) = found {
            self.seen.version(&key, version, least);
        }
        self.add(
            &key,
            Action::Get {
                found: found.map(|(value, _)| value),
            },
            invoked,
            true,
        );
    }

    fn add(&self, key: &str, action: Action, invoked: u64, known: bool) {
        let returned = known.then(nanos);
        let operation = Operation {
            client: self.number,
            action,
            invoked,
            returned,
        };
        self.seen
            .history
            .borrow_mut()
            .add(&key.to_owned(), operation);
    }

    async fn write_register(&self) {
        let key = self.register();
        let bytes = Blob::from(key.clone());
        let value = u64::from(self.number) << 32 | (self.sequence.get() + 1);
        let text = Blob::from(format!(
            "{value}:{}",
            "x".repeat(self.random.below(300) as usize)
        ));
        let present = self.shard_of(&bytes).and_then(|shard| {
            let get = shard.get(&bytes, None, |found| {
                found.map(|(value, version)| (Blob::copy_from_slice(value), version))
            });
            get.ok()
        });
        let kind = self.random.below(5);
        let (write, action) = match (kind, present) {
            (0, _) => (
                Write::Delete { key: bytes.clone() },
                Action::Delete { existed: None },
            ),
            (1 | 2, Some(present)) => self.compare_and_swap(&bytes, present, (value, text)),
            _ => (
                Write::Put {
                    key: bytes.clone(),
                    value: text,
                },
                Action::Put { value },
            ),
        };
        let (invoked, least) = (nanos(), self.seen.known(&key));
        let (action, known) = match self.write(&bytes, write).await {
            Ok(Outcome::Done { version, existed }) => {
                self.seen.version(&key, version, least);
                let action = match action {
                    Action::Delete { .. } => Action::Delete {
                        existed: Some(existed),
                    },
                    Action::CompareAndSwap { expected, new, .. } => Action::CompareAndSwap {
                        expected,
                        new,
                        swapped: Some(true),
                    },
                    other => other,
                };
                (action, true)
            }
            Ok(Outcome::ConditionFailed { .. }) => match action {
                Action::CompareAndSwap { expected, new, .. } => (
                    Action::CompareAndSwap {
                        expected,
                        new,
                        swapped: Some(false),
                    },
                    true,
                ),
                other => {
                    self.seen
                        .violation(format!("{key}: {other:?} failed a condition"));
                    return;
                }
            },
            Ok(other) => {
                self.seen
                    .violation(format!("{key}: unexpected outcome {other:?}"));
                return;
            }
            Err(true) => (action, false),
            Err(false) => return,
        };
        self.add(&key, action, invoked, known);
    }

    fn compare_and_swap(
        &self,
        key: &Blob,
        present: Option<(Blob, Timestamp)>,
        (value, text): (u64, Blob),
    ) -> (Write, Action) {
        let expected = match &present {
            None => Expected::Absent,
            Some((present, _)) => Expected::Value(number(present)),
        };
        let condition = match present {
            None => Condition::Absent,
            Some((_, version)) if self.random.once_in(2) => Condition::Version(version),
            Some((present, _)) => Condition::Value(present),
        };
        let remove = self.random.once_in(4);
        let write = Write::CompareAndSwap {
            key: key.clone(),
            condition,
            value: (!remove).then_some(text),
        };
        let new = (!remove).then_some(value);
        (
            write,
            Action::CompareAndSwap {
                expected,
                new,
                swapped: None,
            },
        )
    }

    async fn increment(&self) {
        let key = format!("{}count", if self.random.once_in(2) { 'd' } else { 'y' });
        let delta = self.random.between(1, 3) as i64;
        let write = Write::Increment {
            key: Blob::from(key.clone()),
            delta,
        };
        let result = self.write(key.as_bytes(), write).await;
        let mut counters = self.seen.counters.borrow_mut();
        let (acknowledged, possible) = counters.entry(key.clone()).or_default();
        match result {
            Ok(Outcome::Number { .. }) => *acknowledged += delta,
            Ok(other) => {
                drop(counters);
                self.seen
                    .violation(format!("{key}: unexpected outcome {other:?}"));
            }
            Err(true) => *possible += delta,
            Err(false) => {}
        }
    }

    /// Each client has a pair of its own, in one range.
    fn pair_keys(number: u64) -> [String; 2] {
        [format!("cp{number:03}a"), format!("cp{number:03}b")]
    }

    async fn write_pair(&self) {
        let number = u64::from(self.number);
        let sequence = {
            let mut pairs = self.seen.pairs.borrow_mut();
            let (_, highest) = pairs.entry(number).or_default();
            *highest += 1;
            *highest
        };
        let mutations = Self::pair_keys(number).map(|key| Mutation {
            key: Blob::from(key),
            value: Some(Blob::from(sequence.to_string())),
        });
        let first = mutations[0].key.clone();
        let result = self
            .write(
                &first,
                Write::Multi {
                    mutations: mutations.to_vec(),
                },
            )
            .await;
        if result.is_ok() {
            let mut pairs = self.seen.pairs.borrow_mut();
            if let Some((acknowledged, _)) = pairs.get_mut(&number) {
                *acknowledged = sequence;
            }
        }
    }

    /// Scans all pairs in pages, on one node.
    pub async fn scan_pairs(&self) {
        let Some(shard) = self.shard_of(b"cp") else {
            return;
        };
        let asked = self.node.get();
        let before = self.seen.pairs.borrow().clone();
        let rows_max = self.random.between(1, 5) as usize;
        let mut rows: Vec<(Blob, Versioned)> = Vec::new();
        let (mut start, mut at) = (Blob::from_static(b"cp"), None);
        loop {
            let end = Some(Blob::from_static(b"cq"));
            let scan = ScanRequest {
                start: Some(start),
                end,
                rows_max,
                bytes_max: 0,
                at,
            };
            let reply = match SimRuntime::timeout(TRY, shard.scan(scan, None, None)).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(error)) => return self.go_elsewhere(Some(&error)),
                Err(_) => return self.go_elsewhere(None),
            };
            if rows
                .last()
                .zip(reply.rows.first())
                .is_some_and(|(a, b)| a.0 >= b.0)
            {
                self.seen.violation("a scan's pages overlap".to_owned());
            }
            rows.extend(reply.rows);
            let Some(next) = reply.next else { break };
            // Writes go on between the pages.
            SimRuntime::sleep(Duration::from_micros(self.random.between(1, 5000))).await;
            if self
                .cluster
                .node(asked)
                .is_none_or(|node| node.shards().is_none())
            {
                return;
            }
            (start, at) = (next.start, next.at);
        }
        crate::invariants::pairs::check(&self.seen, &before, &rows);
    }
}

fn number(value: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(value);
    let digits = text.split(':').next().unwrap_or_default();
    digits.parse().unwrap_or(u64::MAX)
}
