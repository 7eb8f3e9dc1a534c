//! What the leaders and replicas of a right range do when it is frozen for a merge ([`super::merge`]), and
//! how a range that stays frozen finds out what has become of the merge.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::boot_time::BootTime;
use crate::cluster::{BoundsPhase, ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Fatal, OrderError};
use crate::range::Keyspace;
use crate::range::command::{FreezeOrder, RangeOrder};
use crate::range::replica::Replica;
use crate::range::rows::data_parts::PARTS_MAX;
use crate::shard::split_merge::changes::is_changing;
use crate::shard::split_merge::merge::{END_TIMEOUT, POLL_INTERVAL, check_members};
use crate::shard::{RangeHandle, ShardInner};
use crate::types::{Epoch, Location, MergeId, RangeId};

/// How long a shard waits for its replica to be frozen before it says no: the keys are not served
/// meanwhile.
const FROZEN_WAIT: Duration = Duration::from_secs(1);
/// The right range is not frozen while a replica lacks more entries than this.
const LAG_MAX: u64 = 100;
/// How long a range stays frozen before its leader asks what has become of the merge. The question cancels no
/// merge that goes on: its leader refuses it. So this is no longer than a merge usually takes.
const CANCEL_CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// When a merge that waits for a rewrite should be tried again.
const REWRITE_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often leaders of frozen ranges are looked for.
/// By time: a frozen range whose leader is silent gives no event.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Starts the task that looks after ranges which stay frozen.
pub(in crate::shard) fn start<E: Env>(inner: &Rc<ShardInner<E>>) {
    let shard = Rc::downgrade(inner);
    drop(E::Runtime::spawn(async move {
        let mut since = BTreeMap::new();
        loop {
            E::Runtime::sleep(WATCH_INTERVAL).await;
            let Some(inner) = shard.upgrade() else { return };
            if inner.closing.get() {
                return;
            }
            inner.look_after_frozen(&mut since).await;
        }
    }));
}

