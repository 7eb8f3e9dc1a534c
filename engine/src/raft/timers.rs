//! The election timer: when a replica sends heartbeats, when its group sleeps (is quiesced), and
//! when it campaigns.
//!
//! openraft's own ticks are off. One driver a shard ([`crate::shard`]) looks every [`TICK`] at the
//! groups in which something may be due ([`crate::raft::RaftGroup`]). If nothing is due in any, it rests until
//! something can be; whatever happens in a group calls it before ([`DriverTimes`]). A leader sends heartbeats every
//! [`HEARTBEAT`] and stops when nothing happens any more: its group sleeps, and the heartbeats of
//! its shard tell the followers' shards that the leader is alive
//! ([`super::message::Message::Heartbeat`]). A follower that hears of its leader has nothing to do. A
//! follower that has heard nothing for a lease and a random time campaigns, with pre-vote.
//!
//! Votes are durable before they count. Where the disks of a majority are slow, an election takes longer
//! than the usual pause between two campaigns, and a new campaign would end it. So the pause doubles with
//! each term in which no leader was heard of. A campaign that fails in its pre-vote, as in a minority, changes
//! no term and makes no pause longer.
//!
//! Time in which this process itself did not run is not counted: a stall of the machine is no
//! reason to depose a leader. Promises to others are a different matter: openraft counts them on
//! the boot-time clock, stalls included. Pure: the caller says what time it is.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::limits::LEASE_MS;
use crate::mutant::{self, Mutant};

/// How often the shard's driver looks at groups.
pub const TICK: Duration = Duration::from_millis(25);
/// How often a leader whose group is awake sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A group in which nothing has happened for this long may sleep.
const SLEEP_AFTER: Duration = Duration::from_secs(1);
/// How often the driver looks at the leaders of sleeping groups all the same.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A range in which no majority answered for this long has no quorum.
const NO_QUORUM_AFTER: Duration = Duration::from_secs(1);
/// A failed campaign is repeated after this and a random part.
const CAMPAIGN_RETRY_INTERVAL: Duration = Duration::from_millis(LEASE_MS / 4);
/// How often the pause doubles at most: to between one and two seconds.
const CAMPAIGN_BACKOFF_MAX: u32 = 3;
/// The random part is below this.
const SPREAD_MS: u64 = LEASE_MS / 4;

/// What the timers of all replicas of a shard share with the shard's driver.
#[derive(Default)]
pub struct DriverTimes {
    /// How long this process has not run in total.
    stalled: Cell<Duration>,
    /// When the driver must look through the groups again.
    look_at: Cell<BootTime>,
}

impl DriverTimes {
    /// Notes that this process has not run for a while, though it might have.
    pub fn has_stalled(&self, time: Duration) {
        self.stalled.set(self.stalled.get() + time);
    }

    /// Whether the driver must look through the groups.
    pub fn look_is_due(&self, now: BootTime) -> bool {
        now >= self.look_at.get()
    }

    /// Lets the driver look at no group before this, unless something happens in one.
    pub fn rest_until(&self, at: BootTime) {
        self.look_at.set(at);
    }

    /// Has the driver look through the groups at its next tick.
    fn look_soon(&self) {
        self.look_at.take();
    }
}

/// The timers of one replica.
pub(super) struct Timers {
    /// Shared with the whole shard.
    driver: Rc<DriverTimes>,
    /// When this replica last heard of a leader, and `stalled` at that moment; before that, when it
    /// started.
    heard: Cell<(BootTime, Duration)>,
    /// Whether it may have promised a leader a lease: it has heard of one, or existed before the start.
    has_promised: Cell<bool>,
    /// The random part of the next wait before a campaign.
    spread: Cell<Duration>,
    /// This replica does not campaign before this.
    campaign_from: Cell<Option<BootTime>>,
    /// Since a leader was heard of: the term of the last campaign, and how many terms have ended without a leader.
    failed_terms: Cell<(Option<u64>, u32)>,
    /// When the next heartbeat is due.
    heartbeat_at: Cell<BootTime>,
    /// When something last happened, and the last applied entry then.
    worked: Cell<(BootTime, u64)>,
    /// Since when this leader expects answers: before, its group slept or another led.
    asks_since: Cell<BootTime>,
    /// Whether the group sleeps, as far as this leader decides.
    sleeps: Cell<bool>,
    /// When the driver must look at this leader again.
    look_at: Cell<BootTime>,
}

