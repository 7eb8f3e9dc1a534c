//! Applying one log entry: the only place where a range's rows change.
//!
//! Deterministic: reads the rows, the state and the entry, and nothing else — no clock, no
//! randomness, no configuration. Conditional commands are decided here, in log order, so nothing
//! needs latches. Synchronous: between its first and its last row nobody sees the entry, and an
//! entry never spans memtables, so after a crash it is there whole or not at all. An error is
//! never the client's: it means that the tree or the log is damaged, and ends the process.

use crate::error::Fatal;
use crate::lsm::LsmError;
use crate::mutant::{self, Mutant};
use crate::range::command::{
    ArchivedAction, ArchivedCommand, ArchivedEntry, ArchivedExpected, ArchivedKeyChange,
};
use crate::range::sessions::Verdict;
use crate::range::state::RangeState;
use crate::request::{Outcome, SessionPair};
use crate::types::{Blob, Timestamp};

/// The rows of one range, as apply sees them.
pub trait Rows {
    /// Hands the newest version of a key to `look`: its timestamp, and its value unless it is a
    /// delete mark.
    ///
    /// # Errors
    /// The tree cannot be read.
    fn newest<R>(
        &self,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError>;

    /// Adds a version, newer than all others of the key; `None` is a delete mark.
    fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>);
}

/// What applying one command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Decided; for the client.
    Outcome(Outcome),
    /// Its timestamp was not above the last one: nothing was done, the leader proposes it again.
    Again,
}

/// Applies the commands of one entry in order.
///
/// # Errors
/// The tree cannot be read.
pub fn apply_entry(
    state: &mut RangeState,
    rows: &mut impl Rows,
    entry: &ArchivedEntry<'_>,
) -> Result<Vec<Applied>, Fatal> {
    let mut results = Vec::with_capacity(entry.commands.len());
    for command in entry.commands.iter() {
        let timestamp = Timestamp(command.timestamp.to_native());
        if timestamp <= state.last_ts {
            results.push(Applied::Again);
            continue;
        }
        state.last_ts = timestamp;
        results.push(Applied::Outcome(apply_command(
            state, rows, command, timestamp,
        )?));
    }
    // Also an entry without a command of use moves the range's time on.
    if entry.commands.is_empty() {
        pass(state);
    }
    state.ceiling = state.ceiling.max(Timestamp(entry.ceiling.to_native()));
    Ok(results)
}

/// An entry without commands (blank, membership) passes: it, too, raises `last_ts`.
pub fn pass(state: &mut RangeState) {
    state.last_ts = state.last_ts.next();
}

fn apply_command(
    state: &mut RangeState,
    rows: &mut impl Rows,
    command: &ArchivedCommand<'_>,
    timestamp: Timestamp,
) -> Result<Outcome, Fatal> {
    let done = Outcome::Done {
        version: timestamp,
        existed: false,
    };
    let (pair, first_key) = match &command.action {
        ArchivedAction::Nothing => return Ok(done),
        ArchivedAction::Digest { number } => {
            state.digest_asked = Some(number.to_native());
            return Ok(done);
        }
        ArchivedAction::CollectBelow { threshold } => {
            let threshold = Timestamp(threshold.to_native());
            state.gc_threshold = state.gc_threshold.max(threshold.min(timestamp));
            return Ok(done);
        }
        ArchivedAction::Put { pair, key, .. }
        | ArchivedAction::Delete { pair, key }
        | ArchivedAction::CompareAndSwap { pair, key, .. }
        | ArchivedAction::Increment { pair, key, .. } => (pair, Some(&**key)),
        ArchivedAction::Multi { pair, changes } => (pair, changes.first().map(|c| &*c.key)),
    };
    let Some(first_key) = first_key else {
        return Ok(done);
    };
    let pair: SessionPair = pair.pair();
    if !state.descriptor.keys.contains(first_key) {
        return Ok(Outcome::Moved);
    }
    // A retry finds its pair at its first key before it is refused for anything else.
    match state.sessions.check(&pair, timestamp) {
        Verdict::Seen(outcome) => return Ok(outcome),
        Verdict::Expired => return Ok(Outcome::SessionExpired),
        Verdict::Fresh => {}
    }
    let is_stale = command.epoch.epoch() != state.descriptor.epoch
        && !mutant::is(Mutant::EpochUncheckedAtApply);
    if is_stale || !all_inside(state, &command.action) {
        if mutant::is(Mutant::MovedAfterApply) {
            write(rows, &command.action, timestamp)?;
        }
        return Ok(Outcome::Moved);
    }
    let outcome = write(rows, &command.action, timestamp)?;
    let first_key = Blob::copy_from_slice(first_key);
    state
        .sessions
        .record(&pair, first_key, timestamp, outcome.clone());
    Ok(outcome)
}

