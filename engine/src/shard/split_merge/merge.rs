//! Merges of ranges with their right neighbours, as carried out by the leaders of the left ranges.
//! [`super::freeze`] has the part of the right ranges.
//!
//! The protocol, step by step. The replicas of both ranges are on the same shards.
//!
//! 1. The manager asks the leader of the left range. That leader sets the flag that allows one change of a
//!    range at a time (`begin_change`), and asks every shard whether it has both replicas and can merge
//!    them. Then it asks the leader of the right range to freeze that range.
//! 2. The right leader sets its own flag, stops serving the keys, and proposes the freeze. Once the freeze
//!    is applied, no replica of the range applies a write, not even under a later leader.
//! 3. The left leader asks every shard whether its replica of the right range is frozen for this merge. A
//!    shard answers yes when its log has, durably, the freeze and the fact that it is committed. All must
//!    answer: a replica that is missing could not be taken over. Nothing is flushed, so tables that are
//!    slow, or whose disk is full, hold up no merge.
//! 4. The left leader proposes the merge. Each replica of the left range, when it applies the merge, takes
//!    over the right one on its shard (`range/replica/take_over.rs`), and the left leader serves the keys.
//!
//! The merge entry may still be committed although its proposal seemed lost. So, if a step fails, the left
//! log first cancels the merge; only then may the right range thaw. A right leader that hears nothing for a
//! while asks the left one; it never decides alone. No order removes a frozen replica while the left
//! replica on its shard may still take it over.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::cluster::{BoundsPhase, ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fatal, Fate, OrderError};
use crate::mutant::{self, Mutant};
use crate::range::command::{MergeOrder, RangeOrder};
use crate::range::proposer::sink::Once;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::range::split_merge::absorbed_replicas::Absorbed;
use crate::range::{Descriptor, Keyspace};
use crate::shard::split_merge::changes::is_changing;
use crate::shard::{RangeHandle, ShardInner, gc};
use crate::types::{Epoch, Location, MergeId, RangeId};

/// How long the right leader may take to freeze its range, whose keys are not served from then on.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit of the question whether the replicas of a shard can be merged.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit of the question whether a replica is frozen, durably.
const FROZEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a replica is looked at.
/// By time: the states that are waited for have many causes (an entry is applied, the lead is lost,
/// the replica is removed), and merges are rare.
pub(in crate::shard) const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Time limit of a request that ends a merge.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(2);

impl<E: Env> ShardInner<E> {
    /// Which change of a range's bounds is under way, as far as its leader here knows.
    pub(in crate::shard) fn phase(&self, replica: &Replica<E>) -> BoundsPhase {
        let range = replica.group.range;
        let under_way = || self.agent.bounds_changes.phase(range);
        match replica.frozen() {
            Some(_) => BoundsPhase::Frozen,
            None if replica.is_splitting() => under_way().unwrap_or(BoundsPhase::Splitting),
            None => under_way().unwrap_or_default(),
        }
    }

