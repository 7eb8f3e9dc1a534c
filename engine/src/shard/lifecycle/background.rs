//! The shard's background tasks. One takes in finished flushes, lets the log be purged, and has old
//! versions collected ([`crate::shard::gc`]); another takes in blocks that reads wait for. Also how a shard stops.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::env::{AsyncRuntime, Env};
use crate::error::Fatal;
use crate::shard::gc::{self, Collector};
use crate::shard::snapshots::pinned_logs::Fullness;
use crate::shard::{ShardInner, cluster_agent, liveness};

/// How often, at least, the background looks at everything.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stop waits for writes in flight.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a stop checks whether it is done.
/// By time: writes in flight may never arrive, and a node stops once.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The handle of the background tasks.
#[derive(Default)]
pub(in crate::shard) struct Tasks {
    stop: Rc<Cell<bool>>,
    news: Arc<AtomicWaker>,
    fetched: Arc<AtomicWaker>,
}

/// Starts the background of a shard.
pub(in crate::shard) fn start<E: Env>(inner: &Rc<ShardInner<E>>) {
    let tasks = Tasks::default();
    let (stop, news) = (tasks.stop.clone(), tasks.news.clone());
    let waker = news.clone();
    inner.store.on_install(Arc::new(move || waker.wake()));
    take_fetched(inner, &tasks);
    inner.background.replace(tasks);
    liveness::start(inner, stop.clone());
    cluster_agent::start(inner, stop.clone());
    inner.store.set_gc(gc::rules(inner));
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

/// Stops a shard; see [`crate::shard::Shard::close`].
pub(in crate::shard) async fn close<E: Env>(inner: &Rc<ShardInner<E>>) -> Result<(), Fatal> {
    let began = E::now();
    inner.closing.set(true);
    if !unless_full(inner, flush_and_stop(inner)).await? {
        end_tasks(inner);
        // What is not in tables is in the log; the next start applies it again.
        tracing::warn!("the disk is full, or no file can be opened: stopping without a last flush");
        return Ok(());
    }
    inner.wal.close().await?;
    tracing::debug!(shard = %inner.location, took = ?E::now() - began, "shard closed");
    Ok(())
}

/// Waits for a step of a stop, unless the disk is full or no file can be opened: then it may never end,
/// whatever it waits for. Gives whether it ended.
async fn unless_full<E: Env>(
    inner: &ShardInner<E>,
    step: impl Future<Output = Result<(), Fatal>>,
) -> Result<bool, Fatal> {
    let mut step = std::pin::pin!(step);
    loop {
        inner.store.poll()?;
        inner.store.wake_waiting();
        if inner.store.disk_full() || inner.store.is_starved() {
            return Ok(false);
        }
        if let Ok(done) = E::Runtime::timeout(STOP_POLL_INTERVAL, step.as_mut()).await {
            return done.map(|()| true);
        }
    }
}

/// Waits for what is under way, flushes all rows, and stops the groups.
async fn flush_and_stop<E: Env>(inner: &ShardInner<E>) -> Result<(), Fatal> {
    let began = E::now();
    inner.ranges.all_created().await;
    let groups = inner.ranges.groups();
    for (replica, _) in &groups {
        replica.proposer.close();
    }
    // Writes that cannot reach a majority are left; their fate is unknown.
    let is_idle = || {
        let mut groups = groups.iter();
        E::now() - began > IN_FLIGHT_TIMEOUT
            || groups.all(|(replica, _)| replica.proposer.in_flight() == 0)
    };
    while !is_idle() {
        E::Runtime::sleep(STOP_POLL_INTERVAL).await;
    }
    inner.store.freeze()?;
    while !(is_idle() && inner.store.is_flushed()) {
        E::Runtime::sleep(STOP_POLL_INTERVAL).await;
    }
    end_tasks(inner);
    for (_, raft) in &groups {
        raft.note_durable().await?;
        raft.stop().await;
    }
    Ok(())
}

/// Ends the background tasks. They must not run on when the groups have stopped.
fn end_tasks<E: Env>(inner: &ShardInner<E>) {
    let background = inner.background.borrow();
    background.stop.set(true);
    background.news.wake();
    background.fetched.wake();
    inner.home.newborns.close();
    inner.home.absorption.close();
}
