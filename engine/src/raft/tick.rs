//! What a group does as time passes: heartbeats, sleep, campaigns. Its [`super::timers::Timers`] says
//! when; the shard's driver ([`crate::shard`]) looks.

use openraft::async_runtime::watch::WatchReceiver;

use crate::boot_time::BootTime;
use crate::env::Env;
use crate::error::Fatal;
use crate::mutant::{self, Mutant};
use crate::raft::convert;
use crate::raft::counters::RaftCounters;
use crate::raft::group::Group;
use crate::raft::machine::Machine;
use crate::raft::role::Role;
use crate::types::ReplicaId;

/// What the shard's driver passes to each group that it looks at.
pub struct Tick<'a> {
    /// The time of this look.
    pub now: BootTime,
    /// Whether the shard of a replica was heard of lately.
    pub is_there: &'a dyn Fn(ReplicaId) -> bool,
    /// A source of random numbers.
    pub random: &'a dyn Fn() -> u64,
    /// Counts elections.
    pub counters: &'a RaftCounters,
}

impl<M: Machine> Group<M> {
    /// Does what is due, when the shard's driver looks at this group.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn tick(&self, tick: &Tick<'_>, machine: &M) -> Result<(), Fatal> {
        if self.is_retired() {
            return Ok(());
        }
        if self.standing.alone.get()
            && self.standing.role.get() == Role::Leader
            && self.standing.members.get() <= 1
        {
            self.timers.sleep(tick.now);
            return Ok(());
        }
        match self.standing.role.get() {
            // If the other does not take the lead, the followers elect somebody once they hear
            // nothing.
            Role::Leader if self.has_transferred() => {}
            Role::Leader => {
                let applied = machine.applied().map_or(0, |id| id.index);
                let quiet = self.timers.is_quiet(tick.now, applied) && machine.is_idle();
                let beats = self.timers.heartbeat_is_due(tick.now);
                // A quiet leader sends heartbeats until every replica within reach has every entry.
                match quiet {
                    true if beats && self.may_sleep(tick) => {
                        self.timers.sleep(tick.now);
                        return Ok(());
                    }
                    true => self.timers.rest(),
                    false => {}
                }
                if beats {
                    self.told(self.raft.trigger().heartbeat().await)?;
                }
            }
            // Another campaign would begin anew with a vote for a later term. If a write of the log takes longer
            // than the pause between campaigns, no vote would ever count.
            Role::Voter
                if self.log.is_saving_vote() && !mutant::is(Mutant::CampaignWhileVoteIsSaved) =>
            {
                self.timers.grant(tick.now);
            }
            Role::Voter | Role::Learner
                if !self.silent.get() && self.may_campaign(tick, machine) =>
            {
                tracing::debug!(range = %self.range, term = self.term(), "campaigns");
                tick.counters.count(|stats| stats.elections += 1);
                self.campaign().await?;
            }
            Role::Voter | Role::Learner => {}
        }
        Ok(())
    }

    /// Whether a campaign of this replica is due: it may lead, and has heard of no leader for long enough.
    fn may_campaign(&self, tick: &Tick<'_>, machine: &M) -> bool {
        let votes = self.standing.role.get() == Role::Voter;
        if self.leaves.get() || (!votes && !self.timers.is_without_leader(tick.now)) {
            return false;
        }
        let (random, term) = ((tick.random)(), self.term());
        self.timers.campaign_is_due(tick.now, random, term) && (votes || self.has_voted(machine))
    }

    /// Whether this replica, which votes no more by its newest configuration, did before. It must campaign
    /// until that configuration is committed: perhaps no other replica has it, and then none of them can be
    /// elected against its log (Raft dissertation, section 4.2.2).
    fn has_voted(&self, machine: &M) -> bool {
        let applied = machine.applied_state().membership.body;
        let members = convert::decode_membership(&applied);
        members.is_ok_and(|members| members.voter_ids().any(|id| id == self.replica))
    }

    /// Whether no majority of the range has been reached for a while, as far as this replica can
    /// tell.
    pub fn lacks_quorum(&self, now: BootTime) -> bool {
        match self.standing.role.get() {
            Role::Leader if self.standing.alone.get() => false,
            Role::Leader => self.timers.is_left(now, self.quorum_at()),
            Role::Voter => self.timers.is_without_leader(now),
            Role::Learner => false,
        }
    }

    /// Whether all replicas within reach have every entry, and all is applied here.
    fn may_sleep(&self, tick: &Tick<'_>) -> bool {
        let metrics = self.metrics.borrow_watched();
        let last = metrics.last_log_index;
        metrics.last_applied.as_ref().map(|id| id.index) == last
            && metrics.replication.iter().flatten().all(|(id, matched)| {
                matched.as_ref().map(|id| id.index) == last || !(tick.is_there)(*id)
            })
    }

    /// Wakes the group up, so that its heartbeats go on.
    pub fn stay_awake(&self) {
        self.timers.work(M::Env::now());
    }

    /// When the driver must look at the group.
    pub fn due_at(&self) -> BootTime {
        match self.role() {
            Role::Leader => self.timers.leader_due_at(),
            Role::Voter | Role::Learner => self.timers.follower_due_at(),
        }
    }

    /// Notes that the leader's shard names it the leader of this replica's term.
    pub fn hear(&self, at: BootTime) {
        self.timers.hear(at);
    }

    /// Whether this replica has heard of a leader within the last lease.
    pub fn has_heard(&self, now: BootTime) -> bool {
        self.timers.has_heard(now)
    }
}
