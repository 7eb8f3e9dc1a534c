//! A range that has three voters keeps at least three, whatever nodes come and go.

use std::collections::BTreeMap;

use rangedb_engine::raft;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::RangeId;
use rangedb_engine::wal::{Group, LogEntry, Payload};

/// The fewest voters that a range has which once had as many.
pub const ENOUGH: usize = 3;

/// Of each range, by the newest entry known to be committed: its index, and how many voters there are
/// then; none while a change is half done.
#[derive(Default)]
pub struct Voters(BTreeMap<RangeId, (u64, Option<usize>)>);

impl Voters {
    /// Checks an entry that a replica has applied.
    ///
    /// # Errors
    /// What is wrong.
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

    /// Whether each range that began with this many voters has enough of them for one to be lost with
    /// all that it has.
    pub fn are_enough(&self, mut ranges: impl Iterator<Item = RangeId>, begun_with: usize) -> bool {
        ranges.all(|range| {
            let known = self.0.get(&range);
            let now = known.map_or(Some(begun_with), |(_, now)| *now);
            now.is_some_and(|now| now >= ENOUGH)
        })
    }
}
