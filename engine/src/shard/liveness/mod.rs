//! Liveness: heartbeats between shards, and the driver of all groups' heartbeats and elections.
//!
//! Every [`BEAT`] a shard sends a heartbeat to each shard with which it shares a range. It names
//! the shared ranges that the sender leads, with term and last applied entry. So an idle group
//! needs no heartbeats of its own: its followers hear of their leader by the shard's heartbeat, and
//! thousands of idle ranges cost no more than a few shards. The response names the ranges in which
//! the receiver is behind, or knows of a later term, and those that it does not have; the leader wakes these,
//! and hears from their replicas whether it still leads. Without that, a leader that was cut off while its
//! group slept would take itself for one until somebody writes. A shard whose log hangs sends no heartbeats, so
//! that others take the lead of its ranges. A shard's report says which shards answer it; from that
//! the manager knows which nodes no other node reaches ([`crate::cluster`]). The driver also
//! notices when this process did not run for a while (see [`crate::raft`]).

pub(in crate::shard) mod availability;
pub(in crate::shard) mod slow_disk;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::message::Peer;
use crate::distribution::Distribution;
use crate::env::{AsyncRuntime, Clock, Env, MessageClass, Transport};
use crate::error::Fatal;
use crate::mutant::{self, Mutant};
use crate::raft::{self, Led, Message, TICK, Tick};
use crate::shard::{RangeHandle, Shard, ShardInner};
use crate::types::{Location, RangeId, ShardId};
use crate::wal::WriteSpeed;
use slow_disk::SlowDisk;

/// How often a shard sends heartbeats to others.
const BEAT: Duration = Duration::from_millis(200);
/// A shard that has sent no heartbeat for this long counts as absent.
const SILENT_AFTER: Duration = Duration::from_millis(900);
/// Time limit for the response to a heartbeat.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// A shard that has answered no heartbeat for this long counts as not answering.
const UNANSWERED_FOR: Duration = Duration::from_secs(2);
/// While a write of the log takes longer than this, the shard sends no heartbeats.
const LOG_HANGS_AFTER: Duration = Duration::from_secs(2);
/// The driver looks through all groups at least this often. Whatever makes something due in a group calls
/// it; this bounds the harm if something does not.
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// If the driver runs this much late, the process has stalled.
const STALLED_AFTER: Duration = Duration::from_millis(75);
/// Most microseconds of a round trip in the histogram: a heartbeat waits no longer for its response.
const ROUND_TRIP_MICROS_MAX: u64 = ANSWER_TIMEOUT.as_micros() as u64;

/// Another shard with which this one exchanges heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its node and number.
    pub at: Location,
    /// Whether it has answered lately.
    pub answers: bool,
    /// How long its last answer took; `None` before the first one.
    pub round_trip: Option<Duration>,
}

/// What a shard knows of other shards' liveness.
pub(super) struct Liveness {
    /// When each other shard's last heartbeat came.
    heard: RefCell<BTreeMap<Location, BootTime>>,
    /// The shards that get heartbeats, and since when each has left them unanswered.
    told: RefCell<BTreeMap<Location, Option<BootTime>>>,
    /// What it knows of the speed of their disks.
    pub slow_disk: SlowDisk,
    /// How long the last heartbeat to each of them took to be answered.
    round_trips: RefCell<BTreeMap<Location, Duration>>,
    /// The same of all heartbeats to all of them, in microseconds.
    round_trip_micros: RefCell<Distribution>,
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness {
            heard: RefCell::default(),
            told: RefCell::default(),
            slow_disk: SlowDisk::default(),
            round_trips: RefCell::default(),
            round_trip_micros: RefCell::new(Distribution::new(ROUND_TRIP_MICROS_MAX)),
        }
    }
}

impl Liveness {
    /// Whether a heartbeat of a shard has come lately.
    pub fn is_there(&self, shard: Location, now: BootTime) -> bool {
        let heard = self.heard.borrow();
        heard.get(&shard).is_some_and(|at| now < *at + SILENT_AFTER)
    }

    /// Whether a shard answers heartbeats, as far as known.
    pub fn answers(&self, shard: Location, now: BootTime) -> bool {
        let told = self.told.borrow();
        let unanswered = told.get(&shard).copied().flatten();
        unanswered.is_none_or(|since| now < since + UNANSWERED_FOR)
    }

