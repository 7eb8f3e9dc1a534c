//! A write of several keys is applied whole or not at all, and a scan sees one moment of its range,
//! over all its pages: both halves of each pair are equal in it. A pair that was acknowledged
//! before the scan began is in it, that or a later one.

use std::collections::BTreeMap;

use rangedb_engine::request::Versioned;
use rangedb_engine::types::Blob;

use crate::sim::seen::Seen;

/// Checks the rows of a scan; `before` is what was acknowledged when it began.
pub fn check(seen: &Seen, before: &BTreeMap<u64, (u64, u64)>, rows: &[(Blob, Versioned)]) {
    let mut pairs: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for (key, row) in rows {
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
    for (number, (acknowledged, _)) in before {
        let found = pairs
            .get(number)
            .and_then(|halves| halves.first())
            .map_or(0, |half| half.0);
        let highest = seen
            .pairs
            .borrow()
            .get(number)
            .map_or(0, |(_, highest)| *highest);
        if found < *acknowledged || found > highest {
            seen.violation(format!(
                "pair {number} is {found}: {acknowledged} was acknowledged, {highest} was tried"
            ));
        }
    }
}
