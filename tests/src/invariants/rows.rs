//! A row's versions are its writes in the order of their timestamps, whoever reads them and when: a read
//! of the latest gives what was acknowledged before it or something later, a scan at a timestamp gives
//! of each key the newest version at or below it, and nothing where that is a delete. A write that was
//! answered as not applied is never seen; a compare-and-swap that succeeded followed the version that it
//! asked for, with nothing in between.

use std::collections::BTreeMap;

use rangedb_engine::types::Timestamp;

use crate::sim::seen::Seen;

/// The number of a value that was written; `None`: a delete.
pub type Value = Option<u64>;

#[derive(Debug, Default)]
struct Row {
    /// What was acknowledged.
    known: BTreeMap<Timestamp, Value>,
    /// What may be applied, or may yet be.
    undecided: BTreeMap<Value, u32>,
    /// The version that each compare-and-swap asked for, zero for none, and its own.
    swaps: Vec<(Timestamp, Timestamp)>,
}

/// What clients know of rows.
#[derive(Debug, Default)]
pub struct Rows(BTreeMap<String, Row>);

impl Rows {
    /// A write is sent.
    pub fn sent(&mut self, key: &str, value: Value) {
        let row = self.0.entry(key.to_owned()).or_default();
        *row.undecided.entry(value).or_default() += 1;
    }

    /// A write that was sent was not applied, and never will be.
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

    /// A write that was sent is applied.
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

    /// A compare-and-swap that is applied had asked for this version, zero for none.
    pub fn swapped(&mut self, key: &str, expected: Timestamp, version: Timestamp) {
        if let Some(row) = self.0.get_mut(key) {
            row.swaps.push((expected, version));
        }
    }

    /// The newest version that is known.
    pub fn newest(&self, key: &str) -> Option<(Timestamp, Value)> {
        let row = self.0.get(key)?;
        row.known
            .iter()
            .next_back()
            .map(|(at, value)| (*at, *value))
    }

    /// Checks a read of the latest; `before` is what was known when it began.
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
        (start, end): (&str, &str),
        at: Timestamp,
        found: &BTreeMap<String, (u64, Timestamp)>,
    ) {
        for (key, row) in self.0.range(start.to_owned()..end.to_owned()) {
            let newest = row.known.range(..=at).next_back();
            let newest = newest.map(|(at, value)| (*at, *value));
            self.check(seen, key, newest, (at, found.get(key).copied()));
        }
    }

    /// Checks what was found at a timestamp, where `least` or something later must be.
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

    /// Checks all compare-and-swaps, at the end.
    pub fn check_swaps(&self, seen: &Seen) {
        for (key, row) in &self.0 {
            for (expected, version) in &row.swaps {
                let between = row.known.range(expected.next()..*version).next_back();
                let wrong = match between {
                    None => false,
                    // One that asked for nothing may follow any delete.
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
