//! A replica that needs a snapshot of a large range must catch up while clients go on writing, and
//! one snapshot must suffice: the leader keeps the log from the snapshot's index on.
//!
//! Logs keep next to nothing here. So a snapshot that did not keep the log would be useless: at its
//! end the entries after it would be purged, and the next snapshot would begin.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Batch;
use rangedb_engine::types::Blob;

use super::client::{Effort, SimClient};
use super::cluster::{Cluster, Look};
use super::executor::{self, Executor, OUTSIDE};
use super::node::Sizes;
use super::runtime::SimRuntime;
use super::seen::Seen;
use crate::invariants;

/// The machine that is down for a while.
const AWAY: u16 = 3;
/// How long it is down; meanwhile the others purge the entries that it misses.
const AWAY_FOR: Duration = Duration::from_secs(2);
/// How long it may take to catch up.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A replica that lags by at most this many entries has caught up.
const CAUGHT_UP: u64 = 16;
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// One snapshot suffices; another may be needed if the leader changes.
const SNAPSHOTS_MAX: usize = 2;

/// The length of a row, in bytes. All rows make about 130 parts of a snapshot.
const ROW_LEN: usize = 64 << 10;
const LOADERS: u32 = 4;
const ROWS_OF_LOADER: usize = 128;
/// All writers together make about a hundred writes a second.
const WRITERS: u32 = 4;
const WRITE_INTERVAL: Duration = Duration::from_millis(40);

/// The effort for each write.
const EFFORT: Effort = Effort { deadline: None };

const SIZES: Sizes = Sizes {
    shards: 1,
    nodes: 3,
    grows: false,
    memtable_bytes: 1 << 12,
    segment_bytes: 1 << 20,
    entry_cache_bytes: 1 << 12,
    row_cache_bytes: 1 << 14,
    entries_kept: 1,
    gc_retention_ms: 60_000,
    small_append_bytes: 1 << 10,
    has_very_slow_reads: false,
};

/// How a replica has caught up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// The time from the node's start until the replica had caught up; `None` if it did not in
    /// time.
    pub after: Option<Duration>,
    /// The snapshots of the range that it had installed by then.
    pub snapshots: usize,
}

/// Runs the scenario. The disks report `free_bytes` of free space.
///
/// # Errors
/// No task could run any more, the run took too many steps, or an invariant was violated.
pub fn run_catch_up(seed: u64, free_bytes: u64) -> Result<CaughtUp, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let story = Rc::new(Story {
        cluster: Cluster::new(SIZES, seed),
        seen: Rc::default(),
        seed,
        stop: Rc::default(),
        caught_up: Cell::default(),
    });
    let nodes = story.cluster.nodes();
    let platters = nodes.iter().flat_map(|node| node.platters());
    platters.for_each(|platter| platter.free_bytes.set(free_bytes));
    let ended = executor.block_on(story.clone().tell());
    executor.end();
    ended?;
    match story.seen.violations.borrow().first() {
        Some(violation) => Err(violation.clone()),
        None => Ok(story.caught_up.get()),
    }
}

/// Why a seed fails, if it does.
pub fn failure(seed: u64) -> Option<String> {
    match run_catch_up(seed, u64::MAX) {
        Err(what) => Some(what),
        Ok(CaughtUp {
            after: Some(_),
            snapshots: 1..=SNAPSHOTS_MAX,
        }) => None,
        Ok(other) => Some(format!("a replica does not catch up: {other:?}")),
    }
}

struct Story {
    cluster: Rc<Cluster>,
    seen: Rc<Seen>,
    seed: u64,
    stop: Rc<Cell<bool>>,
    caught_up: Cell<CaughtUp>,
}

impl Story {
    fn client(&self, number: u32) -> Rc<SimClient> {
        let (cluster, seen) = (self.cluster.clone(), self.seen.clone());
        SimClient::new(number, cluster, seen, self.seed, self.stop.clone())
    }

    async fn tell(self: Rc<Story>) {
        for node in self.cluster.nodes() {
            node.start().await;
        }
        self.load().await;
        let node = self.cluster.on(AWAY).expect("a node");
        for number in 0..WRITERS {
            let client = self.client(LOADERS + number);
            executor::current().spawn_on(OUTSIDE, write_on(client, self.stop.clone()));
        }
        node.crash();
        SimRuntime::sleep(AWAY_FOR).await;
        node.start().await;
        self.caught_up.set(self.watch().await);
        self.stop.set(true);
        for node in self.cluster.nodes() {
            if let Some(why) = node.fatal() {
                self.seen.violation(why);
            }
        }
    }

    async fn load(self: &Rc<Story>) {
        let left = Rc::new(Cell::new(LOADERS));
        for number in 0..LOADERS {
            let (client, left) = (self.client(number), left.clone());
            executor::current().spawn_on(OUTSIDE, async move {
                for row in 0..ROWS_OF_LOADER {
                    let key = Blob::from(format!("row-{number}-{row:04}"));
                    let value = Blob::from(vec![b'v'; ROW_LEN]);
                    let write = Batch::put(key.clone(), value);
                    // If a write fails, the range has one row less.
                    let _ = client.write(&key, write, EFFORT).await;
                }
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            SimRuntime::sleep(POLL_INTERVAL).await;
        }
    }

    async fn watch(&self) -> CaughtUp {
        let begun = executor::current().now();
        let mut data_ids = BTreeSet::new();
        loop {
            SimRuntime::sleep(POLL_INTERVAL).await;
            let looks = self.cluster.looks();
            let users = || looks.iter().filter(|look| !look.status.system);
            let is_away = |look: &&Look| look.host.machine() == AWAY;
            let applied = users().find(is_away).map_or(0, |look| {
                data_ids.insert(look.status.parts.0);
                look.status.applied
            });
            let most = users().map(|look| look.status.applied).max().unwrap_or(0);
            let passed = executor::current().now() - begun;
            let is_back = applied > 0 && applied + CAUGHT_UP >= most && data_ids.len() > 1;
            if is_back || passed > TIMEOUT {
                return CaughtUp {
                    after: is_back.then_some(passed),
                    snapshots: data_ids.len().saturating_sub(1),
                };
            }
        }
    }
}

/// Writes small rows until `stop` is set.
async fn write_on(client: Rc<SimClient>, stop: Rc<Cell<bool>>) {
    let key = Blob::from(format!("small-{}", client.number));
    let value = Blob::from_static(b"a value of no great length, written again and again");
    while !stop.get() {
        let write = Batch::put(key.clone(), value.clone());
        // After a failure the next write is tried nevertheless.
        let _ = client.write(&key, write, EFFORT).await;
        SimRuntime::sleep(WRITE_INTERVAL).await;
    }
}
