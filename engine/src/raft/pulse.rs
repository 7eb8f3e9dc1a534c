//! The election timer: when a replica sends heartbeats, when its group sleeps (is quiesced), and
//! when it campaigns.
//!
//! openraft's own ticks are off. One driver a shard ([`crate::shard`]) looks every [`TICK`] at the
//! groups in which something may be due ([`Group::is_due`]). A leader sends heartbeats every
//! [`HEARTBEAT`] and stops when nothing happens any more: its group sleeps, and the heartbeats of
//! its shard tell the followers' shards that the leader is alive
//! ([`super::message::Message::Beat`]). A follower that hears of its leader has nothing to do. A
//! follower that has heard nothing for a lease and a random time campaigns, with pre-vote.
//!
//! Time in which this process itself did not run is not counted: a stall of the machine is no
//! reason to depose a leader. Promises to others are a different matter: openraft counts them on
//! the boot-time clock, stalls included. Pure but for the clock.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::env::{Env, Instant, Now};
use crate::mutant::{self, Mutant};
use crate::raft::group::{Group, Role};
use crate::range::replica::LEASE_MS;

/// How often the shard's driver looks at groups.
pub const TICK: Duration = Duration::from_millis(25);
/// How often a leader whose group is awake sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A group in which nothing has happened for this long may sleep.
const SLEEP_AFTER: Duration = Duration::from_secs(1);
/// How often the driver looks at the leader of a sleeping group all the same.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A range in which no majority answered for this long has no quorum.
const NO_QUORUM_AFTER: Duration = Duration::from_secs(1);
/// A failed campaign is repeated after this and a random part.
const CAMPAIGN_AGAIN: Duration = Duration::from_millis(LEASE_MS / 4);
/// The random part is below this.
const SPREAD_MS: u64 = LEASE_MS / 4;

/// The timers of one replica.
pub(super) struct Pulse<E: Env> {
    /// How long this process has not run in total, shared with the whole shard.
    stalled: Rc<Cell<Duration>>,
    /// When this replica last heard of a leader, and `stalled` at that moment.
    heard: Cell<(Now<E>, Duration)>,
    /// The random part of the next wait before a campaign.
    spread: Cell<Duration>,
    /// This replica does not campaign before this.
    campaign_from: Cell<Option<Now<E>>>,
    /// When the next heartbeat is due.
    heartbeat_at: Cell<Now<E>>,
    /// When something last happened, and the last applied entry then.
    worked: Cell<(Now<E>, u64)>,
    /// Since when this leader expects answers: before, its group slept or another led.
    asks_since: Cell<Now<E>>,
    /// Whether the group sleeps, as far as this leader decides.
    sleeps: Cell<bool>,
    /// When the driver must look at this leader again.
    look_at: Cell<Now<E>>,
}

impl<E: Env> Pulse<E> {
    /// The timers of a replica that starts now.
    pub fn new(stalled: Rc<Cell<Duration>>) -> Pulse<E> {
        let now = Now::<E>::now();
        // Before the start it may have promised a lease: that counts like hearing of a leader now.
        let mut heard = now;
        if mutant::is(Mutant::VoteAfterRestart) {
            heard = now - Duration::from_millis(LEASE_MS);
        }
        Pulse {
            heard: Cell::new((heard, stalled.get())),
            stalled,
            spread: Cell::default(),
            campaign_from: Cell::new(None),
            heartbeat_at: Cell::new(now),
            worked: Cell::new((now, 0)),
            asks_since: Cell::new(now),
            sleeps: Cell::default(),
            look_at: Cell::new(now),
        }
    }

    /// Notes that this replica heard of a leader at `at`.
    pub fn hear(&self, at: Now<E>) {
        if at > self.heard.get().0 {
            self.heard.set((at, self.stalled.get()));
        }
    }

    /// Notes that this replica voted for another, which gets time to take the lead.
    pub fn grant(&self, now: Now<E>) {
        self.campaign_from
            .set(Some(now + CAMPAIGN_AGAIN + self.spread.get()));
    }

