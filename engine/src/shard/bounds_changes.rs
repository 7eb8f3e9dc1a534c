//! Counts of the changes of bounds that leaders of a shard have made, for metrics. Lives on the shard's
//! thread.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::cluster::SplitReason;
use crate::distribution::Distribution;

/// Longer times count as this one in the histogram.
const MICROS_MAX: u64 = 60_000_000;

/// The changes of bounds of a shard.
#[derive(Debug)]
pub struct BoundsChanges {
    splits: [Cell<u64>; SplitReason::ALL.len()],
    took_micros: RefCell<Distribution>,
}

impl BoundsChanges {
    /// Counts from 0.
    pub(super) fn new() -> BoundsChanges {
        BoundsChanges {
            splits: Default::default(),
            took_micros: RefCell::new(Distribution::new(MICROS_MAX)),
        }
    }

    /// Counts a split that a leader here has made. `took`: how long the keys of the new range were not
    /// served.
    pub fn split_done(&self, reason: SplitReason, took: Duration) {
        let splits = &self.splits[reason as usize];
        splits.set(splits.get() + 1);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took_micros.borrow_mut().record(micros);
    }

    /// The counts now.
    pub fn stats(&self) -> BoundsChangeStats {
        let splits = SplitReason::ALL.map(|reason| (reason, self.splits[reason as usize].get()));
        BoundsChangeStats {
            splits,
            took_micros: self.took_micros.borrow().clone(),
        }
    }
}

/// Counts of changes of bounds.
#[derive(Clone, Debug)]
pub struct BoundsChangeStats {
    /// The splits for each reason.
    pub splits: [(SplitReason, u64); SplitReason::ALL.len()],
    /// How long keys were not served in a change of bounds, in microseconds.
    pub took_micros: Distribution,
}

impl Default for BoundsChangeStats {
    fn default() -> BoundsChangeStats {
        BoundsChanges::new().stats()
    }
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
