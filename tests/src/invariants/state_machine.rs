//! State-machine safety: an entry has the same results and gives the same state on every replica,
//! whether the replica applied all entries, started in between, or installed a snapshot. The time
//! of a range never goes back from one entry to the next.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::{RangeId, Timestamp};
use rangedb_engine::wal::{Group, LogEntry};

/// The effect of an entry: a hash of its results, and the part of the state that is neither rows
/// nor subject to collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Given {
    results: u64,
    last_ts: Timestamp,
    ceiling: Timestamp,
    epoch: rangedb_engine::types::Epoch,
    /// `None` if the range is frozen: it takes no requests, and a replica that was taken over has given its
    /// session table away, but may still apply entries.
    clients_and_requests: Option<(usize, usize)>,
}

/// The effects of all entries of all ranges.
#[derive(Default)]
pub struct Machine(BTreeMap<(RangeId, u64), Given>);

impl Machine {
    /// Checks an entry that a replica has applied.
    ///
    /// # Errors
    /// The entry has another effect here, or the time goes back.
    pub fn check(
        &mut self,
        group: Group,
        entry: &LogEntry,
        results: &[Applied],
        state: &RangeState,
    ) -> Result<(), String> {
        let (range, index) = (group.range, entry.id.index);
        let mut hasher = DefaultHasher::new();
        for result in results {
            format!("{result:?}").hash(&mut hasher);
        }
        let this = Given {
            results: hasher.finish(),
            last_ts: state.last_ts,
            ceiling: state.ceiling,
            epoch: state.descriptor.epoch,
            clients_and_requests: state.frozen.is_none().then(|| state.sessions.len()),
        };
        let known = *self.0.entry((range, index)).or_insert(this);
        if known != this {
            return Err(format!(
                "range {range}: entry {index} gave {this:?} on {}, elsewhere {known:?}",
                group.replica
            ));
        }
        let before = self.0.range((range, 0)..(range, index)).next_back();
        // The ceiling of a range that is frozen is what was served.
        let later = before.filter(|(_, before)| {
            let is_lower = before.ceiling > this.ceiling && state.frozen.is_none();
            before.last_ts > this.last_ts || is_lower
        });
        if let Some((_, before)) = later {
            return Err(format!(
                "range {range}: time goes back at entry {index}: {before:?}, then {this:?}"
            ));
        }
        Ok(())
    }
}
