//! Splits of the ranges that this shard leads: the order, and the start of the new replicas.
//!
//! The protocol, step by step:
//!
//! 1. The manager gives the ids of the child and of its replicas, and asks the leader.
//! 2. The leader sets the flag that allows one change of a range at a time (`begin_change`), so no change
//!    of members runs beside the split. It closes the keys of the child and queues the split
//!    (`engine/src/range/split_merge/pending_split.rs`).
//! 3. The split is one entry of the log, alone. Each replica makes the birth durable before it applies
//!    the entry, and then, in one turn, shrinks and gives birth ([`crate::range::split_merge::split`]).
//! 4. The leader tells its followers that the entry is committed as soon as it begins to apply it;
//!    otherwise they would learn it with the next heartbeat, and the child would have no majority until
//!    then.
//! 5. The newborn beside the leader campaigns at once, and again soon: its followers may not be born
//!    yet. A newborn has promised nothing, so it grants the first pre-vote that comes.
//!
//! A replica that lags gives birth when it comes to the entry. One that installs a snapshot from after the
//! split never does: the cluster's manager notices that the child's replica is missing, and replaces it.

use std::rc::Rc;
use std::time::Duration;

use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::boot_time::BootTime;
use crate::cluster::ClusterResponse;
use crate::env::{AsyncRuntime, Env};
use crate::error::{Fatal, OrderError};
use crate::raft::{Role, StartMode};
use crate::range::command::{RangeOrder, SplitOrder};
use crate::range::replica::Replica;
use crate::range::split_merge::newborns::{Hooks, Newborn};
use crate::range::{Keyspace, RaftGroup};
use crate::shard::split_merge::changes::is_changing;
use crate::shard::{RangeHandle, ShardInner, SplitReason, gc};
use crate::types::{RangeId, ReplicaId};

/// How long a split waits for replicas that lag. One that needs a snapshot before the split needs two
/// after it.
const LAGGING_TIMEOUT: Duration = Duration::from_secs(10);
/// How often their progress is checked.
/// By time, as for new voters: each answer of a replica would be an event.
const LAGGING_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A replica that lacks more entries than this lags.
const LAG_MAX: u64 = 100;
/// How long a child is waited for to lead, for the figure of how long its keys were not served.
const CHILD_LEADS_TIMEOUT: Duration = Duration::from_secs(5);
/// After each of these the newborn beside the leader campaigns again, until it leads.
const CAMPAIGNS_AFTER_MS: [u64; 7] = [1, 2, 5, 10, 20, 50, 100];

/// Has the shard called when bounds change, and starts the task that starts the groups of newborn
/// replicas.
pub(in crate::shard) fn start<E: Env>(inner: &Rc<ShardInner<E>>) {
    let shard = Rc::downgrade(inner);
    let newborns = inner.home.newborns.clone();
    let (told, changed) = (shard.clone(), shard.clone());
    newborns.call(Hooks {
        committed: Some(Box::new(move |parent| {
            let running = told.upgrade().and_then(|inner| inner.running(parent));
            if let Some(running) = running.filter(|running| running.replica.leading().is_some()) {
                // A group that has stopped tells nobody.
                drop(E::Runtime::spawn(
                    async move { drop(running.raft.wake().await) },
                ));
            }
        })),
        bounds_changed: Some(Box::new(move || {
            let Some(inner) = changed.upgrade() else {
                return;
            };
            inner.take_out_absorbed();
            inner.store.set_gc(gc::rules(&inner));
            inner.ranges.version().add(1);
        })),
    });
    // What changed while the shard was opened.
    inner.take_out_absorbed();
    drop(E::Runtime::spawn(async move {
        while newborns.born().await {
            let Some(inner) = shard.upgrade() else { return };
            if inner.closing.get() {
                return;
            }
            if let Err(fatal) = inner.raise_newborns().await {
                inner.store.fail(fatal);
                return;
            }
        }
    }));
}

