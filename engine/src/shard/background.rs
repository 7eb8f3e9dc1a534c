//! The shard's background tasks. One takes in finished flushes, lets the log be purged, and collects
//! old versions; another takes in blocks that reads wait for. Also how a shard stops.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::env::{AsyncRuntime, Env};
use crate::error::Fatal;
use crate::lsm::{GcRules, LiveData};
use crate::mutant::{self, Mutant};
use crate::range::command::RangeOrder;
use crate::range::proposer::sink::Once;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::range::split_merge::newborns::Child;
use crate::shard::pinned::Fullness;
use crate::shard::{ShardInner, cluster_agent, liveness};
use crate::types::{KeyRange, Timestamp};

/// How often, at least, the background looks at everything.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Collection thresholds move in steps of this fraction of the retention.
const GC_STEPS: u64 = 10;
/// How long a stop waits for writes in flight.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a stop checks whether it is done.
/// By time: writes in flight may never arrive, and a node stops once.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The handle of the background tasks.
#[derive(Default)]
pub(super) struct Tasks {
    stop: Rc<Cell<bool>>,
    news: Arc<AtomicWaker>,
    fetched: Arc<AtomicWaker>,
}

/// Starts the background of a shard.
pub(super) fn start<E: Env>(inner: &Rc<ShardInner<E>>) {
    let tasks = Tasks::default();
    let (stop, news) = (tasks.stop.clone(), tasks.news.clone());
    let waker = news.clone();
    inner.store.on_install(Arc::new(move || waker.wake()));
    take_fetched(inner, &tasks);
    inner.background.replace(tasks);
    liveness::start(inner, stop.clone());
    cluster_agent::start(inner, stop.clone());
    inner.store.set_gc(gc_rules(inner));
    let shard = Rc::downgrade(inner);
    drop(E::Runtime::spawn(async move {
        let mut collector = Collector::default();
        let mut fullness = Fullness::default();
        while !stop.get() {
            let installed = E::cross_thread(woken(&news));
            let _ = E::Runtime::timeout(POLL_INTERVAL, installed).await;
            let Some(inner) = shard.upgrade() else { return };
            let looked = match look(&inner, &mut fullness).await {
                Ok(()) => {
                    inner.look_after_digests();
                    inner.look_after_unreadable();
                    collector.step(&inner)
                }
                Err(fatal) => Err(fatal),
            };
            if let Err(fatal) = looked {
                // A shard that is closed has stopped its groups.
                if !stop.get() {
                    inner.store.fail(fatal);
                }
                return;
            }
        }
    }));
}

/// Takes in the blocks that reads wait for, as soon as each has been read.
fn take_fetched<E: Env>(inner: &Rc<ShardInner<E>>, tasks: &Tasks) {
    let (stop, fetched) = (tasks.stop.clone(), tasks.fetched.clone());
    let waker = fetched.clone();
    inner.store.on_fetched(Arc::new(move || waker.wake()));
    let shard = Rc::downgrade(inner);
    let taking = std::future::poll_fn(move |cx| {
        // What is read after this wakes the task.
        fetched.register(cx.waker());
        let Some(inner) = shard.upgrade().filter(|_| !stop.get()) else {
            return Poll::Ready(());
        };
        inner.store.take_fetched();
        Poll::Pending
    });
    drop(E::Runtime::spawn(E::cross_thread(taking)));
}

/// Waits until the waker is woken.
async fn woken(news: &AtomicWaker) {
    let mut registered = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut registered, true) {
            return Poll::Ready(());
        }
        news.register(cx.waker());
        Poll::Pending
    })
    .await;
}

/// Takes in finished flushes, and lets openraft purge what they made durable.
async fn look<E: Env>(inner: &ShardInner<E>, fullness: &mut Fullness) -> Result<(), Fatal> {
    let before: Vec<_> = inner.ranges.groups();
    let durable: Vec<_> = before
        .iter()
        .map(|(replica, _)| replica.durable_up_to())
        .collect();
    inner.store.poll()?;
    inner.store.freeze_if_log_is_long()?;
    // Tasks that wait for room must also notice when a full disk has room again.
    inner.store.wake_waiting();
    inner.bound_pinned().await;
    inner.bury_absorbed().await?;
    let now = E::now();
    let is_full = fullness.look(inner, now);
    for ((replica, raft), was) in before.iter().zip(durable) {
        if replica.durable_up_to() != was {
            raft.note_durable().await?;
        }
        let is_there = |id| {
            let place = replica.with_state(|state| state.descriptor.location(id));
            place.is_some_and(|place| inner.liveness.is_there(place, now))
        };
        raft.purge(is_there, is_full).await?;
    }
    Ok(())
}