    /// Merges a range that is led here with its right neighbour; gives the end of it.
    pub(in crate::shard) async fn merge_range(
        self: &Rc<Self>,
        range: RangeId,
        version: u32,
        right: (RangeId, u32),
    ) -> ClusterResponse {
        let Some(running) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        if let Err(why) = self.check_neighbours(&running.replica, version, right) {
            return ClusterResponse::Refused(why);
        }
        if !running.raft.begin_change() {
            return ClusterResponse::Refused(is_changing(range));
        }
        let changes = &self.agent.bounds_changes;
        changes.begin(range, BoundsPhase::Merging);
        // A task of its own: the one that asks may give up, and the merge goes on all the same.
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            let merged = inner.merge(&running, version, right).await;
            let changes = &inner.agent.bounds_changes;
            match &merged {
                Ok(not_served) => {
                    changes.merge_done(*not_served);
                    let right = right.0;
                    tracing::info!(
                        event = "range_merged",
                        "range {range} has taken over range {right}, its right neighbour"
                    );
                }
                Err(why) => {
                    changes.merge_failed();
                    let told = &inner.agent.failed_merges;
                    if told.is_news(range, &why.to_string(), E::now()) {
                        tracing::warn!(%range, right = %right.0, %why, "the ranges were not merged");
                    }
                }
            }
            drop(sender.send(merged.map(drop)));
            inner.report_soon();
            // An entry whose end is not known must be decided before the members may change.
            inner.decided(&running, version).await;
            inner.agent.bounds_changes.end(range);
            running.raft.end_change();
        }));
        self.end_of_change(receiver.await.ok())
    }

    /// Carries out the steps of a merge; gives how long the keys of the right range were not served, at most.
    async fn merge(
        self: &Rc<Self>,
        running: &RangeHandle<E>,
        version: u32,
        (right, right_version): (RangeId, u32),
    ) -> Result<Duration, OrderError> {
        let RangeHandle { replica, raft } = running;
        let range = replica.group.range;
        check_members(running).await?;
        self.check_neighbours(replica, version, (right, right_version))?;
        let merge = MergeId {
            left: range,
            version,
        };
        let prepare = ClusterRequest::PrepareMerge { left: range, right };
        self.ask_all(replica, &prepare, PREPARE_TIMEOUT).await?;
        let served_until = E::now();
        if let Err(why) = self.freeze_neighbour(right, right_version, merge).await {
            // The right range may be frozen all the same, or become so.
            if matches!(why, OrderError::Unknown(_)) {
                self.cancel(running, merge, right).await;
            }
            return Err(why);
        }
        let question = ClusterRequest::Frozen {
            range: right,
            merge,
        };
        let merged = match self.ask_all(replica, &question, FROZEN_TIMEOUT).await {
            Ok(()) => self.propose_merge(running, right, merge).await,
            Err(why) => Err(why),
        };
        match merged {
            Ok(()) => {
                let not_served = E::now() - served_until;
                // The followers apply it at once, not with the next heartbeat.
                raft.wake().await.ok();
                Ok(not_served)
            }
            Err(why) if self.cancel(running, merge, right).await => Err(why),
            Err(_) => match self.has_merged(replica, right) {
                true => Ok(E::now() - served_until),
                false => Err(OrderError::Unknown(format!(
                    "whether range {range} takes over range {right} is not known yet"
                ))),
            },
        }
    }

    /// Checks that a range and its right neighbour can be merged, as far as this shard knows both.
    fn check_neighbours(
        &self,
        replica: &Replica<E>,
        version: u32,
        (right, right_version): (RangeId, u32),
    ) -> Result<(), OrderError> {
        let range = replica.group.range;
        let not_led = |error: Error| OrderError::busy(error.to_string());
        replica.check(None).map_err(not_led)?;
        let Some(neighbour) = self.of_range(right) else {
            let why = format!(
                "shard {} has no replica of range {right}: ranges can be merged when their replicas are \
                 on the same shards",
                self.location
            );
            return Err(OrderError::busy(why));
        };
        let left = replica.with_state(|state| state.descriptor.clone());
        let (right_one, frozen) = neighbour
            .replica
            .with_state(|state| (state.descriptor.clone(), state.frozen));
        if left.epoch.version != version || right_one.epoch.version != right_version {
            let why = format!("range {range} or {right} has other bounds by now");
            return Err(OrderError::busy(why));
        }
        if left.keyspace != Keyspace::User || left.keys.end.as_ref() != Some(&right_one.keys.start)
        {
            let why = format!("range {right} is not the right neighbour of range {range}");
            return Err(OrderError::Conflict(why));
        }
        if !are_together(&left, &right_one) {
            let why =
                format!("the replicas of ranges {range} and {right} are not on the same shards");
            return Err(OrderError::busy(why));
        }
        match frozen {
            Some(merge) if merge.left != range => Err(is_changing(right)),
            _ => Ok(()),
        }
    }

    /// Has the right neighbour frozen.
    async fn freeze_neighbour(
        self: &Rc<Self>,
        right: RangeId,
        version: u32,
        merge: MergeId,
    ) -> Result<(), OrderError> {
        let (leader, conf) = self.leader_beside(right)?;
        let epoch = Epoch { version, conf };
        let freeze = ClusterRequest::Freeze {
            range: right,
            epoch,
            merge,
        };
        match self.ask(leader, &freeze, FREEZE_TIMEOUT).await {
            Some(ClusterResponse::Done) => Ok(()),
            Some(ClusterResponse::Refused(why)) => Err(why),
            _ => {
                let why = format!("shard {leader}, which leads range {right}, does not answer");
                Err(OrderError::Unknown(why))
            }
        }
    }

    /// The leader of a range that has a replica here, and which members it has.
    fn leader_beside(&self, range: RangeId) -> Result<(Location, u32), OrderError> {
        let no_leader = || OrderError::busy(format!("range {range} has no leader now"));
        let beside = self.of_range(range).ok_or_else(no_leader)?.replica;
        let leader = beside.leadership.leader().ok_or_else(no_leader)?;
        let found = beside.with_state(|state| {
            let conf = state.descriptor.epoch.conf;
            state.descriptor.location(leader).map(|at| (at, conf))
        });
        found.ok_or_else(no_leader)
    }

    /// Asks every shard that has a replica of a range; all must say that it is so.
    async fn ask_all(
        self: &Rc<Self>,
        replica: &Replica<E>,
        question: &ClusterRequest,
        timeout: Duration,
    ) -> Result<(), OrderError> {
        let places: Vec<Location> =
            replica.with_state(|state| state.descriptor.locations().collect());
        let asked = places.into_iter().map(|at| async move {
            match self.ask(at, question, timeout).await {
                Some(ClusterResponse::Done) => Ok(()),
                Some(ClusterResponse::Refused(why)) => Err(why),
                _ => Err(OrderError::busy(format!("shard {at} does not answer"))),
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Proposes the merge, and waits for the end of it.
    async fn propose_merge(
        &self,
        RangeHandle { replica, raft }: &RangeHandle<E>,
        right: RangeId,
        merge: MergeId,
    ) -> Result<(), OrderError> {
        let gone = || OrderError::busy(format!("shard {} has no range {right}", self.location));
        let beside = self.of_range(right).ok_or_else(gone)?.replica;
        let conf = replica.with_state(|state| state.descriptor.epoch.conf);
        let mut order = beside.with_state(|state| MergeOrder {
            merge,
            conf,
            right,
            right_version: state.descriptor.epoch.version,
            border: state.descriptor.keys.start.clone(),
            end: state.descriptor.keys.end.clone(),
            last_ts: state.last_ts,
            ceiling: state.ceiling,
            gc_threshold: state.gc_threshold,
        });
        if mutant::is(Mutant::FloorForgottenAtMerge) {
            (order.last_ts, order.ceiling) = Default::default();
        }
        replica.timestamps.observe(order.last_ts);
        raft.stay_awake();
        self.propose_order(replica, merge.version, RangeOrder::Merge(order))
            .await
    }

    /// The answer to the caller that ordered a change of bounds; `None`: the shard stops.
    pub(super) fn end_of_change(&self, end: Option<Result<(), OrderError>>) -> ClusterResponse {
        match end {
            Some(Ok(())) => ClusterResponse::Done,
            Some(Err(why)) => ClusterResponse::Refused(why),
            None => {
                let why = format!("shard {} stops", self.location);
                ClusterResponse::Refused(OrderError::Unknown(why))
            }
        }
    }

    /// Proposes an order that changes bounds, or prepares that, and waits until it is applied.
    pub(super) async fn propose_order(
        &self,
        replica: &Replica<E>,
        version: u32,
        order: RangeOrder,
    ) -> Result<(), OrderError> {
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let sink = Rc::new(Once::new(|result| drop(sender.send(result))));
        let kind = ProposalKind::Order(order);
        replica
            .proposer
            .push(Proposal::new(kind, version, None, (sink, 0)));
        let range = replica.group.range;
        match receiver.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(Error::Moved(_))) => Err(OrderError::busy(format!(
                "range {range} has changed meanwhile"
            ))),
            Ok(Err(error)) if error.fate() == Fate::NotApplied => {
                Err(OrderError::busy(error.to_string()))
            }
            Ok(Err(error)) => Err(OrderError::Unknown(error.to_string())),
            Err(_) => Err(OrderError::Unknown("the shard stops".to_owned())),
        }
    }

    /// Cancels a merge, and then has the right range thaw. `false` if it is not known whether it is
    /// cancelled, or if it has taken place.
    async fn cancel(
        self: &Rc<Self>,
        running: &RangeHandle<E>,
        merge: MergeId,
        right: RangeId,
    ) -> bool {
        let thaw = ClusterRequest::Unfreeze {
            range: right,
            merge,
        };
        if mutant::is(Mutant::ThawBeforeCancel)
            && let Ok((leader, _)) = self.leader_beside(right)
        {
            self.ask(leader, &thaw, END_TIMEOUT).await;
        }
        let order = RangeOrder::CancelMerge { merge };
        let replica = &running.replica;
        let cancelled = self.propose_order(replica, merge.version, order).await;
        let is_cancelled = match cancelled {
            Ok(()) => true,
            // Its version has been raised: by the merge itself, or by something else.
            Err(_) => {
                let version = replica.with_state(|state| state.descriptor.epoch.version);
                version > merge.version && !self.has_merged(replica, right)
            }
        };
        if is_cancelled && let Ok((leader, _)) = self.leader_beside(right) {
            // If the right leader is not reached, it asks later.
            self.ask(leader, &thaw, END_TIMEOUT).await;
        }
        is_cancelled
    }

    /// Whether a range has taken over a neighbour that had a replica here.
    fn has_merged(&self, replica: &Replica<E>, right: RangeId) -> bool {
        let beside = self.of_range(right);
        let border = beside.map(|beside| {
            beside
                .replica
                .with_state(|state| state.descriptor.keys.start.clone())
        });
        border.is_none_or(|border| {
            replica.with_state(|state| state.descriptor.keys.contains(&border))
        })
    }

    /// Waits until what was proposed under a version is decided: the version is another one, or this
    /// replica leads no more.
    pub(in crate::shard) async fn decided(
        &self,
        RangeHandle { replica, raft }: &RangeHandle<E>,
        version: u32,
    ) {
        let led = replica.leading();
        let is_pending = || {
            let now = replica.with_state(|state| state.descriptor.epoch.version);
            now == version && led.is_some() && replica.leading() == led && !raft.is_retired()
        };
        while is_pending() && !replica.proposer.is_idle() && !self.closing.get() {
            E::Runtime::sleep(POLL_INTERVAL).await;
        }
    }

    /// Cancels a merge whose left range is led here, or tells how it has ended.
    pub(in crate::shard) async fn cancel_merge(
        self: &Rc<Self>,
        merge: MergeId,
        border: &[u8],
    ) -> ClusterResponse {
        let Some(running) = self.led(merge.left) else {
            return ClusterResponse::Refused(self.leads_no_more(merge.left));
        };
        let replica = &running.replica;
        let (version, has_border) = replica.with_state(|state| {
            let descriptor = &state.descriptor;
            let has_border = descriptor.keys.contains(border);
            (descriptor.epoch.version, has_border)
        });
        if version > merge.version {
            let merged = has_border;
            return ClusterResponse::MergeEnded { merged };
        }
        if version < merge.version || !running.raft.begin_change() {
            return ClusterResponse::Refused(is_changing(merge.left));
        }
        let order = RangeOrder::CancelMerge { merge };
        let cancelled = self.propose_order(replica, version, order).await;
        self.decided(&running, version).await;
        running.raft.end_change();
        match cancelled {
            Ok(()) => ClusterResponse::MergeEnded { merged: false },
            Err(why) => ClusterResponse::Refused(why),
        }
    }

    /// Whether an order may remove a replica: it is not frozen, or no replica on this shard can take it
    /// over any more.
    pub(in crate::shard) fn may_remove(&self, replica: &Replica<E>) -> bool {
        let Some(merge) = replica.frozen() else {
            return true;
        };
        let passed = self.of_range(merge.left).is_none_or(|left| {
            let version = (left.replica).with_state(|state| state.descriptor.epoch.version);
            version > merge.version
        });
        passed || mutant::is(Mutant::FrozenReplicaRemoved)
    }

    /// Takes replicas that were taken over out of the list of ranges, in the turn in which that happened.
    pub(in crate::shard) fn take_out_absorbed(&self) {
        let absorbed = self.home.absorption.absorbed();
        let absorbed = absorbed.iter().map(|absorbed| absorbed.replica.group);
        let running: Vec<RangeHandle<E>> =
            absorbed.filter_map(|group| self.running(group)).collect();
        for running in running {
            self.ranges.remove(running.replica.group);
            running.raft.retire();
            drop(E::Runtime::spawn(async move {
                let RangeHandle { replica, raft } = running;
                replica.proposer.close();
                raft.stop().await;
                replica.proposer.abandon();
            }));
        }
    }

    /// Removes the replicas that did not find the one that they had to take over.
    async fn remove_incomplete(&self) -> Result<(), Fatal> {
        for replica in self.home.absorption.take_incomplete() {
            let group = replica.group;
            match self.running(group) {
                Some(_) => drop(self.remove_replica(group.range, group.replica).await?),
                None => self.wal.remove_replica(group).await?,
            }
        }
        Ok(())
    }

    /// Removes the replicas that were taken over from the log, as soon as a flush covers the replica that
    /// took them over.
    pub(in crate::shard) async fn bury_absorbed(&self) -> Result<(), Fatal> {
        self.remove_incomplete().await?;
        let due: Vec<Rc<Replica<E>>> = {
            let absorbed = self.home.absorption.absorbed();
            // Oldest merge first. If range A took over B and was then taken over itself, A's replica must stay in
            // the log until B's is gone: without A, a start could not know that B was taken over.
            let due = absorbed.iter().filter(|absorbed| self.is_covered(absorbed));
            due.map(|absorbed| absorbed.replica.clone()).collect()
        };
        for replica in due {
            self.wal.remove_replica(replica.group).await?;
            self.home.absorption.forget(&replica);
            self.store.set_gc(gc::rules(self));
        }
        Ok(())
    }

    fn is_covered(&self, absorbed: &Absorbed<Replica<E>>) -> bool {
        // A start makes its newborn children from its log.
        if self.home.newborns.has_unflushed(absorbed.replica.group) {
            return false;
        }
        let Some(at) = absorbed.at else { return true };
        // The replica that took it over may itself have been taken over since.
        let left = self.of_range(absorbed.by).map(|left| left.replica);
        let left = left.or_else(|| self.home.absorption.absorbed_of(absorbed.by));
        // Without a replica of that range here, nothing needs this one.
        left.is_none_or(|left| left.durable_up_to() >= Some(at))
    }
}

/// Whether two ranges have their replicas on the same shards.
fn are_together(one: &Descriptor, other: &Descriptor) -> bool {
    let places = |of: &Descriptor| {
        let mut places: Vec<Location> = of.locations().collect();
        places.sort_unstable();
        places
    };
    places(one) == places(other)
}

/// Refuses a range with members that do not vote.
pub(super) async fn check_members<E: Env>(
    RangeHandle { replica, raft }: &RangeHandle<E>,
) -> Result<(), OrderError> {
    let members = raft.membership().await?;
    if members.is_joint || members.places.len() != members.voters.len() {
        let range = replica.group.range;
        let why = format!("range {range} has members that do not vote yet");
        return Err(OrderError::busy(why));
    }
    Ok(())
}
