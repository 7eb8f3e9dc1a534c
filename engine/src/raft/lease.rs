//! The read lease: until when a leader may read without asking anybody ([`Group::has_lease`]), and
//! how it asks without one ([`Group::read_barrier`]). Reads check it in `engine/src/shard/reads/get.rs`, those
//! of several keys in `engine/src/shard/reads/multi_get.rs`: there is what a leader does with and without a
//! lease.
//!
//! A replica that accepts an append will not vote for anyone else for one lease. The promise counts
//! from when the replica accepted the append, which is after the leader sent it. So the leader
//! counts its lease from when it sent the last append that a majority has acknowledged.
//!
//! openraft computes such a time, too, but 0.10.0-alpha.37 can mistake the answer to one append for
//! that to a later, empty append which ends at the same entry, and then takes the later one's time
//! (`InflightAppendQueue::drain_acked`). The lease is then too long, and a lease that is too long
//! is a stale read. So openraft's time is never used here: neither for leases nor for reads without
//! a lease.
//!
//! The voters are those that openraft knows when the result is computed. The result is cached until
//! the next answer. Meanwhile the voters can change by one step of a joint change at most, since
//! the step after it needs answers. Any majority of the members before such a step and any majority
//! of those after it have a voter in common.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use crate::boot_time::BootTime;
use crate::env::{AsyncRuntime, Env};
use crate::error::Fatal;
use crate::limits::{DRIFT_MARGIN, LEASE_MS};
use crate::mutant::{self, Mutant};
use crate::raft::group::Group;
use crate::raft::machine::{Machine, RuntimeOf};

/// How long a read or write waits for a lease that ran out while the group slept.
const LEASE_TIMEOUT: Duration = Duration::from_millis(20);
/// How long a read without a lease waits for a majority's answers before it tries again.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(200);

/// What the lease of a leader among several voters rests on.
struct Lease {
    /// When the leader sent the last append that a majority has accepted in its term.
    from: Option<BootTime>,
    /// Whether it has asked another replica to lead in its term: the others vote for that one at once.
    transferred: bool,
}

impl Lease {
    /// Whether the leader may read at this time without asking anybody.
    fn is_held(&self, now: BootTime) -> bool {
        let mut lease = Duration::from_millis(LEASE_MS) - DRIFT_MARGIN;
        if mutant::is(Mutant::LeaseWithoutMargin) {
            lease = Duration::from_millis(LEASE_MS) + DRIFT_MARGIN;
        }
        !self.transferred && self.from.is_some_and(|from| now < from + lease)
    }
}

impl<M: Machine> Group<M> {
    /// Whether this replica may serve reads without asking others now: a majority has acknowledged
    /// an append that it sent less than a lease ago, or it is the only voter.
    pub fn has_lease(&self) -> bool {
        if self.standing.alone.get() {
            return true;
        }
        let lease = Lease {
            from: self.quorum_at(),
            transferred: self.has_transferred(),
        };
        M::Env::leases_are_valid() && lease.is_held(M::Env::now())
    }

