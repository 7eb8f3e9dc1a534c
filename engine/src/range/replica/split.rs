//! The replica's part in a split, from the proposal until it is applied: which keys the leader closes, and
//! how the child is born. How a split changes the range's state is in [`crate::range::split_merge::split`].
//!
//! From the turn in which a split is queued until it is applied, the leader serves no key of the child
//! ([`Replica::is_closed`]). Once the entry is committed, another replica may apply it first. Then the child
//! may be led elsewhere and acknowledge writes that this leader does not know. The keys stay closed if the
//! leader loses its leadership and gains it again in the same term. In a later term it has applied the split
//! before it serves, or the entry was overwritten. Lives on the shard's thread.

use std::rc::Rc;

use crate::env::Env;
use crate::error::{Error, Fatal};
use crate::mutant::{self, Mutant};
use crate::raft::StartMode;
use crate::range::Route;
use crate::range::command;
use crate::range::proposer::ProposalKind;
use crate::range::replica::{Replica, ReplicaParts};
use crate::range::split_merge::newborns::{self, Newborn};
use crate::range::split_merge::pending_split::PendingSplit;
use crate::range::split_merge::split;
use crate::range::state::{FIRST, RangeState};
use crate::types::KeyRange;
use crate::wal::{Birth, Created, Group, LogEntry, LogId, Payload};

impl<E: Env> newborns::Child for Replica<E> {
    fn holds(&self, key: &[u8]) -> bool {
        self.with_state(|state| state.descriptor.keys.contains(key))
    }

    fn overlaps(&self, keys: &KeyRange) -> bool {
        self.with_state(|state| state.descriptor.keys.overlaps(keys))
    }

    fn is_flushed(&self) -> bool {
        !self.saved.is_newborn.get()
    }
}

impl<E: Env> Replica<E> {
    /// Serves no key from `key` on any more: a split there is queued.
    pub fn close_from(&self, key: &[u8]) {
        if mutant::is(Mutant::ReadsDuringSplit) {
            return;
        }
        self.pending_split.close_from(key);
    }

    /// Serves all its keys again: the split was refused before it was proposed.
    pub fn open_again(&self) {
        self.pending_split.end();
    }

    /// Whether a split is under way here, as far as this leader knows.
    pub fn is_splitting(&self) -> bool {
        self.pending_split.closed_from().is_some()
    }

    /// Whether a key belongs to a range that is being split off.
    pub fn is_closed(&self, key: &[u8]) -> bool {
        let closed = self.pending_split.closed_from();
        closed.is_some_and(|from| key >= &*from)
    }

    /// Refuses a key that belongs to a range that is being split off. The route names no leader: soon
    /// there is one.
    ///
    /// # Errors
    /// [`Error::NotLeader`].
    pub fn check_open(&self, key: &[u8]) -> Result<(), Error> {
        match self.is_closed(key) {
            true => Err(self.closed()),
            false => Ok(()),
        }
    }

    /// The refusal of a key that nobody serves for a moment.
    pub(super) fn closed(&self) -> Error {
        Error::NotLeader(Some(Box::new(Route {
            leader: None,
            ..self.route()
        })))
    }

    /// The keys that it serves: without those of a range that is being split off.
    pub fn open_keys(&self) -> KeyRange {
        let mut keys = self.with_state(|state| state.descriptor.keys.clone());
        if let Some(from) = self.pending_split.closed_from() {
            keys.end = Some(from.to_vec());
        }
        keys
    }

    /// Makes the birth of the child durable, if the entry is a split that will take place and that gives
    /// this replica a child.
    ///
    /// # Errors
    /// The entry is damaged, or the log has failed.
    pub(in crate::range) async fn prepare_split(&self, entry: &LogEntry) -> Result<(), Fatal> {
        let Payload::Commands(bytes) = &entry.payload else {
            return Ok(());
        };
        if !PendingSplit::<E>::is_of(entry) || self.pending_split.is_leaving.get() {
            return Ok(());
        }
        let Some(created) = self.birth(bytes, entry.id)? else {
            return Ok(());
        };
        // While the births become durable here, the followers learn that theirs are due.
        self.home.newborns.committed(self.group);
        self.pending_split.bearing.set(Some(created.group));
        let prepared = self.home.newborns.prepare(created).await?;
        self.pending_split.prepared.replace(prepared);
        Ok(())
    }

