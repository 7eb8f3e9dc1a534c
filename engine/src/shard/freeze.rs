//! What the leaders and replicas of a right range do when it is frozen for a merge ([`super::merge`]), and
//! how a range that stays frozen finds out what has become of the merge.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use openraft::async_runtime::{Oneshot, OneshotSender};

use super::bounds_changes::is_changing;
use super::merge::{END_TIMEOUT, FROZEN_TIMEOUT, POLL_INTERVAL, PREPARE_TIMEOUT, check_members};
use super::{Inner, Running};
use crate::boot_time::BootTime;
use crate::cluster::merge::too_many_parts;
use crate::cluster::{BoundsPhase, ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Fatal, OrderError};
use crate::range::Keyspace;
use crate::range::command::{FreezeOrder, RangeOrder};
use crate::range::data_parts::PARTS_MAX;
use crate::range::replica::Replica;
use crate::tree::Unflushed;
use crate::types::{Epoch, Location, MergeId, RangeId};

/// How long a shard waits for its replica to be frozen before it says no: the keys are not served
/// meanwhile.
const FROZEN_WAIT: Duration = Duration::from_secs(1);
/// How long a shard may take to flush before it says that it does not: a little less than it is waited for, so
/// that the reason arrives.
const PREPARE_WAIT: Duration = PREPARE_TIMEOUT.saturating_sub(ANSWER_TIME);
/// The same for the flush after the freeze, with the wait for the frozen replica.
const FLUSHED_WAIT: Duration = FROZEN_TIMEOUT.saturating_sub(ANSWER_TIME);
/// How long an answer may be on its way.
const ANSWER_TIME: Duration = Duration::from_millis(250);
/// The right range is not frozen while a replica lacks more entries than this.
const LAG_MAX: u64 = 100;
/// How long a range stays frozen before its leader asks what has become of the merge. The question cancels no
/// merge that goes on: its leader refuses it. So this is no longer than a merge usually takes.
const FROZEN_PATIENCE: Duration = Duration::from_secs(1);
/// How often leaders of frozen ranges are looked for.
/// By time: a frozen range whose leader is silent gives no event.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Starts the task that looks after ranges which stay frozen.
pub(super) fn start<E: Env>(inner: &Rc<Inner<E>>) {
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

impl<E: Env> Inner<E> {
    /// Freezes a range that is led here.
    pub(super) async fn freeze_range(
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
        let changes = &self.management.bounds_changes;
        changes.begin(range, BoundsPhase::Freezing);
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            let frozen = inner.freeze(&running, epoch, merge).await;
            drop(sender.send(frozen));
            inner.decided(&running, epoch.version).await;
            inner.management.bounds_changes.end(range);
            running.raft.end_change();
        }));
        self.end_of_change(receiver.await.ok())
    }

    async fn freeze(
        &self,
        running: &Running<E>,
        epoch: Epoch,
        merge: MergeId,
    ) -> Result<(), OrderError> {
        let Running { replica, raft } = running;
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

    /// Checks that the replicas here of two neighbours could be merged, and flushes what they have.
    pub(super) async fn prepare_merge(
        &self,
        left: RangeId,
        right: RangeId,
    ) -> Result<ClusterResponse, Fatal> {
        let refused = |why: String| Ok(ClusterResponse::Refused(OrderError::busy(why)));
        let at = self.location;
        let (mut parts, mut is_durable) = (0, true);
        for range in [left, right] {
            let found = self.of_range(range);
            let found = found.filter(|found| {
                let applied = found.replica.with_state(|state| state.applied);
                applied.is_some() && !found.replica.is_halted()
            });
            let Some(Running { replica, .. }) = found else {
                return refused(format!("shard {at} has no replica of range {range} now"));
            };
            parts += replica.parts().count();
            is_durable &= replica.durable_up_to() >= replica.with_state(|state| state.applied);
        }
        if parts > PARTS_MAX {
            let why = too_many_parts(left, at, parts);
            return Ok(ClusterResponse::Refused(why));
        }
        // There must be room after the freeze, too.
        let limit = match is_durable {
            true if !self.store.disk_full() => return Ok(ClusterResponse::Done),
            _ => PREPARE_WAIT,
        };
        self.flush_for_merge(limit).await
    }

    /// Flushes what the replicas here have; refuses if the disk is full, or is too slow for `limit`.
    async fn flush_for_merge(&self, limit: Duration) -> Result<ClusterResponse, Fatal> {
        let at = self.location;
        Ok(match self.store.flush_within(limit).await? {
            Ok(()) => ClusterResponse::Done,
            Err(Unflushed::DiskFull) => ClusterResponse::Refused(OrderError::Conflict(format!(
                "the disk of shard {at} is full, and a merge begins with a flush there: make room on the \
                 disk, and give the order again"
            ))),
            Err(Unflushed::TimedOut) => ClusterResponse::Refused(OrderError::busy(format!(
                "shard {at} has not flushed its memtable within {} ms: its disk is slow, or has much to do",
                limit.as_millis()
            ))),
        })
    }

    /// Waits a moment until the replica of a range here is frozen for a merge and flushed.
    pub(super) async fn frozen(
        &self,
        range: RangeId,
        merge: MergeId,
    ) -> Result<ClusterResponse, Fatal> {
        let refused = |why: String| Ok(ClusterResponse::Refused(OrderError::busy(why)));
        let begun = E::now();
        let frozen = loop {
            let frozen = self.of_range(range);
            let frozen = frozen.filter(|found| found.replica.is_frozen_for(merge));
            if let Some(frozen) = frozen {
                break frozen.replica;
            }
            if E::now() > begun + FROZEN_WAIT {
                let at = self.location;
                return refused(format!("the replica of range {range} on shard {at} lags"));
            }
            E::Runtime::sleep(POLL_INTERVAL).await;
        };
        let applied = frozen.with_state(|state| state.applied);
        match frozen.durable_up_to() < applied {
            true => {
                let left = FLUSHED_WAIT.saturating_sub(E::now() - begun);
                self.flush_for_merge(left).await
            }
            false => Ok(ClusterResponse::Done),
        }
    }

    /// Lets a range that is led here, and whose merge is cancelled, serve again.
    pub(super) async fn unfreeze(&self, range: RangeId, merge: MergeId) -> ClusterResponse {
        let Some(Running { replica, raft }) = self.led(range) else {
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
        self.ranges.for_each(|Running { replica, .. }| {
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
            if now >= begun + FROZEN_PATIENCE && self.is_cancelled(&replica, merge).await {
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
        let known = self.management.view();
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
