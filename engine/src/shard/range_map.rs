//! The ranges of a shard, and where each is found: by a user's key, or by its id.
//!
//! By key only those replicas are found that are initialised: they have an entry of their log or a
//! snapshot. An empty replica has the bounds that its range had when it was ordered, and may lie beside
//! another replica that holds these keys. Initialised replicas of one shard never overlap.
//! A lookup by key borrows the map for as long as it looks, and copies nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use crate::env::Env;
use crate::error::Fatal;
use crate::notify::{Count, Notify};
use crate::range::replica::Replica;
use crate::range::{Keyspace, RaftGroup, Route};
use crate::request::Target;
use crate::types::{KeyRange, RangeId};
use crate::wal::Group;

/// A running range of this shard: a replica and its Raft group.
#[derive(Clone)]
pub(super) struct RangeHandle<E: Env> {
    pub replica: Rc<Replica<E>>,
    pub raft: RaftGroup<E>,
}

/// The ranges of a shard.
pub(super) struct RangeMap<E: Env> {
    /// Those of the users' key space, sorted by their first key.
    users: RefCell<Vec<RangeHandle<E>>>,
    /// Those of the system's key space.
    system: RefCell<Vec<RangeHandle<E>>>,
    /// All, by id.
    by_id: RefCell<FxHashMap<RangeId, RangeHandle<E>>>,
    /// Those of which a replica is being made now.
    creating: RefCell<BTreeSet<RangeId>>,
    /// Notified when one of them is no longer being made.
    created: Notify,
    version: Rc<Count>,
}

impl<E: Env> Default for RangeMap<E> {
    fn default() -> RangeMap<E> {
        RangeMap {
            users: RefCell::default(),
            system: RefCell::default(),
            by_id: RefCell::default(),
            creating: RefCell::default(),
            created: Notify::default(),
            version: Rc::default(),
        }
    }
}

impl<E: Env> RangeMap<E> {
    /// Adds a range that has started.
    ///
    /// # Errors
    /// The replica is initialised, and another one holds keys of it.
    pub(super) fn insert(&self, running: RangeHandle<E>) -> Result<(), Fatal> {
        let (group, start) = {
            let replica = &running.replica;
            let keys = replica.with_state(|state| state.descriptor.keys.clone());
            if is_initialised(&running)
                && replica.keyspace() == Keyspace::User
                && let Some(other) = self.holder_of_any(&keys, replica.group)
            {
                return Err(Fatal::Inconsistent(format!(
                    "ranges {} and {} hold the same keys on one shard",
                    replica.group.range, other.range
                )));
            }
            (replica.group, keys.start)
        };
        self.by_id.borrow_mut().insert(group.range, running.clone());
        match running.replica.keyspace() {
            Keyspace::User => {
                let mut users = self.users.borrow_mut();
                let at = users.partition_point(|other| {
                    other
                        .replica
                        .with_state(|state| state.descriptor.keys.start < start)
                });
                users.insert(at, running);
            }
            Keyspace::System => self.system.borrow_mut().push(running),
        }
        Ok(())
    }

    /// An initialised replica of the users' key space, other than this one, that holds some of these
    /// keys. One that is frozen to become a part of this one's range does not count.
    pub(super) fn holder_of_any(&self, keys: &KeyRange, than: Group) -> Option<Group> {
        let users = self.users.borrow();
        let (before, after) = users.split_at(users.partition_point(|running| {
            running
                .replica
                .with_state(|state| state.descriptor.keys.start < keys.start)
        }));
        let is_other = |running: &&RangeHandle<E>| {
            let replica = &running.replica;
            let merge = replica.frozen();
            replica.group != than
                && is_initialised(running)
                && merge.is_none_or(|merge| merge.left != than.range)
        };
        let neighbours = before.iter().rfind(is_other).into_iter();
        let mut neighbours = neighbours.chain(after.iter().find(is_other));
        let overlaps = |running: &&RangeHandle<E>| {
            let other = &running.replica;
            other.with_state(|state| state.descriptor.keys.overlaps(keys))
        };
        neighbours
            .find(overlaps)
            .map(|running| running.replica.group)
    }

    /// Removes a range.
    pub(super) fn remove(&self, group: Group) {
        let is_other = |running: &RangeHandle<E>| running.replica.group != group;
        self.users.borrow_mut().retain(is_other);
        self.system.borrow_mut().retain(is_other);
        self.by_id.borrow_mut().remove(&group.range);
    }

    /// The range with this id.
    pub(super) fn get(&self, range: RangeId) -> Option<RangeHandle<E>> {
        self.by_id.borrow().get(&range).cloned()
    }

