//! A write of several keys is applied whole or not at all, and a scan sees one moment of its range,
//! over all its pages: both halves of each pair are equal in it. A pair that was acknowledged
//! before the scan began is in it, that or a later one.

use std::collections::{BTreeMap, BTreeSet};

use rangedb_engine::request::Versioned;
use rangedb_engine::types::Blob;

use crate::sim::seen::Seen;

/// What is known of one pair, whose writes have rising numbers.
#[derive(Clone, Debug, Default)]
struct Pair {
    acknowledged: u64,
    highest: u64,
    /// Of these it is not known whether they are applied, or will be.
    in_doubt: BTreeSet<u64>,
}

/// What is known of all pairs.
#[derive(Clone, Debug, Default)]
pub struct Pairs(BTreeMap<u64, Pair>);

impl Pairs {
    /// The number of a pair's next write.
    pub fn tried(&mut self, pair: u64) -> u64 {
        let pair = self.0.entry(pair).or_default();
        pair.highest += 1;
        pair.highest
    }

    /// A write is applied.
    pub fn acknowledged(&mut self, pair: u64, number: u64) {
        self.0.entry(pair).or_default().acknowledged = number;
    }

    /// A write was given up.
    pub fn in_doubt(&mut self, pair: u64, number: u64) {
        self.0.entry(pair).or_default().in_doubt.insert(number);
    }
}

/// Checks the rows of a scan; `before` is what was known when it began.
pub fn check(seen: &Seen, before: &Pairs, rows: &[(Blob, Versioned)]) {
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
    for (number, halves) in &pairs {
        if !matches!(halves.as_slice(), [a, b] if a == b) {
            seen.violation(format!("pair {number} is torn: {halves:?}"));
        }
    }
    for (number, before) in &before.0 {
        let found = pairs
            .get(number)
            .and_then(|halves| halves.first())
            .map_or(0, |half| half.0);
        let now = seen.pairs.borrow().0.get(number).cloned();
        let now = now.unwrap_or_default();
        // One that was given up may come late.
        let is_old = found < before.acknowledged && !now.in_doubt.contains(&found);
        if is_old || found > now.highest {
            seen.violation(format!(
                "pair {number} is {found}: {} was acknowledged, {} was tried",
                before.acknowledged, now.highest
            ));
        }
    }
}
