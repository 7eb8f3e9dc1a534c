//! A replica of a range on this shard: its state, its rows, and what a leader keeps besides.
//!
//! Lives on the shard's thread. Only [`Replica::apply`] changes the state; it is synchronous.
//!
//! The replica itself carries out the [effects](Effect) of an entry, and not the shard: all of them must have
//! happened when the next entry is applied, or a read finds the state, so in the same turn. A child has its
//! keys when its parent has lost them; a range that takes over another one has the other's sessions before the
//! next retry is judged. Work that takes time the replica only queues, and a task of the shard does it:
//! [`Newborns`] has the replicas whose groups are to be started,
//! [`absorbed_replicas`](crate::range::split_merge::absorbed_replicas) those that are to be removed, and a
//! digest waits until the shard reads its rows.

mod digest;
mod faults;
mod fitness;
pub mod leadership;
mod split;
mod take_over;
pub mod timestamps;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::boot_time::BootTime;
use crate::env::Env;
use crate::error::{Error, Fatal, Fate};
use crate::hlc::Hlc;
use crate::lsm::{LsmError, Size};
use crate::mutant::{self, Mutant};
use crate::raft::AppliedState;
use crate::range::apply::observer::ApplyObservers;
use crate::range::apply::{self, Applied, Effect};
use crate::range::digest::Digesting;
use crate::range::proposer::Proposer;
use crate::range::rows::Rows;
use crate::range::rows::data_parts::DataParts;
use crate::range::rows::places::RowPlaces;
use crate::range::split_merge::absorbed_replicas::Absorption;
use crate::range::split_merge::newborns::Newborns;
use crate::range::split_merge::pending_split::PendingSplit;
use crate::range::state::RangeState;
use crate::range::usage::{RangeLoad, Usage};
use crate::range::{Keyspace, Route};
use crate::request::Target;
use crate::tree::Store;
use crate::types::{DataId, KeyRange, Location, ReplicaId, Timestamp};
use crate::wal::{Group, LogEntry, LogId};
use faults::Faults;
use leadership::{Leadership, Leading};
use timestamps::Timestamps;

/// What a replica is made from.
pub struct ReplicaParts<E: Env> {
    /// The range and the replica's id.
    pub group: Group,
    /// The data ids of its rows.
    pub parts: DataParts,
    /// Its state, as read from the tree.
    pub state: RangeState,
    /// The term of its vote when the process started.
    pub term_before: u64,
    /// The index of the last entry in its log when the process started.
    pub last_before: u64,
    /// What it shares with the other replicas of its shard.
    pub home: Home<E>,
}

/// What all replicas of a shard share. Clones share it, too.
pub struct Home<E: Env> {
    /// The shard.
    pub location: Location,
    /// The shard's tree.
    pub store: Rc<Store<E>>,
    /// The node's hybrid logical clock.
    pub hlc: Hlc,
    /// The wall clock, and random numbers.
    pub clock: E::Clock,
    /// Called with what a replica applies.
    pub observers: ApplyObservers,
    /// Where the replicas go that are born when a range is split.
    pub newborns: Rc<Newborns<E, Replica<E>>>,
    /// Where they find each other when ranges are merged.
    pub absorption: Rc<Absorption<Replica<E>>>,
}

impl<E: Env> Clone for Home<E> {
    fn clone(&self) -> Home<E> {
        Home {
            location: self.location,
            store: self.store.clone(),
            hlc: self.hlc.clone(),
            clock: self.clock.clone(),
            observers: self.observers.clone(),
            newborns: self.newborns.clone(),
            absorption: self.absorption.clone(),
        }
    }
}

/// How much of a replica's state the tree has.
pub(super) struct Saved {
    /// Whether an entry was applied since the state row was last written.
    pub changed: Cell<bool>,
    /// How many rows of the session table this replica has added to the store's count of unsaved
    /// ones.
    pub unsaved: Cell<usize>,
    /// How far the state is durable in the tree.
    durable: RefCell<AppliedState>,
    /// Whether it was born and no flush covers it yet: its parent's log can make it anew.
    pub is_newborn: Cell<bool>,
    /// Whether the replica of its left neighbour has taken it over: it saves nothing any more.
    pub is_absorbed: Cell<bool>,
}

