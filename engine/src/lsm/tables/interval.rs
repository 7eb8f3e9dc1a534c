//! An interval of keys that is walked in one direction. The iterators of runs and tables compare rows
//! with it. Pure.

use std::ops::Bound;

use super::Slice;
use crate::lsm::{Bounds, Direction};

/// An interval of keys, and the direction in which it is walked.
pub(super) struct Interval {
    pub(super) low: Bound<Slice>,
    pub(super) high: Bound<Slice>,
    pub(super) direction: Direction,
}

impl Interval {
    pub(super) fn new((low, high): Bounds<'_>, direction: Direction) -> Interval {
        Interval {
            low: low.map(Slice::from),
            high: high.map(Slice::from),
            direction,
        }
    }

    /// Its bounds.
    pub(super) fn bounds(&self) -> Bounds<'_> {
        let low = self.low.as_ref().map(Slice::as_slice);
        (low, self.high.as_ref().map(Slice::as_slice))
    }

    fn is_below(&self, key: &[u8]) -> bool {
        match &self.low {
            Bound::Included(low) => key < low.as_slice(),
            Bound::Excluded(low) => key <= low.as_slice(),
            Bound::Unbounded => false,
        }
    }

    fn is_above(&self, key: &[u8]) -> bool {
        match &self.high {
            Bound::Included(high) => key > high.as_slice(),
            Bound::Excluded(high) => key >= high.as_slice(),
            Bound::Unbounded => false,
        }
    }

    /// Whether a key comes before the interval, in its direction.
    pub(super) fn is_before(&self, key: &[u8]) -> bool {
        match self.direction {
            Direction::Forward => self.is_below(key),
            Direction::Reverse => self.is_above(key),
        }
    }

    /// Whether a key comes after the interval, in its direction.
    pub(super) fn is_beyond(&self, key: &[u8]) -> bool {
        match self.direction {
            Direction::Forward => self.is_above(key),
            Direction::Reverse => self.is_below(key),
        }
    }
}