impl<E: Env> ShardInner<E> {
    /// Splits a range that is led here; gives the end of it.
    pub(in crate::shard) async fn split_range(
        self: &Rc<Self>,
        range: RangeId,
        version: u32,
        key: Vec<u8>,
        (child, replicas): (RangeId, Vec<(ReplicaId, ReplicaId)>),
        reason: SplitReason,
    ) -> ClusterResponse {
        let Some(running) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        if let Err(why) = check(&running, version, &key) {
            return ClusterResponse::Refused(why);
        }
        if !running.raft.begin_change() {
            return ClusterResponse::Refused(is_changing(range));
        }
        let order = SplitOrder {
            key,
            child,
            replicas,
            served: 0,
        };
        // A task of its own: the one that asks may give up, and the split goes on all the same.
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            let split = inner.split(&running, version, (order, reason)).await;
            running.raft.end_change();
            // Requests for the closed keys wait for news.
            inner.ranges.version().add(1);
            if let Err(why) = &split {
                tracing::warn!(%range, %why, "the range was not split");
            }
            inner.report_soon();
            let closed_at = split.as_ref().ok().copied();
            drop(sender.send(split.map(drop)));
            if let Some(closed_at) = closed_at {
                inner.child_led(child).await;
                let changes = &inner.agent.bounds_changes;
                changes.split_done(reason, E::now() - closed_at);
            }
        }));
        self.end_of_change(receiver.await.ok())
    }

    /// The keys that cut a range into parts of about the same size.
    pub(in crate::shard) fn split_keys(
        &self,
        range: RangeId,
        version: u32,
        parts: u16,
    ) -> ClusterResponse {
        let Some(running) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        let replica = running.replica;
        let descriptor = replica.with_state(|state| state.descriptor.clone());
        if descriptor.epoch.version != version {
            let why = format!("range {range} has other bounds by now");
            return ClusterResponse::Refused(OrderError::busy(why));
        }
        let keys = self
            .store
            .split_keys(&replica.intervals(), usize::from(parts));
        ClusterResponse::SplitKeys(keys)
    }

    /// Splits a range; gives when its leader closed the keys of the child.
    async fn split(
        self: &Rc<Self>,
        running: &RangeHandle<E>,
        version: u32,
        (order, reason): (SplitOrder, SplitReason),
    ) -> Result<BootTime, OrderError> {
        let RangeHandle { replica, raft } = running;
        let range = replica.group.range;
        self.wait_for_lagging(running, reason).await?;
        let members = raft.membership().await?;
        if members.is_joint {
            let why = format!("a joint change of the members of range {range} is half done");
            return Err(OrderError::busy(why));
        }
        // From here to the push there is no await: what was checked holds.
        check(running, version, &order.key)?;
        let closed_at = E::now();
        replica.close_from(&order.key);
        raft.stay_awake();
        let order = RangeOrder::Split(order);
        match self.propose_order(replica, version, order).await {
            Ok(()) => Ok(closed_at),
            Err(why) => {
                if !matches!(why, OrderError::Unknown(_)) {
                    replica.open_again();
                }
                Err(why)
            }
        }
    }

    /// Waits until a child that was born here leads, but not for ever: another replica may.
    async fn child_led(self: &Rc<Self>, child: RangeId) {
        let until = E::now() + CHILD_LEADS_TIMEOUT;
        let led = async {
            let born = || self.of_range(child).is_some();
            let version = self.ranges.version();
            while !born() {
                let known = version.get();
                version.until(|now| now != known || born()).await;
            }
            if let Some(running) = self.of_range(child) {
                running.replica.led().await;
            }
        };
        let _ = E::Runtime::timeout_at(until.into(), led).await;
        self.report_soon();
    }

    /// Waits for replicas that lag, but not for ever: one may be gone for good. Then a split that a person
    /// has ordered is made all the same; another one can wait.
    async fn wait_for_lagging(
        &self,
        running: &RangeHandle<E>,
        reason: SplitReason,
    ) -> Result<(), OrderError> {
        let RangeHandle { replica, raft } = running;
        let until = E::now() + LAGGING_TIMEOUT;
        let me = replica.group.replica;
        loop {
            let now = E::now();
            let lags = replica.with_state(|state| {
                let mut others = state.descriptor.replicas.iter();
                others.any(|place| {
                    place.replica != me
                        && self.liveness.is_there(place.location, now)
                        && raft.lag(place.replica) > LAG_MAX
                })
            });
            if !lags || now > until && reason == SplitReason::Manual {
                return Ok(());
            }
            if now > until {
                let range = replica.group.range;
                let why = format!("a replica of range {range} lacks more than {LAG_MAX} entries");
                return Err(OrderError::busy(why));
            }
            if replica.leading().is_none() {
                return Err(self.leads_no_more(replica.group.range));
            }
            raft.stay_awake();
            E::Runtime::sleep(LAGGING_POLL_INTERVAL).await;
        }
    }

    /// Starts the groups of all newborn replicas. A group that starts after a restart may give birth to
    /// more.
    ///
    /// # Errors
    /// A group cannot be started.
    pub(in crate::shard) async fn raise_newborns(&self) -> Result<(), Fatal> {
        while let Some(newborn) = self.home.newborns.first() {
            if self.closing.get() {
                // The next start makes them from the log.
                return Ok(());
            }
            self.raise(newborn).await?;
        }
        Ok(())
    }

    /// Starts the group of the newborn replica of a range, if there is one.
    ///
    /// # Errors
    /// See [`ShardInner::raise_newborns`].
    pub(in crate::shard) async fn raise_newborn_of(&self, range: RangeId) -> Result<(), Fatal> {
        let newborns = &self.home.newborns;
        match newborns.of_range(range, |replica| replica.group.range) {
            Some(newborn) => self.raise(newborn).await,
            None => Ok(()),
        }
    }

    async fn raise(&self, newborn: Newborn<E, Replica<E>>) -> Result<(), Fatal> {
        let range = newborn.replica.group.range;
        self.ranges.begin_creating_alone(range).await;
        // While the shard is opened, a task that takes over the range may have raised it meanwhile.
        let raised = match self.home.newborns.has(&newborn.replica) {
            true => self.start_newborn(newborn).await,
            false => Ok(()),
        };
        self.ranges.end_creating(range);
        raised
    }

    async fn start_newborn(&self, newborn: Newborn<E, Replica<E>>) -> Result<(), Fatal> {
        let Newborn {
            replica, log, made, ..
        } = newborn;
        let range = replica.group.range;
        let leads = made == StartMode::Now { leads: true };
        let running = self.start_group(replica.clone(), log, made).await?;
        let raft = running.raft.clone();
        // In one turn: the list of ranges takes over from the list of newborns.
        self.home.newborns.remove(&replica);
        self.take_in(running).await?;
        self.ranges.version().add(1);
        if leads {
            drop(E::Runtime::spawn(async move {
                if let Err(error) = campaign(&raft).await {
                    tracing::debug!(%range, %error, "a newborn replica has stopped");
                }
            }));
        }
        Ok(())
    }
}

