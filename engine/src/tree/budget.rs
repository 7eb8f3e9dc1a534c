//! The memory of the writes that wait or are in flight, shared by all ranges of a shard by the rule of
//! [`crate::fair_share`]: a range that floods its shard is refused, the others are not.
//!
//! A range's [`WriteShare`] counts for it alone and for the shard's [`WriteBudget`] at the same time, in
//! plain cells: a write costs some additions and allocates nothing. Lives on the shard's thread.

use std::cell::Cell;
use std::rc::Rc;

use crate::fair_share::{Use, Weight};
use crate::limits::SHARD_WRITES_LEN_MAX;

/// The memory that the writes of a shard use.
#[derive(Debug, Default)]
pub struct WriteBudget {
    used: Cell<usize>,
    /// How many ranges use any of it.
    ranges: Cell<usize>,
    /// Writes that were refused because their range fills its shard, or its own queue.
    refused: Cell<u64>,
}

impl WriteBudget {
    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// How many writes were refused because their range fills its shard, or its own queue.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    fn in_use(&self) -> Use {
        Use {
            max: SHARD_WRITES_LEN_MAX,
            used: self.used.get(),
            holders: self.ranges.get(),
        }
    }
}

/// What one range uses of a shard's [`WriteBudget`].
#[derive(Debug)]
pub struct WriteShare {
    budget: Rc<WriteBudget>,
    used: Cell<usize>,
    /// The part of it that is in entries on their way.
    in_flight: Cell<usize>,
}

impl WriteShare {
    /// The share of a range that uses nothing yet.
    pub fn of(budget: Rc<WriteBudget>) -> WriteShare {
        WriteShare {
            budget,
            used: Cell::new(0),
            in_flight: Cell::new(0),
        }
    }

    /// Whether the range may have `more` bytes.
    pub fn allows(&self, more: usize) -> bool {
        self.budget.in_use().allows(self.used.get(), more)
    }

    /// How much the range uses beside the others.
    pub fn weight(&self) -> Weight {
        self.budget.in_use().weight(self.used.get())
    }

    /// Counts `len` more bytes as used.
    pub fn take(&self, len: usize) {
        let before = self.used.replace(self.used.get() + len);
        self.budget.used.set(self.budget.used.get() + len);
        if before == 0 && len > 0 {
            self.budget.ranges.set(self.budget.ranges.get() + 1);
        }
    }

    /// Counts `len` bytes as no longer used.
    pub fn give_back(&self, len: usize) {
        let now = self.used.get() - len;
        self.used.set(now);
        self.budget.used.set(self.budget.used.get() - len);
        if now == 0 && len > 0 {
            self.budget.ranges.set(self.budget.ranges.get() - 1);
        }
    }

    /// How many bytes are in entries on their way, which memtables will have to take.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Counts `len` bytes of those in use as in an entry on its way.
    pub fn depart(&self, len: usize) {
        self.in_flight.set(self.in_flight.get() + len);
    }

    /// Counts `len` bytes that were on their way as no longer used.
    pub fn arrive(&self, len: usize) {
        self.in_flight.set(self.in_flight.get() - len);
        self.give_back(len);
    }

    /// Counts a write as refused.
    pub fn refuse(&self) {
        self.budget.refused.set(self.budget.refused.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BATCH_LEN_MAX;

    const LEN: usize = 64 << 10;

    /// Uses all that a range may have; gives how much that is.
    fn fill(share: &WriteShare) -> usize {
        while share.allows(LEN) {
            share.take(LEN);
        }
        share.used.get()
    }

    #[test]
    fn a_range_that_fills_its_shard_is_refused_and_others_are_not() {
        let budget = Rc::new(WriteBudget::default());
        let [flood, other] = [(); 2].map(|()| WriteShare::of(budget.clone()));
        let flooded = fill(&flood);
        assert!(flooded > SHARD_WRITES_LEN_MAX / 2 - 2 * LEN, "{flooded}");
        assert_eq!(flood.weight(), Weight::Usual, "it is alone");
        // The largest write there is, and more.
        assert!(other.allows(BATCH_LEN_MAX));
        other.take(BATCH_LEN_MAX);
        assert!(other.allows(BATCH_LEN_MAX) && !flood.allows(1));
        assert_eq!(flood.weight(), Weight::Heavy);
        assert_eq!(other.weight(), Weight::Light);
        // When it has drained, it goes on.
        flood.give_back(flooded);
        assert!(flood.allows(BATCH_LEN_MAX));
        other.give_back(BATCH_LEN_MAX);
        assert_eq!((budget.used(), budget.ranges.get()), (0, 0));
    }

    #[test]
    fn a_thousand_ranges_that_hold_nothing_are_let_in_beside_a_flood() {
        let budget = Rc::new(WriteBudget::default());
        let flood = WriteShare::of(budget.clone());
        fill(&flood);
        let others: Vec<WriteShare> = (0..1000).map(|_| WriteShare::of(budget.clone())).collect();
        for other in &others {
            assert!(other.allows(1000));
            other.take(1000);
        }
        assert_eq!(budget.ranges.get(), 1001);
        assert!(budget.used() <= SHARD_WRITES_LEN_MAX && !flood.allows(LEN));
        assert_eq!(budget.refused(), 0);
        flood.refuse();
        assert_eq!(budget.refused(), 1);
    }
}
