//! Finds replicas that are members but do not do their part, and nodes that no other node reaches.
//!
//! A node that reports need not hold what it should. Its log may have been emptied, its address may be one at
//! which no other node reaches it, or a replica may have stopped accepting entries. So the manager takes
//! three things from the reports:
//!
//! - what the leader of a range says of each follower: whether it has lost acknowledged entries, whether it
//!   answers, and whether it accepts entries;
//! - which replicas a shard reports at all: a member that is not among them is missing;
//! - which other shards answer a shard: a node that reports, but that none of the others reaches, is
//!   unreachable.
//!
//! One report proves nothing, and the time before a pause in the reports does not count. Each condition must
//! have lasted without a break ([`Spell`]), and a new manager starts to count from zero. The manager also
//! remembers which shards failed to make a replica. No I/O here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::backoff::{Backoff, Limits};
use crate::cluster::message::{Follower, Peer, ReplicaFault};
use crate::range::Descriptor;
use crate::types::{Location, NodeId, RangeId, ReplicaId};

/// Reports further apart than this say nothing about the time between them.
const BREAK: Duration = Duration::from_secs(3);
/// A replica is missing if this many reports of its shard in a row do not name it.
const ABSENT_REPORTS: u32 = 4;
/// And if they span at least this time.
const ABSENT_FOR: Duration = Duration::from_secs(2);
/// A node that no other has reached for this long is unreachable.
const UNREACHED_AFTER: Duration = Duration::from_secs(3);
/// A replica that accepts no entries gets at least this long, even with a shorter `dead-after`.
const BEHIND_AT_LEAST: Duration = Duration::from_secs(5);
/// How long a shard that failed to make a replica is avoided.
const AVOIDED_FOR: Limits = Limits {
    first: Duration::from_secs(15),
    longest: Duration::from_mins(10),
};
/// A failure whose pause ended three times its length ago counts no more.
const FORGOTTEN_AFTER: u32 = 3;

/// A condition that has held in one report after another.
#[derive(Clone, Copy, Debug)]
struct Spell {
    since: BootTime,
    last: BootTime,
    reports: u32,
}

impl Spell {
    /// Takes from a report whether the condition holds.
    fn note(spell: &mut Option<Spell>, is_so: bool, now: BootTime) {
        let goes_on = spell.as_mut().filter(|spell| now < spell.last + BREAK);
        match goes_on {
            _ if !is_so => *spell = None,
            Some(spell) => {
                spell.last = now;
                spell.reports += 1;
            }
            None => {
                *spell = Some(Spell {
                    since: now,
                    last: now,
                    reports: 1,
                });
            }
        }
    }

    /// Whether the condition has held for at least this time, and still does.
    fn lasts(spell: Option<&Spell>, time: Duration, now: BootTime) -> bool {
        spell.is_some_and(|spell| now < spell.last + BREAK && now >= spell.since + time)
    }
}

/// What is known of a member of a range.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    is_lost: bool,
    behind: Option<Spell>,
    absent: Option<Spell>,
}

/// See the module's chapter.
#[derive(Debug)]
pub(in crate::cluster) struct Health {
    members: BTreeMap<(RangeId, ReplicaId), Member>,
    unreached: BTreeMap<NodeId, Spell>,
    /// The shards that failed to make a replica.
    failed: BTreeMap<Location, Backoff>,
}

