//! Applying one log entry: the only place where a range's rows change.
//!
//! Apply decides and writes; what else an entry asks for, it gives back as [`Effect`]s, which
//! [`Replica::apply`](crate::range::replica::Replica::apply) carries out.
//!
//! Deterministic: apply reads the rows, the state and the entry, and nothing else — no clock, no
//! randomness, no configuration. Conditional writes are decided within apply
//! ([`conditional_write`]), in log order, so nothing needs latches. Synchronous: between its first
//! and its last row no task sees the entry, and an entry never spans memtables, so after a crash it is
//! there whole or not at all. So the rows that the commands of an entry need are read before its first
//! command is applied: if a block of a table with one of these rows cannot be read, nothing is applied. Any
//! other error means that the tree or the log is damaged, and ends the process; it is never an error of the
//! client.

mod conditional_write;
pub mod observer;

use crate::error::Fatal;
use crate::lsm::LsmError;
use crate::mutant::{self, Mutant};
use crate::raft::{self, AppliedMembership};
use crate::range::command::format;
use crate::range::command::{self, ArchivedAction, ArchivedEntry, ArchivedRangeOrder};
use crate::range::rows::Rows;
use crate::range::sessions::Verdict;
use crate::range::split_merge::{merge, split};
use crate::range::state::RangeState;
use crate::request::{ArchivedBatch, ArchivedChange, Outcome, RequestId};
use crate::types::{Blob, Epoch, MergeId, RangeId, Timestamp};
use crate::wal::{LogEntry, LogId, Payload};
use conditional_write::write;

/// What applying one command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Decided; for the client.
    Outcome(Outcome),
    /// Its timestamp was not above the last one: nothing was done, the leader proposes it again.
    Repropose,
}

/// What an entry asks of its replica besides its rows and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A leader has begun its term with this entry.
    BeginTerm(LogId),
    /// A digest of what the replica holds now, under this number.
    Digest(u64),
    /// The replica of this range on the same shard, which is frozen for this merge, is taken over.
    Absorb(RangeId, MergeId),
    /// The range serves its keys again.
    Thawed,
}

/// What applying one entry gave.
#[derive(Debug, Default)]
pub struct Step {
    /// A result for each of its commands.
    pub results: Vec<Applied>,
    /// In the order of its commands.
    pub effects: Vec<Effect>,
    /// The state of the range that it has split off.
    pub child: Option<Box<RangeState>>,
    /// Why a row that its commands need cannot be read. Then nothing was done.
    pub unread: Option<LsmError>,
}

/// Applies one entry.
///
/// # Errors
/// The entry is damaged, or the tree cannot be read.
pub fn apply(
    state: &mut RangeState,
    rows: &mut impl Rows,
    entry: &LogEntry,
) -> Result<Step, Fatal> {
    let mut step = Step::default();
    match &entry.payload {
        Payload::Blank => {
            pass(state);
            step.effects.push(Effect::BeginTerm(entry.id));
        }
        Payload::Membership(body) => {
            pass(state);
            let replicas = raft::replicas(body)
                .map_err(|e| Fatal::Inconsistent(format!("a membership in the log: {e}")))?;
            if *body.bytes() != state.membership.body {
                state.descriptor.set_replicas(replicas);
            }
            state.membership = AppliedMembership {
                log_id: Some(entry.id),
                body: body.bytes().clone(),
            };
        }
        Payload::Commands(bytes) => {
            let current = format::current(bytes)?;
            step = apply_commands(state, rows, command::access(&current)?)?;
            if step.unread.is_some() {
                return Ok(step);
            }
        }
    }
    state.applied = Some(entry.id);
    Ok(step)
}

/// Applies the commands of one entry in order.
fn apply_commands(
    state: &mut RangeState,
    rows: &mut impl Rows,
    entry: &ArchivedEntry<'_>,
) -> Result<Step, Fatal> {
    if let Err(error) = look_ahead(state, rows, entry) {
        return match error {
            LsmError::Unreadable { .. } => Ok(Step {
                unread: Some(error),
                ..Step::default()
            }),
            error => Err(error.into()),
        };
    }
    let mut step = Step {
        results: Vec::with_capacity(entry.commands.len()),
        ..Step::default()
    };
    for command in entry.commands.iter() {
        let timestamp = Timestamp(command.timestamp.to_native());
        if timestamp <= state.last_ts {
            step.results.push(Applied::Repropose);
            continue;
        }
        if merge::is_held_back(state, command) {
            step.results.push(Applied::Outcome(Outcome::Moved));
            continue;
        }
        state.last_ts = timestamp;
        let outcome = match &command.action {
            ArchivedAction::Order(order) => {
                follow(state, order, (command.epoch.epoch(), timestamp), &mut step)?
            }
            ArchivedAction::Write { request_id, batch } => {
                let is_stale = is_stale(command.epoch.epoch(), state.descriptor.epoch)
                    && !mutant::is(Mutant::EpochUncheckedAtApply);
                apply_batch(
                    state,
                    rows,
                    (&request_id.to_native(), batch, is_stale),
                    timestamp,
                )?
            }
        };
        step.results.push(Applied::Outcome(outcome));
    }
    // An entry without commands moves the range's time on, too.
    if entry.commands.is_empty() {
        pass(state);
    }
    // A frozen range serves nothing: its ceiling stays what was served.
    if state.frozen.is_none() {
        state.ceiling = state.ceiling.max(Timestamp(entry.ceiling.to_native()));
    }
    Ok(step)
}