impl Timers {
    /// The timers of a replica that starts now. If it existed before, it may have promised a lease: that
    /// counts like hearing of a leader now. One that was made just now has promised nothing and grants
    /// pre-votes at once, but waits as long before it campaigns itself.
    pub fn new(now: BootTime, driver: Rc<DriverTimes>, existed: bool) -> Timers {
        let mut heard = now;
        if mutant::is(Mutant::VoteAfterRestart) {
            heard = now - Duration::from_millis(LEASE_MS);
        }
        driver.look_soon();
        Timers {
            heard: Cell::new((heard, driver.stalled.get())),
            has_promised: Cell::new(existed),
            driver,
            spread: Cell::default(),
            campaign_from: Cell::new(None),
            failed_terms: Cell::default(),
            heartbeat_at: Cell::new(now),
            worked: Cell::new((now, 0)),
            asks_since: Cell::new(now),
            sleeps: Cell::default(),
            look_at: Cell::new(now),
        }
    }

    /// Notes that this replica heard of a leader at `at`.
    pub fn hear(&self, at: BootTime) {
        self.has_promised.set(true);
        self.failed_terms.take();
        if at > self.heard.get().0 {
            self.heard.set((at, self.driver.stalled.get()));
        }
    }

    /// Notes that this replica has voted, for another or for itself: the candidate gets time to take the lead.
    pub fn grant(&self, now: BootTime) {
        self.pause_campaigns(now);
    }

    /// Notes that this replica votes again after a restart: no leader has a lease from it any more, unless it
    /// has heard of one since. Candidates that have waited for its vote, and a leader whose group sleeps, have the
    /// time of a pause before it campaigns itself.
    pub fn end_silence(&self, now: BootTime, random: u64) {
        self.spread.set(Duration::from_millis(random % SPREAD_MS));
        self.pause_campaigns(now);
    }

    /// Lets this replica not campaign for a while.
    fn pause_campaigns(&self, now: BootTime) {
        let (_, failed) = self.failed_terms.get();
        let pause = CAMPAIGN_RETRY_INTERVAL + self.spread.get();
        let pause = pause * (1 << failed.min(CAMPAIGN_BACKOFF_MAX));
        self.campaign_from.set(Some(now + pause));
    }

    /// Whether this replica has heard of a leader within the last lease.
    pub fn has_heard(&self, now: BootTime) -> bool {
        now < self.follower_due_at()
    }

    /// Notes that this replica begins to lead.
    pub fn lead(&self, now: BootTime) {
        self.failed_terms.take();
        self.sleeps.set(false);
        self.look_at.set(now);
        self.asks_since.set(now);
    }

    /// Notes that this replica has another role, by which something else may be due.
    pub fn stand(&self) {
        self.driver.look_soon();
    }

    /// Puts the leader's group to sleep: it sends no heartbeats until something happens. The driver looks at
    /// all sleeping groups of a shard at once, so that it rests in between.
    pub fn sleep(&self, now: BootTime) {
        self.sleeps.set(true);
        let past_sweep = now.since_boot().as_nanos() % SWEEP_INTERVAL.as_nanos();
        let past_sweep = Duration::from_nanos(past_sweep as u64);
        self.look_at.set(now + SWEEP_INTERVAL - past_sweep);
        self.asks_since.set(now);
    }

    /// When the driver must look at a leader.
    pub fn leader_due_at(&self) -> BootTime {
        self.look_at.get()
    }

    /// When the driver must look at a follower: its leader was not heard of for a lease.
    pub fn follower_due_at(&self) -> BootTime {
        match self.has_promised.get() {
            true => self.heard.get().0 + Duration::from_millis(LEASE_MS),
            false => BootTime::default(),
        }
    }

    /// Lets the driver skip this leader until its next heartbeat, unless something happens.
    pub fn rest(&self) {
        self.look_at.set(self.heartbeat_at.get());
    }

    /// Whether a leader has lost its followers: they last answered at `acknowledged`, too long ago.
    pub fn is_left(&self, now: BootTime, acknowledged: Option<BootTime>) -> bool {
        let since = self.asks_since.get();
        let answered = acknowledged.map_or(since, |at| at.max(since));
        now > answered + NO_QUORUM_AFTER
    }

    /// Whether a follower has heard of no leader for [`NO_QUORUM_AFTER`]. Time in which this
    /// process did not run is not counted.
    pub fn is_without_leader(&self, now: BootTime) -> bool {
        let (heard, stalled_then) = self.heard.get();
        let stalled = self.driver.stalled.get().saturating_sub(stalled_then);
        now > heard + stalled + NO_QUORUM_AFTER
    }

    /// Notes that something happens: the group wakes up.
    pub fn work(&self, now: BootTime) {
        self.look_at.set(now);
        self.driver.look_soon();
        self.worked.set((now, self.worked.get().1));
        if self.sleeps.replace(false) {
            self.asks_since.set(now);
        }
    }

    /// Whether nothing has happened for [`SLEEP_AFTER`].
    pub fn is_quiet(&self, now: BootTime, applied: u64) -> bool {
        let (at, index) = self.worked.get();
        if index != applied {
            self.worked.set((now, applied));
            return false;
        }
        now > at + SLEEP_AFTER
    }

