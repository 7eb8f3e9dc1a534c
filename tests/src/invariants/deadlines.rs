//! A write that has a deadline is answered by it: applied, refused, or with a fate that is not known.
//! The node may be a little late, and as late as it was paused. One that fails answers nothing.

use std::time::Duration;

use rangedb_engine::boot_time::BootTime;
use rangedb_engine::env::Env;
use rangedb_engine::error::Error;
use rangedb_engine::types::{Location, NodeId};

use super::ENTRIES;
use crate::sim::sim_env::SimEnv;

/// How late a node may be that runs all the time: it looks for deadlines a few times a second at
/// least, and an entry on its way may take its writes beyond theirs.
const LATE_MAX: Duration = Duration::from_millis(250);

/// The time by which a write must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    deadline: Option<BootTime>,
    /// How often machines had been paused before it came.
    pauses: u64,
}

/// A write that comes to a node now, with this deadline on the node's clock.
pub fn due(deadline: Option<BootTime>) -> Due {
    let pauses = ENTRIES.with_borrow(|entries| entries.pauses);
    Due { deadline, pauses }
}

/// Notes that a machine is paused.
pub fn paused() {
    ENTRIES.with_borrow_mut(|entries| entries.pauses += 1);
}

/// Notes that a node has failed: its process is about to end because of an error. Outside the simulator it ends
/// at once, and answers nothing more.
pub fn failed(node: NodeId) {
    ENTRIES.with_borrow_mut(|entries| entries.failed.insert(node));
}

/// Notes that a node starts.
pub fn starts(node: NodeId) {
    ENTRIES.with_borrow_mut(|entries| entries.failed.remove(&node));
}

/// Checks a write that a shard answers now; `error` is why, if it is refused.
pub fn answered(due: &Due, at: Location, error: Option<&Error>) {
    let Some(deadline) = due.deadline else { return };
    let now = SimEnv::now();
    if now <= deadline + LATE_MAX {
        return;
    }
    ENTRIES.with_borrow_mut(|entries| {
        if entries.pauses == due.pauses && !entries.failed.contains(&at.node) {
            let late = now - deadline;
            let answer = error.map_or_else(|| "it is applied".to_owned(), Error::to_string);
            let what =
                format!("a write was answered {late:?} after its deadline by shard {at}: {answer}");
            entries.violations.push(what);
        }
    });
}
