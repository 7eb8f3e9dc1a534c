//! The memory of the writes that wait or are in flight, shared by all ranges of a shard.
//!
//! A range may use as much as is left for all others. So a single range gets half of the budget,
//! several share it about evenly, and one that floods its shard leaves room for a range that wakes
//! up.

use std::cell::Cell;

use crate::limits::SHARD_WRITES_LEN_MAX;

/// The memory that the writes of a shard use.
#[derive(Debug, Default)]
pub struct WriteBudget {
    used: Cell<usize>,
}

impl WriteBudget {
    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether a range that has `own` bytes may have `more`.
    pub fn allows(&self, own: usize, more: usize) -> bool {
        let used = self.used.get().saturating_add(more);
        own.saturating_add(more) <= SHARD_WRITES_LEN_MAX.saturating_sub(used)
    }

    /// Counts `len` more bytes as used.
    pub fn take(&self, len: usize) {
        self.used.set(self.used.get() + len);
    }

    /// Counts `len` bytes as no longer used.
    pub fn give_back(&self, len: usize) {
        self.used.set(self.used.get() - len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BATCH_LEN_MAX;

    const LEN: usize = 64 << 10;

    /// Uses all that one more range may have; gives how much that was.
    fn fill(budget: &WriteBudget) -> usize {
        let mut own = 0;
        while budget.allows(own, LEN) {
            budget.take(LEN);
            own += LEN;
        }
        own
    }

    #[test]
    fn one_range_leaves_room_for_others() {
        let budget = WriteBudget::default();
        let first = fill(&budget);
        assert!(first > SHARD_WRITES_LEN_MAX / 2 - 2 * LEN, "{first}");
        let mut all = first;
        for others in 1..5 {
            let next = fill(&budget);
            assert!(next >= BATCH_LEN_MAX / 2, "{others}: {next}");
            all += next;
        }
        assert!(all <= SHARD_WRITES_LEN_MAX);
        assert_eq!(budget.used(), all);
        budget.give_back(first);
        assert!(fill(&budget) > first / 2);
    }
}
