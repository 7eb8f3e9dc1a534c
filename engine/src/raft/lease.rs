//! The read lease: until when a leader may read without asking anybody ([`Group::has_lease`]), and
//! how it asks without one ([`Group::read_barrier`]).
//!
//! A replica that accepts an append will not vote for anyone else for one lease. The promise counts
//! from when the replica accepted the append, which is after the leader sent it. So the leader may
//! rely on the time at which it sent the last append that a majority has acknowledged.
//!
//! openraft computes such a time, too, but 0.10.0-alpha.37 can take the answer to an append for the
//! answer to a later empty append that ends at the same entry, with that one's time
//! (`InflightAppendQueue::drain_acked`). The lease is then too long, and a lease that is too long
//! is a stale read. So openraft's time is used nowhere here: neither for leases nor for reads
//! without one.
//!
//! The voters are those that openraft knows at the moment of the call. They may change before the
//! result is used, but by one step of a joint change at most: the next step needs answers, and
//! every answer makes the result be computed anew. Any two neighbouring memberships have a voter in
//! common in all their majorities.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use crate::env::{AsyncRuntime, Env, Instant, Now};
use crate::error::Fatal;
use crate::limits::LEASE_MS;
use crate::mutant::{self, Mutant};
use crate::notify::Notify;
use crate::raft::group::Group;
use crate::raft::machine::{Machine, RuntimeOf};
use crate::types::ReplicaId;

/// How long a read or write waits for a lease that ran out while the group slept, and how often it
/// looks for one.
const LEASE_TIMEOUT: Duration = Duration::from_millis(20);
/// How long a read without a lease waits for a majority's answers before it tries again.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(200);

/// How far two clocks may drift apart during one lease, with room to spare. A leader's lease ends
/// earlier by this, and a restarted replica withholds its vote longer by it.
pub(super) const DRIFT_MARGIN: Duration = Duration::from_millis(LEASE_MS / 7);

/// What the other replicas have acknowledged to a leader.
pub(super) struct Lease<T: Instant> {
    /// The leader's term, and for each other replica when the last append was sent that it
    /// accepted.
    taken: RefCell<Taken<T>>,
    /// The last result of [`Lease::quorum_at`]; `None` once a newer answer has come.
    reckoned: Cell<Option<Reckoned<T>>>,
    /// Notified after each answer.
    pub answered: Notify,
}

struct Taken<T: Instant> {
    term: u64,
    by: Vec<(ReplicaId, T)>,
}

/// A term, and what [`Lease::quorum_at`] gave in it.
type Reckoned<T> = (u64, Option<T>);

impl<T: Instant> Lease<T> {
    /// A lease with no answers yet.
    pub fn new() -> Lease<T> {
        Lease {
            taken: RefCell::new(Taken {
                term: 0,
                by: Vec::new(),
            }),
            reckoned: Cell::new(None),
            answered: Notify::default(),
        }
    }

    /// Notes that a replica has accepted an append of the leader of `term`, sent at `sent`.
    pub fn take(&self, term: u64, by: ReplicaId, sent: T) {
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
    pub fn quorum_at(&self, term: u64, me: ReplicaId, voters: &[BTreeSet<ReplicaId>]) -> Option<T> {
        match self.reckoned.get() {
            Some((of, at)) if of == term => at,
            _ => {
                let at = self.reckon(term, me, voters);
                self.reckoned.set(Some((term, at)));
                at
            }
        }
    }

    fn reckon(&self, term: u64, me: ReplicaId, voters: &[BTreeSet<ReplicaId>]) -> Option<T> {
        let taken = self.taken.borrow();
        if taken.term != term {
            return None;
        }
        let mut quorum: Option<T> = None;
        for voters in voters {
            // How many others make a majority together with the leader, if it has a vote itself.
            let others = voters.len() / 2 + 1 - usize::from(voters.contains(&me));
            if others == 0 {
                continue;
            }
            let answered = taken.by.iter().filter(|(id, _)| voters.contains(id));
            let mut times: Vec<T> = answered.map(|(_, at)| *at).collect();
            // Newest first: at the last of the majority's times all of the majority had promised.
            times.sort_unstable_by(|a, b| b.cmp(a));
            let at = *times.get(others - 1)?;
            quorum = Some(quorum.map_or(at, |quorum| quorum.min(at)));
        }
        quorum
    }
}

impl<M: Machine> Group<M> {
    /// Whether this replica may serve reads alone now: a majority has acknowledged it within the
    /// lease.
    pub fn has_lease(&self) -> bool {
        if self.standing.alone.get() {
            return true;
        }
        let mut lease = Duration::from_millis(LEASE_MS) - DRIFT_MARGIN;
        if mutant::is(Mutant::LeaseWithoutMargin) {
            lease = Duration::from_millis(LEASE_MS) + DRIFT_MARGIN;
        }
        let at = self.quorum_at();
        M::Env::leases_count() && at.is_some_and(|at| Now::<M::Env>::now() < at + lease)
    }