/// Looks at the rows that the commands of an entry need, so that none fails when others are applied.
fn look_ahead(
    state: &RangeState,
    rows: &impl Rows,
    entry: &ArchivedEntry<'_>,
) -> Result<(), LsmError> {
    for command in entry.commands.iter() {
        let ArchivedAction::Write { batch, .. } = &command.action else {
            continue;
        };
        let is_one = batch.mutations.len() == 1;
        let changed = batch
            .mutations
            .iter()
            .filter(|mutation| match mutation.change {
                ArchivedChange::Put { .. } => false,
                ArchivedChange::Delete => is_one,
                ArchivedChange::Add { .. } => true,
            });
        let compared = batch.conditions.iter().map(|condition| &*condition.key);
        for key in compared.chain(changed.map(|mutation| &*mutation.key)) {
            if state.descriptor.keys.contains(key) {
                rows.newest(key, |_| ())?;
            }
        }
    }
    Ok(())
}

/// Whether a write was proposed under other bounds of its range. Only older releases write a `conf`. Their
/// replicas refuse such a write after a change of members, so it must be refused here, too.
fn is_stale(proposed: Epoch, now: Epoch) -> bool {
    proposed.version != now.version || (proposed.conf != 0 && proposed.conf != now.conf)
}

/// An entry without commands (blank, membership) raises `last_ts`, too, unless the range is frozen.
fn pass(state: &mut RangeState) {
    if state.frozen.is_some() {
        return;
    }
    state.last_ts = state.last_ts.next();
}

/// Carries out an order of the range itself.
fn follow(
    state: &mut RangeState,
    order: &ArchivedRangeOrder,
    (proposed, timestamp): (Epoch, Timestamp),
    step: &mut Step,
) -> Result<Outcome, Fatal> {
    match order {
        ArchivedRangeOrder::NoOp => {}
        ArchivedRangeOrder::Digest { number } => {
            step.effects.push(Effect::Digest(number.to_native()));
        }
        ArchivedRangeOrder::SetGcThreshold { threshold } => {
            let threshold = Timestamp(threshold.to_native());
            state.gc_threshold = state.gc_threshold.max(threshold.min(timestamp));
            state.borders.forget(state.gc_threshold);
        }
        ArchivedRangeOrder::Split(order) => {
            let child = split::apply(state, order, proposed, timestamp)?;
            step.child = child.map(Box::new);
            if step.child.is_none() {
                return Ok(Outcome::Moved);
            }
        }
        ArchivedRangeOrder::Freeze(order) => {
            if !merge::freeze(state, order, proposed)? {
                return Ok(Outcome::Moved);
            }
        }
        ArchivedRangeOrder::Unfreeze { merge } => {
            if !merge::thaw(state, merge) {
                return Ok(Outcome::Moved);
            }
            step.effects.push(Effect::Thawed);
        }
        ArchivedRangeOrder::Merge(order) => {
            if !merge::merge(state, order, proposed)? {
                return Ok(Outcome::Moved);
            }
            let right = RangeId(order.right.0.to_native());
            let absorb = Effect::Absorb(right, order.merge.to_native());
            step.effects.push(absorb);
        }
        ArchivedRangeOrder::CancelMerge { merge } => {
            if !merge::cancel(state, merge) {
                return Ok(Outcome::Moved);
            }
        }
    }
    let existed = false;
    Ok(Outcome::Done {
        version: timestamp,
        existed,
    })
}

/// Decides a client's write. Checks its first key, its request id, its range's version and its other keys, then
/// its conditions; then carries out its mutations.
fn apply_batch(
    state: &mut RangeState,
    rows: &mut impl Rows,
    (request_id, batch, is_stale): (&RequestId, &ArchivedBatch, bool),
    timestamp: Timestamp,
) -> Result<Outcome, Fatal> {
    let Some(first) = batch.mutations.first() else {
        return Err(Fatal::Inconsistent(
            "a log entry holds a write without a mutation".to_owned(),
        ));
    };
    if !state.descriptor.keys.contains(&first.key) {
        return Ok(Outcome::Moved);
    }
    // Sessions keep a request id with its write's first key. So it is looked up before anything else is
    // checked, and a retry gets its old outcome.
    match state.sessions.check(request_id, timestamp) {
        Verdict::Seen(outcome) => return Ok(outcome),
        Verdict::Expired => return Ok(Outcome::SessionExpired),
        Verdict::Fresh => {}
    }
    if is_stale || !all_inside(state, batch) {
        if mutant::is(Mutant::MovedAfterApply) {
            write(rows, batch, timestamp)?;
        }
        return Ok(Outcome::Moved);
    }
    let outcome = write(rows, batch, timestamp)?;
    let first_key = Blob::copy_from_slice(&first.key);
    state
        .sessions
        .record(request_id, first_key, timestamp, outcome.clone());
    Ok(outcome)
}

/// Whether the range holds all keys of a batch whose first key it holds.
fn all_inside(state: &RangeState, batch: &ArchivedBatch) -> bool {
    let keys = &state.descriptor.keys;
    let mut others = batch.mutations.iter().skip(1);
    batch.conditions.iter().all(|c| keys.contains(&c.key)) && others.all(|m| keys.contains(&m.key))
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
