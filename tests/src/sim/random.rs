//! Seeded random numbers: one stream for each purpose, so that the streams do not influence each
//! other.

use std::cell::Cell;
use std::rc::Rc;

/// A stream of numbers (xorshift64*, Vigna 2016). Clones share the stream.
#[derive(Clone, Debug)]
pub struct Random(Rc<Cell<u64>>);

impl Random {
    /// The stream of a seed for one purpose.
    pub fn new(seed: u64, purpose: u64) -> Random {
        let mixed = (seed ^ purpose.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let random = Random(Rc::new(Cell::new(mixed | 1)));
        for _ in 0..4 {
            random.next();
        }
        random
    }

    /// Any number.
    pub fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        (self.next() >> 16) % limit.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Returns `true` once in `of` times on average.
    pub fn once_in(&self, of: u64) -> bool {
        self.below(of) == 0
    }
}