    /// Passes the range that holds a user's key to `with`; `None` if none here does.
    pub(super) fn with<R>(&self, key: &[u8], with: impl FnOnce(&RangeHandle<E>) -> R) -> Option<R> {
        let users = self.users.borrow();
        let before = users.get(..starts_up_to(&users, key))?;
        let found = before.iter().rfind(|running| is_initialised(running))?;
        let holds_it = found
            .replica
            .with_state(|state| state.descriptor.keys.contains(key));
        holds_it.then(|| with(found))
    }

    /// The first range of the system's key space that has a replica here.
    pub(super) fn system(&self) -> Option<RangeHandle<E>> {
        self.system.borrow().first().cloned()
    }

    /// Calls `look` for each range. It must not make or remove a replica.
    pub(super) fn for_each(&self, look: impl FnMut(&RangeHandle<E>)) {
        let (users, system) = (self.users.borrow(), self.system.borrow());
        users.iter().chain(system.iter()).for_each(look);
    }

    /// All replicas.
    pub(super) fn replicas(&self) -> Vec<Rc<Replica<E>>> {
        let groups = self.groups().into_iter();
        groups.map(|(replica, _)| replica).collect()
    }

    /// All replicas with their groups.
    pub(super) fn groups(&self) -> Vec<(Rc<Replica<E>>, RaftGroup<E>)> {
        self.groups_that(|_| true)
    }

    /// The replicas, with their groups, for which `is_so` holds.
    pub(super) fn groups_that(
        &self,
        is_so: impl Fn(&RangeHandle<E>) -> bool,
    ) -> Vec<(Rc<Replica<E>>, RaftGroup<E>)> {
        let (users, system) = (self.users.borrow(), self.system.borrow());
        let all = users.iter().chain(system.iter());
        all.filter(|running| is_so(running))
            .map(|running| (running.replica.clone(), running.raft.clone()))
            .collect()
    }

    /// The routes of all users' ranges with an initialised replica.
    pub(super) fn routes(&self) -> Vec<Route> {
        let users = self.users.borrow();
        users
            .iter()
            .filter(|running| is_initialised(running))
            .map(|running| running.replica.route())
            .collect()
    }

    /// The routes of the ranges here that may hold the keys which a caller looks for in `target`; the
    /// first is that of the range which holds `key`, and there is none if no range here does.
    pub(super) fn routes_near(&self, key: &[u8], target: Target) -> Vec<Route> {
        let users = self.users.borrow();
        let (before, after) = users.split_at(starts_up_to(&users, key));
        let before = before
            .iter()
            .rev()
            .filter(|running| is_initialised(running));
        let after = after.iter().filter(|running| is_initialised(running));
        let epoch = |running: &&RangeHandle<E>| {
            let replica = &running.replica;
            replica.with_state(|state| state.descriptor.epoch)
        };
        let near = target.successors(before, after, epoch);
        let mut routes: Vec<Route> = near.map(|running| running.replica.route()).collect();
        if !routes.first().is_some_and(|own| own.keys.contains(key)) {
            routes.clear();
        }
        routes
    }

    /// Changes whenever a replica has come or gone or was initialised, or a range has another leader.
    pub(super) fn version(&self) -> &Rc<Count> {
        &self.version
    }

    /// Notes that a replica of a range is being made; `false` if one is already.
    pub(super) fn begin_creating(&self, range: RangeId) -> bool {
        self.creating.borrow_mut().insert(range)
    }

    /// Notes that a replica of a range is being made, as soon as no other task makes one.
    pub(super) async fn begin_creating_alone(&self, range: RangeId) {
        self.created.until(|| self.begin_creating(range)).await;
    }

    /// Waits until no replica of a range is being made.
    pub(super) async fn created(&self, range: RangeId) {
        let is_creating = || self.creating.borrow().contains(&range);
        self.created.until(|| !is_creating()).await;
    }

    /// Ends what [`RangeMap::begin_creating`] began.
    pub(super) fn end_creating(&self, range: RangeId) {
        self.creating.borrow_mut().remove(&range);
        self.created.notify();
    }

    /// Waits until no replica is being made.
    pub(super) async fn all_created(&self) {
        self.created.until(|| !self.is_creating()).await;
    }

    /// Whether a replica is being made.
    pub(super) fn is_creating(&self) -> bool {
        !self.creating.borrow().is_empty()
    }
}

/// How many of these ranges, which are sorted by their first key, begin at a key or before it.
fn starts_up_to<E: Env>(users: &[RangeHandle<E>], key: &[u8]) -> usize {
    users.partition_point(|running| {
        running
            .replica
            .with_state(|state| state.descriptor.keys.begins_up_to(key))
    })
}

/// Whether a replica has an entry of its log or a snapshot.
fn is_initialised<E: Env>(running: &RangeHandle<E>) -> bool {
    running.replica.with_state(|state| state.applied.is_some())
}
