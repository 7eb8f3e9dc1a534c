//! Two lists of a shard for merges: the running replicas, by which a left replica finds the right one, and
//! the replicas that were taken over. `range/replica/take_over.rs` uses it. Lives on the shard's thread.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use futures_util::future::LocalBoxFuture;

use crate::error::Fatal;
use crate::types::RangeId;
use crate::wal::LogId;

/// A replica that was taken over by another one and that the log still has.
pub struct Absorbed<R> {
    /// The replica that was taken over.
    pub replica: Rc<R>,
    /// The range that has taken it over.
    pub by: RangeId,
    /// The entry by which it was taken over; `None` if the left replica got the keys by a snapshot, which
    /// is durable.
    pub at: Option<LogId>,
}

/// Has the replica of a range apply its log, if it has not begun to.
pub type Replay = Box<dyn Fn(RangeId) -> LocalBoxFuture<'static, Result<(), Fatal>>>;

/// The list by which the replicas of a shard find each other, and the replicas that were taken over.
pub struct Absorption<R> {
    replicas: RefCell<BTreeMap<RangeId, Weak<R>>>,
    absorbed: RefCell<Vec<Absorbed<R>>>,
    /// Replicas that did not find the one that they had to take over.
    incomplete: RefCell<Vec<Rc<R>>>,
    /// There while the shard is opened; the task that opens it owns it.
    replay: RefCell<Weak<Replay>>,
}

impl<R> Default for Absorption<R> {
    fn default() -> Absorption<R> {
        Absorption {
            replicas: RefCell::default(),
            absorbed: RefCell::default(),
            incomplete: RefCell::default(),
            replay: RefCell::default(),
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

    /// The replica of a range, if it was taken over and the log still has it.
    pub fn absorbed_of(&self, range: RangeId) -> Option<Rc<R>> {
        let replica = self.of(range)?;
        let absorbed = self.absorbed.borrow();
        let mut absorbed = absorbed.iter();
        absorbed
            .any(|absorbed| Rc::ptr_eq(&absorbed.replica, &replica))
            .then_some(replica)
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

    /// Sets how a replica that has to be taken over applies its log first, for as long as the caller, which opens
    /// the shard, keeps it.
    pub fn replay_by(&self, replay: &Rc<Replay>) {
        self.replay.replace(Rc::downgrade(replay));
    }

    /// While the shard is opened: has the replica of a range apply its log.
    ///
    /// # Errors
    /// It cannot be started.
    pub(in crate::range) async fn replay(&self, range: RangeId) -> Result<(), Fatal> {
        let replay = self.replay.borrow().upgrade();
        match replay {
            Some(replay) => replay(range).await,
            None => Ok(()),
        }
    }

    /// Drops the replicas that it holds: the shard has stopped.
    pub fn close(&self) {
        self.absorbed.take();
        self.incomplete.take();
    }

    pub(in crate::range) fn all(&self) -> Vec<Rc<R>> {
        let replicas = self.replicas.borrow();
        replicas.values().filter_map(Weak::upgrade).collect()
    }

    pub(in crate::range) fn of(&self, range: RangeId) -> Option<Rc<R>> {
        self.replicas.borrow().get(&range)?.upgrade()
    }

    pub(in crate::range) fn absorb(&self, absorbed: Absorbed<R>) {
        self.absorbed.borrow_mut().push(absorbed);
    }

    pub(in crate::range) fn is_incomplete(&self, replica: Rc<R>) {
        self.incomplete.borrow_mut().push(replica);
    }
}
