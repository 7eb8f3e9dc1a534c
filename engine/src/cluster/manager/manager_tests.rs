//! Tests of the manager, which is fed with reports: what it says of replicas that are members by name only
//! and of nodes that nobody reaches, and what it does about them. No cluster runs.

use super::*;
use crate::boot_time::BootTime;
use crate::boot_time::test_clock;
use crate::cluster::message::{
    ClusterResponse, Follower, HeldReplica, Peer, RangeStats, RangeView, Report, ShardStats,
};
use crate::cluster::placement::Step;
use crate::cluster::test_reports::Reporters;
use crate::error::OrderError;
use crate::range::{Descriptor, Keyspace};
use crate::types::{Epoch, KeyRange, SYSTEM_RANGE, ShardId};

const REPORT: Duration = Duration::from_millis(500);
const DEAD_AFTER_S: u32 = 10;

fn at(node: u64) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(0),
    }
}

/// A cluster of one range besides the system's, which node 1 leads; its replica on node N has the id N.
struct Case {
    manager: Manager,
    reporters: Reporters,
    now: BootTime,
    /// Nodes that report.
    nodes: Vec<u64>,
    /// Nodes that hold the range.
    members: Vec<u64>,
    /// Nodes whose shard has no replica though it should.
    missing: Vec<u64>,
    /// Replicas that have lost entries.
    lost: Vec<u64>,
    /// Replicas of which a block cannot be read.
    unreadable: Vec<u64>,
    /// Nodes that still have a replica though they are no members.
    left_over: Vec<u64>,
    /// Nodes that the others do not reach.
    unreached: Vec<u64>,
    /// Nodes that were not met where they say.
    unmet: Vec<u64>,
    /// Whether a change of each range is under way.
    changing: bool,
    /// What the leader reports of each range.
    stats: RangeStats,
}

impl Case {
    fn new(nodes: &[u64]) -> Case {
        let now = test_clock::now();
        let mut manager = Manager::new(1, at(1), &[], std::iter::empty(), now);
        manager.set(Setting {
            version: 1,
            name: "dead-after".to_owned(),
            value: format!("{DEAD_AFTER_S}s"),
            at_ms: 0,
        });
        Case {
            manager,
            reporters: Reporters::default(),
            now,
            nodes: nodes.to_vec(),
            members: vec![1, 2, 3],
            missing: Vec::new(),
            lost: Vec::new(),
            unreadable: Vec::new(),
            left_over: Vec::new(),
            unreached: Vec::new(),
            unmet: Vec::new(),
            changing: false,
            stats: RangeStats::default(),
        }
    }

    fn led(&self, range: RangeId) -> LedRange {
        let place = |node: &u64| ReplicaPlace {
            replica: ReplicaId(*node),
            location: at(*node),
        };
        let follower = |node: &u64| Follower {
            replica: ReplicaId(*node),
            matched: Some(9),
            lag: 0,
            stalls: false,
            answers: !self.unreached.contains(node),
            lost: self.lost.contains(node),
            takes_snapshot: false,
        };
        LedRange {
            descriptor: Descriptor {
                range,
                epoch: Epoch {
                    version: 1,
                    conf: 1,
                },
                keyspace: Keyspace::User,
                keys: KeyRange::all(),
                replicas: self.members.iter().map(place).collect(),
            },
            voters: self.members.iter().copied().map(ReplicaId).collect(),
            changing: self.changing,
            phase: crate::cluster::BoundsPhase::None,
            is_joint: false,
            has_quorum: true,
            leader: ReplicaId(1),
            term: 3,
            applied: 9,
            followers: self.members[1..].iter().map(follower).collect(),
            stats: self.stats,
            parts: 1,
        }
    }

    fn whole_report(&self, node: u64) -> Report {
        let ranges = [SYSTEM_RANGE, RangeId(2)];
        let is_member = self.members.contains(&node) && !self.missing.contains(&node);
        let holds = is_member || self.left_over.contains(&node);
        let held = ranges.map(|range| HeldReplica {
            range,
            replica: ReplicaId(node),
            conf: 1,
            left: false,
            is_empty: false,
            bounds: None,
            parts: 1,
        });
        let others = self.nodes.iter().filter(|other| **other != node);
        let peer = |other: &u64| Peer {
            at: at(*other),
            answers: !self.unreached.contains(other),
        };
        Report {
            from: at(node),
            node: NodeRecord {
                id: NodeId(node),
                address: format!("node-{node}"),
                shards: 1,
                ..NodeRecord::default()
            },
            known: 0,
            number: 1,
            since: None,
            gone: Vec::new(),
            led: match node {
                1 => ranges.map(|range| self.led(range)).to_vec(),
                _ => Vec::new(),
            },
            held: held.into_iter().filter(|_| holds && node != 1).collect(),
            highest: HighestIds::default(),
            peers: others.map(peer).collect(),
            in_flight: 0,
            slow_disk: false,
            unreadable: {
                let here = self.unreadable.iter().filter(|id| **id == node);
                here.copied().map(ReplicaId).collect()
            },
            stats: ShardStats {
                cpu: 100,
                bytes: self.stats.bytes,
                ..ShardStats::default()
            },
        }
    }

