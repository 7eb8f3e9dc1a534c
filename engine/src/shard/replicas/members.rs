//! How replicas are created and removed, and how a leader changes the members of its group.
//!
//! A replica is durable in the log before it runs, and its removal is durable before it stops. A change
//! makes the new replicas, lets them learn, and only then changes the voters, in one joint step. A leader
//! that is to be removed transfers the leadership first. If a step fails, the cluster's manager tries again
//! from the state it finds then.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::cluster::message::CAUGHT_UP;
use crate::cluster::{ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fatal, OrderError};
use crate::raft::{Membership, StartMode};
use crate::range::replica::Replica;
use crate::range::rows::data_parts::DataParts;
use crate::range::state::RangeState;
use crate::range::{Descriptor, Keyspace, RaftGroup, ReplicaPlace};
use crate::shard::split_merge::changes::is_changing;
use crate::shard::{RangeHandle, ShardInner, gc};
use crate::types::{Location, NodeId, RangeId, ReplicaId};
use crate::wal::{Created, Group, WalError};

/// Time limit for a shard to make a replica.
pub(super) const CREATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for a shard to remove one.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(1);
/// New voters that come no nearer for this long are given up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_mins(2);
/// How often their progress is checked.
/// By time: each answer of a replica would be an event, thousands of times in this interval.
const CATCH_UP_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a node that has just joined may be unknown to a leader that is to have a replica made there: the
/// next view names it.
const JOINED_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the view is looked at meanwhile. By time: nodes join seldom.
const JOINED_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often shards of new voters that lag are asked whether the replica still exists.
const CATCH_UP_ASK: Duration = Duration::from_secs(3);
/// Time limit of one step of a change.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

impl<E: Env> ShardInner<E> {
    /// The replica of a range, if it leads.
    pub(in crate::shard) fn led(&self, range: RangeId) -> Option<RangeHandle<E>> {
        let here = self.of_range(range);
        here.filter(|here| here.replica.leading().is_some())
    }

    /// The replica of a range on this shard; there is never more than one.
    pub(in crate::shard) fn of_range(&self, range: RangeId) -> Option<RangeHandle<E>> {
        self.ranges.get(range)
    }

    /// This very replica, if it is on this shard.
    pub(in crate::shard) fn running(&self, group: Group) -> Option<RangeHandle<E>> {
        let here = self.of_range(group.range);
        here.filter(|here| here.replica.group == group)
    }

    /// Makes an empty replica.
    pub(in crate::shard) async fn create_replica(
        &self,
        descriptor: Descriptor,
        replica: ReplicaId,
    ) -> Result<ClusterResponse, Fatal> {
        let range = descriptor.range;
        let group = Group { range, replica };
        if let Some(RangeHandle { replica: here, .. }) = self.of_range(range) {
            let other = here.group.replica;
            if other == replica {
                return Ok(ClusterResponse::Done);
            }
            let is_empty = here.with_state(|state| state.applied.is_none());
            // An empty replica was left by a change that failed.
            if !is_empty || other > replica {
                let why = format!(
                    "shard {} holds replica {other} of range {range}",
                    self.location
                );
                return Ok(ClusterResponse::Refused(OrderError::Invalid(why)));
            }
            self.remove_replica(range, other).await?;
        }
        if self.is_given_up() {
            return Ok(ClusterResponse::Refused(OrderError::Conflict(format!(
                "node {} gives shard {} up: it takes no more replicas",
                self.location.node, self.location.shard
            ))));
        }
        if self.wal.is_replica_used(replica) || replica <= self.agent.seen.get().replica {
            return Ok(ClusterResponse::Refused(OrderError::Invalid(format!(
                "shard {} held replica {replica}, or one with a higher id, before",
                self.location
            ))));
        }
        if self.of_range(range).is_none() && self.wal.holds(range) {
            return Ok(ClusterResponse::Refused(OrderError::busy(format!(
                "shard {} has just given birth to a replica of range {range}",
                self.location
            ))));
        }
        if !self.ranges.begin_creating(range) {
            return Ok(ClusterResponse::Refused(OrderError::busy(format!(
                "shard {} is making another replica of range {range}",
                self.location
            ))));
        }
        let made = self.make_replica(descriptor, group).await;
        self.ranges.end_creating(range);
        match made {
            Ok(()) => Ok(ClusterResponse::Done),
            Err(Fatal::Wal(WalError::ReplicaNameUsed(_))) => {
                Ok(ClusterResponse::Refused(OrderError::Invalid(format!(
                    "shard {} held replica {replica} before",
                    self.location
                ))))
            }
            Err(fatal) => Err(fatal),
        }
    }

