//! All replicas of a range that have applied the same entry store the same: rows with all versions
//! and tombstones, session table with outcomes, thresholds, descriptor, members.
//!
//! They may differ in versions that no read can ask for any more. Of a key's versions at or below
//! the collected threshold only the newest counts, and none if that is a tombstone.

use std::collections::BTreeMap;
use std::fmt::Debug;

use rangedb_engine::range::sessions::{ClientMarks, SavedRequest, SessionRow};
use rangedb_engine::shard::contents::{Contents, Version};
use rangedb_engine::types::{Blob, ClientId, RangeId, Timestamp};

use crate::sim::seen::Seen;

/// Compares the replicas that have applied the same entry. `at_rest`: all replicas have applied
/// everything; then the collected thresholds must be equal, too. Otherwise one that came with a
/// snapshot may be ahead of its entry.
pub fn check(seen: &Seen, replicas: &[Contents], at_rest: bool) {
    let mut same: BTreeMap<(RangeId, u64), &Contents> = BTreeMap::new();
    for replica in replicas {
        let Some(applied) = replica.state.applied else {
            continue;
        };
        let key = (replica.group.range, applied.index);
        let first = *same.entry(key).or_insert(replica);
        if let Some(what) = difference(first, replica, at_rest) {
            seen.violation(format!(
                "range {}: at entry {} {} and {} differ: {what}",
                replica.group.range, applied.index, first.group.replica, replica.group.replica
            ));
        }
    }
}

/// The first difference between two replicas.
fn difference(a: &Contents, b: &Contents, at_rest: bool) -> Option<String> {
    let (x, y) = (&a.state, &b.state);
    let states = [
        unlike("the entry", &x.applied, &y.applied),
        unlike("the descriptor", &x.descriptor, &y.descriptor),
        unlike("the members", &x.membership, &y.membership),
        unlike("the time", &x.last_ts, &y.last_ts),
        unlike("the ceiling", &x.ceiling, &y.ceiling),
        unlike(
            "the sessions' horizon",
            &x.sessions.horizon(),
            &y.sessions.horizon(),
        ),
        unlike("the collected threshold", &x.gc_threshold, &y.gc_threshold).filter(|_| at_rest),
    ];
    if let Some(what) = states.into_iter().flatten().next() {
        return Some(what);
    }
    // In most cases even the versions that may differ are equal.
    if a.rows != b.rows {
        let threshold = x.gc_threshold.max(y.gc_threshold);
        let (a, b) = (visible(&a.rows, threshold), visible(&b.rows, threshold));
        if let Some(what) = unlike_maps("the row", &a, &b) {
            return Some(what);
        }
    }
    let (a, b) = (Table::of(&a.sessions), Table::of(&b.sessions));
    unlike_maps("the marks of client", &a.clients, &b.clients)
        .or_else(|| unlike_maps("the request of a session", &a.requests, &b.requests))
}

fn unlike<T: PartialEq + Debug>(what: &str, a: &T, b: &T) -> Option<String> {
    (a != b).then(|| format!("{what} is {a:?} and {b:?}"))
}

fn unlike_maps<K: Ord + Debug, V: PartialEq + Debug>(
    what: &str,
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
) -> Option<String> {
    if a == b {
        return None;
    }
    let unlike = |key: &&K| a.get(*key) != b.get(*key);
    let key = a.keys().chain(b.keys()).find(unlike)?;
    let short = |value: Option<&V>| format!("{value:?}").chars().take(120).collect::<String>();
    let (a, b) = (short(a.get(key)), short(b.get(key)));
    Some(format!("{what} {key:?} is {a} and {b}"))
}

/// The versions that a read above the threshold can see.
fn visible(rows: &[Version], threshold: Timestamp) -> BTreeMap<(&Blob, Timestamp), Option<&Blob>> {
    let mut visible = BTreeMap::new();
    let mut covered: Option<&Blob> = None;
    for row in rows {
        let counts = if row.version > threshold {
            true
        } else {
            // Versions come newest first: the first one at or below the threshold hides the others.
            let is_first = covered != Some(&row.key);
            covered = Some(&row.key);
            is_first && row.value.is_some()
        };
        if counts {
            visible.insert((&row.key, row.version), row.value.as_ref());
        }
    }
    visible
}

/// A sorted session table.
#[derive(Default)]
struct Table<'a> {
    clients: BTreeMap<ClientId, Option<ClientMarks>>,
    requests: BTreeMap<(ClientId, u64), (&'a Blob, Option<&'a SavedRequest>)>,
}

impl<'a> Table<'a> {
    fn of(rows: &'a [SessionRow]) -> Table<'a> {
        let mut table = Table::default();
        for row in rows {
            match row {
                SessionRow::Client(client, marks) => {
                    table.clients.insert(*client, *marks);
                }
                SessionRow::Request {
                    first_key,
                    client,
                    sequence,
                    saved,
                } => {
                    let request = (first_key, saved.as_ref());
                    table.requests.insert((*client, *sequence), request);
                }
            }
        }
        table
    }
}
