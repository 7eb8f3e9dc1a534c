//! A replica of a range on this shard: its state, its rows, and what a leader keeps besides.
//!
//! Lives on the shard's thread. The state changes in [`Replica::apply`] alone, which is
//! synchronous.
//!
//! Whether this replica leads is known from the log: from the moment it has applied its own blank
//! entry, in a term newer than any seen when the process started, as long as openraft says so. The
//! floor and the terms of an earlier process are lost: a term before the start never serves again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::env::{Clock, Env, Now};
use crate::error::{Error, Fatal, Fate};
use crate::hlc::Hlc;
use crate::limits::LEASE_MS;
use crate::lsm::LsmError;
use crate::mutant::{self, Mutant};
use crate::notify::Notify;
use crate::raft::AppliedState;
use crate::range::apply::{self, Applied, Effect, Rows};
use crate::range::digest::Digesting;
use crate::range::observer::ApplyObservers;
use crate::range::proposer::Proposer;
use crate::range::state::RangeState;
use crate::range::{Keyspace, Route};
use crate::request::Target;
use crate::tree::Store;
use crate::types::{DataId, Location, ReplicaId, Timestamp};
use crate::wal::{Group, LogEntry, LogId};

/// The leadership of this replica in one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// The term.
    pub term: u64,
    /// The index of the term's first entry, which is applied here.
    pub first_index: u64,
}

/// What a replica is made from.
pub struct ReplicaParts<E: Env> {
    /// The range and the replica's id.
    pub group: Group,
    /// The data id of its rows.
    pub data_id: DataId,
    /// The shard where it lives.
    pub location: Location,
    /// Its state, as read from the tree.
    pub state: RangeState,
    /// The term of its vote when the process started.
    pub term_before: u64,
    /// The index of the last entry in its log when the process started.
    pub last_before: u64,
    /// The shard's tree.
    pub store: Rc<Store<E>>,
    /// The node's hybrid logical clock.
    pub hlc: Hlc,
    /// The wall clock, and random numbers.
    pub clock: E::Clock,
    /// Called with what the replica applies.
    pub observers: ApplyObservers,
}

/// A replica of a range; see the module's chapter.
pub struct Replica<E: Env> {
    /// The range and the replica's id.
    pub group: Group,
    /// The data id of its rows.
    data_id: Cell<DataId>,
    /// The shard where it lives.
    pub location: Location,
    /// The queue of writes; only a leader's has any.
    pub proposer: Proposer<Now<E>>,
    pub(crate) store: Rc<Store<E>>,
    hlc: Hlc,
    clock: E::Clock,
    observers: ApplyObservers,
    pub(super) state: RefCell<RangeState>,
    term_before: u64,
    last_before: u64,
    leading: Cell<Option<Leading>>,
    /// The blank entry of its own that it applied last; `None` once it has asked another to lead.
    blank: Cell<Option<Leading>>,
    /// The leader that openraft knows.
    leader: Cell<Option<ReplicaId>>,
    /// The term of this replica's vote.
    leader_term: Cell<u64>,
    /// Whether the group has had no majority for a while.
    lacks_quorum: Cell<bool>,
    /// Notified when this replica begins to lead, and when openraft knows another leader.
    leader_changed: Notify,
    /// New writes get timestamps above this, because reads were served up to it.
    floor: Cell<Timestamp>,
    /// Whether an entry was applied since the state row was last written.
    pub(super) changed: Cell<bool>,
    /// How many rows of the session table this replica has added to the store's count of unsaved
    /// ones.
    pub(super) unsaved: Cell<usize>,
    /// How far the state is durable in the tree.
    durable: RefCell<AppliedState>,
    /// When a user last wrote, to know whether old versions may exist.
    last_write: Cell<Timestamp>,
    /// The timestamps of the snapshots that are being read.
    pub(super) exported: RefCell<Vec<Timestamp>>,
    /// The last digest that was asked for.
    pub(super) digesting: Cell<Option<Digesting>>,
    /// Whether its rows differ from other replicas', and no one knows which are right.
    pub(super) halted: Cell<bool>,
}

