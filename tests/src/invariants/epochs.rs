//! A write is applied only in the epoch in which it was proposed. If the bounds or members of its
//! range have changed since, it has no effect.

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::{self, ArchivedAction};
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::Timestamp;
use rangedb_engine::wal::{Group, LogEntry, Payload};

/// Checks an entry that a replica has applied. Commands change no epoch, so the epoch after the
/// entry is that of all its commands.
///
/// # Errors
/// A write was applied in another epoch than its own.
pub fn check(
    group: Group,
    entry: &LogEntry,
    results: &[Applied],
    state: &RangeState,
) -> Result<(), String> {
    let Payload::Commands(bytes) = &entry.payload else {
        return Ok(());
    };
    let current = command::current(bytes).map_err(|error| error.to_string())?;
    let archived = command::access(&current).map_err(|error| error.to_string())?;
    for (command, result) in archived.commands.iter().zip(results) {
        let timestamp = Timestamp(command.timestamp.to_native());
        // A repeated write, which was applied earlier, has another version.
        let is_applied = match result {
            Applied::Outcome(outcome) => outcome.version() == Some(timestamp),
            Applied::Repropose => false,
        };
        let is_internal = matches!(command.action, ArchivedAction::Order(_));
        let (proposed, now) = (command.epoch.epoch(), state.descriptor.epoch);
        if is_applied && !is_internal && proposed != now {
            return Err(format!(
                "range {}: a write of epoch {proposed:?} was applied in {now:?}, at entry {}",
                group.range, entry.id.index
            ));
        }
    }
    Ok(())
}