    /// Whether a heartbeat is due. If so, the next one becomes due [`HEARTBEAT`] later.
    pub fn heartbeat_is_due(&self, now: BootTime) -> bool {
        let due = now >= self.heartbeat_at.get();
        if due {
            self.heartbeat_at.set(now + HEARTBEAT);
        }
        due
    }

    /// Whether it is time to campaign in this term. If so, the next campaign becomes due later.
    pub fn campaign_is_due(&self, now: BootTime, random: u64, term: u64) -> bool {
        let (heard, stalled_then) = self.heard.get();
        let stalled = self.driver.stalled.get().saturating_sub(stalled_then);
        let due = heard + Duration::from_millis(LEASE_MS) + stalled + self.spread.get();
        if now < due || self.campaign_from.get().is_some_and(|from| now < from) {
            return false;
        }
        let (of_last, failed) = self.failed_terms.get();
        let has_failed = of_last.is_some_and(|of_last| of_last != term);
        self.failed_terms
            .set((Some(term), failed + u32::from(has_failed)));
        self.spread.set(Duration::from_millis(random % SPREAD_MS));
        self.pause_campaigns(now);
        true
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    const LEASE: Duration = Duration::from_millis(LEASE_MS);
    const TERM: u64 = 7;
    const MS: Duration = Duration::from_millis(1);

    struct Start {
        at: BootTime,
        driver: Rc<DriverTimes>,
        timers: Timers,
    }

    fn start() -> Start {
        let (at, driver) = (test_clock::now(), Rc::<DriverTimes>::default());
        let timers = Timers::new(at, driver.clone(), true);
        Start { at, driver, timers }
    }

    #[test]
    fn heartbeats_are_due_at_once_and_then_in_their_interval() {
        let Start { at, timers, .. } = start();
        assert!(timers.heartbeat_is_due(at));
        assert!(!timers.heartbeat_is_due(at + HEARTBEAT - MS));
        assert!(timers.heartbeat_is_due(at + HEARTBEAT));
    }

    #[test]
    fn a_follower_campaigns_a_lease_after_its_leader_was_heard() {
        let Start { at, timers, .. } = start();
        let heard = at + 300 * MS;
        timers.hear(heard);
        timers.hear(at + 100 * MS);
        assert!(timers.has_heard(heard + LEASE - MS) && !timers.has_heard(heard + LEASE));
        assert!(!timers.campaign_is_due(heard + LEASE - MS, 0, TERM));
        assert!(timers.campaign_is_due(heard + LEASE, 0, TERM));
    }

    #[test]
    fn one_that_was_made_just_now_has_promised_nothing() {
        let at = test_clock::now();
        let timers = Timers::new(at, Rc::default(), false);
        assert!(!timers.has_heard(at) && !timers.campaign_is_due(at + LEASE - MS, 0, TERM));
        timers.hear(at + MS);
        assert!(timers.has_heard(at + MS));
    }

    #[test]
    fn one_that_has_kept_silent_grants_at_once_and_campaigns_after_a_pause() {
        let Start { at, timers, .. } = start();
        let voting = at + LEASE + 70 * MS;
        timers.end_silence(voting, SPREAD_MS + 30);
        assert!(!timers.has_heard(voting), "it has heard of no leader");
        let first = voting + CAMPAIGN_RETRY_INTERVAL + 30 * MS;
        assert!(!timers.campaign_is_due(first - MS, 0, TERM));
        assert!(timers.campaign_is_due(first, 0, TERM));
        // If it has heard of a leader while it was silent, that counts.
        let Start { at, timers, .. } = start();
        let heard = at + 200 * MS;
        timers.hear(heard);
        timers.end_silence(at + LEASE + 70 * MS, 0);
        assert!(timers.has_heard(at + LEASE + 70 * MS));
        assert!(!timers.campaign_is_due(heard + LEASE - MS, 0, TERM));
    }

    #[test]
    fn a_campaign_is_repeated_after_a_pause_with_a_random_part() {
        let Start { at, timers, .. } = start();
        let first = at + LEASE;
        assert!(timers.campaign_is_due(first, SPREAD_MS + 30, TERM));
        let next = first + CAMPAIGN_RETRY_INTERVAL + 30 * MS;
        assert!(!timers.campaign_is_due(next - MS, 0, TERM));
        assert!(timers.campaign_is_due(next, 0, TERM));
    }

    #[test]
    fn one_who_has_the_vote_is_given_time() {
        let Start { at, timers, .. } = start();
        let voted = at + LEASE;
        timers.grant(voted);
        assert!(!timers.campaign_is_due(voted + CAMPAIGN_RETRY_INTERVAL - MS, 0, TERM));
        assert!(timers.campaign_is_due(voted + CAMPAIGN_RETRY_INTERVAL, 0, TERM));
    }

    #[test]
    fn the_pause_doubles_with_each_term_that_has_no_leader() {
        let Start { at, timers, .. } = start();
        let mut due = at + LEASE;
        for (term, doubled) in [(7, 1), (8, 2), (8, 2), (9, 4), (11, 8), (12, 8)] {
            assert!(!timers.campaign_is_due(due - MS, 0, term));
            assert!(timers.campaign_is_due(due, 0, term), "{term}");
            due += CAMPAIGN_RETRY_INTERVAL * doubled;
        }
        // One that hears of a leader is as quick as ever afterwards.
        timers.hear(due);
        let first = due + LEASE;
        assert!(timers.campaign_is_due(first, 0, 12));
        assert!(timers.campaign_is_due(first + CAMPAIGN_RETRY_INTERVAL, 0, 12));
    }

    #[test]
    fn time_in_which_the_process_did_not_run_does_not_count() {
        let Start { at, driver, timers } = start();
        let stall = Duration::from_secs(7);
        driver.has_stalled(stall);
        assert!(!timers.campaign_is_due(at + LEASE + stall - MS, 0, TERM));
        assert!(!timers.is_without_leader(at + NO_QUORUM_AFTER + stall));
        assert!(timers.is_without_leader(at + NO_QUORUM_AFTER + stall + MS));
        assert!(timers.campaign_is_due(at + LEASE + stall, 0, TERM));
        // What is heard now is heard after the stall.
        let heard = at + 2 * stall;
        timers.hear(heard);
        assert!(timers.campaign_is_due(heard + LEASE + SPREAD_MS as u32 * MS, 0, TERM));
    }

    #[test]
    fn a_group_is_quiet_when_nothing_was_applied_for_a_while() {
        let Start { at, timers, .. } = start();
        assert!(!timers.is_quiet(at + SLEEP_AFTER, 0));
        assert!(timers.is_quiet(at + SLEEP_AFTER + MS, 0));
        let applied = at + SLEEP_AFTER + 2 * MS;
        assert!(!timers.is_quiet(applied, 1));
        assert!(!timers.is_quiet(applied + SLEEP_AFTER, 1));
        assert!(timers.is_quiet(applied + SLEEP_AFTER + MS, 1));
        timers.work(applied + SLEEP_AFTER + MS);
        assert!(!timers.is_quiet(applied + SLEEP_AFTER + 2 * MS, 1));
    }

    #[test]
    fn a_leader_is_left_when_nobody_has_answered_since_it_asks() {
        let Start { at, timers, .. } = start();
        assert!(!timers.is_left(at + NO_QUORUM_AFTER, None));
        assert!(timers.is_left(at + NO_QUORUM_AFTER + MS, None));
        let answered = at + 200 * MS;
        assert!(!timers.is_left(answered + NO_QUORUM_AFTER, Some(answered)));
        assert!(timers.is_left(answered + NO_QUORUM_AFTER + MS, Some(answered)));
        // While its group sleeps it asks for nothing.
        let (asleep, awake) = (at + SLEEP_AFTER, at + 10 * SLEEP_AFTER);
        timers.sleep(asleep);
        assert_eq!(timers.leader_due_at(), asleep + SWEEP_INTERVAL);
        timers.work(awake);
        assert!(timers.leader_due_at() <= awake);
        assert!(!timers.is_left(awake + NO_QUORUM_AFTER, Some(answered)));
        assert!(timers.is_left(awake + NO_QUORUM_AFTER + MS, Some(answered)));
    }

    #[test]
    fn sleeping_groups_are_looked_at_together() {
        let Start { at, timers, .. } = start();
        for past in [1, 400, 999] {
            timers.sleep(at + past * MS);
            assert_eq!(timers.leader_due_at(), at + SWEEP_INTERVAL, "{past}");
        }
    }

    #[test]
    fn the_driver_rests_until_something_happens_in_a_group() {
        let Start { at, driver, timers } = start();
        assert!(driver.look_is_due(at), "a group has started");
        type Event = (&'static str, fn(&Timers, BootTime), bool);
        let events: [Event; 5] = [
            ("it works", |timers, at| timers.work(at), true),
            ("it has another role", |timers, _| timers.stand(), true),
            ("it hears its leader", |timers, at| timers.hear(at), false),
            ("it votes", |timers, at| timers.grant(at), false),
            ("it goes to sleep", |timers, at| timers.sleep(at), false),
        ];
        for (event, happens, wakes) in events {
            driver.rest_until(at + 500 * MS);
            assert!(!driver.look_is_due(at + 499 * MS), "{event}");
            happens(&timers, at + 100 * MS);
            assert_eq!(driver.look_is_due(at + 101 * MS), wakes, "{event}");
            assert!(driver.look_is_due(at + 500 * MS), "{event}");
        }
    }
}
