//! The log that a leader keeps for replicas that a snapshot brings up.
//!
//! openraft keeps no log for the time that a snapshot takes. Without the entries after it a replica
//! would need the next snapshot when it has taken over this one, and so on for as long as there are
//! writes. So a snapshot pins the log: from before it is begun until the replica lacks no more
//! entries than are kept for every replica, or until it is given up. From there on the replica is kept up like any
//! other ([`super::purge`]).
//!
//! The shard bounds what is pinned, by the space on its disk, and gives pins up that take too much.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::env::{Env, Now};
use crate::types::ReplicaId;

/// For a replica that has its snapshot and is silent for so long nothing is kept any more.
const SILENT_PATIENCE: Duration = Duration::from_mins(2);

/// What one snapshot pins.
struct Held<E: Env> {
    /// Entries after this one are kept.
    after: u64,
    /// The replica that the snapshot is for, once that is known.
    to: Option<ReplicaId>,
    /// Since it has taken the snapshot over: when it was last heard of.
    heard: Option<Now<E>>,
}

/// The pins of one group.
pub struct Pins<E: Env> {
    held: RefCell<BTreeMap<u64, Held<E>>>,
    next: Cell<u64>,
    /// Whether it was logged that entries are kept for pins alone.
    told: Cell<bool>,
}

/// What a leader knows of another replica.
#[derive(Clone, Copy, Debug)]
pub struct Follower {
    /// The last entry that it is known to have.
    pub matched: u64,
    /// Whether its shard was heard of lately.
    pub is_there: bool,
}

/// Keeps the log for one snapshot, until it is dropped or the snapshot was taken over.
pub struct Pin<E: Env> {
    pins: Rc<Pins<E>>,
    number: u64,
}

impl<E: Env> Default for Pins<E> {
    fn default() -> Pins<E> {
        Pins {
            held: RefCell::default(),
            next: Cell::new(0),
            told: Cell::new(false),
        }
    }
}

impl<E: Env> Pins<E> {
    /// Keeps all entries after one.
    pub fn pin(self: &Rc<Self>, after: u64) -> Pin<E> {
        let number = self.next.get();
        self.next.set(number + 1);
        let held = Held {
            after,
            to: None,
            heard: None,
        };
        self.held.borrow_mut().insert(number, held);
        Pin {
            pins: self.clone(),
            number,
        }
    }

    /// The entry after which all are kept, if anything is pinned. `follower` says what is known of
    /// another replica, if it is still replicated to; a replica that has the entry `near` has caught
    /// up.
    pub fn kept_after(
        &self,
        near: u64,
        now: Now<E>,
        follower: impl Fn(ReplicaId) -> Option<Follower>,
    ) -> Option<u64> {
        let mut all = self.held.borrow_mut();
        all.retain(|_, held| {
            let (Some(to), Some(heard)) = (held.to, held.heard) else {
                return true;
            };
            let Some(follower) = follower(to) else {
                return false;
            };
            let heard = if follower.is_there { now } else { heard };
            held.heard = Some(heard);
            held.after = held.after.max(follower.matched);
            held.after < near && now < heard + SILENT_PATIENCE
        });
        let lowest = all.values().map(|held| held.after).min();
        if lowest.is_none() {
            self.told.set(false);
        }
        lowest
    }

    /// Whether anything is pinned.
    pub fn is_pinned(&self) -> bool {
        !self.held.borrow().is_empty()
    }

    /// The replicas that something is pinned for.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.held
            .borrow()
            .values()
            .filter_map(|held| held.to)
            .collect()
    }

    /// Keeps nothing any more, not for snapshots that are under way either.
    pub fn give_up(&self) {
        self.held.borrow_mut().clear();
    }

    /// Entries are kept for pins alone; gives whether that is news.
    pub fn matters(&self) -> bool {
        !self.told.replace(true)
    }
}

impl<E: Env> Pin<E> {
    /// The snapshot is for this replica; what was kept for an earlier one of it is not needed.
    pub fn is_for(&self, to: ReplicaId) {
        let mut all = self.pins.held.borrow_mut();
        all.retain(|number, held| *number == self.number || held.to != Some(to));
        if let Some(held) = all.get_mut(&self.number) {
            held.to = Some(to);
        }
    }

    /// The replica has taken the snapshot over: what comes after it is kept until it has that, too.
    pub fn taken_over(self, now: Now<E>) {
        if let Some(held) = self.pins.held.borrow_mut().get_mut(&self.number) {
            held.heard = Some(now);
        }
    }
}

impl<E: Env> Drop for Pin<E> {
    fn drop(&mut self) {
        let mut all = self.pins.held.borrow_mut();
        if all
            .get(&self.number)
            .is_some_and(|held| held.heard.is_none())
        {
            all.remove(&self.number);
        }
    }
}
