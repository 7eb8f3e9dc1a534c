//! A machine with one log on a simulated disk.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::{DataId, RangeId, ReplicaId};
use rangedb_engine::wal::{
    Body, Created, Group, GroupLog, LogEntry, LogId, Payload, Recovered, Wal, WalError, WalOptions,
};
use rangedb_tests::sim::disk::{Platter, SimDisk};
use rangedb_tests::sim::executor::{Executor, Host};
use rangedb_tests::sim::random::Random;
use rangedb_tests::sim::runtime::SimRuntime;
use rangedb_tests::sim::sim_env::SimEnv;
use tokio::sync::oneshot;

/// A block of the disk: batches begin at multiples of it.
pub const BLOCK: usize = 4096;
/// Small segments, and nothing in memory that the disk has.
pub const OPTIONS: WalOptions = WalOptions {
    segment_bytes: 128 << 10,
    entry_cache_bytes: 0,
    segments_max: 4,
    must_exist: false,
};

/// What outlives the log's process.
pub struct Machine {
    seed: u64,
    executor: Rc<Executor>,
    pub platter: Rc<Platter>,
    lives: Cell<u32>,
}

impl Machine {
    /// A machine with an empty disk.
    pub fn new(seed: u64) -> Machine {
        Machine {
            seed,
            executor: Executor::start(seed),
            platter: Platter::new(Random::new(seed, 7)),
            lives: Cell::new(0),
        }
    }

    /// Runs one life of a process. When the future ends the power goes: its tasks stop where they
    /// are, writes in flight are done, torn or lost.
    pub fn life<T: 'static>(&self, life: impl Future<Output = T> + 'static) -> T {
        self.lives.set(self.lives.get() + 1);
        let host = Host(self.lives.get());
        let (sender, receiver) = oneshot::channel();
        self.executor.spawn_on(host, async move {
            let result = life.await;
            // The harness waits as long as this task lives.
            let _ = sender.send(result);
        });
        let ended = self.executor.block_on(receiver);
        self.executor.crash(host);
        self.platter.crash();
        let ended = ended.unwrap_or_else(|stuck| panic!("seed {}: {stuck}", self.seed));
        ended.expect("the life ends")
    }

    /// Opens the log with [`OPTIONS`].
    pub fn open(&self) -> impl Future<Output = Result<Opened, WalError>> + 'static {
        self.open_with(OPTIONS)
    }

    /// Opens the log.
    pub fn open_with(
        &self,
        options: WalOptions,
    ) -> impl Future<Output = Result<Opened, WalError>> + 'static {
        Wal::open(SimDisk(self.platter.clone()), options)
    }

    /// Why the log cannot be opened.
    pub fn refusal(&self) -> WalError {
        let open = self.open();
        let result = self.life(async move { open.await.map(drop) });
        result.expect_err("the log is refused")
    }

    /// Names of the segments in use, oldest first.
    pub fn segments(&self) -> Vec<String> {
        let files = self.platter.files().into_iter().map(|(name, _)| name);
        files.filter(|name| name.ends_with(".wal")).collect()
    }

    /// Where batches begin in a segment: those of its own generation, or those of older ones.
    pub fn batches(&self, segment: &str, of_its_own: bool) -> Vec<usize> {
        let generation = generation(segment);
        let bytes = self.platter.read(segment);
        // The first block is the segment's own.
        let blocks = bytes.chunks(BLOCK).enumerate().skip(1);
        let batches = blocks.filter(|(_, block)| {
            let own = block.get(16..24) == Some(&generation.to_le_bytes()[..]);
            block.starts_with(b"RDBW") && own == of_its_own
        });
        batches.map(|(at, _)| at * BLOCK).collect()
    }
}

/// The generation of a segment with this name.
pub fn generation(segment: &str) -> u64 {
    let number = segment.trim_end_matches(".wal").parse();
    number.expect("a segment's name")
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.executor.end();
    }
}

/// An open log and what it held.
pub type Opened = (Wal<SimEnv>, Recovered<SimEnv>);

/// The group that these tests call by a number.
pub fn group(number: u64) -> Group {
    Group {
        range: RangeId(number),
        replica: ReplicaId(number),
    }
}

/// A replica with an empty log.
pub fn created(number: u64) -> Created {
    Created {
        group: group(number),
        data_id: DataId(number),
        descriptor: Bytes::from_static(b"a descriptor"),
        membership: Bytes::from_static(b"a membership"),
        first: None,
        birth: None,
    }
}

pub fn id(term: u64, index: u64) -> LogId {
    LogId {
        term,
        leader: ReplicaId(1),
        index,
    }
}

/// An entry whose payload follows from its name.
pub fn entry(group: Group, id: LogId) -> LogEntry {
    let seed = group.range.0 << 40 ^ id.term << 20 ^ id.index;
    let random = Random::new(seed, 1);
    let payload = match random.below(8) {
        0 => Payload::Blank,
        kind => {
            let len = 1 + random.below(if kind == 1 { 9000 } else { 300 });
            let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            match kind {
                2 => Payload::Membership(Body::seal(bytes.into())),
                _ => Payload::Commands(Body::seal(bytes.into())),
            }
        }
    };
    LogEntry { id, payload }
}

/// Appends entries of term 1 and waits until they are durable.
pub async fn append(log: &GroupLog<SimEnv>, group: Group, indexes: std::ops::Range<u64>) {
    let entries = indexes.map(|index| entry(group, id(1, index))).collect();
    let (sender, receiver) = oneshot::channel();
    log.append(
        entries,
        Box::new(move |result| sender.send(result).expect("awaited")),
    );
    receiver.await.expect("told").expect("written");
}

/// All entries of a log, read from disk and checked.
pub async fn read(log: &GroupLog<SimEnv>, group: Group) -> Vec<LogId> {
    let entries = log.read(0, u64::MAX, usize::MAX).await.expect("readable");
    for found in &entries {
        assert_eq!(*found, entry(group, found.id), "of {group:?}");
    }
    entries.into_iter().map(|entry| entry.id).collect()
}

/// The log of a group among those recovered.
pub fn log_of(recovered: &Recovered<SimEnv>, group: Group) -> GroupLog<SimEnv> {
    let mut replicas = recovered.replicas.iter();
    let found = replicas.find(|(created, _)| created.group == group);
    found
        .map(|(_, log)| log.clone())
        .expect("the group is there")
}

pub async fn sleep_us(micros: u64) {
    SimRuntime::sleep(std::time::Duration::from_micros(micros)).await;
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}
