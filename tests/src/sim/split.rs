//! A range is split. Meanwhile a machine loses its power after a given number of polls of its tasks, so
//! that a test can try every point of the split.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use super::cluster::Look;
use super::executor::{self, OUTSIDE};
use super::faults::{Fault, Faults, Order, Step};
use super::node::Sizes;
use super::operator;
use super::run::{Report, Story, run_drawn};
use super::runtime::SimRuntime;

/// By then the cluster has formed and holds rows.
pub(super) const BEGINS_AFTER: Duration = Duration::from_millis(700);
/// How long a change of bounds may take.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Polls right after it count, too.
const AFTERWARDS: Duration = Duration::from_millis(5);
/// How often the state is checked.
const POLL_INTERVAL: Duration = Duration::from_micros(200);
pub(super) const CLIENTS: u32 = 3;
/// Where the range is split.
pub(super) const KEY: [u8; 3] = *b"cr2";

/// Three nodes with one range of users.
pub(super) const SIZES: Sizes = Sizes {
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
    has_very_slow_reads: true,
};

/// One run of the scenario.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// The seed of everything that is not fixed.
    pub seed: u64,
    /// The machine that loses its power, and the number of polls of its tasks after which it does,
    /// counted from the order on.
    pub crash: Option<(u16, u64)>,
}

impl Split {
    /// Runs the scenario.
    ///
    /// # Errors
    /// No task could run any more, or the run took too many steps.
    pub fn run(self) -> Result<Report, String> {
        let steps = vec![Step {
            after: BEGINS_AFTER,
            fault: Fault::Split { crash: self.crash },
        }];
        run_drawn(self.seed, SIZES, CLIENTS, &Faults { steps })
    }
}

impl Story {
    pub(super) async fn split(self: &Rc<Story>, crash: Option<(u16, u64)>) {
        let is_split = |looks: &[Look]| {
            let children = looks
                .iter()
                .filter(|look| look.status.route.keys.start == KEY);
            let is_led = children.clone().any(|look| look.status.leads);
            is_led && children.count() == usize::from(SIZES.nodes)
        };
        self.interrupt(Order::Split { at: KEY }, crash, is_split)
            .await;
    }

    /// Gives an order. Until it is carried out a machine loses its power after a number of polls, or the
    /// polls are counted.
    pub(super) async fn interrupt(
        self: &Rc<Story>,
        order: Order,
        crash: Option<(u16, u64)>,
        is_done: impl Fn(&[Look]) -> bool,
    ) {
        let executor = executor::current();
        executor.count_polls(crash);
        let cluster = self.cluster.clone();
        executor.spawn_on(OUTSIDE, async move {
            operator::order(&cluster, order, 1).await;
        });
        let until = executor.now() + TIMEOUT;
        while executor.now() < until && !executor.has_stopped() {
            SimRuntime::sleep(POLL_INTERVAL).await;
            if is_done(&self.cluster.looks()) {
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
