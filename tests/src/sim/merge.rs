//! A range is split and then merged again. During the merge a machine loses its power after a given number
//! of polls of its tasks, so that a test can try every point of it.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use super::executor::{self, OUTSIDE};
use super::faults::{Fault, Faults, Order, Step};
use super::node::Sizes;
use super::operator;
use super::run::{Report, Story, run_drawn};
use super::runtime::SimRuntime;

/// By then the cluster has formed and holds rows.
const BEGINS_AFTER: Duration = Duration::from_millis(700);
/// How long the merge may take.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Clients write to both ranges for as long before they are merged.
const APART: Duration = Duration::from_millis(300);
/// Polls right after the merge count, too.
const AFTERWARDS: Duration = Duration::from_millis(5);
/// How often the state is checked.
const POLL_INTERVAL: Duration = Duration::from_micros(200);
const CLIENTS: u32 = 3;
/// The first key of the right range.
const KEY: [u8; 3] = *b"cr2";

/// Three nodes with one range of users.
const SIZES: Sizes = Sizes {
    shards: 1,
    nodes: 3,
    grows: false,
    memtable_bytes: 1 << 14,
    segment_bytes: 1 << 16,
    entry_cache_bytes: 1 << 12,
    row_cache_bytes: 1 << 14,
    entries_kept: 8,
    gc_retention_ms: 2_000,
    small_append_bytes: 1 << 10,
};

/// One run of the scenario.
#[derive(Clone, Copy, Debug)]
pub struct Merge {
    /// The seed of everything that is not fixed.
    pub seed: u64,
    /// The machine that loses its power, and the number of polls of its tasks after which it does,
    /// counted from the order on.
    pub crash: Option<(u16, u64)>,
}

impl Merge {
    /// Runs the scenario.
    ///
    /// # Errors
    /// No task could run any more, or the run took too many steps.
    pub fn run(self) -> Result<Report, String> {
        let steps = vec![Step {
            after: BEGINS_AFTER,
            fault: Fault::Merge { crash: self.crash },
        }];
        run_drawn(self.seed, SIZES, CLIENTS, &Faults { steps })
    }
}

impl Story {
    pub(super) async fn merge(self: &Rc<Story>, crash: Option<(u16, u64)>) {
        let executor = executor::current();
        let cluster = self.cluster.clone();
        operator::order(&cluster, Order::Split { at: KEY }, 1).await;
        SimRuntime::sleep(APART).await;
        executor.count_polls(crash);
        executor.spawn_on(OUTSIDE, async move {
            operator::order(&cluster, Order::Merge { at: *b"cr1" }, 1).await;
        });
        let until = executor.now() + TIMEOUT;
        while executor.now() < until && !executor.has_stopped() {
            SimRuntime::sleep(POLL_INTERVAL).await;
            let looks = self.cluster.looks();
            let users = looks.iter().filter(|look| !look.status.system);
            let whole = users.filter(|look| look.status.route.keys.end.is_none());
            let merged = whole.filter(|look| look.status.route.keys.contains(b"cr1"));
            if merged.count() == usize::from(SIZES.nodes) {
                SimRuntime::sleep(AFTERWARDS).await;
                self.polls.replace(executor.polls());
                break;
            }
        }
        if let Some((machine, _)) = crash.filter(|_| executor.has_stopped()) {
            self.lose_power(machine).await;
        }
        // A crash that has not happened by now must not happen later.
        executor.count_polls(None);
    }
}
