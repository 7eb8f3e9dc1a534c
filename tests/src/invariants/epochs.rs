//! A write is applied only in the version of its range in which it was proposed. If the bounds of the
//! range have changed since, it has no effect.

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::ArchivedAction;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::wal::{Group, LogEntry};

use super::commands::{check_each, is_applied_now};

/// Checks an entry that a replica has applied. Commands change no version, so that after the
/// entry is that of all its commands.
///
/// # Errors
/// A write was applied in another version than its own.
pub fn check(
    group: Group,
    entry: &LogEntry,
    results: &[Applied],
    state: &RangeState,
) -> Result<(), String> {
    check_each(entry, results, |command, result| {
        let is_internal = matches!(command.action, ArchivedAction::Order(_));
        let proposed = command.epoch.epoch().version;
        let now = state.descriptor.epoch.version;
        if is_applied_now(command, result) && !is_internal && proposed != now {
            return Err(format!(
                "range {}: a write of version {proposed} was applied in {now}, at entry {}",
                group.range, entry.id.index
            ));
        }
        Ok(())
    })
}