    async fn make_replica(&self, descriptor: Descriptor, group: Group) -> Result<(), Fatal> {
        let encoded = descriptor.encode();
        let encoded = encoded.map_err(|e| Fatal::Inconsistent(format!("a descriptor: {e}")))?;
        let created = Created {
            group,
            data_id: self.new_data_id().await?,
            descriptor: encoded.into(),
            membership: bytes::Bytes::new(),
            first: None,
            birth: None,
        };
        let log = self.wal.create_replica(created.clone()).await?;
        let state = RangeState::created(descriptor, created.membership, None);
        let made = StartMode::Now { leads: false };
        let parts = DataParts::one(created.data_id);
        let replica = self.add_replica(group, (parts, state), &log);
        self.start_replica(replica, log, made).await?;
        tracing::info!(range = %group.range, replica = %group.replica, shard = %self.location, "a replica was made");
        self.replicas_changed();
        Ok(())
    }

    /// Removes a replica for good.
    pub(in crate::shard) async fn remove_replica(
        &self,
        range: RangeId,
        replica: ReplicaId,
    ) -> Result<ClusterResponse, Fatal> {
        let group = Group { range, replica };
        let found = self.running(group);
        let Some(RangeHandle { replica, raft }) = found.filter(|found| !found.raft.is_retired())
        else {
            return Ok(ClusterResponse::Done);
        };
        if !self.may_remove(&replica) {
            return Ok(ClusterResponse::Refused(OrderError::busy(format!(
                "range {range} is frozen, and its left neighbour may still need its replica here"
            ))));
        }
        replica.follow(None, raft.term());
        replica.proposer.refuse_all(&Error::Moved(Vec::new()));
        raft.retire();
        if replica.keyspace() == Keyspace::System {
            self.remember_system();
        }
        // A split that waits to be applied here must give birth to nothing once the rows are no one's. While its
        // birth waits for the disk, a message may make the child's replica: that one stays.
        if let Some(unborn) = replica.leave().filter(|child| !self.wal.was_made(*child)) {
            self.wal.remove_replica(unborn).await?;
        }
        let newborns = &self.home.newborns;
        newborns.make_independent(group, &self.store).await?;
        // Until this is durable, a start would find the replica and need its rows.
        self.wal.remove_replica(group).await?;
        self.ranges.remove(group);
        replica.proposer.close();
        raft.stop().await;
        replica.proposer.abandon();
        self.end_staging(group.replica);
        tracing::info!(%range, replica = %group.replica, shard = %self.location, "a replica was removed");
        self.replicas_changed();
        Ok(ClusterResponse::Done)
    }

    fn replicas_changed(&self) {
        self.store.set_gc(gc::rules(self));
        self.ranges.version().add(1);
    }

    /// The refusal of an order that only the leader of a range can follow.
    pub(in crate::shard) fn leads_no_more(&self, range: RangeId) -> OrderError {
        OrderError::busy(format!(
            "shard {} does not lead range {range}",
            self.location
        ))
    }

