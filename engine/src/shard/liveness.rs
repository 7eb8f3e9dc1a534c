//! Who is there: the beats between shards, and the driver of all groups' heartbeats and elections.
//!
//! Every [`BEAT`] a shard tells each shard with which it shares a range that it lives, and which of
//! those ranges it leads, in which term and how far. So a group in which nothing happens needs no
//! heartbeats of its own, and thousands of idle ranges cost what a few shards cost. The answer names the
//! ranges in which the other is behind: those are woken. A shard whose log hangs is silent:
//! what it leads is better led elsewhere. The driver also notices when this process did not run for a
//! while (see [`crate::raft`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::Inner;
use crate::env::{AsyncRuntime, Clock, Env, Instant, Lane, Now, Transport};
use crate::error::Fatal;
use crate::raft::{self, Led, TICK, Tick};
use crate::types::{Location, RangeId};

/// How often a shard tells others that it lives.
const BEAT: Duration = Duration::from_millis(200);
/// A group in which nothing happens is looked at once in so many ticks.
const DOZING_EVERY: u32 = 4;
/// A shard that has said nothing for so long is not there.
const SILENT_AFTER: Duration = Duration::from_millis(900);
/// A write of the log that takes longer keeps the shard from saying that it lives.
const LOG_HANGS_AFTER: Duration = Duration::from_secs(2);
/// A driver that comes later than this has stalled.
const STALLED_AFTER: Duration = Duration::from_millis(75);

/// The last word of one other shard.
struct Heard<E: Env> {
    at: Now<E>,
    /// The terms in which it leads ranges that both have.
    leads: FxHashMap<RangeId, u64>,
}

/// What a shard knows of others' lives.
pub(super) struct Liveness<E: Env> {
    heard: RefCell<BTreeMap<Location, Heard<E>>>,
}

impl<E: Env> Default for Liveness<E> {
    fn default() -> Liveness<E> {
        Liveness {
            heard: RefCell::default(),
        }
    }
}

impl<E: Env> Liveness<E> {
    /// A shard says that it lives, and what it leads.
    pub fn hear(&self, from: Location, leads: &[Led]) {
        let heard = Heard {
            at: Now::<E>::now(),
            leads: leads.iter().map(|led| (led.range, led.term)).collect(),
        };
        self.heard.borrow_mut().insert(from, heard);
    }

    fn claimed(&self, by: Location, range: RangeId, term: u64) -> Option<Now<E>> {
        let heard = self.heard.borrow();
        let heard = heard.get(&by)?;
        (heard.leads.get(&range) == Some(&term)).then_some(heard.at)
    }

    /// Whether a shard was heard of lately.
    pub fn is_there(&self, shard: Location, now: Now<E>) -> bool {
        let heard = self.heard.borrow();
        heard
            .get(&shard)
            .is_some_and(|heard| now < heard.at + SILENT_AFTER)
    }
}

/// Starts the driver of a shard.
pub(super) fn start<E: Env>(inner: &Rc<Inner<E>>, stop: Rc<Cell<bool>>) {
    let shard = Rc::downgrade(inner);
    drop(E::Runtime::spawn(async move {
        let mut before = Now::<E>::now();
        let mut beat_at = before;
        let mut turn = 0u32;
        while !stop.get() {
            E::Runtime::sleep(TICK).await;
            let Some(inner) = shard.upgrade() else { return };
            let now = Now::<E>::now();
            let stalled = &inner.around.stalled;
            let late = now.saturating_duration_since(before).saturating_sub(TICK);
            if late > STALLED_AFTER {
                stalled.set(stalled.get() + late);
            }
            before = now;
            turn = turn.wrapping_add(1);
            if let Err(fatal) = tick(&inner, now, turn.is_multiple_of(DOZING_EVERY)).await {
                if !stop.get() {
                    inner.store.fail(fatal);
                }
                return;
            }
            if now >= beat_at {
                beat_at = now + BEAT;
                beat(&inner, now);
            }
        }
    }));
}

/// Looks at every group, or at those in which something happens.
async fn tick<E: Env>(inner: &Rc<Inner<E>>, now: Now<E>, at_all: bool) -> Result<(), Fatal> {
    for (replica, raft) in inner.groups_that(|raft| at_all || !raft.dozes()) {
        let location = |id| replica.with_state(|state| state.descriptor.location(id));
        let heard = |leader| {
            let shard = location(leader)?;
            inner
                .liveness
                .claimed(shard, replica.group.range, raft.term())
        };
        let is_there = |id| location(id).is_some_and(|shard| inner.liveness.is_there(shard, now));
        let tick = Tick {
            now,
            heard: &heard,
            is_there: &is_there,
            random: &|| inner.around.clock.random_u64(),
        };
        raft.tick(&tick, &replica).await?;
        if replica.take_quorum(raft.lacks_quorum(now), now) {
            inner.routes_version.set(inner.routes_version.get() + 1);
        }
    }
    Ok(())
}

/// Tells every shard with which a range is shared that this one lives.
fn beat<E: Env>(inner: &Rc<Inner<E>>, now: Now<E>) {
    let hangs = inner.wal.writing_since();
    if hangs.is_some_and(|since| now > since + LOG_HANGS_AFTER) {
        return;
    }
    let mut peers: BTreeMap<Location, Vec<Led>> = BTreeMap::new();
    for (replica, _) in inner.groups() {
        let leading = replica.leading();
        replica.with_state(|state| {
            let led = leading.map(|leading| Led {
                range: replica.group.range,
                term: leading.term,
                applied: state.applied.map_or(0, |id| id.index),
            });
            let others = state.descriptor.locations();
            for other in others.filter(|at| *at != inner.location) {
                peers.entry(other).or_default().extend(led);
            }
        });
    }
    for (to, leads) in peers {
        let bytes = raft::encode_beat(inner.location, &leads);
        let (transport, shard) = (inner.around.transport.clone(), Rc::downgrade(inner));
        drop(E::Runtime::spawn(async move {
            // One that is lost is followed by the next.
            let call = transport.call(to, Lane::Control, bytes);
            let answer = E::Runtime::timeout(BEAT, call).await;
            if let (Ok(Ok(answer)), Some(inner)) = (answer, shard.upgrade()) {
                let behind = raft::decode_behind(answer).unwrap_or_default();
                inner.wake(&behind);
            }
        }));
    }
}

impl<E: Env> Inner<E> {
    /// Takes a beat; gives the ranges in which this shard is behind.
    pub(super) fn take_beat(&self, from: Location, leads: &[Led]) -> Vec<RangeId> {
        self.liveness.hear(from, leads);
        let leads: FxHashMap<RangeId, u64> =
            leads.iter().map(|led| (led.range, led.applied)).collect();
        let groups = self.groups().into_iter();
        let behind = groups.filter(|(replica, _)| {
            let led = leads.get(&replica.group.range);
            let applied =
                replica.with_state(|state| state.applied.map_or(0, |applied| applied.index));
            led.is_some_and(|led| *led > applied)
        });
        behind.map(|(replica, _)| replica.group.range).collect()
    }

    fn wake(&self, ranges: &[RangeId]) {
        if ranges.is_empty() {
            return;
        }
        for (replica, raft) in self.groups() {
            if ranges.contains(&replica.group.range) {
                raft.stay_awake();
            }
        }
    }
}
