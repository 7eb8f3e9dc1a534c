//! What must hold in every run: one property a file, its statement on top.
//!
//! Some are checked at each entry that any replica applies ([`entry_applied`]), some by a look at all
//! replicas at one moment ([`Watch`]), the others by what clients saw.

pub mod completeness;
pub mod convergence;
pub mod counters;
pub mod leadership;
pub mod log_matching;
pub mod pairs;
pub mod progress;
pub mod registers;
pub mod replay;
pub mod replication;
pub mod session_pairs;
pub mod snapshots;
pub mod state_machine;
pub mod steadiness;
pub mod tiling;
pub mod voters;

use std::cell::RefCell;

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::RangeId;
use rangedb_engine::wal::{Group, LogEntry};

use crate::sim::cluster::Look;
use crate::sim::seen::Seen;

/// What was seen of all entries that were applied.
#[derive(Default)]
struct Entries {
    log: log_matching::Log,
    machine: state_machine::Machine,
    pairs: session_pairs::Pairs,
    voters: voters::Voters,
    violations: Vec<String>,
}

thread_local! {
    static ENTRIES: RefCell<Entries> = RefCell::default();
}

/// Forgets what an earlier run on this thread has seen.
pub fn forget() {
    ENTRIES.take();
}

/// A replica has applied an entry.
pub fn entry_applied(group: Group, entry: &LogEntry, results: &[Applied], state: &RangeState) {
    ENTRIES.with_borrow_mut(|entries| {
        let checks = [
            entries.log.check(group, entry),
            entries.machine.check(group, entry, results, state),
            entries.pairs.check(group, entry, results),
            entries.voters.check(group, entry, state),
        ];
        let found = checks.into_iter().filter_map(Result::err);
        entries.violations.extend(found);
    });
}

/// Whether each of these ranges has enough voters for the disk of one to be lost.
pub fn can_spare_a_disk(ranges: impl Iterator<Item = RangeId>, begun_with: usize) -> bool {
    ENTRIES.with_borrow(|entries| entries.voters.are_enough(ranges, begun_with))
}

/// Looks at all replicas at one moment.
#[derive(Default)]
pub struct Watch {
    leadership: leadership::Leadership,
    progress: progress::Progress,
}

impl Watch {
    /// Checks what holds at any moment.
    pub fn check(&mut self, seen: &Seen, looks: &[Look]) {
        let found = ENTRIES.with_borrow_mut(|entries| {
            completeness::check(&entries.log, seen, looks);
            std::mem::take(&mut entries.violations)
        });
        found.into_iter().for_each(|what| seen.violation(what));
        self.leadership.check(seen, looks);
        self.progress.check(seen, looks);
        tiling::check(seen, looks);
    }
}