impl<E: Env> Replica<E> {
    /// A replica whose group has not started.
    pub fn new(parts: ReplicaParts<E>) -> Replica<E> {
        let durable = parts.state.applied_state();
        let last_write = parts.state.last_ts;
        let replica = Replica {
            group: parts.group,
            data_id: Cell::new(parts.data_id),
            location: parts.location,
            proposer: Proposer::new(parts.store.writes.clone()),
            store: parts.store,
            hlc: parts.hlc,
            clock: parts.clock,
            observers: parts.observers,
            state: RefCell::new(parts.state),
            term_before: parts.term_before,
            last_before: parts.last_before,
            leading: Cell::new(None),
            blank: Cell::new(None),
            leader_term: Cell::new(0),
            leader: Cell::new(None),
            lacks_quorum: Cell::new(false),
            leader_changed: Notify::default(),
            floor: Cell::new(Timestamp::ZERO),
            changed: Cell::new(false),
            unsaved: Cell::new(0),
            durable: RefCell::new(durable),
            last_write: Cell::new(last_write),
            exported: RefCell::default(),
            digesting: Cell::new(None),
            halted: Cell::new(false),
        };
        // A start may have found session rows that are to be deleted.
        replica.count_unsaved(&replica.state.borrow());
        replica
    }

    /// The data id of its rows.
    pub fn data_id(&self) -> DataId {
        self.data_id.get()
    }

    /// Becomes the snapshot with rows under `data_id`: they and the switch in the log are durable.
    pub(super) fn become_snapshot(&self, data_id: DataId, state: RangeState) {
        let durable = state.applied_state();
        tracing::info!(
            range = %self.group.range,
            entry = state.applied.map_or(0, |id| id.index),
            "took over a snapshot"
        );
        self.hlc.observe(state.last_ts);
        self.last_write.set(state.last_ts);
        self.data_id.set(data_id);
        self.digesting.set(None);
        self.halted.set(false);
        *self.state.borrow_mut() = state;
        self.count_unsaved(&self.state.borrow());
        self.made_durable(durable);
        self.changed.set(true);
    }

    /// Calls `look` with the replicated state. `look` must not call back into the replica.
    pub fn with_state<R>(&self, look: impl FnOnce(&RangeState) -> R) -> R {
        look(&self.state.borrow())
    }

    /// The leadership of this replica, if it leads.
    pub fn leading(&self) -> Option<Leading> {
        self.leading.get()
    }

    /// Waits until this replica leads.
    pub async fn led(&self) {
        let leads = || self.leading.get().is_some();
        self.leader_changed.until(leads).await;
    }

    /// Waits until another replica leads, as far as this one knows.
    pub async fn led_by_other(&self) {
        let other = || self.leader().is_some_and(|id| id != self.group.replica);
        self.leader_changed.until(other).await;
    }

    /// Stops leading at once, whatever openraft says, until this replica leads in another term.
    pub fn stop_leading(&self) {
        self.blank.set(None);
        self.leading.set(None);
        let error = Error::NotLeader(Some(Box::new(self.route())));
        self.proposer.refuse_all(&error);
    }

    /// Takes from openraft who leads, and the term of this replica's vote.
    pub fn follow(&self, leader: Option<ReplicaId>, term: u64) {
        self.leader.set(leader);
        self.leader_term.set(term);
        if mutant::is(Mutant::FastReadBeforeOwnEntry) && leader == Some(self.group.replica) {
            let first_index = 0;
            self.leading.set(Some(Leading { term, first_index }));
        }
        if leader != Some(self.group.replica) {
            self.leading.set(None);
            let error = Error::NotLeader(Some(Box::new(self.route())));
            self.proposer.refuse_all(&error);
            self.leader_changed.notify();
        } else {
            self.begin_to_lead();
        }
    }

    /// The route to this range, as far as this replica knows. It has no leader while there is no
    /// majority, whoever led last.
    pub fn route(&self) -> Route {
        let leader = self.leader().filter(|_| !self.lacks_quorum.get());
        self.state.borrow().descriptor.route(leader)
    }

    /// The leader, as far as this replica knows.
    pub fn leader(&self) -> Option<ReplicaId> {
        let me = self.leading.get().map(|_| self.group.replica);
        me.or(self.leader.get())
    }

    /// The key space of the range's keys.
    pub fn keyspace(&self) -> Keyspace {
        self.state.borrow().descriptor.keyspace
    }

