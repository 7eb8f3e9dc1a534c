//! A snapshot is read the same for ever: what a scan at a timestamp gave, it gives again, whoever
//! leads by then and whatever its clock shows.

use std::collections::BTreeMap;

use rangedb_engine::request::Versioned;
use rangedb_engine::types::{Blob, Timestamp};

use crate::sim::seen::Seen;

/// Snapshots that were read, of one interval of keys.
#[derive(Default)]
pub struct Snapshots(BTreeMap<Timestamp, Vec<(Blob, Versioned)>>);

/// So many are remembered.
const SNAPSHOTS_MAX: usize = 64;

impl Snapshots {
    /// Those that were read, oldest first.
    pub fn all(&self) -> Vec<Timestamp> {
        self.0.keys().copied().collect()
    }

    /// Notes what a scan at a timestamp gave, and checks it.
    pub fn check(&mut self, seen: &Seen, at: Timestamp, rows: Vec<(Blob, Versioned)>) {
        if let Some((key, row)) = rows.iter().find(|(_, row)| row.version > at) {
            seen.violation(format!("a scan at {at} gave {key:?} of {}", row.version));
        }
        match self.0.get(&at) {
            Some(before) if *before != rows => seen.violation(format!(
                "a snapshot at {at} changed from {:?} to {:?}",
                versions(before),
                versions(&rows)
            )),
            Some(_) => {}
            None => {
                self.0.insert(at, rows);
                if self.0.len() > SNAPSHOTS_MAX {
                    self.0.pop_first();
                }
            }
        }
    }
}

fn versions(rows: &[(Blob, Versioned)]) -> Vec<(&Blob, Timestamp)> {
    rows.iter().map(|(key, row)| (key, row.version)).collect()
}
