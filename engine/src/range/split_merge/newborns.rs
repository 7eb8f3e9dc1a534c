//! The newborn replicas of a shard: those that splits have made and that do not run yet.
//!
//! When a replica of the parent applies a split, it gives birth to the child's replica beside it. The birth
//! is durable in the log before that, since the child may vote and take entries at once. In the turn in which
//! the parent loses its keys, the newborn joins the tree's participants and this list, so the rows have an
//! owner at every moment. The shard starts its Raft group later.
//!
//! Until a flush covers a newborn, a restart makes it anew from its parent's log, so the parent must not be
//! removed before that: see [`Newborns::make_independent`]. Lives on the shard's thread.

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::env::Env;
use crate::error::Fatal;
use crate::mutant::{self, Mutant};
use crate::notify::Notify;
use crate::raft::StartMode;
use crate::tree::Store;
use crate::types::{KeyRange, RangeId};
use crate::wal::{Created, Group, GroupLog, Wal, WalError};

/// A replica, as far as this module must know it.
pub trait Child {
    /// Whether its range holds a user's key.
    fn holds(&self, key: &[u8]) -> bool;

    /// Whether its range holds any of these keys.
    fn overlaps(&self, keys: &KeyRange) -> bool;

    /// Whether the tree has what a start needs to make it.
    fn is_flushed(&self) -> bool;
}

/// A replica that was born and does not run yet.
pub struct Newborn<E: Env, R> {
    /// The replica that is to run.
    pub replica: Rc<R>,
    /// The log, in which its birth is durable.
    pub log: GroupLog<E>,
    /// Whether it was born before a restart, and whether it leads at once: the one beside the parent's
    /// leader does.
    pub made: StartMode,
    /// The replica that gave birth to it.
    pub parent: Group,
}

impl<E: Env, R> Clone for Newborn<E, R> {
    fn clone(&self) -> Newborn<E, R> {
        Newborn {
            replica: self.replica.clone(),
            log: self.log.clone(),
            made: self.made,
            parent: self.parent,
        }
    }
}

/// What the shard does when a range is split.
#[derive(Default)]
pub struct Hooks {
    /// A split of this replica's range is committed: its leader tells the others.
    pub committed: Option<Box<dyn Fn(Group)>>,
    /// Bounds have changed, and a replica may be born. Called in the same turn: the garbage collector must
    /// know of the newborn before the next flush, which otherwise drops the rows stored by its id.
    pub bounds_changed: Option<Box<dyn Fn()>>,
}

/// The newborn replicas of a shard; see the module's chapter.
pub struct Newborns<E: Env, R> {
    wal: Wal<E>,
    /// Those that the log knows from before a restart and the tables do not.
    recovered: RefCell<BTreeMap<Group, GroupLog<E>>>,
    /// Those that do not run yet.
    waiting: RefCell<Vec<Newborn<E, R>>>,
    /// Children that no flush covered when last looked at, by their parents.
    unflushed: RefCell<Vec<(Group, Weak<R>)>>,
    hooks: RefCell<Hooks>,
    closed: Cell<bool>,
    /// Notified when a replica was born, and at the end.
    news: Notify,
}

impl<E: Env, R: Child> Newborns<E, R> {
    /// The newborn replicas of a shard with this log: none yet.
    pub fn new(wal: Wal<E>) -> Newborns<E, R> {
        Newborns {
            wal,
            recovered: RefCell::default(),
            waiting: RefCell::default(),
            unflushed: RefCell::default(),
            hooks: RefCell::default(),
            closed: Cell::new(false),
            news: Notify::default(),
        }
    }

    /// Has the shard called from now on.
    pub fn call(&self, hooks: Hooks) {
        self.hooks.replace(hooks);
    }

    /// Tells the shard that a split of this replica's range is committed.
    pub fn committed(&self, parent: Group) {
        if let Some(call) = &self.hooks.borrow().committed {
            call(parent);
        }
    }

    /// Tells the shard that a range was split here.
    pub fn bounds_changed(&self) {
        if let Some(call) = &self.hooks.borrow().bounds_changed {
            call();
        }
    }

    /// Lets everything go: the shard has stopped.
    pub fn close(&self) {
        self.closed.set(true);
        self.waiting.take();
        self.hooks.take();
        self.news.notify();
    }

