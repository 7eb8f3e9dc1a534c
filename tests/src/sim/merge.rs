//! A range is split and then merged again. During the merge a machine loses its power after a given number
//! of polls of its tasks, so that a test can try every point of it.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use super::cluster::Look;
use super::faults::{Fault, Faults, Order, Step};
use super::operator;
use super::run::{Report, Story, run_drawn};
use super::runtime::SimRuntime;
use super::split::{BEGINS_AFTER, CLIENTS, KEY, SIZES};

/// Clients write to both ranges for as long before they are merged.
const APART: Duration = Duration::from_millis(300);
/// A key of the left range.
const LEFT: [u8; 3] = *b"cr1";

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
        operator::order(&self.cluster, Order::Split { at: KEY }, 1).await;
        SimRuntime::sleep(APART).await;
        let is_merged = |looks: &[Look]| {
            let users = looks.iter().filter(|look| !look.status.system);
            let whole = users.filter(|look| look.status.route.keys.end.is_none());
            let merged = whole.filter(|look| look.status.route.keys.contains(&LEFT));
            merged.count() == usize::from(SIZES.nodes)
        };
        self.interrupt(Order::Merge { at: LEFT }, crash, is_merged)
            .await;
    }
}