    /// Gives birth to no child any more: this replica is being removed. Gives the child that was about to
    /// be born. Its birth may be durable, so that it must be removed, too.
    pub fn leave(&self) -> Option<Group> {
        self.pending_split.is_leaving.set(true);
        self.pending_split.bearing.take()
    }

    /// The record of the child's replica beside this one, if the split will take place.
    fn birth(&self, entry: &[u8], split: LogId) -> Result<Option<Created>, Fatal> {
        let Some((command, order)) = command::split_of(entry)? else {
            return Ok(None);
        };
        let state = self.state.borrow();
        if command.timestamp.to_native() <= state.last_ts.0 {
            return Ok(None);
        }
        let Some((descriptor, membership)) = split::child_of(&state, order, command.epoch.epoch())?
        else {
            return Ok(None);
        };
        let Some(replica) = split::child_beside(order, self.group.replica) else {
            return Ok(None);
        };
        let encoded = descriptor.encode();
        let encoded = encoded.map_err(|e| Fatal::Inconsistent(format!("a descriptor: {e}")))?;
        let parent = self.group;
        Ok(Some(Created {
            group: Group {
                range: descriptor.range,
                replica,
            },
            data_id: self.data_id_of(&order.key),
            descriptor: encoded.into(),
            membership: membership.into(),
            first: Some(FIRST),
            birth: Some(Birth { parent, split }),
        }))
    }

    /// Gives birth to the child's replica beside this one, in the turn in which this one loses its keys.
    pub(super) fn bear(&self, child: RangeState, split: LogId) {
        let (left, right) = self.rows.parts().split_at(&child.descriptor.keys.start);
        self.rows.set(left);
        if !mutant::is(Mutant::ChildsRowsCollected) {
            let gone = right.within(&child.descriptor.keys);
            self.rows.outlive(gone, split.index);
        }
        // A digest of the keys before the split can no longer be made.
        self.digesting.set(None);
        let prepared = self.pending_split.take_prepared();
        tracing::debug!(
            range = %self.group.range,
            child = %child.range(),
            version = child.descriptor.epoch.version,
            entry = split.index,
            born = prepared.is_some(),
            "the range was split"
        );
        if let Some((group, (log, existed))) = prepared {
            let leads = self.leading().is_some();
            let made = match existed {
                true => StartMode::Before,
                false => StartMode::Now { leads },
            };
            let usage = self.usage.split(&child.descriptor.keys.start);
            let mut replica = Replica::new(ReplicaParts {
                group,
                parts: right,
                state: child,
                term_before: log.state().vote.map_or(0, |vote| vote.term),
                last_before: log.state().last.map_or(0, |id| id.index),
                home: self.home.clone(),
            });
            replica.usage = usage;
            let replica = Rc::new(replica);
            replica.was_born();
            self.home.absorption.add(group.range, &replica);
            self.store.add(replica.clone());
            self.home.newborns.add(Newborn {
                replica,
                log,
                made,
                parent: self.group,
            });
        }
        self.home.newborns.bounds_changed();
        self.recheck_waiting();
    }

    /// Checks the writes that wait against the new bounds: they were checked against the old ones. A
    /// sender that named the old version learns the new one.
    pub(super) fn recheck_waiting(&self) {
        let keys = self.with_state(|state| state.descriptor.clone());
        let moved = Error::Moved(vec![self.route()]);
        self.proposer.recheck(
            |proposal| match &proposal.kind {
                ProposalKind::Write(..) if proposal.is_named => None,
                ProposalKind::Write(batch, _) => {
                    let is_here = batch.keys().all(|key| keys.keys.contains(key));
                    is_here.then_some(keys.epoch.version)
                }
                ProposalKind::Order(_) => Some(keys.epoch.version),
            },
            &moved,
        );
    }
}