    /// Waits until there is a newborn. `false`: the list is closed.
    pub async fn born(&self) -> bool {
        let has_news = || self.closed.get() || self.first().is_some();
        self.news.until(has_news).await;
        !self.closed.get()
    }

    /// Keeps the log of a replica that was born before a restart, until its parent is replayed.
    pub fn expect(&self, group: Group, log: GroupLog<E>) {
        self.recovered.borrow_mut().insert(group, log);
    }

    /// A replica that was born before a restart, and whose parent has not given birth to it again.
    pub fn unborn(&self) -> Option<Group> {
        self.recovered.borrow().keys().next().copied()
    }

    /// Makes a birth durable and gives the newborn's log, and whether it existed before. `None` if the
    /// replica was removed, or another replica of its range is here: then nothing is born.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn prepare(&self, created: Created) -> Result<Option<(GroupLog<E>, bool)>, Fatal> {
        if let Some(log) = self.recovered.borrow_mut().remove(&created.group) {
            return Ok(Some((log, true)));
        }
        // The log would refuse it, too, but after a write: a start replays every split of a log.
        if self.wal.holds(created.group.range) {
            return Ok(None);
        }
        match self.wal.create_replica(created).await {
            Ok(log) => Ok(Some((log, false))),
            Err(WalError::ReplicaNameUsed(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in a newborn.
    pub fn add(&self, newborn: Newborn<E, R>) {
        let child = Rc::downgrade(&newborn.replica);
        {
            let mut unflushed = self.unflushed.borrow_mut();
            unflushed.retain(is_unflushed);
            unflushed.push((newborn.parent, child));
        }
        self.waiting.borrow_mut().push(newborn);
        self.news.notify();
    }

    /// The newborn of a range.
    pub fn of_range(
        &self,
        range: RangeId,
        range_of: impl Fn(&R) -> RangeId,
    ) -> Option<Newborn<E, R>> {
        let newborns = self.waiting.borrow();
        let found = newborns
            .iter()
            .find(|newborn| range_of(&newborn.replica) == range);
        found.cloned()
    }

    /// Whether a newborn does not run yet.
    pub fn has(&self, replica: &Rc<R>) -> bool {
        let newborns = self.waiting.borrow();
        newborns
            .iter()
            .any(|newborn| Rc::ptr_eq(&newborn.replica, replica))
    }

    /// The first newborn.
    pub fn first(&self) -> Option<Newborn<E, R>> {
        self.waiting.borrow().first().cloned()
    }

    /// The newborn that holds a user's key.
    pub fn holder_of(&self, key: &[u8]) -> Option<Rc<R>> {
        let newborns = self.waiting.borrow();
        let found = newborns.iter().find(|newborn| newborn.replica.holds(key));
        found.map(|newborn| newborn.replica.clone())
    }

    /// Whether a newborn holds any of these keys.
    pub fn holds_any(&self, keys: &KeyRange) -> bool {
        let newborns = self.waiting.borrow();
        newborns
            .iter()
            .any(|newborn| newborn.replica.overlaps(keys))
    }

    /// All newborns.
    pub fn all(&self) -> Ref<'_, [Newborn<E, R>]> {
        Ref::map(self.waiting.borrow(), Vec::as_slice)
    }

    /// Removes a newborn: it runs.
    pub fn remove(&self, replica: &Rc<R>) {
        let mut newborns = self.waiting.borrow_mut();
        newborns.retain(|newborn| !Rc::ptr_eq(&newborn.replica, replica));
    }

    /// Makes the children of a replica independent of its log and its rows, which are about to go: waits
    /// until a flush covers them.
    ///
    /// # Errors
    /// The tree has failed.
    pub async fn make_independent(&self, parent: Group, store: &Store<E>) -> Result<(), Fatal> {
        if mutant::is(Mutant::ParentGoesFirst) {
            return Ok(());
        }
        match self.has_unflushed(parent) {
            true => store.flush().await,
            false => Ok(()),
        }
    }

    /// Whether a replica has children that no flush covers.
    pub fn has_unflushed(&self, parent: Group) -> bool {
        let mut unflushed = self.unflushed.borrow_mut();
        unflushed.retain(is_unflushed);
        unflushed.iter().any(|(of, _)| *of == parent)
    }
}

fn is_unflushed<R: Child>((_, child): &(Group, Weak<R>)) -> bool {
    child.upgrade().is_some_and(|child| !child.is_flushed())
}
