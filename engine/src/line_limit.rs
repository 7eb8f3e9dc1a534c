//! A limit on log lines of one kind: what can happen thousands of times a second must not fill the
//! logs. It counts what is left out, and the next line says how many that were.
//!
//! It belongs to one thread. It reads no clock and writes no lines itself.

use std::cell::Cell;
use std::time::Duration;

use crate::boot_time::BootTime;

/// Lines that pass in each interval, if nothing else is said.
const LINES_MAX: u32 = 5;
/// The interval, if nothing else is said.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets a few lines pass in each interval, by default 5 a second, and counts the others.
#[derive(Debug)]
pub struct LineLimit {
    lines_max: u32,
    interval: Duration,
    begun: Cell<Option<BootTime>>,
    /// Lines that have passed since the interval has begun.
    passed: Cell<u32>,
    /// Lines that were left out since the last one that has passed.
    unlogged: Cell<u64>,
}

impl Default for LineLimit {
    fn default() -> LineLimit {
        LineLimit::new(LINES_MAX, INTERVAL)
    }
}

impl LineLimit {
    /// Lets this many lines pass in each interval.
    pub fn new(lines_max: u32, interval: Duration) -> LineLimit {
        LineLimit {
            lines_max,
            interval,
            begun: Cell::new(None),
            passed: Cell::new(0),
            unlogged: Cell::new(0),
        }
    }

    /// Whether a line may be written now; if so, how many were left out before it.
    pub fn pass(&self, now: BootTime) -> Option<u64> {
        let goes_on = self
            .begun
            .get()
            .is_some_and(|begun| now < begun + self.interval);
        if !goes_on {
            self.begun.set(Some(now));
            self.passed.set(0);
        }
        if self.passed.get() == self.lines_max {
            self.unlogged.set(self.unlogged.get() + 1);
            return None;
        }
        self.passed.set(self.passed.get() + 1);
        Some(self.unlogged.take())
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    #[test]
    fn a_few_lines_a_second_pass_and_the_others_are_counted() {
        let limit = LineLimit::default();
        let begun = test_clock::now();
        let passed = (0..100).filter_map(|_| limit.pass(begun));
        assert_eq!(passed.collect::<Vec<_>>(), [0; LINES_MAX as usize]);
        assert_eq!(
            limit.pass(begun + INTERVAL),
            Some(100 - u64::from(LINES_MAX))
        );
        assert_eq!(limit.pass(begun + INTERVAL), Some(0));
    }

    #[test]
    fn a_line_a_minute_passes() {
        let limit = LineLimit::new(1, Duration::from_mins(1));
        let begun = test_clock::now();
        assert_eq!(limit.pass(begun), Some(0));
        assert_eq!(limit.pass(begun + Duration::from_secs(59)), None);
        assert_eq!(limit.pass(begun + Duration::from_mins(1)), Some(1));
    }
}
