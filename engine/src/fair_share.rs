//! The one rule by which the ranges of a shard share what there is a limit on: memory for writes, places
//! for scans, requests on their way to other shards, requests that wait for a leader, and blocks that
//! are read from the disk.
//!
//! A range may hold as much as is left for all others (dynamic thresholds, as switches share the memory of
//! their ports). So one that floods its shard alone has half, several that do have equal parts, and a part
//! as large as theirs is always left for one that wakes up. A range that holds nothing gets in while
//! anything is left at all. What a range holds beyond its share is not taken away, but it gets no more
//! until enough of that has come back, which takes moments. Pure.
//!
//! [`Use`] is the rule, and [`Shared`] applies it to what is held in parts for a while. (Writes count what
//! they use themselves, in plain cells: [`crate::tree::budget`].) Lives on the shard's thread.

use std::cell::{Cell, RefCell};
use std::hash::Hash;
use std::rc::Rc;

use rustc_hash::FxHashMap;

/// How much there is, and how much is in use.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// All that there is.
    pub max: usize,
    /// How much of it is in use.
    pub used: usize,
    /// How many ranges hold anything of it.
    pub holders: usize,
}

impl Use {
    /// Whether a range that holds `own` may have `more`.
    pub fn allows(&self, own: usize, more: usize) -> bool {
        let Some(left) = self.max.checked_sub(self.used.saturating_add(more)) else {
            return false;
        };
        own == 0 || own.saturating_add(more) <= left
    }

    /// How much a range that holds `own` holds beside the others.
    pub fn weight(&self, own: usize) -> Weight {
        let average = self.used / self.holders.max(1);
        match own {
            _ if self.holders <= 1 => Weight::Usual,
            own if own > average + average / 2 => Weight::Heavy,
            own if own <= average / 2 => Weight::Light,
            _ => Weight::Usual,
        }
    }
}

/// Something that there is a limit on, and what the ranges hold of it. `R` is what ranges are told apart by.
#[derive(Debug)]
pub struct Shared<R> {
    max: usize,
    used: Cell<usize>,
    /// How much each range holds that holds anything.
    of_range: RefCell<FxHashMap<R, usize>>,
    refused: Cell<u64>,
}

impl<R: Copy + Eq + Hash> Shared<R> {
    /// There is `max` of it, and nothing is in use.
    pub fn new(max: usize) -> Shared<R> {
        Shared {
            max,
            used: Cell::new(0),
            of_range: RefCell::default(),
            refused: Cell::new(0),
        }
    }

    /// Takes `more` for a range, until what this gives is dropped. `None`: there is not so much left, or the
    /// range has its share.
    pub fn take(self: &Rc<Self>, range: R, more: usize) -> Option<Part<R>> {
        let mut of_range = self.of_range.borrow_mut();
        let own = of_range.get(&range).copied().unwrap_or(0);
        let all = Use {
            max: self.max,
            used: self.used.get(),
            holders: of_range.len(),
        };
        if !all.allows(own, more) {
            self.refused.set(self.refused.get() + 1);
            return None;
        }
        of_range.insert(range, own + more);
        self.used.set(self.used.get() + more);
        Some(Part {
            shared: self.clone(),
            range,
            len: more,
        })
    }

    /// How much is in use.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// How often a range was refused.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }
}

/// What a range holds; it is given back when this is dropped.
#[derive(Debug)]
pub struct Part<R: Copy + Eq + Hash> {
    shared: Rc<Shared<R>>,
    range: R,
    len: usize,
}

impl<R: Copy + Eq + Hash> Drop for Part<R> {
    fn drop(&mut self) {
        let Part { shared, range, len } = self;
        let mut of_range = shared.of_range.borrow_mut();
        let own = of_range.get(range).map_or(0, |own| own - *len);
        match own {
            0 => of_range.remove(range),
            own => of_range.insert(*range, own),
        };
        shared.used.set(shared.used.get() - *len);
    }
}