    /// Begins a change of a range's members; gives at once whether it has begun.
    pub(in crate::shard) fn change_members(
        self: &Rc<Self>,
        range: RangeId,
        voters: Vec<ReplicaPlace>,
        learners: Vec<ReplicaPlace>,
    ) -> ClusterResponse {
        let Some(running) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        if voters.is_empty() {
            let why = format!("range {range} needs at least one voter");
            return ClusterResponse::Refused(OrderError::Invalid(why));
        }
        if running.replica.frozen().is_some() || !running.raft.begin_change() {
            return ClusterResponse::Refused(is_changing(range));
        }
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            let changed = inner.change(&running, &voters, &learners).await;
            let counters = &inner.around.counters;
            match changed {
                Ok(()) => {
                    counters.count(|stats| stats.changes_done += 1);
                    tracing::info!(%range, "its members were changed");
                }
                Err(why) => {
                    counters.count(|stats| stats.changes_failed += 1);
                    tracing::warn!(%range, %why, "its members were not changed");
                }
            }
            running.raft.end_change();
            // The manager may wait for this with its next orders.
            inner.report_soon();
        }));
        ClusterResponse::Done
    }

    async fn change(
        self: &Rc<Self>,
        running: &RangeHandle<E>,
        voters: &[ReplicaPlace],
        learners: &[ReplicaPlace],
    ) -> Result<(), OrderError> {
        let RangeHandle { replica, raft } = running;
        let me = replica.group.replica;
        let before = members(raft).await?.places;
        let wanted = || voters.iter().chain(learners);
        let voting = members(raft).await?.voters;
        // New members must exist and learn before they may vote. One that learns already and is to do no more
        // than that may be gone for good: this change does not need it.
        let goes_on_learning =
            |place: &ReplicaPlace| learners.contains(place) && before.contains_key(&place.replica);
        let is_new = |place: &&ReplicaPlace| !voting.contains(&place.replica);
        for place in wanted().filter(is_new) {
            if !goes_on_learning(place) {
                self.make(replica, raft, *place).await?;
            }
        }
        let new: Vec<ReplicaId> = voters.iter().map(|place| place.replica).collect();
        // Only new voters are waited for: one that votes already may be gone for good, and then it
        // is the change that helps.
        let mut learning = voters.to_vec();
        learning.retain(|place| !voting.contains(&place.replica));
        self.wait_until_caught_up(running, &learning).await?;
        let (now, is_joint) = members(raft).await.map(|now| (now.voters, now.is_joint))?;
        // A leader that must go lets a replica that stays finish the change.
        if !new.contains(&me) {
            let mut transfer_targets = raft.transfer_targets();
            transfer_targets.retain(|id| new.contains(id) && now.contains(id));
            if let Some(transfer_target) = self.transfer_target(replica, transfer_targets).await {
                return self
                    .leave_change_to(running, transfer_target, voters, learners)
                    .await;
            }
        }
        let goal: BTreeSet<ReplicaId> = new.into_iter().collect();
        if now != goal || is_joint {
            step(raft, raft.change_voters(goal)).await?;
        }
        // Members that are neither voters nor wanted learners.
        let surplus = members(raft).await?.places.into_keys();
        let surplus = surplus.filter(|id| wanted().all(|place| place.replica != *id));
        let surplus: BTreeSet<ReplicaId> = surplus.collect();
        if !surplus.is_empty() {
            step(raft, raft.remove_learners(surplus)).await?;
        }
        // The change ends only after the removed replicas are gone, or an earlier order that
        // arrives late could bring one back that is being removed. A replica that cannot be told
        // asks the manager later.
        let range = replica.group.range;
        let mut gone = before;
        gone.retain(|id, _| wanted().all(|place| place.replica != *id));
        let removals = gone.into_iter().map(|(replica, location)| async move {
            let remove = ClusterRequest::Remove { range, replica };
            self.ask(location, &remove, REMOVE_TIMEOUT).await
        });
        join_all(removals).await;
        Ok(())
    }

    /// Makes sure that a replica exists and learns.
    async fn make(
        self: &Rc<Self>,
        replica: &Replica<E>,
        raft: &RaftGroup<E>,
        place: ReplicaPlace,
    ) -> Result<(), OrderError> {
        let id = place.replica;
        let create = ClusterRequest::Create {
            descriptor: replica.with_state(|state| state.descriptor.clone()),
            replica: id,
        };
        let learns = members(raft).await?.places.contains_key(&id);
        self.wait_until_known(place.location.node).await;
        match self.ask(place.location, &create, CREATE_TIMEOUT).await {
            Some(ClusterResponse::Done) if learns => Ok(()),
            Some(ClusterResponse::Done) => step(raft, raft.add_learner(place)).await,
            Some(ClusterResponse::Refused(why)) => {
                self.target_failed(place.location);
                if learns {
                    // The replica is gone for good: another takes its place.
                    step(raft, raft.remove_learners([id].into())).await?;
                }
                Err(why)
            }
            _ => {
                self.target_failed(place.location);
                let why = format!("shard {} does not answer", place.location);
                Err(OrderError::Unknown(why))
            }
        }
    }

    /// Waits a moment until the view names a node, which cannot be asked without its address. The manager knows
    /// a node that joins first, and gives it its share at once.
    async fn wait_until_known(&self, node: NodeId) {
        let knows = || {
            self.agent
                .view()
                .nodes
                .iter()
                .any(|known| known.record.id == node)
        };
        let until = E::now() + JOINED_TIMEOUT;
        while !knows() && E::now() < until {
            self.report_soon();
            E::Runtime::sleep(JOINED_POLL_INTERVAL).await;
        }
    }

    /// Lets the manager choose another shard next time, if there is one.
    fn target_failed(self: &Rc<Self>, at: Location) {
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            inner
                .ask_manager(&ClusterRequest::TargetFailed { at })
                .await;
        }));
    }

    async fn wait_until_caught_up(
        self: &Rc<Self>,
        RangeHandle { replica, raft }: &RangeHandle<E>,
        learning: &[ReplicaPlace],
    ) -> Result<(), OrderError> {
        let lags = || learning.iter().map(|place| raft.lag(place.replica));
        let mut least = u64::MAX;
        let mut until = E::now() + CATCH_UP_TIMEOUT;
        let mut ask_at = E::now() + CATCH_UP_ASK;
        loop {
            let lag = lags().max().unwrap_or(0);
            if lag <= CAUGHT_UP {
                return Ok(());
            }
            if lag < least {
                least = lag;
                until = E::now() + CATCH_UP_TIMEOUT;
            }
            if let Some(taken) = raft.part_taken() {
                until = until.max(taken + CATCH_UP_TIMEOUT);
            }
            // A replica that no longer exists, or whose node is gone, would never catch up.
            if E::now() >= ask_at {
                let behind = |place: &&ReplicaPlace| raft.lag(place.replica) > CAUGHT_UP;
                for place in learning.iter().filter(behind) {
                    self.make(replica, raft, *place).await?;
                }
                ask_at = E::now() + CATCH_UP_ASK;
            }
            if replica.leading().is_none() {
                return Err(self.leads_no_more(replica.group.range));
            }
            if E::now() > until {
                return Err(OrderError::busy("the new replicas do not catch up"));
            }
            raft.stay_awake();
            E::Runtime::sleep(CATCH_UP_POLL_INTERVAL).await;
        }
    }
}

async fn members<E: Env>(raft: &RaftGroup<E>) -> Result<Membership, OrderError> {
    Ok(raft.membership().await?)
}

/// Carries out one step of a change; wakes the group, which may sleep.
async fn step<E: Env>(
    raft: &RaftGroup<E>,
    step: impl Future<Output = Result<(), OrderError>>,
) -> Result<(), OrderError> {
    raft.stay_awake();
    raft.renew_lease().await?;
    let done = E::Runtime::timeout(STEP_TIMEOUT, step).await;
    done.unwrap_or_else(|_| {
        let why = format!("a step of the change took more than {STEP_TIMEOUT:?}");
        Err(OrderError::Unknown(why))
    })
}