fn all_inside(state: &RangeState, action: &ArchivedAction<'_>) -> bool {
    match action {
        ArchivedAction::Multi { changes, .. } => changes
            .iter()
            .all(|c| state.descriptor.keys.contains(&c.key)),
        _ => true,
    }
}

fn write(
    rows: &mut impl Rows,
    action: &ArchivedAction<'_>,
    version: Timestamp,
) -> Result<Outcome, LsmError> {
    let existed = false;
    match action {
        ArchivedAction::Put { key, value, .. } => {
            rows.insert(key, version, Some(value));
            Ok(Outcome::Done { version, existed })
        }
        ArchivedAction::Delete { key, .. } => {
            let existed = rows.newest(key, |found| matches!(found, Some((_, Some(_)))))?;
            if existed {
                rows.insert(key, version, None);
            }
            Ok(Outcome::Done { version, existed })
        }
        ArchivedAction::CompareAndSwap {
            key,
            expected,
            change,
            ..
        } => {
            let (holds, current) = rows.newest(key, |found| compare(expected, found))?;
            if !holds {
                return Ok(Outcome::ConditionFailed { current });
            }
            if change.value().is_some() || current.is_some() {
                rows.insert(key, version, change.value());
            }
            Ok(Outcome::Done {
                version,
                existed: current.is_some(),
            })
        }
        ArchivedAction::Increment { key, delta, .. } => {
            increment(rows, key, delta.to_native(), version)
        }
        ArchivedAction::Multi { changes, .. } => {
            write_all(rows, changes, version);
            Ok(Outcome::Done { version, existed })
        }
        ArchivedAction::CollectBelow { .. }
        | ArchivedAction::Nothing
        | ArchivedAction::Digest { .. } => Ok(Outcome::Done { version, existed }),
    }
}

/// Whether a condition holds, and the version of the present value.
fn compare(
    expected: &ArchivedExpected<'_>,
    found: Option<(Timestamp, Option<&[u8]>)>,
) -> (bool, Option<Timestamp>) {
    let live = found.and_then(|(version, value)| value.map(|value| (version, value)));
    let holds = match expected {
        ArchivedExpected::Absent => live.is_none(),
        ArchivedExpected::Value(wanted) => live.is_some_and(|(_, value)| value == &**wanted),
        ArchivedExpected::Version(wanted) => {
            live.is_some_and(|(version, _)| version.0 == wanted.to_native())
        }
    };
    (holds, live.map(|(version, _)| version))
}

fn increment(
    rows: &mut impl Rows,
    key: &[u8],
    delta: i64,
    version: Timestamp,
) -> Result<Outcome, LsmError> {
    let number = rows.newest(key, |found| match found {
        None | Some((_, None)) => Some(0),
        Some((_, Some(value))) => parse_number(value),
    })?;
    let Some(number) = number else {
        return Ok(Outcome::NotANumber);
    };
    let Some(value) = number.checked_add(delta) else {
        return Ok(Outcome::NumberOverflow);
    };
    rows.insert(key, version, Some(value.to_string().as_bytes()));
    Ok(Outcome::Number { version, value })
}

/// A signed 64-bit number in decimal text: an optional minus and digits, nothing else.
fn parse_number(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Of a key that is changed twice the last change counts: per key a version exists once.
fn write_all(rows: &mut impl Rows, changes: &[ArchivedKeyChange<'_>], version: Timestamp) {
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by(|a, b| {
        let key = |i: &usize| changes.get(*i).map(|c| &*c.key);
        key(a).cmp(&key(b)).then(b.cmp(a))
    });
    let mut last: Option<&[u8]> = None;
    for change in order.into_iter().filter_map(|i| changes.get(i)) {
        if last == Some(&*change.key) {
            continue;
        }
        last = Some(&change.key);
        rows.insert(&change.key, version, change.change.value());
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
