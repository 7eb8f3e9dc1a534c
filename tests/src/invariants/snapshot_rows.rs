//! A snapshot has rows of its range's keys alone, whatever else lies under the same data ids.

use std::collections::BTreeMap;

use rangedb_engine::lsm::keys::{self, RowKind};
use rangedb_engine::raft::{Envelope, SnapshotPart};
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::{DataId, RangeId, ReplicaId};

/// The lowest and the highest key of a user in the parts of a snapshot.
type Span = (Vec<u8>, Vec<u8>);

/// The snapshots that are being sent: by range, sender and its number.
#[derive(Default)]
pub struct Sent(BTreeMap<(RangeId, ReplicaId, u64), Span>);

impl Sent {
    /// Takes in a part of a snapshot that its receiver has taken.
    ///
    /// # Errors
    /// The snapshot ends, and had rows of other keys than its range's.
    pub fn check(&mut self, envelope: Envelope, part: &SnapshotPart) -> Result<(), String> {
        let of = |number: u64| (envelope.range, envelope.from, number);
        match part {
            SnapshotPart::Rows {
                number,
                place,
                rows,
                ..
            } => {
                if *place == 0 {
                    self.0.remove(&of(*number));
                }
                for key in rows.iter().filter_map(|row| user_key(&row.key)) {
                    let first = || (key.clone(), key.clone());
                    let (low, high) = self.0.entry(of(*number)).or_insert_with(first);
                    *low = key.clone().min(std::mem::take(low));
                    *high = key.clone().max(std::mem::take(high));
                }
                Ok(())
            }
            SnapshotPart::End { number, state, .. } => {
                let Some((low, high)) = self.0.remove(&of(*number)) else {
                    return Ok(());
                };
                let range = envelope.range;
                let (state, _) = RangeState::decode(state)
                    .map_err(|error| format!("range {range}: the state of a snapshot: {error}"))?;
                let keys = state.descriptor.keys;
                match keys.contains(&low) && keys.contains(&high) {
                    true => Ok(()),
                    false => Err(format!(
                        "range {range}: a snapshot of {keys:?} has rows from {low:?} to {high:?}"
                    )),
                }
            }
        }
    }
}

/// The user's key of a row in a snapshot, if it is a row of a user.
fn user_key(row: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::new();
    keys::with_data_id(DataId(1), row, &mut key);
    let (kind, _) = keys::parse(&key)?;
    (kind == RowKind::User).then(|| keys::user_part(&key).to_vec())
}
