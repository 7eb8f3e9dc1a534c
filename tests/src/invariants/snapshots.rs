//! A snapshot never changes: a repeated scan at a timestamp returns the same rows, whichever
//! replica leads and whatever its clock shows.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use rangedb_engine::request::Versioned;
use rangedb_engine::types::{Blob, Timestamp};

use crate::sim::seen::Seen;

/// A row that was read: its key, its version, and a hash of its value.
type Row = (Blob, Timestamp, u64);

/// The snapshots that were read, all of the same interval of keys.
#[derive(Default)]
pub struct Snapshots(BTreeMap<Timestamp, Vec<Row>>);

/// The number of snapshots that are kept.
const SNAPSHOTS_MAX: usize = 64;

impl Snapshots {
    /// The timestamps of all kept snapshots, oldest first.
    pub fn all(&self) -> Vec<Timestamp> {
        self.0.keys().copied().collect()
    }

    /// Records the rows of a scan at a timestamp and compares them with those of an earlier scan.
    pub fn check(&mut self, seen: &Seen, at: Timestamp, rows: &[(Blob, Versioned)]) {
        if let Some((key, row)) = rows.iter().find(|(_, row)| row.version > at) {
            seen.violation(format!("a scan at {at} gave {key:?} of {}", row.version));
        }
        let rows: Vec<Row> = rows.iter().map(read).collect();
        match self.0.get(&at) {
            Some(before) if *before != rows => {
                let changed = before.iter().zip(&rows).find(|(a, b)| a != b);
                let counts = (before.len(), rows.len());
                seen.violation(format!(
                    "a snapshot at {at} changed, first {changed:?}, rows {counts:?}"
                ));
            }
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

fn read((key, row): &(Blob, Versioned)) -> Row {
    let mut hasher = DefaultHasher::new();
    row.value.hash(&mut hasher);
    (key.clone(), row.version, hasher.finish())
}
