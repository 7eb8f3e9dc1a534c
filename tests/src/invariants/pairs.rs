//! A write of several keys is applied completely or not at all. A scan sees one moment of its range
//! over all its pages, so both halves of each pair are equal in it. If a write of a pair was
//! acknowledged before the scan began, the scan returns that write or a later one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rangedb_engine::request::Versioned;
use rangedb_engine::types::Blob;

use crate::sim::seen::Seen;

/// The state of one pair, whose writes have rising numbers.
#[derive(Clone, Debug, Default)]
struct Pair {
    acknowledged: u64,
    highest: u64,
    /// Writes that may be applied, now or later.
    in_doubt: BTreeSet<u64>,
}

/// The state of all pairs.
#[derive(Clone, Debug, Default)]
pub struct Pairs(BTreeMap<u64, Pair>);

impl Pairs {
    /// The numbers of the pairs that were written.
    pub fn numbers(&self) -> Vec<u64> {
        self.0.keys().copied().collect()
    }

    /// Returns the number of a pair's next write.
    pub fn tried(&mut self, pair: u64) -> u64 {
        let pair = self.0.entry(pair).or_default();
        pair.highest += 1;
        pair.highest
    }

    /// Records that a write is applied.
    pub fn acknowledged(&mut self, pair: u64, number: u64) {
        self.0.entry(pair).or_default().acknowledged = number;
    }

    /// The number that a pair has for certain, 0 if it was never written.
    pub fn known(&self, pair: u64) -> Option<u64> {
        match self.0.get(&pair) {
            Some(pair) => pair.in_doubt.is_empty().then_some(pair.acknowledged),
            None => Some(0),
        }
    }

    /// Records that the outcome of a write is unknown.
    pub fn in_doubt(&mut self, pair: u64, number: u64) {
        self.0.entry(pair).or_default().in_doubt.insert(number);
    }
}

/// Checks the rows of an interval at one moment. `before` is the state of all pairs when the scan began.
pub fn check(seen: &Seen, before: &Pairs, interval: &Range<String>, rows: &[(Blob, Versioned)]) {
    let mut pairs: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for (key, row) in rows.iter().filter(|(key, _)| key.starts_with(b"cp")) {
        let key = String::from_utf8_lossy(key);
        let number = key
            .get(2..5)
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(u64::MAX);
        let value = String::from_utf8_lossy(&row.value)
            .parse()
            .unwrap_or(u64::MAX);
        pairs
            .entry(number)
            .or_default()
            .push((value, row.version.0));
    }
    // Only a pair that lies in the interval as a whole was read at one moment.
    let is_whole = |number: u64| {
        let half = |name: &str| format!("cp{number:03}{name}");
        interval.start <= half("a") && half("b") < interval.end
    };
    for (number, halves) in pairs.iter().filter(|(number, _)| is_whole(**number)) {
        if !matches!(halves.as_slice(), [a, b] if a == b) {
            seen.violation(format!("pair {number} is torn: {halves:?}"));
        }
    }
    for (number, before) in before.0.iter().filter(|(number, _)| is_whole(**number)) {
        let found = pairs
            .get(number)
            .and_then(|halves| halves.first())
            .map_or(0, |half| half.0);
        let now = seen.pairs.borrow().0.get(number).cloned();
        let now = now.unwrap_or_default();
        // A write with an unknown outcome may be applied late.
        let is_old = found < before.acknowledged && !now.in_doubt.contains(&found);
        if is_old || found > now.highest {
            seen.violation(format!(
                "pair {number} is {found}: {} was acknowledged, {} was tried",
                before.acknowledged, now.highest
            ));
        }
    }
}
