//! A node that was down for long installs snapshots. Meanwhile a machine loses its power after a
//! given number of polls of its tasks, so that a test can try every point of the installation.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::{DataId, RangeId};

use super::executor;
use super::faults::{Fault, Faults, Step};
use super::node::{SimNode, Sizes};
use super::run::{Report, Story, run_drawn};
use super::runtime::SimRuntime;

/// The machine that is down at first and installs the snapshots.
pub const LAGGARD: u16 = 3;
/// By then the cluster has formed and holds rows.
const BEGINS_AFTER: Duration = Duration::from_millis(500);
/// How long it is down; meanwhile the others purge the entries that it misses.
const AWAY: Duration = Duration::from_secs(2);
/// How long installing the snapshots may take.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Polls right after the last snapshot count, too.
const AFTERWARDS: Duration = Duration::from_millis(20);
/// How often the state is checked.
const POLL_INTERVAL: Duration = Duration::from_micros(200);
/// How long the power is off.
const DARK: Duration = Duration::from_millis(50);
const CLIENTS: u32 = 2;
/// The longest time of a write of a slow log, in microseconds.
const SLOW_LOG_US: u64 = 20_000;

/// Three nodes that keep almost nothing of their logs.
const SIZES: Sizes = Sizes {
    shards: 1,
    nodes: 3,
    grows: false,
    memtable_bytes: 1 << 12,
    segment_bytes: 1 << 16,
    entry_cache_bytes: 1 << 8,
    row_cache_bytes: 1 << 14,
    entries_kept: 1,
    gc_retention_ms: 5_000,
    small_append_bytes: 1 << 10,
    has_very_slow_reads: false,
};

/// One run of the scenario.
#[derive(Clone, Copy, Debug)]
pub struct Install {
    /// The seed of everything that is not fixed.
    pub seed: u64,
    /// Whether the log of [`LAGGARD`] is so slow that many other things happen between two writes.
    pub slow_log: bool,
    /// The machine that loses its power, and the number of polls of its tasks after which it does,
    /// counted from the second start of [`LAGGARD`].
    pub crash: Option<(u16, u64)>,
}

impl Install {
    /// Runs the scenario.
    ///
    /// # Errors
    /// No task could run any more, or the run took too many steps.
    pub fn run(self) -> Result<Report, String> {
        let step = |after, fault| Step { after, fault };
        let mut steps = vec![step(BEGINS_AFTER, Fault::Install { crash: self.crash })];
        if self.slow_log {
            let (node, latency_us) = (LAGGARD, SLOW_LOG_US);
            steps.insert(
                0,
                step(Duration::ZERO, Fault::SlowDisk { node, latency_us }),
            );
        }
        run_drawn(self.seed, SIZES, CLIENTS, &Faults { steps })
    }
}

/// The data ids of a node's ranges. Installing a snapshot gives a range a new data id.
fn data_ids(node: &SimNode) -> BTreeMap<RangeId, DataId> {
    let shards = node.shards();
    let shards = shards.iter().flat_map(|shards| shards.iter());
    let ranges =
        shards.flat_map(|shard| executor::current().on_host(node.host(), || shard.ranges()));
    ranges
        .filter(|status| !status.system)
        .map(|status| (status.route.range, status.parts.0))
        .collect()
}

impl Story {
    pub(super) async fn install(self: &Rc<Story>, crash: Option<(u16, u64)>) {
        let Some(taker) = self.cluster.on(LAGGARD) else {
            return;
        };
        let before = data_ids(&taker);
        taker.crash();
        SimRuntime::sleep(AWAY).await;
        let executor = executor::current();
        executor.count_polls(crash);
        self.while_busy(&taker, |story, node| async move {
            story.start(&node, None).await;
        });
        let until = executor.now() + TIMEOUT;
        while executor.now() < until {
            SimRuntime::sleep(POLL_INTERVAL).await;
            let now = data_ids(&taker);
            if now.len() == before.len() && now.iter().all(|(range, id)| before[range] != *id) {
                SimRuntime::sleep(AFTERWARDS).await;
                self.polls.replace(executor.polls());
                break;
            }
            if executor.has_stopped() {
                break;
            }
        }
        if let Some((machine, _)) = crash.filter(|_| executor.has_stopped()) {
            self.lose_power(machine).await;
        }
        // A crash that has not happened by now must not happen later.
        executor.count_polls(None);
    }

    pub(super) async fn lose_power(self: &Rc<Story>, machine: u16) {
        let Some(node) = self.cluster.on(machine) else {
            return;
        };
        node.crash();
        SimRuntime::sleep(DARK).await;
        // A start that was in progress has ended with the crash.
        self.start(&node, None).await;
    }
}
