//! The counters of one thread: latencies by kind of operation, results, errors. There are no locks:
//! each thread has its own counters, and they are merged at the end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::workload::OperationKind;

/// Longest latency in the histogram; longer ones count as this.
const LATENCY_NANOS_MAX: u64 = 120 * 1_000_000_000;
/// Decimal digits to which a latency is exact.
pub const LATENCY_DIGITS: u8 = 3;

/// Latencies of one operation kind, in nanoseconds.
pub type Latencies = Histogram<u64>;

/// The shares of operations whose latencies are reported, with the names in JSON.
pub const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p999", 0.999),
    ("p9999", 0.9999),
];

/// What is reported of latencies, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many there are.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Those of [`QUANTILES`].
    pub quantiles: [u64; QUANTILES.len()],
    /// The longest.
    pub max: u64,
}

impl From<&Latencies> for Summary {
    fn from(latencies: &Latencies) -> Summary {
        Summary {
            count: latencies.len(),
            mean: latencies.mean(),
            quantiles: QUANTILES.map(|(_, share)| latencies.value_at_quantile(share)),
            max: latencies.max(),
        }
    }
}

/// An empty histogram.
pub fn new_latencies() -> Latencies {
    Histogram::new_with_max(LATENCY_NANOS_MAX, LATENCY_DIGITS).expect("the bounds are valid")
}

/// The counters of one thread, or of all of them together.
#[derive(Clone, Debug)]
pub struct Probe {
    latencies: Vec<Option<Latencies>>,
    /// Operations that succeeded within the measured time.
    pub operations: u64,
    /// Reads of absent keys.
    pub not_found: u64,
    /// Those of them that must have been there, since the record was loaded before the run.
    pub missing: u64,
    /// Read-modify-writes whose condition failed because of another writer.
    pub conflicts: u64,
    /// Failures by code.
    pub errors: BTreeMap<Cow<'static, str>, u64>,
    /// Operations of an open loop that were due but had not begun when the time was over.
    pub not_started: u64,
}

impl Default for Probe {
    fn default() -> Self {
        Probe {
            latencies: vec![None; OperationKind::ALL.len()],
            operations: 0,
            not_found: 0,
            missing: 0,
            conflicts: 0,
            errors: BTreeMap::new(),
            not_started: 0,
        }
    }
}

impl Probe {
    /// Counts a latency.
    pub fn record(&mut self, kind: OperationKind, latency: Duration) {
        let latencies = self.latencies[kind as usize].get_or_insert_with(new_latencies);
        latencies.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts a failure.
    pub fn fail(&mut self, code: Cow<'static, str>) {
        *self.errors.entry(code).or_default() += 1;
    }

    /// Adds another thread's counts.
    pub fn merge(&mut self, other: Probe) {
        for (mine, theirs) in self.latencies.iter_mut().zip(other.latencies) {
            if let Some(theirs) = theirs {
                let mine = mine.get_or_insert_with(new_latencies);
                mine.add(theirs)
                    .expect("all histograms have the same bounds");
            }
        }
        self.operations += other.operations;
        self.not_found += other.not_found;
        self.missing += other.missing;
        self.conflicts += other.conflicts;
        self.not_started += other.not_started;
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
    }

    /// The latencies of each kind that occurred.
    pub fn latencies(&self) -> impl Iterator<Item = (OperationKind, &Latencies)> {
        let all = OperationKind::ALL.into_iter().zip(&self.latencies);
        all.filter_map(|(kind, latencies)| Some((kind, latencies.as_ref()?)))
    }

    /// The latencies of all kinds together.
    pub fn all_latencies(&self) -> Latencies {
        let mut all = new_latencies();
        for (_, latencies) in self.latencies() {
            all.add(latencies)
                .expect("all histograms have the same bounds");
        }
        all
    }
}
