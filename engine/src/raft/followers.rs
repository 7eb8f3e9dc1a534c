//! What a leader knows of the other replicas while it leads: what each has acknowledged, and which
//! of them have lost acknowledged entries.
//!
//! A replica whose folder was put back from an older copy has less than it has acknowledged. Raft
//! relies on that never happening: an entry may be committed because of such an acknowledgement,
//! and the replica may have forgotten a vote as well. So it must neither vote nor acknowledge
//! again, not even after the entries have been sent anew. The leader notices the loss by an answer:
//! an append, sent after the replica had acknowledged entry N, conflicts with the entry at or
//! before N. (Within one term nothing takes acknowledged entries back: a later leader would show by
//! its vote.) From then on the leader
//!
//! - sends the replica nothing but the notice of its loss ([`super::message::RaftRequest::Lost`]);
//! - makes openraft forget what the replica had acknowledged (`allow_log_reversion`), so that the
//!   replica counts for no further entry;
//! - reports the loss to the cluster's manager, which puts a new replica with a new id in its
//!   place.
//!
//! The replica checks its own log. If the entry is really missing, it removes itself, durably and
//! for good ([`crate::shard`]). That needs no state of its own: a replica that is gone cannot vote,
//! and its id is never used again. The removal loses nothing that the leader does not have.
//!
//! A leader does not pass this knowledge on to the next leader, which learns it from its own
//! appends. If the leader that received the acknowledgement is gone before it has met the replica
//! again, no one can notice the loss this way. That is one reason why the starts of a node's folder
//! are counted, too: an older copy has a lower count.

use std::cell::RefCell;

use crate::types::ReplicaId;
use crate::wal::LogId;

/// What the leader of one term knows of the others.
#[derive(Default)]
pub(super) struct Followers {
    known: RefCell<Known>,
}

#[derive(Default)]
struct Known {
    term: u64,
    followers: Vec<Follower>,
}

/// What a leader knows of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Follower {
    replica: ReplicaId,
    /// The last entry that the replica has acknowledged.
    pub acknowledged: Option<LogId>,
    /// Set if the replica has lost that entry.
    pub lost: Option<Loss>,
}

/// The loss of entries that a replica had acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// The last entry that the replica had acknowledged.
    pub acknowledged: LogId,
    /// Whether the replica has been notified and has removed itself.
    pub is_told: bool,
}

impl Followers {
    /// What the leader of `term` knows of a replica.
    pub fn of(&self, term: u64, replica: ReplicaId) -> Follower {
        let known = self.known.borrow();
        let mut followers = known.followers.iter();
        let found = followers.find(|follower| follower.replica == replica);
        found
            .filter(|_| known.term == term)
            .copied()
            .unwrap_or(Follower::new(replica))
    }

    /// Whether a replica has lost what it had acknowledged to this replica when it last led.
    pub fn has_lost(&self, replica: ReplicaId) -> bool {
        let term = self.known.borrow().term;
        self.of(term, replica).lost.is_some()
    }

    /// Notes that a replica has acknowledged everything up to an entry.
    pub fn acknowledge(&self, term: u64, replica: ReplicaId, up_to: Option<LogId>) {
        self.change(term, replica, |follower| {
            if up_to.map(|id| id.index) > follower.acknowledged.map(|id| id.index) {
                follower.acknowledged = up_to;
            }
        });
    }

    /// Notes that a replica has lost what it had acknowledged. Gives whether that is news.
    pub fn lose(&self, term: u64, replica: ReplicaId, acknowledged: LogId) -> bool {
        let mut is_news = false;
        self.change(term, replica, |follower| {
            is_news = follower.lost.is_none();
            follower.lost.get_or_insert(Loss {
                acknowledged,
                is_told: false,
            });
        });
        is_news
    }

    /// Notes that a replica has been notified of its loss.
    pub fn told(&self, term: u64, replica: ReplicaId) {
        self.change(term, replica, |follower| {
            if let Some(loss) = &mut follower.lost {
                loss.is_told = true;
            }
        });
    }

    /// Notes that a replica has its entries after all.
    pub fn found(&self, term: u64, replica: ReplicaId) {
        self.change(term, replica, |follower| *follower = Follower::new(replica));
    }

    fn change(&self, term: u64, replica: ReplicaId, change: impl FnOnce(&mut Follower)) {
        let mut known = self.known.borrow_mut();
        if term < known.term {
            return;
        }
        if term > known.term {
            *known = Known {
                term,
                followers: Vec::new(),
            };
        }
        let mut followers = known.followers.iter_mut();
        match followers.find(|follower| follower.replica == replica) {
            Some(follower) => change(follower),
            None => {
                let mut new = Follower::new(replica);
                change(&mut new);
                known.followers.push(new);
            }
        }
    }
}

impl Follower {
    fn new(replica: ReplicaId) -> Follower {
        Follower {
            replica,
            acknowledged: None,
            lost: None,
        }
    }
}

/// Whether a conflict after `previous` shows that a replica has lost what it had acknowledged
/// before the append was sent. Gives the last entry that it had acknowledged.
pub(super) fn is_lost(acknowledged: Option<LogId>, previous: Option<LogId>) -> Option<LogId> {
    let (acknowledged, previous) = acknowledged.zip(previous)?;
    (previous.index <= acknowledged.index).then_some(acknowledged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> Option<LogId> {
        Some(LogId {
            term: 3,
            leader: ReplicaId(1),
            index,
        })
    }

    const OTHER: ReplicaId = ReplicaId(2);

    #[test]
    fn a_conflict_at_or_below_what_was_acknowledged_is_a_loss() {
        for (acknowledged, previous, lost) in [
            (None, id(5), false),
            (id(5), None, false),
            (id(5), id(6), false),
            (id(5), id(5), true),
            (id(5), id(4), true),
        ] {
            let found = is_lost(acknowledged, previous);
            assert_eq!(found.is_some(), lost, "{acknowledged:?} {previous:?}");
        }
    }

    #[test]
    fn what_is_known_ends_with_the_term_and_late_answers_do_not_count() {
        let followers = Followers::default();
        followers.acknowledge(3, OTHER, id(7));
        followers.acknowledge(3, OTHER, id(6));
        followers.acknowledge(3, OTHER, None);
        assert_eq!(followers.of(3, OTHER).acknowledged, id(7));
        assert_eq!(followers.of(4, OTHER).acknowledged, None);
        assert!(followers.lose(3, OTHER, id(7).expect("some")));
        assert!(!followers.lose(3, OTHER, id(7).expect("some")), "known");
        assert!(followers.has_lost(OTHER) && !followers.has_lost(ReplicaId(3)));
        followers.told(3, OTHER);
        assert!(followers.of(3, OTHER).lost.is_some_and(|loss| loss.is_told));
        followers.acknowledge(4, OTHER, id(8));
        assert!(!followers.has_lost(OTHER));
        followers.acknowledge(3, OTHER, id(9));
        assert_eq!(followers.of(4, OTHER).acknowledged, id(8));
        assert!(followers.lose(4, OTHER, id(8).expect("some")));
        followers.found(4, OTHER);
        assert_eq!(followers.of(4, OTHER), Follower::new(OTHER));
    }
}