impl<E: Env> ShardInner<E> {
    /// Freezes a range that is led here.
    pub(in crate::shard) async fn freeze_range(
        self: &Rc<Self>,
        range: RangeId,
        epoch: Epoch,
        merge: MergeId,
    ) -> ClusterResponse {
        let Some(running) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        match running.replica.frozen() {
            Some(before) if before == merge => return ClusterResponse::Done,
            Some(_) => return ClusterResponse::Refused(is_changing(range)),
            None => {}
        }
        let now = (running.replica).with_state(|state| state.descriptor.epoch);
        if now != epoch {
            let why = format!("range {range} has other bounds or members by now");
            return ClusterResponse::Refused(OrderError::busy(why));
        }
        if let Err(error) = running.replica.check(None) {
            return ClusterResponse::Refused(OrderError::busy(error.to_string()));
        }
        if !running.raft.begin_change() {
            return ClusterResponse::Refused(is_changing(range));
        }
        let changes = &self.agent.bounds_changes;
        changes.begin(range, BoundsPhase::Freezing);
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            let frozen = inner.freeze(&running, epoch, merge).await;
            drop(sender.send(frozen));
            inner.decided(&running, epoch.version).await;
            inner.agent.bounds_changes.end(range);
            running.raft.end_change();
        }));
        self.end_of_change(receiver.await.ok())
    }

    async fn freeze(
        &self,
        running: &RangeHandle<E>,
        epoch: Epoch,
        merge: MergeId,
    ) -> Result<(), OrderError> {
        let RangeHandle { replica, raft } = running;
        let range = replica.group.range;
        check_members(running).await?;
        let lags = replica.with_state(|state| {
            let mut others = state.descriptor.replicas.iter();
            others.any(|place| {
                place.replica != replica.group.replica && raft.lag(place.replica) > LAG_MAX
            })
        });
        if lags {
            let why = format!("a replica of range {range} lags");
            return Err(OrderError::busy(why));
        }
        // From here to the push there is no await. Nothing is served before the order is queued, so what
        // it says was served is final.
        let start = replica.with_state(|state| state.descriptor.keys.start.clone());
        replica.close_from(&start);
        raft.stay_awake();
        let order = RangeOrder::Freeze(FreezeOrder {
            merge,
            conf: epoch.conf,
            served: 0,
        });
        let frozen = self.propose_order(replica, epoch.version, order).await;
        if frozen
            .as_ref()
            .is_err_and(|why| !matches!(why, OrderError::Unknown(_)))
        {
            replica.open_again();
        }
        frozen
    }

    /// Checks that the replicas here of two neighbours could be merged.
    pub(in crate::shard) fn prepare_merge(
        self: &Rc<Self>,
        left: RangeId,
        right: RangeId,
    ) -> ClusterResponse {
        let at = self.location;
        let mut both = Vec::new();
        for range in [left, right] {
            let found = self.of_range(range);
            let found = found.filter(|found| {
                let applied = found.replica.with_state(|state| state.applied);
                applied.is_some() && !found.replica.is_halted()
            });
            let Some(RangeHandle { replica, .. }) = found else {
                let why = format!("shard {at} has no replica of range {range} now");
                return ClusterResponse::Refused(OrderError::busy(why));
            };
            both.push(replica);
        }
        let parts: usize = both.iter().map(|replica| replica.parts_count()).sum();
        let most = both.into_iter().max_by_key(|replica| replica.parts_count());
        match most.filter(|_| parts > PARTS_MAX) {
            Some(most) => ClusterResponse::Refused(self.rewrite_for_merge(most, parts)),
            None => ClusterResponse::Done,
        }
    }

    /// Has the rows of a replica written anew as one part: with its neighbour's there are too many to be merged.
    fn rewrite_for_merge(self: &Rc<Self>, replica: Rc<Replica<E>>, parts: usize) -> OrderError {
        let (range, at) = (replica.group.range, self.location);
        let what = format!(
            "with its neighbour's the rows of range {range} on shard {at} would lie in {parts} parts, and may lie \
             in {PARTS_MAX}"
        );
        if self.store.disk_full() {
            return OrderError::Conflict(format!(
                "{what}; they cannot be written anew as one part while the disk is full: make room on it, and \
                 give the order again"
            ));
        }
        self.rewrite(replica);
        let why = format!(
            "{what}: they are being written anew as one part; if that takes long, give the order again later"
        );
        OrderError::busy_for(why, REWRITE_POLL_INTERVAL)
    }

    /// Waits a moment until the replica of a range here is frozen for a merge, and its log says so durably.
    pub(in crate::shard) async fn frozen(
        &self,
        range: RangeId,
        merge: MergeId,
    ) -> Result<ClusterResponse, Fatal> {
        let begun = E::now();
        let RangeHandle { replica, raft } = loop {
            let frozen = self.of_range(range);
            let frozen = frozen.filter(|found| found.replica.is_frozen_for(merge));
            if let Some(frozen) = frozen {
                break frozen;
            }
            if E::now() > begun + FROZEN_WAIT {
                let at = self.location;
                let why = format!("the replica of range {range} on shard {at} lags");
                return Ok(ClusterResponse::Refused(OrderError::busy(why)));
            }
            E::Runtime::sleep(POLL_INTERVAL).await;
        };
        if let Some(applied) = replica.with_state(|state| state.applied) {
            raft.commit_durably(applied).await?;
        }
        Ok(ClusterResponse::Done)
    }

    /// Lets a range that is led here, and whose merge is cancelled, serve again.
    pub(in crate::shard) async fn unfreeze(
        &self,
        range: RangeId,
        merge: MergeId,
    ) -> ClusterResponse {
        let Some(RangeHandle { replica, raft }) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        if replica.frozen() != Some(merge) {
            return ClusterResponse::Done;
        }
        raft.stay_awake();
        let version = replica.with_state(|state| state.descriptor.epoch.version);
        let order = RangeOrder::Unfreeze { merge };
        match self.propose_order(&replica, version, order).await {
            Ok(()) => ClusterResponse::Done,
            Err(why) => ClusterResponse::Refused(why),
        }
    }

    /// Asks what has become of the merges for which ranges that are led here have been frozen for long.
    async fn look_after_frozen(
        self: &Rc<Self>,
        since: &mut BTreeMap<RangeId, (MergeId, BootTime)>,
    ) {
        let now = E::now();
        let mut frozen = Vec::new();
        self.ranges.for_each(|RangeHandle { replica, .. }| {
            if let Some(merge) = replica.frozen().filter(|_| replica.leading().is_some()) {
                frozen.push((replica.clone(), merge));
            }
        });
        since.retain(|range, (merge, _)| {
            let is_it = |(replica, now): &(Rc<Replica<E>>, MergeId)| {
                replica.group.range == *range && now == merge
            };
            frozen.iter().any(is_it)
        });
        for (replica, merge) in frozen {
            let (_, begun) = *since.entry(replica.group.range).or_insert((merge, now));
            if now >= begun + CANCEL_CHECK_TIMEOUT && self.is_cancelled(&replica, merge).await {
                self.unfreeze(replica.group.range, merge).await;
            }
        }
    }

    /// Whether a merge for which a range is frozen is cancelled, and stays so.
    async fn is_cancelled(self: &Rc<Self>, replica: &Replica<E>, merge: MergeId) -> bool {
        let (border, places) = replica.with_state(|state| {
            let descriptor = &state.descriptor;
            let places: Vec<Location> = descriptor.locations().collect();
            (descriptor.keys.start.clone(), places)
        });
        let known = self.agent.view();
        let left = known.ranges.iter();
        let left = left.filter(|range| range.descriptor.range == merge.left);
        let mut places: Vec<Location> = left
            .filter_map(|range| range.leader)
            .chain(places)
            .collect();
        places.dedup();
        for at in places {
            let border = border.clone();
            let question = ClusterRequest::CancelMerge { merge, border };
            let answer = self.ask(at, &question, END_TIMEOUT).await;
            if let Some(ClusterResponse::MergeEnded { merged }) = answer {
                return !merged;
            }
        }
        // The left range may have become a part of another one. That one ends at the border still if the
        // merge has not taken place, and then it never will.
        let mut all = known.ranges.iter().map(|range| &range.descriptor);
        all.any(|range| {
            range.range != merge.left
                && range.keyspace == Keyspace::User
                && range.keys.end.as_ref() == Some(&border)
                && range.epoch.version > merge.version
        })
    }
}
