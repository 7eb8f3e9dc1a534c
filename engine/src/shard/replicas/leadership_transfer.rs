//! Leadership transfers: of one range, of all ranges before a stop, and in a change of members
//! after which the leader is no voter.
//!
//! From the moment in which the leader stops serving until the other replica has won its election, a
//! few milliseconds, the range has no leader. To keep that gap short, the leader asks the target first
//! whether it would accept ([`ClusterRequest::MayLead`]). If something fails after that, the range
//! waits for an ordinary election: a lease and a random time.

use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::FuturesOrdered;

use crate::cluster::message::CAUGHT_UP;
use crate::cluster::{ClusterRequest, ClusterResponse, MembershipStatus};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Fatal, OrderError};
use crate::range::replica::Replica;
use crate::range::{RaftGroup, ReplicaPlace};
use crate::shard::replicas::members::CREATE_TIMEOUT;
use crate::shard::{RangeHandle, Shard, ShardInner};
use crate::types::{RangeId, ReplicaId};
use crate::wal::Group;

/// Time limit for a replica's answer whether it would accept.
const MAY_LEAD_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a stop waits until others lead the ranges of this shard.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit for another replica to take the lead and to go on with a change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is asked to go on.
/// By time: the other replica, on another shard, does not say when it leads.
const CHANGE_RETRY_INTERVAL: Duration = Duration::from_millis(20);

impl<E: Env> Shard<E> {
    /// Makes this shard refuse leadership from now on: its node is about to stop.
    pub fn leave(&self) {
        self.inner.around.leaves.set(true);
    }

    /// Transfers the leadership of every range to another replica. Returns when others lead, or
    /// after a second.
    ///
    /// # Errors
    /// A group has failed.
    pub async fn transfer_leaders(&self) -> Result<(), Fatal> {
        let until = E::now() + STOP_TIMEOUT;
        let mut groups = self.inner.ranges.groups();
        groups.retain(|(replica, raft)| replica.leading().is_some() && !raft.is_alone());
        let given = groups.into_iter().map(|(replica, raft)| async move {
            let targets = raft.transfer_targets();
            let is_given = self.inner.hand_over(&replica, &raft, targets).await?;
            Ok::<_, Fatal>(is_given.then_some(replica))
        });
        let given = try_join_all(given).await?;
        let others_lead = join_all(
            given
                .iter()
                .flatten()
                .map(|replica| replica.leadership.led_by_other()),
        );
        let _ = E::Runtime::timeout_at(until.into(), others_lead).await;
        Ok(())
    }
}

impl<E: Env> ShardInner<E> {
    /// Whether this node neither drains nor is decommissioned, by the last view.
    pub(in crate::shard) fn is_active(&self) -> bool {
        let view = self.agent.view();
        let mut nodes = view.nodes.iter();
        let here = nodes.find(|node| node.record.id == self.location.node);
        here.is_none_or(|node| node.membership == MembershipStatus::Active)
    }

    /// Whether a replica of this shard would accept the leadership of its range.
    pub(in crate::shard) fn may_lead_now(
        &self,
        range: RangeId,
        replica: ReplicaId,
    ) -> ClusterResponse {
        let here = self.running(Group { range, replica });
        let is_here = here.is_some_and(|here| !here.replica.is_unreadable());
        let is_slow = self.liveness.slow_disk.stays_away(E::now());
        match is_here && self.is_active() && !self.around.leaves.get() && !is_slow {
            true => ClusterResponse::Done,
            false => ClusterResponse::Refused(OrderError::busy(format!(
                "shard {} stops or drains, has a slow disk, or does not hold replica {replica} or all of its rows",
                self.location
            ))),
        }
    }

    /// Asks the first of these candidates that accepts to lead the range. Gives whether one does.
    pub(in crate::shard) async fn hand_over(
        self: &Rc<Self>,
        replica: &Replica<E>,
        raft: &RaftGroup<E>,
        candidates: Vec<ReplicaId>,
    ) -> Result<bool, Fatal> {
        let target = self.transfer_target(replica, candidates).await;
        let Some(target) = target.filter(|_| replica.leading().is_some()) else {
            return Ok(false);
        };
        replica.stop_leading();
        raft.transfer_to(target.replica).await?;
        Ok(true)
    }

    /// The first of these candidates that would accept the leadership.
    pub(super) async fn transfer_target(
        self: &Rc<Self>,
        replica: &Replica<E>,
        candidates: Vec<ReplicaId>,
    ) -> Option<ReplicaPlace> {
        let range = replica.group.range;
        let asked = candidates.into_iter().map(|id| async move {
            let location = replica.with_state(|state| state.descriptor.location(id))?;
            let request = ClusterRequest::MayLead { range, replica: id };
            let response = self.ask(location, &request, MAY_LEAD_TIMEOUT).await;
            let place = ReplicaPlace {
                replica: id,
                location,
            };
            matches!(response, Some(ClusterResponse::Done)).then_some(place)
        });
        let mut asked: FuturesOrdered<_> = asked.collect();
        while let Some(response) = asked.next().await {
            if response.is_some() {
                return response;
            }
        }
        None
    }

    /// Transfers the leadership of a range. Gives at once whether the target was asked to campaign.
    pub(in crate::shard) async fn transfer_range(
        self: &Rc<Self>,
        range: RangeId,
        to: ReplicaId,
    ) -> Result<ClusterResponse, Fatal> {
        let Some(RangeHandle { replica, raft }) = self.led(range) else {
            return Ok(ClusterResponse::Refused(self.leads_no_more(range)));
        };
        let busy = |why: &str| {
            let reason = format!("replica {to} of range {range} {why}");
            Ok(ClusterResponse::Refused(OrderError::busy(reason)))
        };
        // The manager chose a voter; the members have changed since.
        if !raft.transfer_targets().contains(&to) {
            return busy("does not vote, or leads already");
        }
        if raft.lag(to) > CAUGHT_UP {
            return busy("lacks entries that it must get first");
        }
        if self.transfer_target(&replica, vec![to]).await.is_none() {
            return busy("does not answer, its node stops, or its disk is slow");
        }
        replica.stop_leading();
        raft.transfer_to(to).await?;
        Ok(ClusterResponse::Done)
    }

    /// Lets another replica lead, and go on with a change after which this one is no voter.
    pub(super) async fn leave_change_to(
        self: &Rc<Self>,
        RangeHandle { replica, raft }: &RangeHandle<E>,
        transfer_target: ReplicaPlace,
        voters: &[ReplicaPlace],
        learners: &[ReplicaPlace],
    ) -> Result<(), OrderError> {
        replica.stop_leading();
        raft.transfer_to(transfer_target.replica).await?;
        let until = E::now() + CHANGE_TIMEOUT;
        while E::now() < until {
            E::Runtime::sleep(CHANGE_RETRY_INTERVAL).await;
            let change = ClusterRequest::Change {
                range: replica.group.range,
                voters: voters.to_vec(),
                learners: learners.to_vec(),
            };
            if let Some(ClusterResponse::Done) = self
                .ask(transfer_target.location, &change, CREATE_TIMEOUT)
                .await
            {
                return Ok(());
            }
        }
        Err(OrderError::Unknown(format!(
            "replica {} does not lead and go on with the change after {CHANGE_TIMEOUT:?}",
            transfer_target.replica
        )))
    }
}