    /// When this leader sent the last append that a majority has accepted.
    pub(super) fn quorum_at(&self) -> Option<Now<M::Env>> {
        let metrics = self.metrics.borrow_watched();
        let voters = metrics.membership_config.membership().get_joint_config();
        self.progress
            .lease
            .quorum_at(metrics.current_term, self.replica, voters)
    }

    /// Waits up to [`LEASE_TIMEOUT`] for a lease that ran out while the group slept.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn renew_lease(&self) -> Result<(), Fatal> {
        if self.has_lease() {
            return Ok(());
        }
        self.wake().await?;
        let renewed = self.progress.lease.answered.until(|| self.has_lease());
        let _ = RuntimeOf::<M>::timeout(LEASE_TIMEOUT, renewed).await;
        Ok(())
    }

    /// Waits until a majority has confirmed that nobody else led when this was called: ReadIndex
    /// (Raft dissertation, 6.4). If this replica leads, everything committed by then is applied
    /// here, because a leader answers its own writes only after it has applied them.
    ///
    /// Gives `false` if no majority has confirmed it within [`CONFIRM_TIMEOUT`].
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn read_barrier(&self) -> Result<bool, Fatal> {
        if mutant::is(Mutant::ReadBarrierAsksNobody) {
            return Ok(true);
        }
        let begun = Now::<M::Env>::now();
        self.wake().await?;
        let confirmed = || self.quorum_at().is_some_and(|at| at >= begun);
        let answered = self.progress.lease.answered.until(confirmed);
        Ok(RuntimeOf::<M>::timeout(CONFIRM_TIMEOUT, answered)
            .await
            .is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant as StdInstant};

    use super::*;

    const ME: ReplicaId = ReplicaId(1);

    fn voters(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().map(|id| ReplicaId(*id)).collect()
    }

    /// A start, and the lease of a leader of term 5 after these answers: the replica, and how many
    /// milliseconds after the start the append was sent that it took.
    fn answered(answers: &[(u64, u64)]) -> (StdInstant, Lease<StdInstant>) {
        let (start, lease) = (StdInstant::now(), Lease::new());
        for (replica, ms) in answers {
            lease.take(5, ReplicaId(*replica), start + Duration::from_millis(*ms));
        }
        (start, lease)
    }

    /// Milliseconds after the start at which a majority of each set had answered.
    fn quorum_ms(answers: &[(u64, u64)], sets: &[&[u64]]) -> Option<u128> {
        let (start, lease) = answered(answers);
        let sets: Vec<_> = sets.iter().map(|ids| voters(ids)).collect();
        let at = lease.quorum_at(5, ME, &sets)?;
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
        let (start, lease) = answered(&[(2, 10)]);
        let sets = [voters(&[1, 2, 3])];
        assert!(lease.quorum_at(5, ME, &sets).is_some());
        let later = start + Duration::from_millis(40);
        lease.take(5, ReplicaId(3), later);
        assert_eq!(lease.quorum_at(5, ME, &sets), Some(later));
    }

    #[test]
    fn answers_count_in_their_own_term_alone() {
        let (start, lease) = answered(&[(2, 10)]);
        let sets = [voters(&[1, 2, 3])];
        assert_eq!(lease.quorum_at(6, ME, &sets), None);
        lease.take(4, ReplicaId(3), start + Duration::from_millis(90));
        assert_eq!(
            lease.quorum_at(5, ME, &sets),
            Some(start + Duration::from_millis(10))
        );
        lease.take(6, ReplicaId(3), start + Duration::from_millis(20));
        assert_eq!(lease.quorum_at(5, ME, &sets), None);
        assert_eq!(
            lease.quorum_at(6, ME, &sets),
            Some(start + Duration::from_millis(20))
        );
    }
}