impl Health {
    /// Starts without any knowledge.
    pub fn new() -> Health {
        Health {
            members: BTreeMap::new(),
            unreached: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Takes what the leader of a range reports of its followers.
    pub fn take_followers(
        &mut self,
        descriptor: &Descriptor,
        leader: ReplicaId,
        followers: &[Follower],
        now: BootTime,
    ) {
        let range = descriptor.range;
        let of_range = (range, ReplicaId(0))..=(range, ReplicaId(u64::MAX));
        let gone: Vec<_> = self
            .members
            .range(of_range)
            .map(|(key, _)| *key)
            .filter(|(_, replica)| descriptor.location(*replica).is_none())
            .collect();
        for key in gone {
            self.members.remove(&key);
        }
        if let Some(leader) = self.members.get_mut(&(range, leader)) {
            (leader.behind, leader.is_lost) = (None, false);
        }
        for follower in followers {
            let member = self.members.entry((range, follower.replica)).or_default();
            member.is_lost = follower.lost;
            Spell::note(&mut member.behind, !follower.is_well(), now);
        }
    }

    /// Takes whether a shard has reported a replica that it should have.
    pub fn take_presence(
        &mut self,
        range: RangeId,
        replica: ReplicaId,
        is_there: bool,
        now: BootTime,
    ) {
        let key = (range, replica);
        match self.members.get_mut(&key) {
            None if is_there => {}
            Some(member) => Spell::note(&mut member.absent, !is_there, now),
            None => {
                let mut member = Member::default();
                Spell::note(&mut member.absent, true, now);
                self.members.insert(key, member);
            }
        }
    }

    /// Takes which shards of other nodes answer a shard.
    pub fn take_peers(&mut self, of: NodeId, peers: &[Peer], now: BootTime) {
        let mut reached: BTreeMap<NodeId, bool> = BTreeMap::new();
        for peer in peers.iter().filter(|peer| peer.at.node != of) {
            *reached.entry(peer.at.node).or_default() |= peer.answers;
        }
        for (node, is_reached) in reached {
            let mut spell = self.unreached.remove(&node);
            Spell::note(&mut spell, !is_reached, now);
            if let Some(spell) = spell {
                self.unreached.insert(node, spell);
            }
        }
    }

    /// Since when no other node reaches this one; `None` if one does, or it is not known.
    pub fn unreached_since(&self, node: NodeId, now: BootTime) -> Option<BootTime> {
        let spell = self.unreached.get(&node);
        Spell::lasts(spell, UNREACHED_AFTER, now).then(|| spell.map(|spell| spell.since))?
    }

    /// What is wrong with a member of a range, if anything is.
    pub fn fault(
        &self,
        range: RangeId,
        replica: ReplicaId,
        dead_after: Duration,
        now: BootTime,
    ) -> Option<ReplicaFault> {
        let member = self.members.get(&(range, replica))?;
        let is_absent = member
            .absent
            .filter(|spell| spell.reports >= ABSENT_REPORTS)
            .is_some_and(|spell| Spell::lasts(Some(&spell), ABSENT_FOR, now));
        let timeout = dead_after.max(BEHIND_AT_LEAST);
        if member.is_lost {
            Some(ReplicaFault::Lost)
        } else if is_absent {
            Some(ReplicaFault::Missing)
        } else if Spell::lasts(member.behind.as_ref(), timeout, now) {
            Some(ReplicaFault::Behind)
        } else {
            None
        }
    }

    /// Notes that a shard failed to make a replica. Many orders that were given at the same time fail together:
    /// while the shard is avoided, no more failures count.
    pub fn target_failed(&mut self, at: Location, now: BootTime) {
        let before = self.failed.get(&at);
        if before.is_some_and(|failed| failed.lasts(now)) {
            return;
        }
        // A failure long ago does not count.
        let before = before.filter(|failed| !failed.is_forgotten(FORGOTTEN_AFTER, now));
        let pause = Backoff::after(before, AVOIDED_FOR, now);
        self.failed.insert(at, pause);
    }

    /// Shards that get no replica while there are others.
    pub fn avoided(&self, now: BootTime) -> BTreeSet<Location> {
        let failed = self.failed.iter();
        let avoided = failed.filter(|(_, pause)| pause.lasts(now));
        avoided.map(|(at, _)| *at).collect()
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;
    use crate::range::{Keyspace, ReplicaPlace};
    use crate::types::{Epoch, KeyRange, ShardId};

    const RANGE: RangeId = RangeId(7);
    const DEAD_AFTER: Duration = Duration::from_secs(10);
    const REPORT: Duration = Duration::from_millis(500);

    fn at(node: u64) -> Location {
        Location {
            node: NodeId(node),
            shard: ShardId(0),
        }
    }

    fn descriptor(replicas: &[u64]) -> Descriptor {
        let place = |id: &u64| ReplicaPlace {
            replica: ReplicaId(*id),
            location: at(*id),
        };
        Descriptor {
            range: RANGE,
            epoch: Epoch {
                version: 1,
                conf: 1,
            },
            keyspace: Keyspace::User,
            keys: KeyRange::all(),
            replicas: replicas.iter().map(place).collect(),
        }
    }

    fn follower(matched: u64, lag: u64) -> Follower {
        Follower {
            replica: ReplicaId(2),
            matched: Some(matched),
            lag,
            stalls: lag > 0,
            answers: true,
            lost: false,
            takes_snapshot: false,
        }
    }

    /// Health, and its clock.
    struct Case {
        health: Health,
        now: BootTime,
    }

    impl Case {
        fn new() -> Case {
            Case {
                health: Health::new(),
                now: test_clock::now(),
            }
        }

        /// Reports for so long; gives what is wrong at the end.
        fn led(
            &mut self,
            time: Duration,
            mut report: impl FnMut(u64) -> Follower,
        ) -> Option<ReplicaFault> {
            for number in 0..=(time.as_millis() / REPORT.as_millis()) as u64 {
                let (health, descriptor) = (&mut self.health, descriptor(&[1, 2]));
                health.take_followers(&descriptor, ReplicaId(1), &[report(number)], self.now);
                self.now += REPORT;
            }
            self.fault()
        }

        fn fault(&self) -> Option<ReplicaFault> {
            self.health.fault(RANGE, ReplicaId(2), DEAD_AFTER, self.now)
        }
    }

    #[test]
    fn a_replica_that_takes_nothing_for_dead_after_is_behind() {
        let mut case = Case::new();
        assert_eq!(case.led(DEAD_AFTER / 2, |_| follower(5, 3)), None);
        assert_eq!(
            case.led(DEAD_AFTER, |_| follower(5, 3)),
            Some(ReplicaFault::Behind)
        );
        assert_eq!(
            case.led(REPORT, |_| follower(8, 0)),
            None,
            "it has caught up"
        );
    }

    #[test]
    fn a_replica_that_does_not_answer_its_leader_is_behind_though_it_lacks_nothing() {
        let mut case = Case::new();
        let silent = |_| Follower {
            answers: false,
            ..follower(5, 0)
        };
        assert_eq!(case.led(DEAD_AFTER * 2, silent), Some(ReplicaFault::Behind));
    }

    #[test]
    fn one_that_gets_entries_or_a_snapshot_all_the_time_is_well() {
        let mut case = Case::new();
        let busy = |number| Follower {
            stalls: false,
            ..follower(5 + number, 3)
        };
        assert_eq!(case.led(DEAD_AFTER * 2, busy), None);
        let takes = |_| Follower {
            matched: None,
            takes_snapshot: true,
            ..follower(0, u64::MAX)
        };
        assert_eq!(case.led(DEAD_AFTER * 2, takes), None);
    }

    #[test]
    fn a_break_in_the_reports_begins_the_time_anew() {
        let mut case = Case::new();
        assert_eq!(case.led(DEAD_AFTER / 2, |_| follower(5, 3)), None);
        case.now += DEAD_AFTER * 5;
        assert_eq!(case.fault(), None);
        assert_eq!(case.led(DEAD_AFTER / 2, |_| follower(5, 3)), None);
    }

    #[test]
    fn a_loss_counts_at_once_until_the_replica_is_no_member() {
        let mut case = Case::new();
        let lost = |_| Follower {
            lost: true,
            ..follower(5, 3)
        };
        assert_eq!(case.led(Duration::ZERO, lost), Some(ReplicaFault::Lost));
        let health = &mut case.health;
        health.take_followers(&descriptor(&[1, 3]), ReplicaId(1), &[], case.now);
        assert_eq!(case.fault(), None);
    }

    #[test]
    fn a_member_that_its_shard_does_not_report_is_missing_after_some_reports() {
        let mut case = Case::new();
        let mut presence = |is_there, reports| {
            for _ in 0..reports {
                let health = &mut case.health;
                health.take_presence(RANGE, ReplicaId(2), is_there, case.now);
                case.now += REPORT;
            }
            case.fault()
        };
        assert_eq!(presence(true, 9), None);
        assert_eq!(presence(false, 2), None, "it may be on its way in");
        assert_eq!(presence(true, 1), None);
        assert_eq!(presence(false, 3), None);
        assert_eq!(presence(false, 3), Some(ReplicaFault::Missing));
        assert_eq!(presence(true, 1), None);
    }

    #[test]
    fn a_node_cannot_be_reached_if_none_of_the_others_reaches_it() {
        let mut case = Case::new();
        let peer = |node, answers| Peer {
            at: at(node),
            answers,
        };
        let mut report = |from: u64, peers: &[Peer], reports: u32| {
            for _ in 0..reports {
                case.health.take_peers(NodeId(from), peers, case.now);
                case.now += REPORT;
            }
            case.health.unreached_since(NodeId(2), case.now).is_some()
        };
        assert!(!report(1, &[peer(2, false)], 3), "too early");
        assert!(report(1, &[peer(2, false)], 6));
        assert!(!report(3, &[peer(2, true)], 1), "another reaches it");
        assert!(!report(2, &[peer(2, false)], 20), "its own word");
        assert!(report(1, &[peer(2, false), peer(3, true)], 9));
    }

    #[test]
    fn a_shard_that_failed_is_avoided_for_longer_each_time() {
        let mut case = Case::new();
        // All that it was ordered at the same time fails.
        (0..32).for_each(|_| case.health.target_failed(at(2), case.now));
        assert_eq!(case.health.avoided(case.now), [at(2)].into());
        case.now += AVOIDED_FOR.first;
        assert!(case.health.avoided(case.now).is_empty());
        case.health.target_failed(at(2), case.now);
        case.now += AVOIDED_FOR.first;
        assert_eq!(case.health.avoided(case.now), [at(2)].into());
        case.now += AVOIDED_FOR.longest;
        assert!(case.health.avoided(case.now).is_empty());
    }
}
