//! A write is applied only in the epoch that it was proposed in: where its range's bounds or members have
//! changed since, it does nothing.

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::{self, ArchivedAction};
use rangedb_engine::range::state::RangeState;
use rangedb_engine::request::Outcome;
use rangedb_engine::types::Timestamp;
use rangedb_engine::wal::{Group, LogEntry, Payload};

/// Checks an entry that a replica has applied. Commands change no epoch, so that the one after the entry is
/// that of all of them.
///
/// # Errors
/// What is wrong.
pub fn check(
    group: Group,
    entry: &LogEntry,
    results: &[Applied],
    state: &RangeState,
) -> Result<(), String> {
    let Payload::Commands(bytes) = &entry.payload else {
        return Ok(());
    };
    let archived = command::access(bytes).map_err(|error| error.to_string())?;
    for (command, result) in archived.commands.iter().zip(results) {
        let timestamp = Timestamp(command.timestamp.to_native());
        // What was applied before has another version.
        let is_applied = match result {
            Applied::Outcome(Outcome::Done { version, .. } | Outcome::Number { version, .. }) => {
                *version == timestamp
            }
            _ => false,
        };
        let is_internal = matches!(
            command.action,
            ArchivedAction::Nothing
                | ArchivedAction::CollectBelow { .. }
                | ArchivedAction::Digest { .. }
        );
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
