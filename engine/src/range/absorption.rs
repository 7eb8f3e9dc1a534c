//! How a replica takes over the replica of its right neighbour beside it, when the ranges are merged.
//!
//! The right replica is frozen and in tables, with all that it has. The left one takes over its session
//! table and its data ids in the turn in which it applies the merge; no row is copied. The right replica
//! stays in the log until a flush covers the left one: after a crash before that, the left one applies the
//! merge again, and needs it. A start that finds a frozen replica whose keys the left neighbour has by now
//! removes it. Lives on the shard's thread.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::env::Env;
use crate::error::Error;
use crate::mutant::{self, Mutant};
use crate::range::replica::Replica;
use crate::types::{KeyRange, MergeId, RangeId};
use crate::wal::LogId;

/// A replica that was taken over by another one, until the log no longer has it.
pub struct Absorbed<R> {
    /// The replica.
    pub replica: Rc<R>,
    /// The range that has taken it over.
    pub by: RangeId,
    /// The entry by which it was; `None` if the left replica took over a snapshot, which is durable.
    pub at: Option<LogId>,
}

/// The replicas of a shard as they find each other, and those that were taken over.
pub struct Absorption<R> {
    replicas: RefCell<BTreeMap<RangeId, Weak<R>>>,
    absorbed: RefCell<Vec<Absorbed<R>>>,
    /// Replicas that did not find the one that they had to take over.
    incomplete: RefCell<Vec<Rc<R>>>,
}

impl<R> Default for Absorption<R> {
    fn default() -> Absorption<R> {
        Absorption {
            replicas: RefCell::default(),
            absorbed: RefCell::default(),
            incomplete: RefCell::default(),
        }
    }
}

impl<R> Absorption<R> {
    /// Adds a replica of a range.
    pub fn add(&self, range: RangeId, replica: &Rc<R>) {
        let mut replicas = self.replicas.borrow_mut();
        replicas.retain(|_, replica| replica.strong_count() > 0);
        replicas.insert(range, Rc::downgrade(replica));
    }

    /// The replicas that were taken over and that the log still has.
    pub fn absorbed(&self) -> Ref<'_, [Absorbed<R>]> {
        Ref::map(self.absorbed.borrow(), Vec::as_slice)
    }

    /// Forgets a replica that was taken over: the log no longer has it.
    pub fn forget(&self, replica: &Rc<R>) {
        let mut absorbed = self.absorbed.borrow_mut();
        absorbed.retain(|absorbed| !Rc::ptr_eq(&absorbed.replica, replica));
    }

    /// Takes out the replicas that did not find the one that they had to take over.
    pub fn take_incomplete(&self) -> Vec<Rc<R>> {
        self.incomplete.take()
    }

    /// Lets everything go: the shard has stopped.
    pub fn close(&self) {
        self.absorbed.take();
        self.incomplete.take();
    }

    fn all(&self) -> Vec<Rc<R>> {
        let replicas = self.replicas.borrow();
        replicas.values().filter_map(Weak::upgrade).collect()
    }

    fn of(&self, range: RangeId) -> Option<Rc<R>> {
        self.replicas.borrow().get(&range)?.upgrade()
    }

    fn absorb(&self, absorbed: Absorbed<R>) {
        let mut all = self.absorbed.borrow_mut();
        all.push(absorbed);
    }
}

impl<E: Env> Replica<E> {
    /// The merge for which the range is frozen, if it is.
    pub fn frozen(&self) -> Option<MergeId> {
        self.state.borrow().frozen
    }

    /// Whether another replica has taken this one over: it has nothing any more.
    pub fn is_absorbed(&self) -> bool {
        self.absorbed.get()
    }

    /// Takes over the replica of a frozen neighbour beside this one, in the turn in which the merge is
    /// applied.
    ///
    /// A member that was added after the merge may get a snapshot from before it, from a leader that has
    /// not come so far. It finds no neighbour then. It lacks rows, so it serves and saves nothing from
    /// now on, and is removed; the cluster's manager replaces it.
    pub(super) fn absorb(&self, right: RangeId, merge: MergeId, at: LogId) {
        let found = self.home.absorption.of(right);
        let is_frozen = |right: &Rc<Replica<E>>| right.frozen() == Some(merge);
        let Some(right) = found.filter(is_frozen) else {
            tracing::warn!(
                range = %self.group.range,
                "a replica is removed: its range has taken over range {right}, of which this shard has \
                 no replica"
            );
            self.absorbed.set(true);
            self.leadership.stop();
            let own = self.home.absorption.of(self.group.range);
            self.home.absorption.incomplete.borrow_mut().extend(own);
            self.home.nursery.bounds_changed();
            return;
        };
        let (served, sessions) = {
            let mut state = right.state.borrow_mut();
            let served = state.ceiling.max(state.last_ts);
            (served, std::mem::take(&mut state.sessions))
        };
        {
            let mut state = self.state.borrow_mut();
            state.sessions.absorb(sessions);
            self.count_unsaved(&state);
        }
        let border = right.with_state(|state| state.descriptor.keys.start.clone());
        let joined = self.parts.borrow().joined(&border, &right.parts());
        self.parts.replace(joined);
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
    }

    /// Takes over the frozen replicas beside this one whose keys it has by a snapshot. Their rows and
    /// sessions are in the snapshot.
    pub(super) fn absorb_covered(&self) {
        let keys = self.with_state(|state| state.descriptor.keys.clone());
        for right in self.home.absorption.all() {
            if right.is_covered(self.group.range, &keys) {
                self.take_over(&right, None);
            }
        }
    }

    /// Whether its range was frozen to become a part of the range `left`, which has these keys by now.
    pub fn is_covered(&self, left: RangeId, keys: &KeyRange) -> bool {
        let state = self.state.borrow();
        let is_frozen = state.frozen.is_some_and(|merge| merge.left == left);
        is_frozen && !self.absorbed.get() && keys.contains(&state.descriptor.keys.start)
    }

    fn take_over(&self, right: &Rc<Replica<E>>, at: Option<LogId>) {
        right.absorbed.set(true);
        right.leadership.stop();
        right.proposer.refuse_all(&Error::Moved(vec![self.route()]));
        right.count_unsaved(&right.state.borrow());
        self.home.absorption.absorb(Absorbed {
            replica: right.clone(),
            by: self.group.range,
            at,
        });
        self.home.nursery.bounds_changed();
    }
}
