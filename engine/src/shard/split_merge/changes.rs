//! Changes of bounds (splits and merges) by the leaders of this shard: those under way, and counts of those
//! that have ended, for metrics. Lives on the shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::{BoundsPhase, SplitReason};
use crate::distribution::Distribution;
use crate::error::OrderError;
use crate::types::RangeId;

/// Longer times count as this one in the histogram.
const MICROS_MAX: u64 = 60_000_000;

/// The changes of bounds of a shard.
#[derive(Debug)]
pub struct BoundsChanges {
    /// The merges and freezes that are under way, by the range that is led here.
    under_way: RefCell<BTreeMap<RangeId, BoundsPhase>>,
    splits: [Cell<u64>; SplitReason::ALL.len()],
    merges_done: Cell<u64>,
    merges_failed: Cell<u64>,
    took_micros: RefCell<Distribution>,
}

impl BoundsChanges {
    /// Counts from 0.
    pub(in crate::shard) fn new() -> BoundsChanges {
        BoundsChanges {
            under_way: RefCell::default(),
            splits: Default::default(),
            merges_done: Cell::new(0),
            merges_failed: Cell::new(0),
            took_micros: RefCell::new(Distribution::new(MICROS_MAX)),
        }
    }

    /// Notes that a change of a range has begun.
    pub fn begin(&self, range: RangeId, phase: BoundsPhase) {
        self.under_way.borrow_mut().insert(range, phase);
    }

    /// Notes that it has ended.
    pub fn end(&self, range: RangeId) {
        self.under_way.borrow_mut().remove(&range);
    }

    /// The merge or freeze of a range that is under way.
    pub fn phase(&self, range: RangeId) -> Option<BoundsPhase> {
        self.under_way.borrow().get(&range).copied()
    }

    /// Counts a split that a leader here has made. `took`: how long the keys of the new range were not
    /// served.
    pub fn split_done(&self, reason: SplitReason, took: Duration) {
        let splits = &self.splits[reason as usize];
        splits.set(splits.get() + 1);
        self.took(took);
    }

    /// Counts a merge that a leader here has made. `took`: how long the keys of the right range were not
    /// served, at most.
    pub fn merge_done(&self, took: Duration) {
        self.merges_done.set(self.merges_done.get() + 1);
        self.took(took);
    }

    /// Counts a merge that has failed.
    pub fn merge_failed(&self) {
        self.merges_failed.set(self.merges_failed.get() + 1);
    }

    fn took(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took_micros.borrow_mut().record(micros);
    }

    /// The counts now.
    pub fn stats(&self) -> BoundsChangeStats {
        let splits = SplitReason::ALL.map(|reason| (reason, self.splits[reason as usize].get()));
        BoundsChangeStats {
            splits,
            merges_done: self.merges_done.get(),
            merges_failed: self.merges_failed.get(),
            took_micros: self.took_micros.borrow().clone(),
        }
    }
}

/// Counts of changes of bounds.
#[derive(Clone, Debug)]
pub struct BoundsChangeStats {
    /// The splits for each reason.
    pub splits: [(SplitReason, u64); SplitReason::ALL.len()],
    /// The merges that took place.
    pub merges_done: u64,
    /// The merges that did not.
    pub merges_failed: u64,
    /// How long keys were not served in a change of bounds, in microseconds.
    pub took_micros: Distribution,
}

impl Default for BoundsChangeStats {
    fn default() -> BoundsChangeStats {
        BoundsChanges::new().stats()
    }
}

/// The refusal of a range of which something else is being changed.
pub(in crate::shard) fn is_changing(range: RangeId) -> OrderError {
    OrderError::busy(format!("a change of range {range} is under way"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_counted_by_their_reasons() {
        let changes = BoundsChanges::new();
        changes.split_done(SplitReason::Manual, Duration::from_millis(2));
        changes.split_done(SplitReason::Load, Duration::from_millis(3));
        changes.split_done(SplitReason::Load, Duration::from_hours(2));
        let stats = changes.stats();
        let counts = stats.splits.map(|(reason, count)| (reason.name(), count));
        assert_eq!(counts, [("manual", 1), ("size", 0), ("load", 2)]);
        assert_eq!(stats.took_micros.count(), 3);
        assert_eq!(stats.took_micros.sum(), 7_200_005_000);
    }
}
