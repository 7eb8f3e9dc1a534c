//! The memory of writes that wait or are in flight, of all ranges of a shard together.
//!
//! A range may have as much as is left for all others. So one range alone gets half of the budget, several
//! share it about evenly, and one that floods its shard leaves room for a range that wakes up.

use std::cell::Cell;

use crate::limits::SHARD_WRITES_LEN_MAX;

/// What the writes of a shard take.
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

    /// So many more bytes are in use.
    pub fn take(&self, len: usize) {
        self.used.set(self.used.get() + len);
    }

    /// So many bytes are not in use any more.
    pub fn give_back(&self, len: usize) {
        self.used.set(self.used.get() - len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BATCH_LEN_MAX;

    const LEN: usize = 64 << 10;

    /// Fills up what a range may have; gives that.
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
