//! Whether a replica leads its range, and which replica is the leader as far as it knows.
//!
//! A replica leads from the moment it has applied its own blank entry, in a term newer than any seen
//! when the process started, as long as openraft says so. The timestamps that were served and the
//! terms of an earlier process are lost: a term before the start never serves again.

use std::cell::Cell;

use crate::mutant::{self, Mutant};
use crate::notify::Notify;
use crate::types::ReplicaId;
use crate::wal::LogId;

/// The leadership of a replica in one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// The term of the leadership.
    pub term: u64,
    /// The index of the term's first entry, which is applied here.
    pub first_index: u64,
}

/// What one replica knows of its range's leader.
pub struct Leadership {
    me: ReplicaId,
    /// The term of this replica's vote when the process started.
    term_before: u64,
    leading: Cell<Option<Leading>>,
    /// The blank entry of its own that it applied last.
    blank: Cell<Option<Leading>>,
    /// The last term in which it has asked another to lead: it never leads in that term again.
    stopped_in: Cell<u64>,
    /// The leader that openraft knows.
    leader: Cell<Option<ReplicaId>>,
    /// The term of this replica's vote.
    term: Cell<u64>,
    /// Whether the group has had no majority for a while.
    lacks_quorum: Cell<bool>,
    /// Notified when this replica begins to lead, and when openraft knows another leader.
    changed: Notify,
}

impl Leadership {
    /// That of a replica whose group has not started.
    pub(super) fn new(me: ReplicaId, term_before: u64) -> Leadership {
        Leadership {
            me,
            term_before,
            leading: Cell::new(None),
            blank: Cell::new(None),
            stopped_in: Cell::new(0),
            leader: Cell::new(None),
            term: Cell::new(0),
            lacks_quorum: Cell::new(false),
            changed: Notify::default(),
        }
    }

    /// The leadership of this replica, if it leads.
    pub fn leading(&self) -> Option<Leading> {
        self.leading.get()
    }

    /// The leader, as far as this replica knows.
    pub fn leader(&self) -> Option<ReplicaId> {
        let me = self.leading.get().map(|_| self.me);
        me.or(self.leader.get())
    }

    /// The leader that a route names; `None` while there is no majority.
    pub(super) fn routed_leader(&self) -> Option<ReplicaId> {
        self.leader().filter(|_| !self.lacks_quorum.get())
    }

    /// Whether the group has had no majority for a while.
    pub fn lacks_quorum(&self) -> bool {
        self.lacks_quorum.get()
    }

    /// Notes whether the group has a majority; gives whether that is news.
    pub(super) fn take_quorum(&self, lacks: bool) -> bool {
        self.lacks_quorum.replace(lacks) != lacks
    }

    /// Waits until this replica leads, or need not: it has stopped leading and `is_over` holds.
    pub(super) async fn led_unless(&self, is_over: impl Fn() -> bool) {
        let leads = || self.leading.get().is_some();
        self.changed.until(|| leads() || is_over()).await;
    }

    /// Waits until another replica leads, as far as this one knows.
    pub async fn led_by_other(&self) {
        let other = || self.leader().is_some_and(|id| id != self.me);
        self.changed.until(other).await;
    }

    /// Stops leading at once, whatever openraft says, until this replica leads in another term.
    pub(super) fn stop(&self) {
        self.stopped_in.set(self.term.get());
        self.leading.set(None);
        self.changed.notify();
    }

    /// Takes from openraft which replica leads, and the term of this replica's vote. Gives whether openraft says
    /// that this replica leads; if so, [`Leadership::begin`] is due.
    pub(super) fn follow(&self, leader: Option<ReplicaId>, term: u64) -> bool {
        self.leader.set(leader);
        self.term.set(term);
        let is_me = leader == Some(self.me);
        if mutant::is(Mutant::FastReadBeforeOwnEntry) && is_me {
            let first_index = 0;
            self.leading.set(Some(Leading { term, first_index }));
        }
        if !is_me {
            self.leading.set(None);
            self.changed.notify();
        }
        is_me
    }

    /// Whether a term's first entry is this replica's own, and it may lead in the term.
    pub(super) fn is_own(&self, blank: LogId) -> bool {
        blank.leader == self.me && blank.term > self.term_before
    }

    /// Notes that this replica has applied its own first entry of a term.
    pub(super) fn applied(&self, blank: LogId) {
        self.blank.set(Some(Leading {
            term: blank.term,
            first_index: blank.index,
        }));
    }

    /// Begins to lead, if this replica has applied its own blank entry of the term in which
    /// openraft says that it leads; gives the term if so. A replica that was paused may apply it
    /// when another leads already.
    pub(super) fn begin(&self) -> Option<u64> {
        let blank = self.blank.get()?;
        let term = self.term.get();
        let is_it = self.leader.get() == Some(self.me) && term != self.stopped_in.get();
        if !is_it || blank.term != term || self.leading.get() == Some(blank) {
            return None;
        }
        self.leading.set(Some(blank));
        self.changed.notify();
        Some(blank.term)
    }
}