    fn report(&mut self, node: u64) -> ClusterResponse {
        let report = self.whole_report(node);
        let is_there = !self.unmet.contains(&node);
        let (manager, now) = (&mut self.manager, self.now);
        self.reporters.send(manager, &report, is_there, now)
    }

    /// Lets this much time pass, in which all nodes report.
    fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds * 2 {
            for node in self.nodes.clone() {
                self.report(node);
            }
            self.now += REPORT;
        }
    }

    fn range(&self) -> RangeView {
        let view = self.manager.view(self.now);
        let mut ranges = view.ranges.into_iter();
        let found = ranges.find(|range| range.descriptor.range == RangeId(2));
        found.expect("it is known")
    }

    fn state(&self, node: u64) -> Option<NodeHealth> {
        let view = self.manager.view(self.now);
        let mut nodes = view.nodes.iter();
        let found = nodes.find(|known| known.record.id == NodeId(node))?;
        Some(found.state)
    }

    /// The nodes that are to get a new voter of the range, and the voters that stay.
    fn planned(&self) -> Option<(Vec<u64>, Vec<u64>)> {
        let steps = self.manager.plan(self.now);
        let change = steps.iter().find_map(|planned| match &planned.step {
            Step::Change { range, voters, .. } if *range == RangeId(2) => Some(voters),
            _ => None,
        })?;
        let (mut new, mut stay) = (Vec::new(), Vec::new());
        for slot in change {
            match slot {
                Slot::New(location) => new.push(location.node.0),
                Slot::Here(place) => stay.push(place.replica.0),
            }
        }
        stay.sort_unstable();
        Some((new, stay))
    }
}

#[test]
fn a_cluster_that_is_well_is_left_alone() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(30);
    let range = case.range();
    assert!(
        !range.under_replicated && range.faults.is_empty(),
        "{range:?}"
    );
    assert_eq!(case.planned(), None);
}

#[test]
fn a_replica_that_has_lost_entries_is_replaced_at_once_also_on_its_own_node() {
    for (nodes, new) in [(vec![1, 2, 3], 3), (vec![1, 2, 3, 4], 4)] {
        let mut case = Case::new(&nodes);
        case.pass(5);
        case.lost = vec![3];
        case.pass(1);
        let range = case.range();
        assert_eq!(range.faults, [(ReplicaId(3), ReplicaFault::Lost)]);
        assert!(range.under_replicated);
        assert_eq!(case.planned(), Some((vec![new], vec![1, 2])));
    }
}

#[test]
fn nothing_is_replaced_while_most_voters_are_in_trouble_and_never_two_at_a_time() {
    let mut case = Case::new(&[1, 2, 3]);
    case.lost = vec![2, 3];
    case.pass(5);
    assert_eq!(case.range().faults.len(), 2);
    assert_eq!(case.planned(), None);
    let mut case = Case::new(&[1, 2, 3, 4, 5]);
    case.members = vec![1, 2, 3, 4, 5];
    case.manager.set(Setting {
        version: 2,
        name: "replication-factor".to_owned(),
        value: "5".to_owned(),
        at_ms: 0,
    });
    case.lost = vec![2, 3];
    case.pass(5);
    let (new, stay) = case.planned().expect("a change");
    assert_eq!((new, stay.len()), (vec![2], 4));
}

