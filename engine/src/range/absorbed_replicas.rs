//! The list by which the replicas of a shard find each other when ranges are merged, and the replicas that
//! were taken over. [`super::take_over`] uses it. Lives on the shard's thread.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::types::RangeId;
use crate::wal::LogId;

/// A replica that was taken over by another one and that the log still has.
pub struct Absorbed<R> {
    /// The replica.
    pub replica: Rc<R>,
    /// The range that has taken it over.
    pub by: RangeId,
    /// The entry by which it was taken over; `None` if the left replica got the keys by a snapshot, which
    /// is durable.
    pub at: Option<LogId>,
}

/// The list by which the replicas of a shard find each other, and the replicas that were taken over.
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

    /// Drops the replicas that it holds: the shard has stopped.
    pub fn close(&self) {
        self.absorbed.take();
        self.incomplete.take();
    }

    pub(super) fn all(&self) -> Vec<Rc<R>> {
        let replicas = self.replicas.borrow();
        replicas.values().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn of(&self, range: RangeId) -> Option<Rc<R>> {
        self.replicas.borrow().get(&range)?.upgrade()
    }

    pub(super) fn absorb(&self, absorbed: Absorbed<R>) {
        self.absorbed.borrow_mut().push(absorbed);
    }

    pub(super) fn is_incomplete(&self, replica: Rc<R>) {
        self.incomplete.borrow_mut().push(replica);
    }
}