/// How much a range holds beside the others that hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// At most half of the average.
    Light,
    /// About the average, or there are no others.
    Usual,
    /// More than one and a half times the average.
    Heavy,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    /// What each of some ranges holds.
    struct Ranges(Vec<usize>);

    impl Ranges {
        fn all(&self) -> Use {
            Use {
                max: MAX,
                used: self.0.iter().sum(),
                holders: self.0.iter().filter(|own| **own > 0).count(),
            }
        }

        /// Has a range take as many pieces as it may; gives what it holds.
        fn fill(&mut self, range: usize) -> usize {
            while self.all().allows(self.0[range], MAX / 1024) {
                self.0[range] += MAX / 1024;
            }
            self.0[range]
        }
    }

    #[test]
    fn a_range_that_fills_its_shard_is_refused_and_another_is_not() {
        let mut ranges = Ranges(vec![0; 2]);
        assert_eq!(ranges.fill(0), MAX / 2);
        assert_eq!(ranges.fill(1), MAX / 4);
        // What the first one gives back goes to the second one, until both have the same.
        for _ in 0..100 {
            ranges.0[0] -= MAX / 100;
            ranges.fill(1);
            ranges.fill(0);
        }
        assert!(
            ranges.0.iter().all(|own| own.abs_diff(MAX / 3) < MAX / 50),
            "{:?}",
            ranges.0
        );
        // After the other has drained, the first one goes on.
        ranges.0[1] = 0;
        assert!(ranges.fill(0) > MAX / 2 - MAX / 256);
    }

    #[test]
    fn whoever_floods_ranges_that_hold_nothing_get_in() {
        for floods in [1, 2, 5, 20] {
            let mut ranges = Ranges(vec![0; floods + 1000]);
            // In many small steps, as they all do their work.
            for _ in 0..100 {
                for flood in 0..floods {
                    ranges.0[flood] -= ranges.0[flood] / 10;
                    ranges.fill(flood);
                }
            }
            for other in floods..floods + 1000 {
                let all = ranges.all();
                assert!(all.allows(0, 10), "{other} of {floods}: {all:?}");
                ranges.0[other] += 10;
            }
            assert!(ranges.all().used <= MAX);
        }
    }

    #[test]
    fn never_more_than_there_is() {
        let full = Use {
            max: MAX,
            used: MAX - 1,
            holders: 3,
        };
        assert!(full.allows(0, 1));
        assert!(!full.allows(1, 1));
        assert!(!full.allows(0, 2));
        assert!(!full.allows(0, usize::MAX));
    }

    #[test]
    fn what_a_range_holds_comes_back_when_it_is_dropped() {
        let shared = Rc::new(Shared::new(100));
        let fill = |range: u64| -> Vec<Part<u64>> {
            std::iter::from_fn(|| shared.take(range, 1)).collect()
        };
        let mut one = fill(1);
        let other = fill(2);
        assert_eq!((one.len(), other.len(), shared.used()), (50, 25, 75));
        assert_eq!(shared.refused(), 2);
        assert!(shared.take(3, 26).is_none(), "there is not so much left");
        assert!(shared.take(3, 25).is_some());
        one.truncate(20);
        assert!(shared.take(1, 1).is_some(), "it holds less than is left");
        drop((one, other));
        assert_eq!(shared.used(), 0);
        assert!(shared.of_range.borrow().is_empty());
        assert_eq!(fill(2).len(), 50);
    }

    #[test]
    fn a_range_is_light_or_heavy_only_beside_others() {
        let beside = |used, holders| Use {
            max: MAX,
            used,
            holders,
        };
        assert_eq!(beside(500, 0).weight(0), Weight::Usual);
        assert_eq!(beside(500, 1).weight(500), Weight::Usual);
        assert_eq!(beside(500, 2).weight(400), Weight::Heavy);
        assert_eq!(beside(500, 2).weight(100), Weight::Light);
        assert_eq!(beside(500, 2).weight(250), Weight::Usual);
        assert_eq!(beside(500, 10).weight(60), Weight::Usual);
    }
}
