//! What the other replicas have acknowledged to a leader, and when. The [lease](super::lease) is computed
//! from this.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crate::boot_time::BootTime;
use crate::notify::Notify;
use crate::types::ReplicaId;

/// What the other replicas have acknowledged to a leader.
pub(super) struct Acknowledged {
    /// The leader's term, and for each other replica when the last append was sent that it
    /// accepted.
    taken: RefCell<Taken>,
    /// The last result of [`Acknowledged::quorum_at`]; `None` once a newer answer has come.
    reckoned: Cell<Option<Reckoned>>,
    /// Notified after each answer.
    pub answered: Notify,
}

struct Taken {
    term: u64,
    by: Vec<(ReplicaId, BootTime)>,
}

/// A term, and what [`Acknowledged::quorum_at`] gave in it.
type Reckoned = (u64, Option<BootTime>);

impl Acknowledged {
    /// Nothing is acknowledged yet.
    pub fn new() -> Acknowledged {
        Acknowledged {
            taken: RefCell::new(Taken {
                term: 0,
                by: Vec::new(),
            }),
            reckoned: Cell::new(None),
            answered: Notify::default(),
        }
    }

    /// Notes that a replica has accepted an append of the leader of `term`, sent at `sent`.
    pub fn take(&self, term: u64, by: ReplicaId, sent: BootTime) {
        let mut taken = self.taken.borrow_mut();
        if term < taken.term {
            return;
        }
        if term > taken.term {
            *taken = Taken {
                term,
                by: Vec::new(),
            };
        }
        match taken.by.iter_mut().find(|(id, _)| *id == by) {
            Some((_, at)) => *at = sent.max(*at),
            None => taken.by.push((by, sent)),
        }
        self.reckoned.set(None);
        drop(taken);
        self.answered.notify();
    }

    /// The time up to which a majority of each set of voters had voted for nobody but `me`, the
    /// leader of this term. `None`: no majority has answered yet, or there are no other voters.
    pub fn quorum_at(
        &self,
        term: u64,
        me: ReplicaId,
        voters: &[BTreeSet<ReplicaId>],
    ) -> Option<BootTime> {
        match self.reckoned.get() {
            Some((of, at)) if of == term => at,
            _ => {
                let at = self.reckon(term, me, voters);
                self.reckoned.set(Some((term, at)));
                at
            }
        }
    }

    fn reckon(&self, term: u64, me: ReplicaId, voters: &[BTreeSet<ReplicaId>]) -> Option<BootTime> {
        let taken = self.taken.borrow();
        if taken.term != term {
            return None;
        }
        let mut quorum: Option<BootTime> = None;
        for voters in voters {
            // How many others make a majority together with the leader, if it has a vote itself.
            let others = voters.len() / 2 + 1 - usize::from(voters.contains(&me));
            if others == 0 {
                continue;
            }
            let answered = taken.by.iter().filter(|(id, _)| voters.contains(id));
            let mut times: Vec<BootTime> = answered.map(|(_, at)| *at).collect();
            // Newest first: at the last of the majority's times all of the majority had promised.
            times.sort_unstable_by(|a, b| b.cmp(a));
            let at = *times.get(others - 1)?;
            quorum = Some(quorum.map_or(at, |quorum| quorum.min(at)));
        }
        quorum
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::boot_time::test_clock;

    const ME: ReplicaId = ReplicaId(1);

    fn voters(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().map(|id| ReplicaId(*id)).collect()
    }

    /// A start, and what was acknowledged to a leader of term 5 by these answers: the replica, and how many
    /// milliseconds after the start the append was sent that it took.
    fn answered(answers: &[(u64, u64)]) -> (BootTime, Acknowledged) {
        let (start, acknowledged) = (test_clock::now(), Acknowledged::new());
        for (replica, ms) in answers {
            acknowledged.take(5, ReplicaId(*replica), start + Duration::from_millis(*ms));
        }
        (start, acknowledged)
    }

    /// Milliseconds after the start at which a majority of each set had answered.
    fn quorum_ms(answers: &[(u64, u64)], sets: &[&[u64]]) -> Option<u128> {
        let (start, acknowledged) = answered(answers);
        let sets: Vec<_> = sets.iter().map(|ids| voters(ids)).collect();
        let at = acknowledged.quorum_at(5, ME, &sets)?;
        Some((at - start).as_millis())
    }

    #[test]
    fn it_counts_from_the_append_that_a_majority_has_taken() {
        assert_eq!(quorum_ms(&[], &[&[1, 2, 3]]), None);
        assert_eq!(quorum_ms(&[(2, 10), (3, 20)], &[&[1, 2, 3]]), Some(20));
        let five: &[u64] = &[1, 2, 3, 4, 5];
        assert_eq!(quorum_ms(&[(2, 10)], &[five]), None);
        let three = [(2, 10), (3, 30), (4, 20)];
        assert_eq!(quorum_ms(&three, &[five]), Some(20));
        // A leader that is no voter any more needs a majority of the others.
        assert_eq!(quorum_ms(&three, &[&[2, 3, 4]]), Some(20));
        // Learners do not count.
        assert_eq!(quorum_ms(&[(9, 10)], &[&[1, 2, 3]]), None);
    }

    #[test]
    fn a_joint_membership_needs_a_majority_of_both() {
        let answers = [(2, 10), (3, 30), (4, 20)];
        assert_eq!(quorum_ms(&answers, &[&[1, 2, 3], &[1, 4, 5]]), Some(20));
        assert_eq!(quorum_ms(&answers, &[&[1, 2, 3], &[1, 6, 7]]), None);
    }

    #[test]
    fn an_answer_to_an_older_append_takes_nothing_back() {
        assert_eq!(quorum_ms(&[(2, 20), (2, 10)], &[&[1, 2, 3]]), Some(20));
        let (start, acknowledged) = answered(&[(2, 10)]);
        let sets = [voters(&[1, 2, 3])];
        assert!(acknowledged.quorum_at(5, ME, &sets).is_some());
        let later = start + Duration::from_millis(40);
        acknowledged.take(5, ReplicaId(3), later);
        assert_eq!(acknowledged.quorum_at(5, ME, &sets), Some(later));
    }

    #[test]
    fn answers_count_in_their_own_term_alone() {
        let (start, acknowledged) = answered(&[(2, 10)]);
        let sets = [voters(&[1, 2, 3])];
        assert_eq!(acknowledged.quorum_at(6, ME, &sets), None);
        acknowledged.take(4, ReplicaId(3), start + Duration::from_millis(90));
        assert_eq!(
            acknowledged.quorum_at(5, ME, &sets),
            Some(start + Duration::from_millis(10))
        );
        acknowledged.take(6, ReplicaId(3), start + Duration::from_millis(20));
        assert_eq!(acknowledged.quorum_at(5, ME, &sets), None);
        assert_eq!(
            acknowledged.quorum_at(6, ME, &sets),
            Some(start + Duration::from_millis(20))
        );
    }
}