/// A replica of a range; see the module's chapter.
pub struct Replica<E: Env> {
    /// The range and the replica's id.
    pub group: Group,
    /// Where its rows lie.
    pub(super) rows: RowPlaces,
    /// What it shares with the other replicas of its shard.
    pub(super) home: Home<E>,
    /// The queue of writes; only a leader's has any.
    pub proposer: Proposer,
    pub(crate) store: Rc<Store<E>>,
    /// The node's clock.
    pub timestamps: Timestamps<E::Clock>,
    pub(super) state: RefCell<RangeState>,
    /// The index of the last entry in its log when the process started.
    last_before: u64,
    /// Which replica leads, as far as this one knows.
    pub leadership: Leadership,
    pub(super) saved: Saved,
    /// What users did with the range here.
    pub usage: Usage,
    /// The timestamps of the snapshots that are being read.
    pub(super) exported: RefCell<Vec<Timestamp>>,
    /// The last digest that was asked for.
    pub(super) digesting: Cell<Option<Digesting>>,
    /// The split that is under way.
    pub(super) pending_split: PendingSplit<E>,
    /// What keeps it from serving.
    faults: Faults,
}

impl<E: Env> Replica<E> {
    /// A replica whose group has not started.
    pub fn new(parts: ReplicaParts<E>) -> Replica<E> {
        let durable = parts.state.applied_state();
        let last_write = parts.state.last_ts;
        let store = parts.home.store.clone();
        let replica = Replica {
            group: parts.group,
            rows: RowPlaces::new(parts.parts),
            proposer: Proposer::new(store.writes.clone(), store.departures.clone()),
            store,
            timestamps: Timestamps::new(parts.home.hlc.clone(), parts.home.clock.clone()),
            home: parts.home,
            state: RefCell::new(parts.state),
            last_before: parts.last_before,
            leadership: Leadership::new(parts.group.replica, parts.term_before),
            saved: Saved {
                changed: Cell::new(false),
                unsaved: Cell::new(0),
                durable: RefCell::new(durable),
                is_newborn: Cell::new(false),
                is_absorbed: Cell::new(false),
            },
            usage: Usage::new(last_write, E::now),
            exported: RefCell::default(),
            digesting: Cell::new(None),
            pending_split: PendingSplit::default(),
            faults: Faults::default(),
        };
        // A start may have found session rows that are to be deleted.
        replica.count_unsaved(&replica.state.borrow());
        replica
    }

    /// The data id of the first part of its rows. It changes when the replica installs a snapshot, and
    /// at no other time.
    pub fn data_id(&self) -> DataId {
        self.rows.parts().first()
    }

    /// The data id of a key's rows.
    pub fn data_id_of(&self, key: &[u8]) -> DataId {
        self.rows.parts().of(key)
    }

    /// The data ids of its rows.
    pub fn parts(&self) -> DataParts {
        self.rows.parts().clone()
    }

    /// Under how many data ids its rows lie.
    pub fn parts_count(&self) -> usize {
        let state = self.state.borrow();
        self.rows.parts().count(&state.descriptor.keys.start)
    }

    /// Its keys, cut into the intervals that lie under one data id each, in order.
    pub fn intervals(&self) -> Vec<(DataId, KeyRange)> {
        let state = self.state.borrow();
        self.rows.parts().within(&state.descriptor.keys)
    }

    /// Becomes the snapshot with rows under `data_id`: they and the switch in the log are durable.
    pub(super) fn become_snapshot(&self, data_id: DataId, state: RangeState) {
        let durable = state.applied_state();
        tracing::info!(
            range = %self.group.range,
            entry = state.applied.map_or(0, |id| id.index),
            "installed a snapshot"
        );
        self.timestamps.observe(state.last_ts);
        self.usage.last_write.set(state.last_ts);
        self.rows.set(DataParts::one(data_id));
        self.digesting.set(None);
        self.faults.clear();
        *self.state.borrow_mut() = state;
        self.count_unsaved(&self.state.borrow());
        self.made_durable(durable);
        self.saved.changed.set(true);
    }

    /// Calls `look` with the replicated state. `look` must not call back into the replica.
    pub fn with_state<R>(&self, look: impl FnOnce(&RangeState) -> R) -> R {
        look(&self.state.borrow())
    }

    /// The leadership of this replica, if it leads.
    pub fn leading(&self) -> Option<Leading> {
        self.leadership.leading()
    }

    /// Stops leading at once, whatever openraft says, until this replica leads in another term.
    pub fn stop_leading(&self) {
        let led = self.leading();
        self.leadership.stop();
        self.tell_lost(led);
        self.refuse_waiting();
    }

