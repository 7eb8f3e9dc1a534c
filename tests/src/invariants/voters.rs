//! A range that once had three voters always keeps at least three, whichever nodes come and go.

use std::collections::BTreeMap;

use rangedb_engine::raft;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::RangeId;
use rangedb_engine::wal::{Group, LogEntry, Payload};

/// A range that once had this many voters must never have fewer.
pub const ENOUGH: usize = 3;

/// For each range, the newest applied change of members: its index and the number of voters after
/// it, or `None` while the change is only half done.
#[derive(Default)]
pub struct Voters(BTreeMap<RangeId, (u64, Option<usize>)>);

impl Voters {
    /// Checks an entry that a replica has applied.
    ///
    /// # Errors
    /// The entry leaves too few voters.
    pub fn check(
        &mut self,
        group: Group,
        entry: &LogEntry,
        state: &RangeState,
    ) -> Result<(), String> {
        let (range, index) = (group.range, entry.id.index);
        if !matches!(entry.payload, Payload::Membership(_)) {
            return Ok(());
        }
        let (voters, is_joint) = raft::voters(&state.membership.body)
            .map_err(|error| format!("range {range}: members of entry {index}: {error}"))?;
        let now = (!is_joint).then_some(voters.len());
        let known = self.0.entry(range).or_insert((index, now));
        if index > known.0 {
            let before = known.1.unwrap_or_default();
            *known = (index, now);
            if before >= ENOUGH && now.is_some_and(|now| now < ENOUGH) {
                return Err(format!(
                    "range {range}: of {before} voters entry {index} leaves {voters:?}"
                ));
            }
        }
        Ok(())
    }

    /// Whether each of these ranges has enough voters to lose one with its disk. Ranges without a
    /// change of members have `begun_with` voters.
    pub fn are_enough(&self, mut ranges: impl Iterator<Item = RangeId>, begun_with: usize) -> bool {
        ranges.all(|range| {
            let known = self.0.get(&range);
            let now = known.map_or(Some(begun_with), |(_, now)| *now);
            now.is_some_and(|now| now >= ENOUGH)
        })
    }
}
