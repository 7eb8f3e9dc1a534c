//! The keys of one range that are in one reply to a multi-get are read at one moment: there is a time
//! at which each of them had what was read. So both halves of a pair, which are always written
//! together, are equal. And no key has a version between the one that was read and the newest that
//! was read of any key of the range: within a range versions rise in the order of the writes.

use std::collections::BTreeMap;

use rangedb_engine::types::{Blob, Timestamp};

use crate::sim::client::ReadRow;
use crate::sim::seen::Seen;

/// Checks what one reply has of the keys of one range.
pub fn check(seen: &Seen, read: &[&ReadRow]) {
    let mut pairs: BTreeMap<&str, Vec<&Option<(Blob, Timestamp)>>> = BTreeMap::new();
    for half in read.iter().filter(|read| read.key.starts_with("cp")) {
        let pair = half.key.trim_end_matches(['a', 'b']);
        pairs.entry(pair).or_default().push(&half.found);
    }
    for (pair, halves) in &pairs {
        if let [a, b] = halves.as_slice()
            && a != b
        {
            seen.violation(format!("pair {pair} is torn in a multi-get: {halves:?}"));
        }
    }
    let version = |read: &&ReadRow| read.found.as_ref().map(|(_, version)| *version);
    let Some(newest) = read.iter().filter_map(version).max() else {
        return;
    };
    let rows = seen.rows.borrow();
    for key in read {
        let Some(version) = version(key) else {
            continue;
        };
        if let Some(between) = rows.first_between(&key.key, version, newest) {
            seen.violation(format!(
                "a multi-get read {} at {version} where another key of its range was at {newest}, \
                 but it was written at {between}",
                key.key
            ));
        }
    }
}