    /// Takes from openraft which replica leads, and the term of this replica's vote.
    pub fn follow(&self, leader: Option<ReplicaId>, term: u64) {
        let led = self.leading();
        match self.leadership.follow(leader, term) {
            true => self.begin_to_lead(),
            false => {
                self.tell_lost(led);
                self.refuse_waiting();
            }
        }
    }

    /// Logs that this replica leads no more, if it did until now.
    fn tell_lost(&self, led: Option<Leading>) {
        if let Some(Leading { term, .. }) = led
            && let Some(unlogged) = self.store.leader_lines.pass(E::now())
        {
            let (range, shard) = (self.group.range, self.home.location);
            tracing::info!(
                event = "leader_lost",
                unlogged,
                "shard {shard} leads range {range} no more, which it led in term {term}"
            );
        }
    }

    /// Answers the writes that wait: another replica leads.
    fn refuse_waiting(&self) {
        let error = Error::NotLeader(Some(Box::new(self.route())));
        self.proposer.refuse_all(&error);
    }

    /// The route to this range, as far as this replica knows. It names no leader while there is no
    /// majority.
    pub fn route(&self) -> Route {
        let leader = self.leadership.routed_leader();
        self.state.borrow().descriptor.route(leader)
    }

    /// The key space of the range's keys.
    pub fn keyspace(&self) -> Keyspace {
        self.state.borrow().descriptor.keyspace
    }

    /// Refuses a request that names another range or version, or one to a replica that does not lead.
    /// Only the bounds count, not the members: a change of members refuses nothing.
    ///
    /// # Errors
    /// [`Error::Moved`], [`Error::NotLeader`], [`Error::NoQuorum`], [`Error::Diverged`].
    pub fn check(&self, target: Option<Target>) -> Result<(), Error> {
        let (version, is_closed) = {
            let state = self.state.borrow();
            let is_closed = state.frozen.is_some() || self.saved.is_absorbed.get();
            (state.descriptor.epoch.version, is_closed)
        };
        if let Some(target) = target
            && (target.range != self.group.range || target.epoch.version != version)
        {
            return Err(Error::Moved(vec![self.route()]));
        }
        if self.leading().is_none() {
            return Err(self.not_leading());
        }
        if self.is_halted() {
            return Err(Error::Diverged(self.group.range));
        }
        match is_closed {
            true => Err(self.closed()),
            false => Ok(()),
        }
    }

    fn not_leading(&self) -> Error {
        if self.leadership.lacks_quorum() {
            return Error::NoQuorum(Fate::NotApplied);
        }
        Error::NotLeader(Some(Box::new(self.route())))
    }