    /// When this leader sent the last append that a majority has accepted.
    pub(super) fn quorum_at(&self) -> Option<BootTime> {
        let metrics = self.metrics.borrow_watched();
        let voters = metrics.membership_config.membership().get_joint_config();
        self.progress
            .acknowledged
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
        let renewed = self
            .progress
            .acknowledged
            .answered
            .until(|| self.has_lease());
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
        let begun = M::Env::now();
        self.wake().await?;
        let confirmed = || self.quorum_at().is_some_and(|at| at >= begun);
        let answered = self.progress.acknowledged.answered.until(confirmed);
        Ok(RuntimeOf::<M>::timeout(CONFIRM_TIMEOUT, answered)
            .await
            .is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::rc::Rc;

    use super::*;
    use crate::boot_time::test_clock;
    use crate::raft::acknowledged::Acknowledged;
    use crate::raft::timers::Timers;
    use crate::types::ReplicaId;

    const ME: ReplicaId = ReplicaId(1);
    const OTHER: ReplicaId = ReplicaId(2);
    const TERM: u64 = 5;
    const LEN: Duration = Duration::from_millis(LEASE_MS).saturating_sub(DRIFT_MARGIN);
    const NANO: Duration = Duration::from_nanos(1);

    fn lease(from: Option<BootTime>) -> Lease {
        Lease {
            from,
            transferred: false,
        }
    }

    /// The lease of a leader of three voters in a term, after these appends were acknowledged to it.
    fn of_term(acknowledged: &Acknowledged, term: u64) -> Lease {
        let voters = BTreeSet::from([ME, OTHER, ReplicaId(3)]);
        lease(acknowledged.quorum_at(term, ME, &[voters]))
    }

    #[test]
    fn a_leader_holds_its_lease_from_when_it_sent_what_a_majority_has_accepted() {
        let (sent, acknowledged) = (test_clock::now(), Acknowledged::new());
        assert!(!of_term(&acknowledged, TERM).is_held(sent), "no answer yet");
        acknowledged.take(TERM, OTHER, sent);
        // However long the answer was on its way: the time it was sent counts.
        test_clock::advance(LEN / 2);
        assert!(of_term(&acknowledged, TERM).is_held(test_clock::now()));
        test_clock::advance(LEN);
        assert!(!of_term(&acknowledged, TERM).is_held(test_clock::now()));
        acknowledged.take(TERM, ReplicaId(3), test_clock::now());
        assert!(of_term(&acknowledged, TERM).is_held(test_clock::now()));
    }

    #[test]
    fn it_ends_at_its_edge_and_not_a_nanosecond_later() {
        let sent = test_clock::now();
        assert!(lease(Some(sent)).is_held(sent));
        assert!(lease(Some(sent)).is_held(sent + LEN - NANO));
        assert!(!lease(Some(sent)).is_held(sent + LEN));
        // The machine slept: its clock went on.
        assert!(!lease(Some(sent)).is_held(sent + Duration::from_hours(8)));
        // The last moment of the clock is not after every lease by overflow.
        let last = BootTime::default() + Duration::MAX;
        assert!(!lease(Some(sent)).is_held(last));
    }

    #[test]
    fn no_voter_that_accepted_the_append_votes_for_another_while_it_is_held() {
        let sent = test_clock::now();
        // The follower accepts it at once: its promise ends as early as it can. Its clock is fast by as
        // much as two clocks may differ in one lease.
        let follower = Timers::new(sent, Rc::default(), false);
        follower.hear(sent);
        let mut leases = 0;
        for micros in (0..2000 * LEASE_MS).step_by(250) {
            let passed = Duration::from_micros(micros);
            let drift = passed.mul_f64(DRIFT_MARGIN.as_secs_f64() / (LEASE_MS as f64 / 1000.0));
            let is_held = lease(Some(sent)).is_held(sent + passed);
            leases += u32::from(is_held);
            let votes = !follower.has_heard(sent + passed + drift);
            assert!(!(is_held && votes), "after {passed:?}");
        }
        assert!(leases > 1000, "{leases}");
    }

    #[test]
    fn a_vote_for_another_term_in_between_leaves_nothing_of_it() {
        let (sent, acknowledged) = (test_clock::now(), Acknowledged::new());
        acknowledged.take(TERM, OTHER, sent);
        assert!(of_term(&acknowledged, TERM).is_held(sent));
        // It votes, or is elected again: answers of its old term count for nothing.
        assert!(!of_term(&acknowledged, TERM + 1).is_held(sent));
        acknowledged.take(TERM, ReplicaId(3), sent);
        assert!(!of_term(&acknowledged, TERM + 1).is_held(sent));
        acknowledged.take(TERM + 1, OTHER, sent);
        assert!(of_term(&acknowledged, TERM + 1).is_held(sent));
    }

    #[test]
    fn a_leader_that_has_asked_another_to_lead_holds_none() {
        let from = Some(test_clock::now());
        let transferred = Lease {
            from,
            transferred: true,
        };
        assert!(!transferred.is_held(test_clock::now()));
        assert!(lease(from).is_held(test_clock::now()));
    }
}