    /// Whether this replica has heard of a leader within the last lease.
    pub fn has_heard(&self, now: Now<E>) -> bool {
        now < self.heard.get().0 + Duration::from_millis(LEASE_MS)
    }

    /// Notes that this replica begins to lead.
    pub fn lead(&self, now: Now<E>) {
        self.sleeps.set(false);
        self.look_at.set(now);
        self.asks_since.set(now);
    }

    /// Puts the leader's group to sleep: it sends no heartbeats until something happens.
    pub fn sleep(&self, now: Now<E>) {
        self.sleeps.set(true);
        self.look_at.set(now + SWEEP_EVERY);
        self.asks_since.set(now);
    }

    /// Lets the driver skip this leader until its next heartbeat, unless something happens.
    pub fn rest(&self) {
        self.look_at.set(self.heartbeat_at.get());
    }

    /// Whether a leader has lost its followers: they last answered at `acknowledged`, too long ago.
    pub fn is_left(&self, now: Now<E>, acknowledged: Option<Now<E>>) -> bool {
        let since = self.asks_since.get();
        let answered = acknowledged.map_or(since, |at| at.max(since));
        now > answered + NO_QUORUM_AFTER
    }

    /// Whether a follower has heard of no leader for [`NO_QUORUM_AFTER`]. Time in which this
    /// process did not run is not counted.
    pub fn is_without_leader(&self, now: Now<E>) -> bool {
        let (heard, stalled_then) = self.heard.get();
        let stalled = self.stalled.get().saturating_sub(stalled_then);
        now > heard + stalled + NO_QUORUM_AFTER
    }

    /// Notes that something happens: the group wakes up.
    pub fn work(&self) {
        let now = Now::<E>::now();
        self.look_at.set(now);
        self.worked.set((now, self.worked.get().1));
        if self.sleeps.replace(false) {
            self.asks_since.set(now);
        }
    }

    /// Whether nothing has happened for [`SLEEP_AFTER`].
    pub fn is_quiet(&self, now: Now<E>, applied: u64) -> bool {
        let (at, index) = self.worked.get();
        if index != applied {
            self.worked.set((now, applied));
            return false;
        }
        now > at + SLEEP_AFTER
    }

    /// Whether a heartbeat is due. If so, the next one becomes due [`HEARTBEAT`] later.
    pub fn heartbeat_is_due(&self, now: Now<E>) -> bool {
        let due = now >= self.heartbeat_at.get();
        if due {
            self.heartbeat_at.set(now + HEARTBEAT);
        }
        due
    }

    /// Whether it is time to campaign. If so, the next campaign becomes due later.
    pub fn campaign_is_due(&self, now: Now<E>, random: u64) -> bool {
        let (heard, stalled_then) = self.heard.get();
        let stalled = self.stalled.get().saturating_sub(stalled_then);
        let due = heard + Duration::from_millis(LEASE_MS) + stalled + self.spread.get();
        if now < due || self.campaign_from.get().is_some_and(|from| now < from) {
            return false;
        }
        self.spread.set(Duration::from_millis(random % SPREAD_MS));
        self.campaign_from
            .set(Some(now + CAMPAIGN_AGAIN + self.spread.get()));
        true
    }
}

impl<E: Env> Group<E> {
    /// Wakes the group up, so that its heartbeats go on.
    pub fn stay_awake(&self) {
        self.pulse.work();
    }

    /// Whether the driver must look at the group now.
    pub fn is_due(&self, now: Now<E>) -> bool {
        match self.role() {
            Role::Leader => now >= self.pulse.look_at.get(),
            Role::Voter | Role::Learner => !self.pulse.has_heard(now),
        }
    }

    /// Notes that the leader's shard names it the leader of this replica's term.
    pub fn hear(&self, at: Now<E>) {
        self.pulse.hear(at);
    }

    /// Whether this replica has heard of a leader within the last lease.
    pub fn has_heard(&self, now: Now<E>) -> bool {
        self.pulse.has_heard(now)
    }
}