/// Which rows of the tree are live now.
pub(super) fn gc_rules<E: Env>(inner: &ShardInner<E>) -> GcRules {
    // Newborn replicas own their rows before they run.
    let mut replicas = inner.ranges.replicas();
    let newborns = inner.home.newborns.all();
    replicas.extend(newborns.iter().map(|newborn| newborn.replica.clone()));
    if mutant::is(Mutant::CollectorToldBetweenTurns) {
        let has_leader = |replica: &Replica<E>| replica.leadership.leader().is_some();
        replicas.retain(|replica| replica.is_flushed() || has_leader(replica));
    }
    let absorbed = inner.home.absorption.absorbed();
    let taken_over = absorbed.iter().map(|absorbed| &absorbed.replica);
    // What only a start would need after a rewrite or a split, and where rows are written anew.
    let rewrites = replicas.iter().chain(taken_over).flat_map(rewritten);
    let rewrites: Vec<LiveData> = rewrites.collect();
    // Those that were taken over have no keys any more, but their own rows, until the log forgets them.
    let absorbed = absorbed.iter().map(|absorbed| LiveData {
        replica: absorbed.replica.group.replica,
        data_id: absorbed.replica.data_id(),
        keys: KeyRange {
            start: Vec::new(),
            end: Some(Vec::new()),
        },
        threshold: Timestamp::ZERO,
    });
    let live = replicas.into_iter().flat_map(|replica| {
        let threshold = replica.droppable_below();
        let intervals = replica.intervals().into_iter();
        intervals.map(move |(data_id, keys)| LiveData {
            replica: replica.group.replica,
            data_id,
            keys,
            threshold,
        })
    });
    GcRules {
        live: live
            .chain(absorbed)
            .chain(inner.staged())
            .chain(rewrites)
            .collect(),
    }
}

/// The rows that a replica needs beside those that it reads.
fn rewritten<E: Env>(replica: &Rc<Replica<E>>) -> Vec<LiveData> {
    let mut rows = replica.outlived_rows();
    let copies = replica.rewrites_to();
    rows.extend(copies.map(|data_id| (data_id, KeyRange::all())));
    let live = rows.into_iter().map(|(data_id, keys)| LiveData {
        replica: replica.group.replica,
        data_id,
        keys,
        threshold: Timestamp::ZERO,
    });
    live.collect()
}

/// Collects old versions, even where nobody writes.
#[derive(Default)]
struct Collector {
    /// The thresholds that compactions last got, and of how many intervals a start alone needs the rows.
    told: (Vec<Timestamp>, usize),
    /// Everything at or below this has been through a full compaction.
    collected: Timestamp,
}

impl Collector {
    fn step<E: Env>(&mut self, inner: &ShardInner<E>) -> Result<(), Fatal> {
        let replicas = inner.ranges.replicas();
        for replica in &replicas {
            propose_threshold(inner, replica);
        }
        let thresholds: Vec<Timestamp> = replicas.iter().map(|r| r.droppable_below()).collect();
        let outlived = replicas.iter().map(|r| r.outlived_count()).sum();
        let now = (thresholds, outlived);
        if now != self.told {
            inner.store.set_gc(gc_rules(inner));
            self.told = now;
        }
        // Without writes no compaction starts by itself: ask for one when the last write of every
        // range is old enough to collect what it replaced.
        let newest = replicas
            .iter()
            .map(|r| r.last_write())
            .max()
            .unwrap_or_default();
        let quiet = replicas.iter().all(|r| {
            let last = r.last_write();
            last <= self.collected || r.droppable_below() >= last
        });
        if quiet && newest > self.collected {
            self.collected = newest;
            inner.store.freeze()?;
            inner.store.collect_garbage();
        }
        Ok(())
    }
}

/// Raises a range's threshold, if old versions may exist and a step is due.
fn propose_threshold<E: Env>(inner: &ShardInner<E>, replica: &Rc<Replica<E>>) {
    if replica.leading().is_none() {
        return;
    }
    let (threshold, version) =
        replica.with_state(|state| (state.gc_threshold, state.descriptor.epoch.version));
    let due = replica.timestamps.now().minus_ms(inner.gc_retention_ms);
    let step = inner.gc_retention_ms / GC_STEPS;
    if replica.last_write() <= threshold || due <= threshold.plus_ms(step) {
        return;
    }
    let order = ProposalKind::Order(RangeOrder::SetGcThreshold { threshold: due.0 });
    // If the queue is full, the next look tries again.
    let sink = Rc::new(Once::new(drop));
    let proposal = Proposal::new(order, version, None, (sink, 0));
    replica.proposer.push(proposal);
}

/// Stops a shard; see [`super::Shard::close`].
pub(super) async fn close<E: Env>(inner: &Rc<ShardInner<E>>) -> Result<(), Fatal> {
    let began = E::now();
    inner.closing.set(true);
    inner.ranges.all_created().await;
    let groups = inner.ranges.groups();
    for (replica, _) in &groups {
        replica.proposer.close();
    }
    let mut frozen = false;
    loop {
        inner.store.poll()?;
        inner.store.wake_waiting();
        if inner.store.disk_full() || inner.store.is_starved() {
            // What is not in tables is in the log; the next start applies it again.
            tracing::warn!(
                "the disk is full, or no file can be opened: stopping without a last flush"
            );
            inner.background.borrow().stop.set(true);
            inner.home.newborns.close();
            inner.home.absorption.close();
            return Ok(());
        }
        // Writes that cannot reach a majority are left; their fate is unknown.
        let idle = E::now() - began > IN_FLIGHT_TIMEOUT
            || groups
                .iter()
                .all(|(replica, _)| replica.proposer.in_flight() == 0);
        if idle && !frozen {
            inner.store.freeze()?;
            frozen = true;
        } else if idle && inner.store.is_flushed() {
            break;
        }
        E::Runtime::sleep(STOP_POLL_INTERVAL).await;
    }
    {
        let background = inner.background.borrow();
        background.stop.set(true);
        background.news.wake();
        background.fetched.wake();
    }
    inner.home.newborns.close();
    inner.home.absorption.close();
    for (_, raft) in &groups {
        raft.note_durable().await?;
        raft.stop().await;
    }
    inner.wal.close().await?;
    tracing::debug!(shard = %inner.location, took = ?E::now() - began, "shard closed");
    Ok(())
}