    /// Refuses a request with another epoch, or to a replica that does not lead.
    ///
    /// # Errors
    /// [`Error::Moved`], [`Error::NotLeader`], [`Error::NoQuorum`], [`Error::Diverged`].
    pub fn check(&self, target: Option<Target>) -> Result<(), Error> {
        let epoch = self.state.borrow().descriptor.epoch;
        if let Some(target) = target
            && (target.range != self.group.range || target.epoch != epoch)
        {
            return Err(Error::Moved(Some(Box::new(self.route()))));
        }
        if self.leading.get().is_none() {
            return Err(self.not_leading());
        }
        if self.halted.get() {
            return Err(Error::Diverged(self.group.range));
        }
        Ok(())
    }

    fn not_leading(&self) -> Error {
        if self.lacks_quorum.get() {
            return Error::NoQuorum(Fate::NotApplied);
        }
        Error::NotLeader(Some(Box::new(self.route())))
    }

    /// Whether the group has had no majority for a while.
    pub fn lacks_quorum(&self) -> bool {
        self.lacks_quorum.get()
    }

    /// Takes from the shard's driver whether the group has no majority: while it has none, all
    /// waiting writes are answered. Gives whether that is news.
    pub(crate) fn take_quorum(&self, lacks: bool, now: Now<E>) -> bool {
        let is_news = self.lacks_quorum.replace(lacks) != lacks;
        if is_news {
            tracing::debug!(range = %self.group.range, lacks, "quorum");
        }
        if lacks {
            self.proposer.give_up();
        } else {
            self.proposer.expire(now);
        }
        is_news
    }

    /// Applies one entry of the log.
    ///
    /// # Errors
    /// The entry or the tree is damaged, or an entry is missing; then the process must end.
    pub fn apply(&self, entry: &LogEntry) -> Result<Vec<Applied>, Fatal> {
        let mut state = self.state.borrow_mut();
        self.refuse_other_entry(state.applied, entry)?;
        let mut rows = RangeRows {
            store: &self.store,
            data_id: self.data_id.get(),
            has_written: false,
        };
        let step = apply::apply(&mut state, &mut rows, entry)?;
        if rows.has_written {
            self.last_write.set(state.last_ts);
        }
        for observer in &*self.observers {
            observer.applied(self.group, entry, &step.results, &state);
        }
        self.changed.set(true);
        self.count_unsaved(&state);
        // The clock does not follow the ceiling, which lies a lease ahead of it: a leader that
        // followed its own ceiling would run ahead by one more lease with every entry.
        self.hlc.observe(state.last_ts);
        drop(state);
        for effect in step.effects {
            self.carry_out(effect, entry.id)?;
        }
        Ok(step.results)
    }

    fn carry_out(&self, effect: Effect, of: LogId) -> Result<(), Fatal> {
        match effect {
            Effect::BeginTerm(blank) => self.begin_term(blank),
            // An entry applied again after a restart gets no digest: the tables may hold later rows
            // already.
            Effect::Digest(number) if of.index > self.last_before => {
                let state = self.state.borrow();
                let digesting = Digesting::of(number, self.data_id.get(), &state)?;
                self.digesting.set(Some(digesting));
            }
            Effect::Digest(_) => {}
        }
        Ok(())
    }

    /// Refuses an entry that is not the next one, or whose bytes are not those that its leader
    /// encoded.
    fn refuse_other_entry(&self, applied: Option<LogId>, entry: &LogEntry) -> Result<(), Fatal> {
        let (range, index) = (self.group.range, entry.id.index);
        if let Some(applied) = applied
            && index != applied.index + 1
        {
            return Err(Fatal::Inconsistent(format!(
                "range {range}: entry {index} of the log comes after entry {}; those between are \
                 missing or were applied before",
                applied.index
            )));
        }
        if !entry.payload.is_intact() {
            return Err(Fatal::Inconsistent(format!(
                "range {range}: the bytes of entry {index} do not match the checksum that its \
                 leader gave it; this node's memory has changed them, test it"
            )));
        }
        Ok(())
    }

