//! How a replica takes over the replica of its right neighbour on the same shard, when the ranges are
//! merged.
//!
//! The right replica is frozen, and its log says durably that the freeze is committed. The left one takes
//! over its session table and its data ids in the turn in which it applies the merge; no row is copied, and
//! none need be in tables: a merge waits for no flush, so that it also works on a full disk. The right
//! replica stays in the log until a flush covers the left one: after a crash before that, the left one
//! applies the merge again, and needs it. So at a start the right replica applies its log up to the freeze
//! before the left one applies the merge ([`Replica::prepare_merge`]). If a start finds a frozen replica,
//! and another one already has its keys, it removes the frozen one. Lives on the shard's thread.

use std::rc::Rc;

use crate::env::Env;
use crate::error::{Error, Fatal};
use crate::mutant::{self, Mutant};
use crate::range::command;
use crate::range::replica::Replica;
use crate::range::split_merge::absorbed_replicas::Absorbed;
use crate::range::split_merge::merge;
use crate::types::{KeyRange, MergeId, RangeId};
use crate::wal::{LogEntry, LogId, Payload};

impl<E: Env> Replica<E> {
    /// The merge for which the range is frozen, if it is.
    pub fn frozen(&self) -> Option<MergeId> {
        self.state.borrow().frozen
    }

    /// Whether the range is frozen for this merge.
    pub fn is_frozen_for(&self, merge: MergeId) -> bool {
        let frozen = self.frozen();
        frozen == Some(merge) || (frozen.is_some() && mutant::is(Mutant::FreezeOfAnotherAttempt))
    }

    /// Whether this replica serves and saves nothing any more: another one has taken it over, or it did
    /// not find the one that it had to take over.
    pub fn is_absorbed(&self) -> bool {
        self.saved.is_absorbed.get()
    }

    /// Waits until this replica leads, or another one has taken it over.
    pub async fn led(&self) {
        self.leadership.led_unless(|| self.is_absorbed()).await;
    }

    /// While the shard is opened: if an entry is a merge, has the right replica on this shard apply its log
    /// first.
    ///
    /// # Errors
    /// The entry is damaged, or the right replica cannot be started.
    pub(in crate::range) async fn prepare_merge(&self, entry: &LogEntry) -> Result<(), Fatal> {
        let Payload::Commands(bytes) = &entry.payload else {
            return Ok(());
        };
        let Some((right, merge)) = command::merge_of(bytes)? else {
            return Ok(());
        };
        let found = self.home.absorption.of(right);
        let is_ready = found.is_none_or(|right| right.is_frozen_for(merge));
        if is_ready || mutant::is(Mutant::MergeBeforeFreezeAtStart) {
            return Ok(());
        }
        self.home.absorption.replay(right).await
    }

    /// Takes over the replica of the frozen right neighbour on this shard, in the turn in which the merge
    /// is applied.
    ///
    /// A member added after the merge can get a snapshot from before it, if the sender has not applied the
    /// merge yet. Then there is no right replica to take over and rows are missing: this replica serves
    /// and saves nothing from now on, and is removed; the cluster's manager replaces it.
    ///
    /// # Errors
    /// There is no right replica to take over, and this one is the only replica of its range.
    pub(super) fn absorb(&self, right: RangeId, attempt: MergeId, at: LogId) -> Result<(), Fatal> {
        let found = self.home.absorption.of(right);
        let is_frozen = |right: &Rc<Replica<E>>| right.is_frozen_for(attempt);
        let Some(right) = found.filter(is_frozen) else {
            if self.with_state(|state| state.descriptor.replicas.len() == 1) {
                return Err(Fatal::Inconsistent(format!(
                    "range {} takes over range {right} in entry {} of its log, and shard {} has no frozen \
                     replica of that; there is no other replica of range {} from which it could be made \
                     anew",
                    self.group.range, at.index, self.home.location, self.group.range
                )));
            }
            tracing::warn!(
                range = %self.group.range,
                "a replica is removed: its range has taken over range {right}, of which this shard has \
                 no replica"
            );
            self.saved.is_absorbed.set(true);
            self.leadership.stop();
            if let Some(own) = self.home.absorption.of(self.group.range) {
                self.home.absorption.is_incomplete(own);
            }
            self.home.newborns.bounds_changed();
            return Ok(());
        };
        let (served, sessions, borders) = {
            let mut state = right.state.borrow_mut();
            let served = state.ceiling.max(state.last_ts);
            let borders = state.borders.all().to_vec();
            (served, std::mem::take(&mut state.sessions), borders)
        };
        {
            let mut state = self.state.borrow_mut();
            state.sessions.absorb(sessions);
            merge::absorb_borders(&mut state, borders);
            self.count_unsaved(&state);
        }
        let border = right.with_state(|state| state.descriptor.keys.start.clone());
        let joined = self.rows.parts().joined(&border, &right.parts());
        self.rows.set(joined);
        // What the right leader served must stay true, whether or not this replica leads.
        if !mutant::is(Mutant::FloorForgottenAtMerge) {
            self.timestamps.raise_floor(served);
        }
        let last_write = self.last_write().max(right.last_write());
        self.usage.last_write.set(last_write);
        self.digesting.set(None);
        tracing::debug!(range = %self.group.range, %right.group.range, "the ranges were merged");
        self.take_over(&right, Some(at));
        self.recheck_waiting();
        Ok(())
    }

    /// Takes over the frozen replicas on this shard whose keys this one has got by a snapshot. Their rows
    /// and sessions are in the snapshot.
    pub(in crate::range) fn absorb_covered(&self) {
        let keys = self.with_state(|state| state.descriptor.keys.clone());
        for right in self.home.absorption.all() {
            if right.is_covered(self.group.range, &keys) {
                self.take_over(&right, None);
            }
        }
    }

    /// Whether its range was frozen to become a part of the range `left`, and this replica's first key is
    /// among `keys`, which that range has now.
    pub fn is_covered(&self, left: RangeId, keys: &KeyRange) -> bool {
        let state = self.state.borrow();
        let is_frozen = state.frozen.is_some_and(|merge| merge.left == left);
        is_frozen && !self.saved.is_absorbed.get() && keys.contains(&state.descriptor.keys.start)
    }

    fn take_over(&self, right: &Rc<Replica<E>>, at: Option<LogId>) {
        right.saved.is_absorbed.set(true);
        right.rows.give_up();
        right.leadership.stop();
        right.proposer.refuse_all(&Error::Moved(vec![self.route()]));
        right.count_unsaved(&right.state.borrow());
        self.home.absorption.absorb(Absorbed {
            replica: right.clone(),
            by: self.group.range,
            at,
        });
        self.home.newborns.bounds_changed();
    }
}
