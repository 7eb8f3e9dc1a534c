//! A limit on log lines of one kind: what can happen thousands of times a second must not fill the
//! logs. It counts what is left out, and the next line says how many that were.
//!
//! It belongs to one thread. It reads no clock and writes no lines itself.

use std::cell::Cell;
use std::time::Duration;

use crate::env::Instant;

/// Lines that pass in each interval.
const LINES_MAX: u32 = 5;
/// The interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets a few lines a second pass and counts the others.
#[derive(Debug)]
pub struct LineLimit<T: Instant> {
    begun: Cell<Option<T>>,
    /// Lines that have passed since the interval has begun.
    passed: Cell<u32>,
    /// Lines that were left out since the last one that has passed.
    unlogged: Cell<u64>,
}

impl<T: Instant> Default for LineLimit<T> {
    fn default() -> LineLimit<T> {
        LineLimit {
            begun: Cell::new(None),
            passed: Cell::new(0),
            unlogged: Cell::new(0),
        }
    }
}

impl<T: Instant> LineLimit<T> {
    /// Whether a line may be written now; if so, how many were left out before it.
    pub fn pass(&self, now: T) -> Option<u64> {
        let goes_on = self.begun.get().is_some_and(|begun| now < begun + INTERVAL);
        if !goes_on {
            self.begun.set(Some(now));
            self.passed.set(0);
        }
        if self.passed.get() == LINES_MAX {
            self.unlogged.set(self.unlogged.get() + 1);
            return None;
        }
        self.passed.set(self.passed.get() + 1);
        Some(self.unlogged.take())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant as StdInstant;

    use super::*;

    #[test]
    fn a_few_lines_a_second_pass_and_the_others_are_counted() {
        let limit = LineLimit::<StdInstant>::default();
        let begun = StdInstant::now();
        let passed = (0..100).filter_map(|_| limit.pass(begun));
        assert_eq!(passed.collect::<Vec<_>>(), [0; LINES_MAX as usize]);
        assert_eq!(
            limit.pass(begun + INTERVAL),
            Some(100 - u64::from(LINES_MAX))
        );
        assert_eq!(limit.pass(begun + INTERVAL), Some(0));
    }
}
