//! A range that once had three voters always keeps at least three, whichever nodes come and go.

use std::collections::{BTreeMap, BTreeSet};

use rangedb_engine::raft;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::{RangeId, ReplicaId};
use rangedb_engine::wal::{Group, LogEntry, Payload};

/// A range that once had this many voters must never have fewer.
pub const ENOUGH: usize = 3;

/// What is known of the voters of each range.
#[derive(Default)]
pub struct Voters(BTreeMap<RangeId, Known>);

#[derive(Default)]
struct Known {
    /// The index of the newest applied change of its members; 0 before the first one.
    index: u64,
    /// The voters after it; `None` while the change is only half done.
    now: Option<BTreeSet<ReplicaId>>,
    /// Whether there were ever enough.
    had_enough: bool,
}

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
        let is_change = matches!(entry.payload, Payload::Membership(_));
        if !is_change && self.0.contains_key(&range) {
            return Ok(());
        }
        let (voters, is_joint) = raft::voters(&state.membership.body)
            .map_err(|error| format!("range {range}: members of entry {index}: {error}"))?;
        let known = self.0.entry(range).or_default();
        if !is_change {
            known.now = (!is_joint).then(|| BTreeSet::from_iter(voters));
            return Ok(());
        }
        if index <= known.index {
            return Ok(());
        }
        let count = voters.len();
        let had_enough = known.had_enough;
        *known = Known {
            index,
            now: (!is_joint).then(|| BTreeSet::from_iter(voters)),
            had_enough: had_enough || (!is_joint && count >= ENOUGH),
        };
        match known.now.as_ref() {
            Some(voters) if had_enough && count < ENOUGH => Err(format!(
                "range {range}, which had {ENOUGH} voters: entry {index} leaves {voters:?}"
            )),
            _ => Ok(()),
        }
    }

    /// Whether the members of a range have changed, and a replica is no voter after that.
    pub fn is_out(&self, range: RangeId, replica: ReplicaId) -> bool {
        let known = self.0.get(&range).filter(|known| known.index > 0);
        let now = known.and_then(|known| known.now.as_ref());
        now.is_some_and(|voters| !voters.contains(&replica))
    }

    /// Whether each of these ranges has enough voters to lose one with its disk. Ranges of which no entry was
    /// applied have `begun_with` voters.
    pub fn are_enough(&self, mut ranges: impl Iterator<Item = RangeId>, begun_with: usize) -> bool {
        ranges.all(|range| {
            let known = self.0.get(&range);
            let now = known.map_or(Some(begun_with), |known| Some(known.now.as_ref()?.len()));
            now.is_some_and(|now| now >= ENOUGH)
        })
    }

    /// Whether a range that was split off has enough voters to lose one with its disk. One that lagged at
    /// the split counts as a voter before the cluster has made it, so all must be among those that are
    /// `born`.
    pub fn are_born(&self, range: RangeId, born: &BTreeSet<ReplicaId>) -> bool {
        let voters = self.0.get(&range).and_then(|known| known.now.as_ref());
        voters.is_some_and(|voters| voters.len() >= ENOUGH && voters.is_subset(born))
    }
}