    /// Takes the first entry of a term, which may be this replica's own.
    fn begin_term(&self, blank: LogId) {
        if blank.leader != self.group.replica || blank.term <= self.term_before {
            return;
        }
        // What an earlier leader served must stay true: this one starts above the ceiling.
        if !mutant::is(Mutant::ServedTimestampsForgotten) {
            let newest = self.with_state(|state| state.last_ts.max(state.ceiling));
            self.raise_floor(newest);
        }
        self.blank.set(Some(Leading {
            term: blank.term,
            first_index: blank.index,
        }));
        self.begin_to_lead();
    }

    /// Begins to lead, if this replica has applied its own blank entry of the term in which
    /// openraft says that it leads. A replica that was paused may apply it when another leads
    /// already.
    fn begin_to_lead(&self) {
        let Some(blank) = self.blank.get() else {
            return;
        };
        let is_it = self.leader.get() == Some(self.group.replica);
        if !is_it || blank.term != self.leader_term.get() || self.leading.get() == Some(blank) {
            return;
        }
        self.leading.set(Some(blank));
        tracing::debug!(range = %self.group.range, term = blank.term, "leads");
        self.proposer.wake();
        self.leader_changed.notify();
    }

    /// Makes all new writes get timestamps above `at`.
    pub fn raise_floor(&self, at: Timestamp) {
        self.floor.set(self.floor.get().max(at));
    }

    /// Takes `count` timestamps for new commands, above all that were served or proposed; gives the
    /// first.
    pub fn take_timestamps(&self, count: u64) -> Timestamp {
        let state = self.state.borrow();
        let above = state.last_ts.max(self.floor.get());
        self.hlc.take(self.clock.wall_ms(), above, count)
    }

    /// A random id, such as a client's.
    pub fn random_id(&self) -> u128 {
        u128::from(self.clock.random_u64()) << 64 | u128::from(self.clock.random_u64())
    }

    /// The ceiling of an entry whose last timestamp is `last`. It is based on the wall clock, not
    /// on the hybrid clock: the next leader starts above the ceiling, and if each based its own on
    /// that start, the clock would run ahead by a lease with every change of leaders.
    pub fn ceiling(&self, last: Timestamp) -> Timestamp {
        Timestamp::from_ms(self.clock.wall_ms() + LEASE_MS).max(last)
    }

    /// Refuses a timestamp from a client that is too far ahead; see [`Hlc::check`].
    ///
    /// # Errors
    /// [`Error::ClockOutOfBounds`].
    pub fn check_time(&self, what: &'static str, seen: Timestamp) -> Result<(), Error> {
        self.hlc.check(self.clock.wall_ms(), what, seen)
    }

    /// The cluster's time, as this node knows it.
    pub fn now(&self) -> Timestamp {
        self.hlc.now(self.clock.wall_ms())
    }

    pub(super) fn count_unsaved(&self, state: &RangeState) {
        let now = state.sessions.unsaved();
        self.store.count_unsaved(self.unsaved.replace(now), now);
    }

    /// How far the state is durable in the tree.
    pub fn durable(&self) -> AppliedState {
        self.durable.borrow().clone()
    }

    /// The last entry that is durable in the tree.
    pub fn durable_up_to(&self) -> Option<LogId> {
        self.durable.borrow().applied
    }

    /// Notes that the tree has installed a flush which covers this.
    pub(crate) fn made_durable(&self, durable: AppliedState) {
        let mut known = self.durable.borrow_mut();
        let index = |durable: &AppliedState| durable.applied.map(|id| id.index);
        // A flush from before a snapshot was installed covers less.
        if index(&durable) >= index(&known) {
            *known = durable;
        }
    }

    /// The timestamp of the last write of a user, or the range's last timestamp at the start.
    pub fn last_write(&self) -> Timestamp {
        self.last_write.get()
    }
}

impl<E: Env> Drop for Replica<E> {
    fn drop(&mut self) {
        self.store.count_unsaved(self.unsaved.get(), 0);
    }
}

/// The rows of one range in the shard's tree, as apply sees them.
struct RangeRows<'a, E: Env> {
    store: &'a Store<E>,
    data_id: DataId,
    /// Whether apply has written a version.
    has_written: bool,
}

impl<E: Env> Rows for RangeRows<'_, E> {
    fn newest<R>(
        &self,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError> {
        self.store.newest(self.data_id, key, look)
    }

    fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        self.has_written = true;
        self.store.insert(self.data_id, key, version, value);
    }
}