/// Campaigns until this replica leads or hears of a leader, a few times.
async fn campaign<E: Env>(raft: &RaftGroup<E>) -> Result<(), Fatal> {
    for after in CAMPAIGNS_AFTER_MS {
        <E::Runtime as AsyncRuntime>::sleep(Duration::from_millis(after)).await;
        let is_over = raft.is_retired() || raft.role() != Role::Voter;
        // One that votes alone leads as soon as its vote is durable: to campaign again would begin that anew.
        if is_over || raft.is_alone() || raft.has_heard(E::now()) {
            return Ok(());
        }
        raft.campaign().await?;
    }
    Ok(())
}

/// Checks what the leader knows of a split that was ordered.
fn check<E: Env>(running: &RangeHandle<E>, version: u32, key: &[u8]) -> Result<(), OrderError> {
    let RangeHandle { replica, .. } = running;
    let range = replica.group.range;
    replica
        .check(None)
        .map_err(|error| OrderError::busy(error.to_string()))?;
    if replica.keyspace() != Keyspace::User {
        let why = format!("range {range} is the system's, and is never split");
        return Err(OrderError::Invalid(why));
    }
    let (keys, now) = replica.with_state(|state| {
        let descriptor = &state.descriptor;
        (descriptor.keys.clone(), descriptor.epoch.version)
    });
    if now != version {
        let why = format!("range {range} has other bounds by now");
        return Err(OrderError::busy(why));
    }
    if key == keys.start.as_slice() || !keys.contains(key) {
        let why = format!(
            "range {range} cannot be split there: the key must be inside the range and not its first"
        );
        return Err(OrderError::Conflict(why));
    }
    Ok(())
}
