//! A snapshot is read the same for ever: what a scan at a timestamp gave, it gives again, whoever
//! leads by then and whatever its clock shows.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use rangedb_engine::request::Versioned;
use rangedb_engine::types::{Blob, Timestamp};

use crate::sim::seen::Seen;

/// A row that was read: its key, its version, and a hash of its value.
type Row = (Blob, Timestamp, u64);

/// Snapshots that were read, of one interval of keys.
#[derive(Default)]
pub struct Snapshots(BTreeMap<Timestamp, Vec<Row>>);

/// So many are remembered.
const SNAPSHOTS_MAX: usize = 64;

impl Snapshots {
    /// Those that were read, oldest first.
    pub fn all(&self) -> Vec<Timestamp> {
        self.0.keys().copied().collect()
    }

    /// Notes what a scan at a timestamp gave, and checks it.
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
