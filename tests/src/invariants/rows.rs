//! The versions of a row are its writes in the order of their timestamps, for every reader at any
//! time. A read of the newest version returns the newest acknowledged one or a later one. A scan at
//! a timestamp returns for each key the newest version at or below it, or nothing if that is a
//! delete. A write that was refused is never seen. A compare-and-swap that succeeded directly
//! follows the version that it expected.

use std::collections::BTreeMap;
use std::ops::Range;

use rangedb_engine::types::Timestamp;

use crate::sim::seen::Seen;

/// The number of a written value; `None` for a delete.
pub type Value = Option<u64>;

#[derive(Debug, Default)]
struct Row {
    /// Acknowledged writes.
    known: BTreeMap<Timestamp, Value>,
    /// The number of writes of each value that may be applied, now or later.
    undecided: BTreeMap<Value, u32>,
    /// For each successful compare-and-swap, the version that it expected (zero for none) and its
    /// own.
    swaps: Vec<(Timestamp, Timestamp)>,
}

/// What the clients know of all rows.
#[derive(Debug, Default)]
pub struct Rows(BTreeMap<String, Row>);

impl Rows {
    /// Records that a write is sent.
    pub fn sent(&mut self, key: &str, value: Value) {
        let row = self.0.entry(key.to_owned()).or_default();
        *row.undecided.entry(value).or_default() += 1;
    }

    /// Records that a write was not applied and never will be.
    pub fn refused(&mut self, key: &str, value: Value) {
        let Some(row) = self.0.get_mut(key) else {
            return;
        };
        if let Some(count) = row.undecided.get_mut(&value) {
            *count -= 1;
            if *count == 0 {
                row.undecided.remove(&value);
            }
        }
    }

    /// Records that a write is applied.
    pub fn applied(&mut self, seen: &Seen, key: &str, value: Value, version: Timestamp) {
        self.refused(key, value);
        let row = self.0.entry(key.to_owned()).or_default();
        let known = *row.known.entry(version).or_insert(value);
        if known != value {
            seen.violation(format!(
                "{key}: {known:?} and {value:?} are both written at {version}"
            ));
        }
    }

    /// Records that a compare-and-swap is applied which expected a version, or zero for none.
    pub fn swapped(&mut self, key: &str, expected: Timestamp, version: Timestamp) {
        if let Some(row) = self.0.get_mut(key) {
            row.swaps.push((expected, version));
        }
    }

    /// The newest known version.
    pub fn newest(&self, key: &str) -> Option<(Timestamp, Value)> {
        let row = self.0.get(key)?;
        row.known
            .iter()
            .next_back()
            .map(|(at, value)| (*at, *value))
    }

    /// The first known version of a row above one and up to another.
    pub fn first_between(
        &self,
        key: &str,
        above: Timestamp,
        up_to: Timestamp,
    ) -> Option<Timestamp> {
        let known = &self.0.get(key)?.known;
        let mut between = known.range(above.next()..=up_to.max(above.next()));
        between.next().map(|(at, _)| *at).filter(|at| *at <= up_to)
    }

    /// Checks a read of the newest version. `before` is the newest one that was known when it
    /// began.
    pub fn check_read(
        &self,
        seen: &Seen,
        key: &str,
        before: Option<(Timestamp, Value)>,
        found: Option<(u64, Timestamp)>,
    ) {
        self.check(seen, key, before, (Timestamp::MAX, found));
    }

    /// Checks a scan of all keys from `start` to before `end`.
    pub fn check_scan(
        &self,
        seen: &Seen,
        interval: Range<String>,
        at: Timestamp,
        found: &BTreeMap<String, (u64, Timestamp)>,
    ) {
        for (key, row) in self.0.range(interval) {
            let newest = row.known.range(..=at).next_back();
            let newest = newest.map(|(at, value)| (*at, *value));
            self.check(seen, key, newest, (at, found.get(key).copied()));
        }
    }

    /// Checks a read at a timestamp, which must return `least` or a later version.
    fn check(
        &self,
        seen: &Seen,
        key: &str,
        least: Option<(Timestamp, Value)>,
        (at, found): (Timestamp, Option<(u64, Timestamp)>),
    ) {
        let none = Row::default();
        let row = self.0.get(key).unwrap_or(&none);
        let wrong = match found {
            Some((value, version)) => {
                let is_written = match row.known.get(&version) {
                    Some(known) => *known == Some(value),
                    None => row.undecided.contains_key(&Some(value)),
                };
                let is_old = least.is_some_and(|(least, _)| version < least);
                !is_written || is_old || version > at
            }
            None => {
                let is_there = least.is_some_and(|(_, value)| value.is_some());
                let after = least.map_or(Timestamp::ZERO, |(least, _)| least);
                let mut later = row.known.range(after..=at);
                let is_deleted = later.any(|(_, value)| value.is_none());
                is_there && !is_deleted && !row.undecided.contains_key(&None)
            }
        };
        if wrong {
            let known: Vec<_> = row.known.range(..=at).rev().take(3).collect();
            seen.violation(format!(
                "{key}: a read at {at} gave {found:?}, where {least:?} was known; newest {known:?}"
            ));
        }
    }

    /// Checks all compare-and-swaps, at the end of a run.
    pub fn check_swaps(&self, seen: &Seen) {
        for (key, row) in &self.0 {
            for (expected, version) in &row.swaps {
                let between = row.known.range(expected.next()..*version).next_back();
                let wrong = match between {
                    None => false,
                    // A swap that expected no value may follow any delete.
                    Some((_, value)) if *expected == Timestamp::ZERO => {
                        value.is_some() && !row.undecided.contains_key(&None)
                    }
                    Some(_) => true,
                };
                if wrong {
                    seen.violation(format!(
                        "{key}: the compare-and-swap at {version} asked for version {expected}, \
                         but came after {between:?}"
                    ));
                }
            }
        }
    }
}
