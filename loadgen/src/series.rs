//! What was done in each second of a run: the worker threads count, the main thread adds up.
//!
//! Every worker sends its counts of a second through a channel when the second is over, so no counter is
//! shared. The seconds are counted from the moment at which the measured time begins, backwards too: each
//! belongs to the warm-up or to the measured time as a whole, and only the very first may be shorter.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use crate::probe::{Latencies, Summary, new_latencies};

/// The length of all seconds but the first and the last.
const SECOND: Duration = Duration::from_secs(1);

/// When the seconds of a run begin and end.
#[derive(Clone, Copy, Debug)]
pub struct Seconds {
    /// The time before the measured time.
    pub warmup: Duration,
}

impl Seconds {
    /// The end of a second, since the start of the run.
    pub fn end(self, index: u64) -> Duration {
        let part = Duration::from_nanos(u64::from(self.warmup.subsec_nanos()));
        let first = if part.is_zero() { SECOND } else { part };
        first + Duration::from_secs(index)
    }

    /// The beginning of a second, since the start of the run.
    pub fn begin(self, index: u64) -> Duration {
        index
            .checked_sub(1)
            .map_or(Duration::ZERO, |before| self.end(before))
    }
}

/// What was done in a second.
#[derive(Clone, Debug)]
pub struct Second {
    /// The operations that succeeded.
    pub operations: u64,
    /// The operations that failed.
    pub errors: u64,
    /// The latencies of the requests that succeeded.
    pub latencies: Latencies,
}

impl Default for Second {
    fn default() -> Second {
        Second {
            operations: 0,
            errors: 0,
            latencies: new_latencies(),
        }
    }
}

impl Second {
    fn add(&mut self, other: &Second) {
        self.operations += other.operations;
        self.errors += other.errors;
        self.latencies
            .add(&other.latencies)
            .expect("all histograms have the same bounds");
    }
}

/// What a worker tells of a second.
#[derive(Debug)]
pub struct Told {
    /// The number of the worker.
    pub worker: usize,
    /// The number of the second.
    pub index: u64,
    /// What the worker did in it.
    pub second: Second,
    /// Since the start, when the second or the worker's run ended.
    pub until: Duration,
}

/// A second of all workers.
#[derive(Clone, Debug)]
pub struct Interval {
    /// When it began, since the start of the run.
    pub begin: Duration,
    /// How long it lasted: a second, or less for the first and the last one.
    pub length: Duration,
    /// Whether it lies before the measured time.
    pub is_warmup: bool,
    /// What was done in it.
    pub second: Second,
}

/// What is reported of a second. Histograms of all seconds of a long run would not fit into memory.
#[derive(Clone, Copy, Debug)]
pub struct SecondSummary {
    /// When it began, since the start of the run.
    pub begin: Duration,
    /// How long it lasted: a second, or less for the first and the last one.
    pub length: Duration,
    /// Whether it lies before the measured time.
    pub is_warmup: bool,
    /// The operations that succeeded.
    pub operations: u64,
    /// The operations that failed.
    pub errors: u64,
    /// The latencies of the requests that succeeded.
    pub latencies: Summary,
}

impl From<&Interval> for SecondSummary {
    fn from(interval: &Interval) -> SecondSummary {
        SecondSummary {
            begin: interval.begin,
            length: interval.length,
            is_warmup: interval.is_warmup,
            operations: interval.second.operations,
            errors: interval.second.errors,
            latencies: (&interval.second.latencies).into(),
        }
    }
}

impl SecondSummary {
    /// The operations of this time, if they went on for a second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.length.as_secs_f64().max(1e-3)
    }
}

/// Adds up what the workers tell, until they have ended, and hands on each second that is complete.
pub fn collect(
    seconds: Seconds,
    (workers, told): (usize, &Receiver<Told>),
    mut each: impl FnMut(Interval),
) {
    // The first second that a worker may still tell of.
    let mut next = vec![0; workers];
    let mut open: BTreeMap<u64, (Second, Duration)> = BTreeMap::new();
    let mut hand_on = |index, (second, until): (Second, Duration)| {
        let begin = seconds.begin(index);
        each(Interval {
            begin,
            length: until.saturating_sub(begin),
            is_warmup: begin < seconds.warmup,
            second,
        });
    };
    while let Ok(told) = told.recv() {
        let (second, until) = open.entry(told.index).or_default();
        second.add(&told.second);
        *until = told.until.max(*until);
        next[told.worker] = told.index + 1;
        let complete = next.iter().copied().min().unwrap_or(0);
        while let Some(entry) = open.first_entry().filter(|entry| *entry.key() < complete) {
            let (index, second) = entry.remove_entry();
            hand_on(index, second);
        }
    }
    // One worker may have ended before another.
    for (index, second) in open {
        hand_on(index, second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(worker: usize, index: u64, operations: u64, until: u64) -> Told {
        let second = Second {
            operations,
            ..Second::default()
        };
        Told {
            worker,
            index,
            second,
            until: Duration::from_millis(until),
        }
    }

    #[test]
    fn seconds_are_counted_from_the_measured_time() {
        let at = |warmup, index| {
            let warmup = Duration::from_millis(warmup);
            let seconds = Seconds { warmup };
            let (begin, end) = (seconds.begin(index), seconds.end(index));
            (begin.as_millis(), end.as_millis())
        };
        assert_eq!((at(0, 0), at(0, 1)), ((0, 1000), (1000, 2000)));
        assert_eq!((at(2500, 0), at(2500, 1)), ((0, 500), (500, 1500)));
        assert_eq!(at(2500, 3), (2500, 3500));
        assert_eq!((at(2000, 1), at(2000, 2)), ((1000, 2000), (2000, 3000)));
    }

    #[test]
    fn a_second_is_complete_when_every_worker_has_told() {
        let (sender, receiver) = std::sync::mpsc::channel();
        for told in [
            told(0, 0, 1, 500),
            told(0, 1, 2, 1500),
            told(1, 0, 4, 500),
            told(0, 2, 8, 1600),
            // The other worker has ended.
            told(1, 1, 16, 700),
        ] {
            sender.send(told).expect("it is received");
        }
        drop(sender);
        let mut found = Vec::new();
        let seconds = Seconds {
            warmup: Duration::from_millis(500),
        };
        collect(seconds, (2, &receiver), |interval| {
            let length = interval.length.as_millis();
            found.push((interval.is_warmup, length, interval.second.operations));
        });
        assert_eq!(found, [(true, 500, 5), (false, 1000, 18), (false, 100, 8)]);
    }
}
