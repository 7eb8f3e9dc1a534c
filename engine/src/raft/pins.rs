//! The part of the log that a leader keeps for replicas that receive a snapshot.
//!
//! openraft keeps no log for the time that a snapshot takes. Without the entries after the
//! snapshot, a replica that has installed it would need the next one, and so on as long as there
//! are writes. So a snapshot pins the log, from before its start until the replica is no further
//! behind than any replica may be, or until the pin is given up. From then on the usual rule keeps
//! the log for it ([`super::purge`]).
//!
//! The shard bounds the pinned part by the space on its disk, and gives up pins that take too much.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::types::ReplicaId;

/// A replica that has installed its snapshot and is silent for this long loses its pin.
const SILENT_TIMEOUT: Duration = Duration::from_mins(2);

/// The pin of one snapshot.
struct Held {
    /// Entries after this index are kept.
    after: u64,
    /// The replica that receives the snapshot, once known.
    to: Option<ReplicaId>,
    /// When the replica was last heard of; `None` until it has installed the snapshot.
    heard: Option<BootTime>,
}

/// All pins of one group.
#[derive(Default)]
pub struct Pins {
    held: RefCell<BTreeMap<u64, Held>>,
    next: Cell<u64>,
    /// Whether it was logged that entries are kept for pins alone.
    told: Cell<bool>,
}

/// What a leader knows of another replica.
#[derive(Clone, Copy, Debug)]
pub struct Follower {
    /// The index of the last entry that it is known to have.
    pub matched: u64,
    /// Whether its shard was heard of lately.
    pub is_there: bool,
}

/// Keeps the log for one snapshot. Dropping it ends that, unless the replica has installed the
/// snapshot: then [`Pins::kept_after`] decides.
pub struct Pin {
    pins: Rc<Pins>,
    number: u64,
}

impl Pins {
    /// Pins all entries after an index.
    pub fn pin(self: &Rc<Self>, after: u64) -> Pin {
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

    /// The index after which all entries are pinned, if any are. `follower` gives what is known of
    /// a replica, or `None` if nothing is replicated to it any more. A replica that has the entry
    /// `near` has caught up and loses its pin.
    pub fn kept_after(
        &self,
        near: u64,
        now: BootTime,
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
            held.after < near && now < heard + SILENT_TIMEOUT
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

    /// The replicas for which something is pinned.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.held
            .borrow()
            .values()
            .filter_map(|held| held.to)
            .collect()
    }

    /// Drops all pins, also those of snapshots under way.
    pub fn give_up(&self) {
        self.held.borrow_mut().clear();
    }

    /// Notes that entries are kept for pins alone. Gives whether that is news, to be logged.
    pub fn matters(&self) -> bool {
        !self.told.replace(true)
    }
}

impl Pin {
    /// Names the replica that receives the snapshot. The pin of its earlier snapshot goes.
    pub fn is_for(&self, to: ReplicaId) {
        let mut all = self.pins.held.borrow_mut();
        all.retain(|number, held| *number == self.number || held.to != Some(to));
        if let Some(held) = all.get_mut(&self.number) {
            held.to = Some(to);
        }
    }

    /// Notes that the replica has installed the snapshot. The entries after it stay pinned until
    /// the replica has caught up.
    pub fn installed(self, now: BootTime) {
        if let Some(held) = self.pins.held.borrow_mut().get_mut(&self.number) {
            held.heard = Some(now);
        }
    }
}

impl Drop for Pin {
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