    /// Takes from the shard's driver whether the group has no majority: while it has none, all
    /// waiting writes are answered. Gives whether that is news.
    pub(crate) fn take_quorum(&self, lacks: bool, now: BootTime) -> bool {
        let is_news = self.leadership.take_quorum(lacks);
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

    /// Applies one entry of the log. `None`: a block that it needs cannot be read, and nothing has changed.
    ///
    /// # Errors
    /// The entry or the tree is damaged, or an entry is missing; then the process must end.
    pub fn apply(&self, entry: &LogEntry) -> Result<Option<Vec<Applied>>, Fatal> {
        let began = E::now();
        let mut state = self.state.borrow_mut();
        self.refuse_other_entry(state.applied, entry)?;
        let mut rows = RangeRows {
            store: &self.store,
            places: &self.rows,
            has_written: false,
        };
        let step = apply::apply(&mut state, &mut rows, entry)?;
        if let Some(error) = &step.unread {
            drop(state);
            self.found_unreadable(error);
            return Ok(None);
        }
        if rows.has_written {
            self.usage.last_write.set(state.last_ts);
        }
        for observer in &*self.home.observers {
            observer.applied(self.group, entry, &step.results, &state);
        }
        self.saved.changed.set(true);
        self.count_unsaved(&state);
        // The clock does not follow the ceiling, which lies a lease ahead of it: a leader that
        // followed its own ceiling would run ahead by one more lease with every entry.
        if !mutant::is(Mutant::FloorForgottenAtMerge) || self.leading().is_some() {
            self.timestamps.observe(state.last_ts);
        }
        drop(state);
        for effect in step.effects {
            self.carry_out(effect, entry.id)?;
        }
        if let Some(child) = step.child {
            self.bear(*child, entry.id);
        }
        if PendingSplit::<E>::is_of(entry) && !step.results.contains(&Applied::Repropose) {
            self.pending_split.end();
        }
        self.usage.has_worked(began);
        Ok(Some(step.results))
    }

    fn carry_out(&self, effect: Effect, of: LogId) -> Result<(), Fatal> {
        match effect {
            Effect::BeginTerm(blank) => self.begin_term(blank),
            // An entry applied again after a restart gets no digest: the tables may hold later rows
            // already.
            Effect::Digest(number) if of.index > self.last_before => {
                let state = self.state.borrow();
                let digesting = Digesting::of(number, &state)?;
                self.digesting.set(Some(digesting));
            }
            Effect::Digest(_) => {}
            Effect::Absorb(right, merge) => self.absorb(right, merge, of)?,
            Effect::Thawed => {
                self.pending_split.end();
                self.home.newborns.bounds_changed();
            }
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
        if !self.leadership.is_own(blank) {
            return;
        }
        // What an earlier leader served must stay true: this one starts above the ceiling.
        if !mutant::is(Mutant::ServedTimestampsForgotten) {
            let newest = self.with_state(|state| state.last_ts.max(state.ceiling));
            self.timestamps.raise_floor(newest);
        }
        // A split that an earlier term left is applied or overwritten by now.
        self.pending_split.end();
        self.leadership.applied(blank);
        self.begin_to_lead();
    }

    fn begin_to_lead(&self) {
        if let Some(term) = self.leadership.begin() {
            if let Some(unlogged) = self.store.leader_lines.pass(E::now()) {
                let (range, shard) = (self.group.range, self.home.location);
                tracing::info!(
                    event = "leader_elected",
                    unlogged,
                    "shard {shard} leads range {range} in term {term}"
                );
            }
            self.proposer.wake();
        }
    }

    pub(super) fn count_unsaved(&self, state: &RangeState) {
        let now = state.sessions.unsaved();
        self.store
            .count_unsaved(self.saved.unsaved.replace(now), now);
    }

    /// How far the state is durable in the tree.
    pub fn durable(&self) -> AppliedState {
        self.saved.durable.borrow().clone()
    }

    /// The last entry that is durable in the tree.
    pub fn durable_up_to(&self) -> Option<LogId> {
        self.saved.durable.borrow().applied
    }

    /// Notes that this replica was born of a split: its state is to be saved at the next flush.
    pub(super) fn was_born(&self) {
        self.saved.changed.set(true);
        self.saved.is_newborn.set(true);
    }

    /// Notes that the tree has installed a flush which covers this.
    pub(crate) fn made_durable(&self, durable: AppliedState) {
        self.saved.is_newborn.set(false);
        let mut known = self.saved.durable.borrow_mut();
        let index = |durable: &AppliedState| durable.applied.map(|id| id.index);
        // A flush from before a snapshot was installed covers less.
        if index(&durable) >= index(&known) {
            self.rows.durable(durable.applied);
            *known = durable;
        }
    }

    /// The timestamp of the last write of a user, or the range's last timestamp at the start.
    pub fn last_write(&self) -> Timestamp {
        self.usage.last_write.get()
    }

    /// About how many bytes its rows have; see [`Usage::size`].
    pub fn size(&self, is_due: bool) -> Size {
        let version = self.with_state(|state| state.descriptor.epoch.version);
        let measure = || self.store.size_of(&self.intervals());
        self.usage.size((self.data_id(), version), is_due, measure)
    }

    /// How busy it is.
    pub fn load(&self) -> RangeLoad {
        let (reads, writes) = self.usage.counts();
        let rates = self.usage.rates().short;
        RangeLoad {
            reads,
            writes,
            waiting: self.proposer.waiting(),
            in_flight: self.proposer.in_flight(),
            size: self.size(false),
            read_bytes_per_second: rates.read_bytes.round() as u64,
            written_bytes_per_second: rates.written_bytes.round() as u64,
        }
    }
}

impl<E: Env> Drop for Replica<E> {
    fn drop(&mut self) {
        self.store.count_unsaved(self.saved.unsaved.get(), 0);
    }
}

/// The rows of one range in the shard's tree, as apply sees them.
struct RangeRows<'a, E: Env> {
    store: &'a Store<E>,
    places: &'a RowPlaces,
    /// Whether apply has written a version.
    has_written: bool,
}

impl<E: Env> Rows for RangeRows<'_, E> {
    fn newest<R>(
        &self,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError> {
        self.store.newest(self.places.parts().of(key), key, look)
    }

    fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        self.has_written = true;
        let data_id = self.places.parts().of(key);
        self.store.insert(data_id, key, version, value);
        self.places.written(key, version, value);
    }
}