#[test]
fn a_leader_that_was_cut_off_is_removed_once_members_that_are_newer_have_no_place_for_it() {
    let mut case = Case::new(&[1, 2, 3, 4]);
    let stale = case.whole_report(1);
    case.members = vec![2, 3, 4];
    let mut newer = case.whole_report(2);
    newer.held.clear();
    newer.led = stale.led.clone();
    for led in &mut newer.led {
        (led.leader, led.term) = (ReplicaId(2), led.term + 1);
    }
    let remove = |case: &mut Case, report: &Report| {
        case.now += REPORT;
        match case.manager.take(report.clone(), true, case.now) {
            ClusterResponse::Synced { remove, .. } => remove,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(remove(&mut case, &newer), []);
    assert_eq!(
        remove(&mut case, &stale),
        [],
        "it was deposed, and is a member"
    );
    for led in &mut newer.led {
        let moved = case.led(led.descriptor.range);
        (led.descriptor, led.voters) = (moved.descriptor, moved.voters);
        led.descriptor.epoch.conf += 1;
    }
    assert_eq!(remove(&mut case, &newer), []);
    let both = [SYSTEM_RANGE, RangeId(2)].map(|range| (range, ReplicaId(1)));
    assert_eq!(remove(&mut case, &stale), both);
}

#[test]
fn a_replica_that_its_shard_does_not_report_is_missing_and_replaced() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(5);
    case.missing = vec![2];
    case.pass(1);
    assert_eq!(case.range().faults, [], "not after two reports");
    case.pass(3);
    assert_eq!(case.range().faults, [(ReplicaId(2), ReplicaFault::Missing)]);
    assert!(case.range().under_replicated);
    assert_eq!(case.planned(), Some((vec![2], vec![1, 3])));
}

#[test]
fn a_replica_that_cannot_read_all_its_rows_is_told_and_replaced_once_it_is_gone() {
    let mut case = Case::new(&[1, 2, 3, 4]);
    case.pass(5);
    case.unreadable = vec![2];
    case.pass(5);
    assert_eq!(
        case.range().faults,
        [(ReplicaId(2), ReplicaFault::Unreadable)]
    );
    assert!(case.range().under_replicated);
    assert_eq!(case.planned(), None, "it goes by itself");
    // It votes: another one that is missing is replaced meanwhile.
    case.missing = vec![3];
    case.pass(5);
    let both = [
        (ReplicaId(2), ReplicaFault::Unreadable),
        (ReplicaId(3), ReplicaFault::Missing),
    ];
    assert_eq!(case.range().faults, both);
    assert_eq!(case.planned(), Some((vec![4], vec![1, 2])));
    // Not if it has lost entries besides.
    case.lost = vec![2];
    case.pass(1);
    assert_eq!(case.planned(), None);
    case.lost = Vec::new();
    (case.unreadable, case.missing) = (Vec::new(), vec![2]);
    case.pass(5);
    assert_eq!(case.range().faults, [(ReplicaId(2), ReplicaFault::Missing)]);
    assert_eq!(case.planned(), Some((vec![4], vec![1, 3])));
}

#[test]
fn a_node_that_reports_and_is_not_reached_is_no_target_and_is_replaced_after_dead_after() {
    let mut case = Case::new(&[1, 2, 3, 4]);
    case.pass(5);
    case.unreached = vec![3, 4];
    case.pass(6);
    assert_eq!(case.state(3), Some(NodeHealth::Unreachable));
    assert!(case.range().under_replicated);
    assert_eq!(case.planned(), None, "it has its time");
    case.pass(DEAD_AFTER_S);
    assert_eq!(case.state(3), Some(NodeHealth::Dead));
    assert_eq!(case.planned(), None, "node 4 is not reached, either");
    case.unreached = vec![3];
    case.pass(1);
    assert_eq!(case.planned(), Some((vec![4], vec![1, 2])));
    case.unreached.clear();
    case.pass(1);
    assert_eq!(case.state(3), Some(NodeHealth::Alive));
}

#[test]
fn a_shard_that_failed_is_avoided_while_there_is_another() {
    let mut case = Case::new(&[1, 2, 3, 4, 5]);
    case.pass(5);
    case.lost = vec![3];
    case.pass(1);
    // The system range has lost one, too, and takes the other free node.
    let (new, _) = case.planned().expect("a change");
    assert!(new == [4] || new == [5], "{new:?}");
    case.manager.target_failed(at(new[0]), case.now);
    let (other, _) = case.planned().expect("a change");
    assert_eq!(other, [9 - new[0]]);
}

#[test]
fn a_node_that_was_not_met_where_it_says_is_no_part_of_the_cluster_or_stays_where_it_was() {
    let mut case = Case::new(&[1, 2, 3, 4]);
    case.unmet = vec![4];
    case.pass(5);
    assert_eq!(case.state(4), None);
    let response = case.report(4);
    assert!(
        matches!(response, ClusterResponse::Synced { unmet: true, .. }),
        "{response:?}"
    );
    case.unmet.clear();
    case.pass(1);
    assert_eq!(case.state(4), Some(NodeHealth::Alive));
    let response = case.report(4);
    assert!(
        matches!(response, ClusterResponse::Synced { unmet: false, .. }),
        "{response:?}"
    );
}

/// When to try an order again; `None`: it was not refused as busy.
fn busy<T>(refused: Result<T, OrderError>) -> Option<u32> {
    match refused {
        Err(OrderError::Busy { retry_after_ms, .. }) => Some(retry_after_ms),
        _ => None,
    }
}

#[test]
fn what_passes_by_itself_is_busy_and_what_does_not_exist_is_not_found() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(5);
    let order = |case: &Case, id| {
        let found = case.manager.orderable(RangeId(id), case.now);
        found.map(|(leader, _)| leader)
    };
    let node = |case: &Case, id| {
        let found = case.manager.check_node(NodeId(id), case.now);
        found.map(|record| record.id)
    };
    assert_eq!(order(&case, 2), Ok(at(1)));
    assert_eq!(node(&case, 3), Ok(NodeId(3)));
    assert!(matches!(order(&case, 9), Err(OrderError::NotFound(why)) if why.contains('9')));
    assert!(matches!(node(&case, 9), Err(OrderError::NotFound(why)) if why.contains('9')));

    let transfer_to = ClusterRequest::TransferLeadership {
        range: RangeId(2),
        to: ReplicaId(2),
    };
    case.manager.order(&transfer_to, case.now);
    assert!(busy(order(&case, 2)).is_some_and(|after| after > 0));
    case.manager.refused(RangeId(2));
    assert_eq!(order(&case, 2), Ok(at(1)), "the next order need not wait");

    case.nodes = vec![1, 2];
    case.pass(4);
    let silent = busy(node(&case, 3)).expect("it may come back at once");
    case.pass(DEAD_AFTER_S);
    let dead = busy(node(&case, 3)).expect("it may come back");
    assert!(silent > 0 && dead > silent, "{silent} {dead}");

    case.now += Duration::from_secs(4);
    assert!(
        busy(order(&case, 2)).is_some(),
        "its leader has not reported"
    );
}