    /// The shards that get heartbeats, and whether they answer.
    pub fn peers(&self, now: BootTime) -> Vec<Peer> {
        let told: Vec<Location> = self.told.borrow().keys().copied().collect();
        let peer = |at: Location| Peer {
            at,
            answers: self.answers(at, now),
        };
        told.into_iter().map(peer).collect()
    }

    /// Sets the shards that get heartbeats from now on.
    fn tell<'a>(&self, shards: impl Iterator<Item = &'a Location>, now: BootTime) {
        let mut told = self.told.borrow_mut();
        let mut before = std::mem::take(&mut *told);
        told.extend(shards.map(|shard| {
            let unanswered = before.remove(shard).flatten();
            (*shard, Some(unanswered.unwrap_or(now)))
        }));
        let is_told = |shard: &Location, _: &mut Duration| told.contains_key(shard);
        self.round_trips.borrow_mut().retain(is_told);
    }

    /// Notes that a shard has answered a heartbeat after this time.
    fn answered(&self, shard: Location, took: Duration) {
        if let Some(unanswered) = self.told.borrow_mut().get_mut(&shard) {
            *unanswered = None;
            self.round_trips.borrow_mut().insert(shard, took);
        }
        let micros = took.as_micros() as u64;
        self.round_trip_micros.borrow_mut().record(micros);
    }

    /// The shards that get heartbeats, as the shard's status has them.
    pub fn peer_status(&self, now: BootTime) -> Vec<PeerStatus> {
        let round_trips = self.round_trips.borrow();
        let status = |peer: Peer| PeerStatus {
            at: peer.at,
            answers: peer.answers,
            round_trip: round_trips.get(&peer.at).copied(),
        };
        self.peers(now).into_iter().map(status).collect()
    }

    /// How long heartbeats took to be answered, in microseconds.
    pub fn round_trip_micros(&self) -> Distribution {
        self.round_trip_micros.borrow().clone()
    }
}

/// Starts the driver of a shard's groups.
pub(super) fn start<E: Env>(inner: &Rc<ShardInner<E>>, stop: Rc<Cell<bool>>) {
    let shard = Rc::downgrade(inner);
    drop(E::Runtime::spawn(async move {
        let mut before = E::now();
        let mut beat_at = before;
        while !stop.get() {
            E::Runtime::sleep(TICK).await;
            let Some(inner) = shard.upgrade() else { return };
            let now = E::now();
            let late = (now - before).saturating_sub(TICK);
            if late > STALLED_AFTER {
                inner.around.driver.has_stalled(late);
            }
            before = now;
            if let Err(fatal) = tick(&inner, now).await {
                if !stop.get() {
                    inner.store.fail(fatal);
                }
                return;
            }
            if now >= beat_at {
                beat_at = now + BEAT;
                let speed = inner.wal.write_speed(now);
                slow_disk::look(&inner, speed, now);
                beat(&inner, speed, now);
            }
        }
    }));
}

/// Drives the groups in which something may be due. If nothing is, the driver rests until something can be:
/// to look through thousands of idle groups in every tick would be most of what they cost.
async fn tick<E: Env>(inner: &Rc<ShardInner<E>>, now: BootTime) -> Result<(), Fatal> {
    let driver = &inner.around.driver;
    if !driver.look_is_due(now) && inner.store.writes.used() == 0 {
        return Ok(());
    }
    let next_look = Cell::new(now + LOOK_INTERVAL_MAX);
    let is_due = |RangeHandle { replica, raft }: &RangeHandle<E>| {
        let due_at = raft.due_at();
        next_look.set(next_look.get().min(due_at));
        now >= due_at || replica.leadership.lacks_quorum() || !replica.proposer.is_idle()
    };
    let due = inner.ranges.groups_that(is_due);
    driver.rest_until(match due.is_empty() {
        true => next_look.get(),
        false => now,
    });
    for (replica, raft) in due {
        let location = |id| replica.with_state(|state| state.descriptor.location(id));
        let is_there = |id| location(id).is_some_and(|shard| inner.liveness.is_there(shard, now));
        let tick = Tick {
            now,
            is_there: &is_there,
            random: &|| inner.around.clock.random_u64(),
            counters: &inner.around.counters,
        };
        raft.tick(&tick, &replica).await?;
        if replica.take_quorum(raft.lacks_quorum(now), now) {
            inner.ranges.version().add(1);
        }
    }
    Ok(())
}

