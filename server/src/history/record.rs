//! The rows of the history: the work of a minute or an hour, events, and their form on disk, which is JSON.
//! Pure.

use std::collections::BTreeMap;

use rangedb_protocol::admin::Period;
use serde::{Deserialize, Serialize};

/// The milliseconds of a minute and of an hour.
pub const MINUTE_MS: u64 = 60_000;
/// See [`MINUTE_MS`].
pub const HOUR_MS: u64 = 60 * MINUTE_MS;
/// The longest text of an event, in bytes. The last words of a crash are the longest.
pub const TEXT_LEN_MAX: usize = 2000;
/// The longest name of a kind of events, in bytes.
const KIND_LEN_MAX: usize = 64;

/// The work of all shards in some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The number of answered requests, by operation.
    #[serde(default)]
    pub operations: BTreeMap<String, u64>,
    /// The number of refused requests, by error code.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// How many requests took at most so many microseconds, and more than the bucket before.
    #[serde(default)]
    pub latency: BTreeMap<u64, u64>,
}

impl Work {
    /// Adds the work of another time.
    pub fn add(&mut self, other: &Work) {
        for (operation, count) in &other.operations {
            raise(&mut self.operations, operation, *count);
        }
        for (code, count) in &other.refused {
            raise(&mut self.refused, code, *count);
        }
        for (micros, count) in &other.latency {
            let bucket = self.latency.entry(*micros).or_default();
            *bucket = bucket.saturating_add(*count);
        }
    }

    /// The time below which this share of the requests was answered, in microseconds; 0 without
    /// requests.
    fn quantile(&self, share: f64) -> u64 {
        let all = sum(self.latency.values());
        let rank = (all as f64 * share).ceil() as u64;
        let mut counted = 0;
        for (micros, count) in &self.latency {
            counted = u64::saturating_add(counted, *count);
            if counted >= rank.max(1) {
                return *micros;
            }
        }
        0
    }

    /// What is told of the work that began at this time.
    pub fn period(&self, t: u64) -> Period {
        Period {
            t,
            ops: sum(self.operations.values()),
            errors: sum(self.refused.values()),
            p50_us: self.quantile(0.5),
            p99_us: self.quantile(0.99),
            p999_us: self.quantile(0.999),
            operations: self.operations.clone(),
            refused: self.refused.clone(),
            latency_us: BTreeMap::new(),
        }
    }
}

impl From<Period> for Work {
    /// The work of a period that was told with its histogram.
    fn from(period: Period) -> Work {
        Work {
            operations: period.operations,
            refused: period.refused,
            latency: period.latency_us,
        }
    }
}

/// The sum of counts; a row that is damaged may have any.
fn sum<'a>(counts: impl Iterator<Item = &'a u64>) -> u64 {
    counts.fold(0, |sum, count| sum.saturating_add(*count))
}

/// Raises the count of a name.
pub fn raise(counts: &mut BTreeMap<String, u64>, name: &str, by: u64) {
    let count = counts.entry(name.to_owned()).or_default();
    *count = count.saturating_add(by);
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its kind, by the name that log lines have in their field `event`.
    pub kind: String,
    /// What happened, for people.
    pub text: String,
}

impl Event {
    /// An event whose words are cut to their bounds.
    pub fn new(kind: &str, text: &str) -> Event {
        Event {
            kind: cut(kind, KIND_LEN_MAX).to_owned(),
            text: cut(text, TEXT_LEN_MAX).to_owned(),
        }
    }
}

/// The beginning of a text, of at most so many bytes.
fn cut(text: &str, len_max: usize) -> &str {
    text.get(..text.floor_char_boundary(len_max))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_adds_up_and_tells_its_quantiles() {
        let mut sum = Work::default();
        assert_eq!(
            sum.period(7),
            Period {
                t: 7,
                ..Period::default()
            }
        );
        for (micros, count) in [(10, 90), (100, 9), (5000, 1)] {
            let mut work = Work::default();
            raise(&mut work.operations, "get", count);
            raise(&mut work.refused, "busy", 1);
            work.latency.insert(micros, count);
            sum.add(&work);
        }
        let told = sum.period(60_000);
        assert_eq!((told.ops, told.errors), (100, 3));
        assert_eq!((told.p50_us, told.p99_us, told.p999_us), (10, 100, 5000));
        let stored = serde_json::to_vec(&sum).expect("it is JSON");
        let read: Work = serde_json::from_slice(&stored).expect("it is read");
        assert_eq!(read, sum);
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        let event = Event::new("kind", &"ä".repeat(TEXT_LEN_MAX));
        assert_eq!(event.text.len(), TEXT_LEN_MAX);
        let event = Event::new("kind", &format!("x{}", "ä".repeat(TEXT_LEN_MAX)));
        assert_eq!(event.text.len(), TEXT_LEN_MAX - 1);
    }
}