#[test]
fn a_move_whose_change_was_taken_back_is_ordered_again_until_the_replica_has_moved() {
    let mut case = Case::new(&[1, 2, 3, 4]);
    case.manager.set(Setting {
        version: 2,
        name: "balance".to_owned(),
        value: "off".to_owned(),
        at_ms: 0,
    });
    case.pass(5);
    assert_eq!(case.planned(), None);
    let (from, to) = (ReplicaId(2), at(4));
    case.manager.move_accepted(RangeId(2), from, to, case.now);
    assert_eq!(case.planned(), Some((vec![4], vec![1, 3])));

    case.nodes = vec![1, 2, 3];
    case.pass(4);
    assert_eq!(case.planned(), None, "node 4 is silent");
    case.nodes = vec![1, 2, 3, 4];
    case.pass(1);
    assert_eq!(case.planned(), Some((vec![4], vec![1, 3])));

    case.members = vec![1, 3, 4];
    case.pass(1);
    assert_eq!(case.planned(), None, "the replica has moved");
    case.members = vec![1, 2, 3];
    case.pass(1);
    assert_eq!(case.planned(), None, "the move was done once");

    case.manager.move_accepted(RangeId(2), from, to, case.now);
    case.pass(599);
    assert!(case.planned().is_some());
    case.pass(2);
    assert_eq!(case.planned(), None, "it cannot be done");
}

#[test]
fn a_setting_that_is_unknown_or_out_of_bounds_is_refused_as_such() {
    let case = Case::new(&[1]);
    let set = |name, value| case.manager.new_setting(name, value, 7);
    assert!(set("dead-after", "1.5m").is_ok());
    assert!(matches!(
        set("dead-after", "500ms"),
        Err(OrderError::Invalid(_))
    ));
    assert!(matches!(set("colour", "red"), Err(OrderError::NotFound(_))));
}

#[path = "../leaving/leaving_tests.rs"]
mod leaving;

#[test]
fn sizes_and_loads_are_told_to_who_asks_and_make_no_new_view() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(2);
    case.manager.refresh(case.now);
    let version = case.manager.published.view.version;
    case.stats = RangeStats {
        bytes: 4 << 20,
        live_bytes: 3 << 20,
        reads_per_second: 7,
        writes_per_second: 8,
        cpu_millis_per_second: 9,
        ..RangeStats::default()
    };
    case.pass(2);
    case.manager.refresh(case.now);
    assert_eq!(case.manager.published.view.version, version);
    let pushed = &case.manager.published.view;
    assert!(
        pushed
            .ranges
            .iter()
            .all(|range| range.stats == RangeStats::default())
    );
    assert_eq!(case.range().stats, case.stats);
    let asked = case.manager.view(case.now);
    let shards = [ShardStats {
        cpu: 100,
        bytes: 4 << 20,
        ..ShardStats::default()
    }];
    assert!(
        asked.nodes.iter().all(|node| node.shards == shards),
        "{asked:?}"
    );
    // What a silent leader said last is not told as if it were so now.
    case.nodes.retain(|node| *node != 1);
    case.pass(5);
    assert_eq!(case.range().stats, RangeStats::default());
}
