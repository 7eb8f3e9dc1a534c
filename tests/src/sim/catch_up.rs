//! A replica that needs a snapshot of a large range catches up although clients go on writing, and one
//! snapshot is enough: the leader keeps the log from there on.
//!
//! The logs keep next to nothing here, so every snapshot that pins no log ends in vain: by its end the
//! entries after it are gone, and the next one begins.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Write;
use rangedb_engine::types::Blob;

use super::client::{Effort, SimClient};
use super::cluster::{Cluster, Look};
use super::executor::{self, Executor, OUTSIDE};
use super::node::Sizes;
use super::runtime::SimRuntime;
use super::seen::Seen;
use crate::invariants;

/// The machine that is away.
const AWAY: u16 = 3;
/// While it is, the others purge what it misses.
const AWAY_FOR: Duration = Duration::from_secs(2);
/// It has caught up within this, or never does.
const PATIENCE: Duration = Duration::from_secs(20);
/// And lags by no more than this.
const CAUGHT_UP: u64 = 16;
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// One is enough; another may be needed if the leader changes.
const SNAPSHOTS_MAX: usize = 2;

/// The rows of the range: some 130 parts of a snapshot.
const ROW_LEN: usize = 64 << 10;
const LOADERS: u32 = 4;
const ROWS_OF_LOADER: usize = 128;
/// A hundred writes a second together.
const WRITERS: u32 = 4;
const WRITE_EVERY: Duration = Duration::from_millis(40);

/// What a client does for a write.
const EFFORT: Effort = Effort {
    deadline: None,
    retry: Duration::from_millis(20),
};

const SIZES: Sizes = Sizes {
    shards: 1,
    nodes: 3,
    grows: false,
    memtable_bytes: 1 << 12,
    segment_bytes: 1 << 20,
    entry_cache_bytes: 1 << 12,
    entries_kept: 1,
    gc_retention_ms: 60_000,
    small_append_bytes: 1 << 10,
};

/// How a replica came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// When it lacked hardly an entry any more, counted from its start.
    pub after: Option<Duration>,
    /// Snapshots of the range that it took over by then.
    pub snapshots: usize,
}

/// Runs it, with disks that say that so many bytes are free.
///
/// # Errors
/// Nothing could run any more, too much did, or something was violated.
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

/// What is wrong with how the replica of a seed came back.
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
                    let write = Write::Put {
                        key: key.clone(),
                        value,
                    };
                    // One that fails is one row less.
                    let _ = client.write(&key, write, EFFORT).await;
                }
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            SimRuntime::sleep(LOOK_EVERY).await;
        }
    }

    async fn watch(&self) -> CaughtUp {
        let begun = executor::current().now();
        let mut data_ids = BTreeSet::new();
        loop {
            SimRuntime::sleep(LOOK_EVERY).await;
            let looks = self.cluster.looks();
            let users = || looks.iter().filter(|look| !look.status.system);
            let is_away = |look: &&Look| look.host.machine() == AWAY;
            let applied = users().find(is_away).map_or(0, |look| {
                data_ids.insert(look.status.data_id);
                look.status.applied
            });
            let most = users().map(|look| look.status.applied).max().unwrap_or(0);
            let passed = executor::current().now() - begun;
            let is_back = applied > 0 && applied + CAUGHT_UP >= most && data_ids.len() > 1;
            if is_back || passed > PATIENCE {
                return CaughtUp {
                    after: is_back.then_some(passed),
                    snapshots: data_ids.len().saturating_sub(1),
                };
            }
        }
    }
}

/// Writes small rows until told to stop.
async fn write_on(client: Rc<SimClient>, stop: Rc<Cell<bool>>) {
    let key = Blob::from(format!("small-{}", client.number));
    let value = Blob::from_static(b"a value of no great length, written again and again");
    while !stop.get() {
        let write = Write::Put {
            key: key.clone(),
            value: value.clone(),
        };
        // The next one is tried all the same.
        let _ = client.write(&key, write, EFFORT).await;
        SimRuntime::sleep(WRITE_EVERY).await;
    }
}
