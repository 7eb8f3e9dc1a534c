//! The read lease: until when a leader may read without asking anybody ([`Group::has_lease`]), and
//! how it asks without one ([`Group::read_barrier`]). Reads check it in `engine/src/shard/read.rs`, those
//! of several keys in `engine/src/shard/multi_get.rs`: there is what a leader does with and without a
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

use crate::env::{AsyncRuntime, Env, Instant, Now};
use crate::error::Fatal;
use crate::limits::{DRIFT_MARGIN, LEASE_MS};
use crate::mutant::{self, Mutant};
use crate::raft::group::Group;
use crate::raft::machine::{Machine, RuntimeOf};

/// How long a read or write waits for a lease that ran out while the group slept.
const LEASE_TIMEOUT: Duration = Duration::from_millis(20);
/// How long a read without a lease waits for a majority's answers before it tries again.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(200);

impl<M: Machine> Group<M> {
    /// Whether this replica may serve reads without asking others now: a majority has acknowledged
    /// an append that it sent less than a lease ago, or it is the only voter.
    pub fn has_lease(&self) -> bool {
        if self.standing.alone.get() {
            return true;
        }
        let mut lease = Duration::from_millis(LEASE_MS) - DRIFT_MARGIN;
        if mutant::is(Mutant::LeaseWithoutMargin) {
            lease = Duration::from_millis(LEASE_MS) + DRIFT_MARGIN;
        }
        let at = self.quorum_at();
        M::Env::leases_are_valid() && at.is_some_and(|at| Now::<M::Env>::now() < at + lease)
    }

    /// When this leader sent the last append that a majority has accepted.
    pub(super) fn quorum_at(&self) -> Option<Now<M::Env>> {
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
        let begun = Now::<M::Env>::now();
        self.wake().await?;
        let confirmed = || self.quorum_at().is_some_and(|at| at >= begun);
        let answered = self.progress.acknowledged.answered.until(confirmed);
        Ok(RuntimeOf::<M>::timeout(CONFIRM_TIMEOUT, answered)
            .await
            .is_ok())
    }
}
