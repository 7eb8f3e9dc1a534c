//! A node that gives up shards, with a manager that is fed with reports. No cluster runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::boot_time::BootTime;
use crate::boot_time::test_clock;
use crate::cluster::message::{HighestIds, LedRange, RangeStats, Report, ShardStats};
use crate::cluster::placement::Slot;
use crate::cluster::record::{MembershipStatus, NodeRecord};
use crate::cluster::test_reports::Reporters;
use crate::range::{Descriptor, Keyspace};
use crate::types::{Epoch, KeyRange, NodeId, RangeId, ReplicaId, SYSTEM_RANGE, ShardId};

const REPORT: Duration = Duration::from_millis(500);

fn at(shard: u16) -> Location {
    Location {
        node: NodeId(1),
        shard: ShardId(shard),
    }
}

/// A node that is alone, and does at once what it is ordered.
struct Case {
    manager: Manager,
    reporters: Reporters,
    now: BootTime,
    shards: u16,
    leaving: u16,
    /// How many bytes each range has.
    bytes: u64,
    /// The place of the only replica of each range, its id, and the range's `conf`.
    ranges: BTreeMap<RangeId, (ReplicaPlace, u32)>,
}

impl Case {
    /// A node with this many ranges on each shard; the system range is on the last one.
    fn new(shards: u16, each: u16) -> Case {
        let now = test_clock::now();
        let user = |number: u16| {
            let place = ReplicaPlace {
                replica: ReplicaId(u64::from(number) + 10),
                location: at(number % shards),
            };
            (RangeId(u64::from(number) + 2), (place, 1))
        };
        let mut ranges: BTreeMap<_, _> = (0..shards * each).map(user).collect();
        let system = ReplicaPlace {
            replica: ReplicaId(1),
            location: at(shards - 1),
        };
        ranges.insert(SYSTEM_RANGE, (system, 1));
        Case {
            manager: Manager::new(1, at(0), &[], std::iter::empty(), now),
            reporters: Reporters::default(),
            now,
            shards,
            leaving: 0,
            bytes: 1 << 30,
            ranges,
        }
    }

    fn led(&self, range: RangeId) -> LedRange {
        let (place, conf) = self.ranges[&range];
        let key = |number: u64| number.to_be_bytes().to_vec();
        let keyspace = match range {
            SYSTEM_RANGE => Keyspace::System,
            _ => Keyspace::User,
        };
        LedRange {
            descriptor: Descriptor {
                range,
                epoch: Epoch { version: 1, conf },
                keyspace,
                keys: KeyRange {
                    start: key(range.0),
                    end: Some(key(range.0 + 1)),
                },
                replicas: vec![place],
            },
            voters: vec![place.replica],
            changing: false,
            phase: crate::cluster::BoundsPhase::None,
            is_joint: false,
            has_quorum: true,
            leader: place.replica,
            term: 3,
            applied: 9,
            followers: Vec::new(),
            stats: RangeStats {
                bytes: self.bytes,
                ..RangeStats::default()
            },
            parts: 1,
        }
    }

    fn report(&mut self, shard: u16) {
        let here = self.ranges.iter();
        let here = here.filter(|(_, (place, _))| place.location == at(shard));
        let report = Report {
            from: at(shard),
            node: NodeRecord {
                id: NodeId(1),
                address: "node-1".to_owned(),
                shards: self.shards,
                leaving_shards: self.leaving,
                ..NodeRecord::default()
            },
            known: 0,
            number: 1,
            since: None,
            gone: Vec::new(),
            led: here.map(|(range, _)| self.led(*range)).collect(),
            held: Vec::new(),
            highest: HighestIds::default(),
            peers: Vec::new(),
            in_flight: 0,
            slow_disk: false,
            unreadable: Vec::new(),
            stats: ShardStats::default(),
        };
        let (manager, now) = (&mut self.manager, self.now);
        self.reporters.send(manager, &report, true, now);
    }

    fn pass(&mut self) {
        self.now += REPORT;
        (0..self.shards).for_each(|shard| self.report(shard));
    }

    /// What is ordered now: the range, and where its only replica must be.
    fn planned(&mut self) -> Vec<(RangeId, Location)> {
        let steps = self.manager.plan(self.now).into_iter();
        let planned = steps.map(|planned| match planned.step {
            Step::Change {
                range,
                voters,
                learners,
            } => match (voters.as_slice(), learners.as_slice()) {
                ([Slot::New(to)], []) => (range, *to),
                other => panic!("range {range} must have one voter: {other:?}"),
            },
            Step::Lead { range, .. } => panic!("nobody else can lead range {range}"),
        });
        planned.collect()
    }

    /// Moves these replicas at once, as ordered.
    fn carry_out(&mut self, planned: &[(RangeId, Location)]) {
        for (range, to) in planned {
            let (place, conf) = self.ranges.get_mut(range).expect("it is there");
            *place = ReplicaPlace {
                replica: ReplicaId(place.replica.0 + 1000),
                location: *to,
            };
            *conf += 1;
        }
    }