/// Sends a heartbeat to every shard that shares a range with this one.
fn beat<E: Env>(inner: &Rc<ShardInner<E>>, speed: Option<WriteSpeed>, now: BootTime) {
    let hangs = inner.wal.writing_since();
    if hangs.is_some_and(|since| now > since + LOG_HANGS_AFTER) {
        return;
    }
    let mut peers: BTreeMap<Location, Vec<Led>> = BTreeMap::new();
    inner.ranges.for_each(|RangeHandle { replica, .. }| {
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
    });
    // The manager checks that nodes can be reached before it places anything on them.
    if let Some(manager) = inner.agent.manager.borrow().as_ref() {
        let shard = ShardId(0);
        let nodes = manager.heard_nodes(now);
        let others = nodes.filter(|node| *node != inner.location.node);
        for node in others {
            peers.entry(Location { node, shard }).or_default();
        }
    }
    inner.liveness.tell(peers.keys(), now);
    let write_p99_micros = speed.map(|speed| speed.p99.as_micros() as u32);
    for (to, leads) in peers {
        let bytes = raft::encode(&Message::Heartbeat {
            from: inner.location,
            leads,
            write_p99_micros,
            now: inner.now(),
        });
        let (transport, shard) = (inner.around.transport.clone(), Rc::downgrade(inner));
        drop(E::Runtime::spawn(async move {
            let sent = E::now();
            // If one is lost, the next follows soon.
            let call = transport.call(to, MessageClass::Control, bytes);
            let response = E::Runtime::timeout(ANSWER_TIMEOUT, call).await;
            if let (Ok(Ok(response)), Some(inner)) = (response, shard.upgrade()) {
                inner.liveness.answered(to, E::now() - sent);
                let to_wake = raft::decode_to_wake(&response).unwrap_or_default();
                inner.wake(&to_wake);
            }
        }));
    }
}

impl<E: Env> Shard<E> {
    /// Whether another shard answers within the interval of heartbeats.
    pub async fn is_answered_by(&self, other: Location) -> bool {
        let (transport, beat) = {
            let inner = &self.inner;
            let beat = Message::Heartbeat {
                from: inner.location,
                leads: Vec::new(),
                write_p99_micros: None,
                now: inner.now(),
            };
            (inner.around.transport.clone(), raft::encode(&beat))
        };
        let call = transport.call(other, MessageClass::Control, beat);
        matches!(E::Runtime::timeout(BEAT, call).await, Ok(Ok(_)))
    }
}

impl<E: Env> ShardInner<E> {
    /// Takes a heartbeat; gives the ranges that the sender must wake.
    pub(super) fn take_beat(&self, from: Location, leads: &[Led]) -> Vec<RangeId> {
        let now = E::now();
        self.liveness.heard.borrow_mut().insert(from, now);
        let mut to_wake = Vec::new();
        let tells_stale_leaders = !mutant::is(Mutant::StaleLeaderSleepsOn);
        for led in leads {
            let Some(RangeHandle { replica, raft }) = self.of_range(led.range) else {
                to_wake.extend(tells_stale_leaders.then_some(led.range));
                continue;
            };
            let is_stale = led.term < raft.term() && tells_stale_leaders;
            let leader = replica.leadership.leader();
            replica.with_state(|state| {
                let is_leader = |id| state.descriptor.location(id) == Some(from);
                if led.term == raft.term() && leader.is_some_and(is_leader) {
                    raft.hear(now);
                }
                if is_stale || led.applied > state.applied.map_or(0, |id| id.index) {
                    to_wake.push(led.range);
                }
            });
        }
        to_wake
    }

    fn wake(&self, ranges: &[RangeId]) {
        for running in ranges.iter().filter_map(|range| self.of_range(*range)) {
            running.raft.stay_awake();
        }
    }
}
