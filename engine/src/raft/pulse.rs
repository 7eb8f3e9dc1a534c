//! When a replica sends heartbeats, when it sleeps, and when it wants to lead.
//!
//! openraft's own ticks are off: one driver a shard ([`crate::shard`]) looks, at every [`TICK`], at the
//! groups in which something may be due ([`Group::is_due`]). A leader sends heartbeats every
//! [`HEARTBEAT`] and stops when nothing happens any more: its group sleeps, and its shard's beats tell
//! the followers' shards that it is there ([`super::message::Message::Beat`]). A follower that hears of
//! its leader has nothing to do. A follower that has heard neither for a lease and a random time
//! campaigns, with pre-vote. The time in which this process did not run itself is not counted: a
//! stall of the machine is no reason to depose a leader. Promises to others are reckoned by openraft
//! on the boot-time clock, without such discount. Pure but for the clock.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::env::{Env, Instant, Now};
use crate::mutant::{self, Mutant};
use crate::raft::group::{Group, Role};
use crate::range::replica::LEASE_MS;

/// How often the driver looks.
pub const TICK: Duration = Duration::from_millis(25);
/// How often a leader that is awake sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A group in which nothing has happened for so long may sleep.
const SLEEP_AFTER: Duration = Duration::from_secs(1);
/// A leader whose group sleeps is looked at so often all the same.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A range in which no majority was reached for so long has no quorum.
const NO_QUORUM_AFTER: Duration = Duration::from_secs(1);
/// A campaign that came to nothing is repeated after this, and a random part.
const CAMPAIGN_AGAIN: Duration = Duration::from_millis(LEASE_MS / 4);
/// The random part is less than this.
const SPREAD_MS: u64 = LEASE_MS / 4;

/// The time of one replica.
pub(super) struct Pulse<E: Env> {
    /// For how long this process has not run so far.
    stalled: Rc<Cell<Duration>>,
    /// When a leader was last heard of, and how long the process had stalled by then.
    heard: Cell<(Now<E>, Duration)>,
    /// The random part of the next wait.
    spread: Cell<Duration>,
    /// No campaign before this.
    campaign_from: Cell<Option<Now<E>>>,
    /// When the next heartbeat is due.
    heartbeat_at: Cell<Now<E>>,
    /// When something last happened, and the last entry applied by then.
    worked: Cell<(Now<E>, u64)>,
    /// Since when the leader asks the others for a sign: before that it slept, or did not lead.
    asks_since: Cell<Now<E>>,
    /// Whether the group sleeps, as far as this leader has a say.
    sleeps: Cell<bool>,
    /// When the driver must look at a leader again.
    look_at: Cell<Now<E>>,
}

impl<E: Env> Pulse<E> {
    /// A replica that starts now, on a shard that has stalled for so long.
    pub fn new(stalled: Rc<Cell<Duration>>) -> Pulse<E> {
        let now = Now::<E>::now();
        // It may have promised a lease just before it started.
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

    /// A leader was heard of at `at`.
    pub fn hear(&self, at: Now<E>) {
        if at > self.heard.get().0 {
            self.heard.set((at, self.stalled.get()));
        }
    }

    /// Another was given the vote: it has time to begin.
    pub fn grant(&self, now: Now<E>) {
        self.campaign_from
            .set(Some(now + CAMPAIGN_AGAIN + self.spread.get()));
    }

    /// Whether a leader was heard of within a lease.
    pub fn has_heard(&self, now: Now<E>) -> bool {
        now < self.heard.get().0 + Duration::from_millis(LEASE_MS)
    }

    /// This replica begins to lead.
    pub fn lead(&self, now: Now<E>) {
        self.sleeps.set(false);
        self.look_at.set(now);
        self.asks_since.set(now);
    }

    /// The leader lets its group sleep: it asks nobody for a sign until something happens.
    pub fn sleep(&self, now: Now<E>) {
        self.sleeps.set(true);
        self.look_at.set(now + SWEEP_EVERY);
        self.asks_since.set(now);
    }

    /// Nothing is due at the leader before its next heartbeat, unless something happens.
    pub fn rest(&self) {
        self.look_at.set(self.heartbeat_at.get());
    }

    /// Whether a leader whose followers last answered at `acknowledged` has lost them.
    pub fn is_left(&self, now: Now<E>, acknowledged: Option<Now<E>>) -> bool {
        let since = self.asks_since.get();
        let answered = acknowledged.map_or(since, |at| at.max(since));
        now > answered + NO_QUORUM_AFTER
    }

    /// Whether a follower has heard of no leader for so long that there is none. The time in which
    /// this process did not run is not counted.
    pub fn is_without_leader(&self, now: Now<E>) -> bool {
        let (heard, stalled_then) = self.heard.get();
        let stalled = self.stalled.get().saturating_sub(stalled_then);
        now > heard + stalled + NO_QUORUM_AFTER
    }

    /// Something happens: the group is awake.
    pub fn work(&self) {
        let now = Now::<E>::now();
        self.look_at.set(now);
        self.worked.set((now, self.worked.get().1));
        if self.sleeps.replace(false) {
            self.asks_since.set(now);
        }
    }

    /// Whether nothing has happened for a while.
    pub fn is_quiet(&self, now: Now<E>, applied: u64) -> bool {
        let (at, index) = self.worked.get();
        if index != applied {
            self.worked.set((now, applied));
            return false;
        }
        now > at + SLEEP_AFTER
    }

    /// Whether a heartbeat is due; then the next is due later.
    pub fn heartbeat_is_due(&self, now: Now<E>) -> bool {
        let due = now >= self.heartbeat_at.get();
        if due {
            self.heartbeat_at.set(now + HEARTBEAT);
        }
        due
    }

    /// Whether it is time to campaign; then the next time is later.
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
    /// The group is awake: its heartbeats go on.
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

    /// The shard of the leader says that it leads in this replica's term.
    pub fn hear(&self, at: Now<E>) {
        self.pulse.hear(at);
    }

    /// Whether a leader was heard of within a lease.
    pub fn has_heard(&self, now: Now<E>) -> bool {
        self.pulse.has_heard(now)
    }
}