    fn on(&self, shard: u16) -> usize {
        let places = self.ranges.values();
        places
            .filter(|(place, _)| place.location == at(shard))
            .count()
    }
}

#[test]
fn the_replicas_of_shards_that_are_given_up_move_to_those_that_stay_a_few_at_a_time() {
    let mut case = Case::new(4, 5);
    case.pass();
    assert_eq!(case.planned(), [], "nothing leaves");
    case.leaving = 2;
    case.pass();
    let mut rounds = 0;
    loop {
        let planned = case.planned();
        if planned.is_empty() {
            break;
        }
        assert!(planned.len() <= CHANGES_MAX, "{planned:?}");
        let ranges: BTreeSet<RangeId> = planned.iter().map(|(range, _)| *range).collect();
        assert_eq!(ranges.len(), planned.len(), "each range once: {planned:?}");
        for (range, to) in &planned {
            assert!(case.ranges[range].0.location.shard >= ShardId(2));
            assert!(to.shard < ShardId(2), "{planned:?}");
        }
        case.carry_out(&planned);
        case.pass();
        rounds += 1;
    }
    assert_eq!(rounds, 2, "eleven replicas, eight at a time");
    let system = case.ranges[&SYSTEM_RANGE].0.location.shard;
    assert!(system < ShardId(2), "the system range moves, too");
    let on = [0, 1, 2, 3].map(|shard| case.on(shard));
    assert_eq!(on[2..], [0, 0]);
    assert!(on[0].abs_diff(on[1]) <= 1, "evenly: {on:?}");
}

#[test]
fn small_replicas_leave_shards_that_are_given_up_by_the_hundred() {
    let mut case = Case::new(2, 200);
    (case.leaving, case.bytes) = (1, 0);
    case.pass();
    let planned = case.planned();
    assert_eq!(planned.len(), 201, "and the system range");
    case.carry_out(&planned);
    case.pass();
    assert_eq!((case.on(0), case.on(1)), (401, 0));
}

#[test]
fn shards_that_stay_after_all_keep_what_they_have_and_further_ones_may_leave() {
    let mut case = Case::new(3, 2);
    case.leaving = 1;
    case.pass();
    let planned = case.planned();
    assert_eq!(planned.len(), 3);
    // One has moved when the node is started with all shards again.
    case.carry_out(&planned[..1]);
    case.leaving = 0;
    case.pass();
    assert_eq!(case.planned(), [], "they stay");
    case.leaving = 2;
    case.pass();
    let planned = case.planned();
    assert!(planned.iter().all(|(_, to)| *to == at(0)), "{planned:?}");
    case.carry_out(&planned);
    case.pass();
    let on = [0, 1, 2].map(|shard| case.on(shard));
    assert_eq!(on, [7, 0, 0]);
}

#[test]
fn a_member_at_a_shard_that_is_gone_is_replaced_and_its_load_is_forgotten() {
    let mut case = Case::new(2, 1);
    case.pass();
    assert!(case.manager.shards.known.contains_key(&at(1)));
    // The leader of a range may have named a learner there while the node was down: here it is the only
    // voter, whose leader still reports.
    case.shards = 1;
    case.now += REPORT;
    case.report(0);
    assert!(!case.manager.shards.known.contains_key(&at(1)));
    let planned = case.planned();
    let ranges: Vec<RangeId> = planned.iter().map(|(range, _)| *range).collect();
    assert_eq!(ranges, [SYSTEM_RANGE, RangeId(3)]);
    assert!(planned.iter().all(|(_, to)| *to == at(0)), "{planned:?}");
}

#[test]
fn a_node_that_is_decommissioned_does_not_move_replicas_between_its_shards() {
    let mut case = Case::new(2, 1);
    case.leaving = 1;
    case.pass();
    assert_eq!(case.planned().len(), 2);
    let status = MembershipStatus::Decommissioning;
    case.manager.memberships.insert(NodeId(1), status);
    assert_eq!(case.planned(), []);
    // The node has stopped reporting.
    case.manager.memberships.clear();
    case.now += Duration::from_secs(4);
    assert_eq!(case.planned(), []);
}

#[test]
fn a_replica_goes_to_the_learner_that_an_earlier_try_has_left() {
    let mut case = Case::new(4, 1);
    case.leaving = 1;
    case.pass();
    let (nodes, mut ranges) = case.manager.placed(case.now);
    let learner = ReplicaPlace {
        replica: ReplicaId(77),
        location: at(2),
    };
    let range = ranges.iter_mut().find(|range| range.id == RangeId(5));
    range.expect("it is on shard 3").learners = vec![learner];
    let steps = case
        .manager
        .leave_shards(&nodes, &mut ranges, &mut Room::beside(0, 0), case.now);
    let step = steps.into_iter().find(|step| step.range() == RangeId(5));
    let wanted = Step::Change {
        range: RangeId(5),
        voters: vec![Slot::Here(learner)],
        learners: Vec::new(),
    };
    assert_eq!(step, Some(wanted));
    assert!(
        ranges
            .iter()
            .any(|range| range.id == RangeId(5) && range.busy)
    );
}
