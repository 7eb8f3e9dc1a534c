//! The commands of an entry that a replica has applied, with their results. No invariant of its own.

use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::command::format;
use rangedb_engine::range::command::{self, ArchivedCommand};
use rangedb_engine::wal::{LogEntry, Payload};

/// Checks each command of an entry with its result. An entry of another kind has none.
///
/// # Errors
/// The entry cannot be read, or the first error of `check`.
pub fn check_each(
    entry: &LogEntry,
    results: &[Applied],
    mut check: impl FnMut(&ArchivedCommand<'_>, &Applied) -> Result<(), String>,
) -> Result<(), String> {
    let Payload::Commands(bytes) = &entry.payload else {
        return Ok(());
    };
    let current = format::current(bytes).map_err(|error| error.to_string())?;
    let archived = command::access(&current).map_err(|error| error.to_string())?;
    let mut both = archived.commands.iter().zip(results);
    both.try_for_each(|(command, result)| check(command, result))
}

/// Whether a command was applied now: a repeated write, which was applied earlier, has another version.
pub fn is_applied_now(command: &ArchivedCommand<'_>, result: &Applied) -> bool {
    match result {
        Applied::Outcome(outcome) => {
            outcome.version().map(|version| version.0) == Some(command.timestamp.to_native())
        }
        Applied::Repropose => false,
    }
}
