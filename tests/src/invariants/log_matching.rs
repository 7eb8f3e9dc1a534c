//! Log matching: all replicas of a range apply the same entry at an index, with the same term,
//! leader and bytes. Terms never fall along the log. An entry that a replica has applied is
//! committed, so no other entry may ever have its index. The same holds for the entries that a
//! replica has on disk.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use rangedb_engine::types::RangeId;
use rangedb_engine::wal::{Group, LogEntry, LogId, LogState, Payload};

/// The committed entries of all ranges: their ids, and a hash of their bytes.
#[derive(Default)]
pub struct Log {
    entries: BTreeMap<(RangeId, u64), (LogId, u64)>,
    /// The last entry of each term.
    last_of_term: BTreeMap<(RangeId, u64), LogId>,
}

impl Log {
    /// Checks an entry that a replica has applied.
    ///
    /// # Errors
    /// The entry breaks log matching.
    pub fn check(&mut self, group: Group, entry: &LogEntry) -> Result<(), String> {
        let (range, id) = (group.range, entry.id);
        let mut hasher = DefaultHasher::new();
        match &entry.payload {
            Payload::Blank => 0_u8.hash(&mut hasher),
            Payload::Commands(body) => (1_u8, body.bytes()).hash(&mut hasher),
            Payload::Membership(body) => (2_u8, body.bytes()).hash(&mut hasher),
        }
        let this = (id, hasher.finish());
        let known = *self.entries.entry((range, id.index)).or_insert(this);
        if known != this {
            return Err(format!(
                "range {range}: {} applied {this:?}, where another had applied {known:?}",
                group.replica
            ));
        }
        let last = self.last_of_term.entry((range, id.term)).or_insert(id);
        *last = id.max(*last);
        let before = self.entries.range(..(range, id.index)).next_back();
        let before =
            before.filter(|((other, _), (before, _))| *other == range && before.term > id.term);
        if let Some((_, (before, _))) = before {
            return Err(format!("range {range}: {id:?} stands after {before:?}"));
        }
        Ok(())
    }

    /// Checks the log that a replica has on disk. Its entries must follow each other; up to its
    /// committed index they must be those that other replicas have applied.
    ///
    /// # Errors
    /// The log breaks log matching.
    pub fn check_stored(
        &self,
        group: Group,
        state: &LogState,
        entries: &[LogId],
    ) -> Result<(), String> {
        let Group { range, replica } = group;
        for two in entries.windows(2) {
            let &[before, id] = two else { continue };
            if id.index != before.index + 1 || id.term < before.term {
                return Err(format!(
                    "range {range}: in the log of {replica} {id:?} stands after {before:?}"
                ));
            }
        }
        let committed = state.committed.map_or(0, |id| id.index);
        for id in entries.iter().take_while(|id| id.index <= committed) {
            let known = self.entries.get(&(range, id.index));
            if let Some((known, _)) = known.filter(|(known, _)| known != id) {
                return Err(format!(
                    "range {range}: the log of {replica} has {id:?}, where {known:?} was applied"
                ));
            }
        }
        Ok(())
    }

    /// The last entry of a range that is known to be committed and belongs to a term before `term`.
    pub fn committed_before(&self, range: RangeId, term: u64) -> Option<LogId> {
        let terms = self.last_of_term.range((range, 0)..(range, term));
        terms.map(|(_, id)| *id).next_back()
    }
}
