//! Tests of the replicas and leaders that placement orders, over made-up nodes and ranges.

use std::collections::BTreeSet;

use super::*;
use crate::cluster::placement::count_balance;
use crate::cluster::placement::load_balance::{Allowance, Picture};
use crate::cluster::placement::loads::{Expected, Loads};

fn node(id: u64) -> Node {
    Node {
        id: NodeId(id),
        shards: 2,
        accepts_new: true,
        drains: false,
        avoided: Vec::new(),
    }
}

fn at(node: u64, shard: u16) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(shard),
    }
}

fn range(id: u64, voters: &[u64]) -> Range {
    let place = |node: &u64| ReplicaPlace {
        replica: ReplicaId(id * 100 + node),
        location: at(*node, (id % 2) as u16),
    };
    let voters: Vec<ReplicaPlace> = voters.iter().map(place).collect();
    Range {
        id: RangeId(id),
        leader: voters.first().map(|place| place.replica),
        caught_up: voters.iter().map(|place| place.replica).collect(),
        voters,
        learners: Vec::new(),
        given_up: None,
        not_on: None,
        bytes: 1 << 30,
        is_joint: false,
        busy: false,
    }
}

/// The next steps, with those that spread replicas and leaders if that is wished.
fn plan(nodes: &[Node], ranges: &[Range], factor: usize, spread: bool) -> Vec<Step> {
    let mut steps = super::plan(nodes, ranges, factor, Room::beside(0, 0));
    if spread {
        let mut free = ranges.to_vec();
        for range in &mut free {
            range.busy |= steps.iter().any(|step| step.range() == range.id);
        }
        let (loads, resting) = (BTreeMap::new(), BTreeSet::new());
        let picture = Picture::new(nodes, &free, &loads, &resting);
        let mut allowance = Allowance {
            orders: 16,
            moves_max: 2,
            incoming: BTreeMap::new(),
            leads: BTreeMap::new(),
        };
        let of_shards = Loads::new();
        let mut expected = Expected::default();
        let spread = count_balance::by_count(&picture, &of_shards, &mut expected, &mut allowance);
        steps.extend(spread.into_iter().map(|proposal| proposal.step));
    }
    steps
}

/// Does what the steps say, at once; new replicas get ids of their own.
fn apply(ranges: &mut [Range], steps: &[Step], next: &mut u64) {
    let mut made = |slot: &Slot| match slot {
        Slot::Here(place) => *place,
        Slot::New(location) => {
            *next += 1;
            ReplicaPlace {
                replica: ReplicaId(*next),
                location: *location,
            }
        }
    };
    for step in steps {
        match step {
            Step::Change {
                range,
                voters,
                learners,
            } => {
                let range = ranges.iter_mut().find(|r| r.id == *range).expect("known");
                range.voters = voters.iter().map(&mut made).collect();
                range.learners = learners.iter().map(&mut made).collect();
                range.given_up = None;
                range.caught_up = range.voters.iter().map(|p| p.replica).collect();
                if !range.voters.iter().any(|p| Some(p.replica) == range.leader) {
                    range.leader = range.voters.first().map(|p| p.replica);
                }
            }
            Step::Lead { range, to } => {
                let range = ranges.iter_mut().find(|r| r.id == *range).expect("known");
                assert!(range.voters.iter().any(|p| p.replica == *to));
                range.leader = Some(*to);
            }
        }
    }
}

/// Plans and applies until nothing is left to do.
fn settle(nodes: &[Node], ranges: &mut [Range], factor: usize) {
    let replicas = ranges
        .iter()
        .flat_map(|r| r.voters.iter().chain(&r.learners));
    let mut next = 10_000 + replicas.map(|place| place.replica.0).max().unwrap_or(0);
    for _ in 0..1000 {
        let steps = plan(nodes, ranges, factor, true);
        if steps.is_empty() {
            return;
        }
        apply(ranges, &steps, &mut next);
        for range in ranges.iter() {
            let nodes: Vec<NodeId> = range.voters.iter().map(|p| p.location.node).collect();
            let mut unique = nodes.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(
                unique.len(),
                nodes.len(),
                "one replica on a node: {range:?}"
            );
        }
    }
    panic!("it never settles: {ranges:?}");
}

fn leaders(ranges: &[Range], node: u64) -> usize {
    let leads = |range: &&Range| {
        let mut voters = range.voters.iter();
        voters.any(|p| Some(p.replica) == range.leader && p.location.node == NodeId(node))
    };
    ranges.iter().filter(leads).count()
}

#[test]
fn a_second_node_holds_learners_and_a_third_makes_one_voter_three() {
    let mut ranges: Vec<Range> = (1..=6).map(|id| range(id, &[1])).collect();
    settle(&[node(1), node(2)], &mut ranges, 3);
    for range in &ranges {
        assert_eq!((range.voters.len(), range.learners.len()), (1, 1));
    }
    let steps = plan(&[node(1), node(2), node(3)], &ranges, 3, true);
    let Some(Step::Change {
        voters, learners, ..
    }) = steps.first()
    else {
        panic!("a change comes first: {steps:?}");
    };
    assert_eq!((voters.len(), learners.len()), (3, 0));
    settle(&[node(1), node(2), node(3)], &mut ranges, 3);
    for range in &ranges {
        assert_eq!((range.voters.len(), range.learners.len()), (3, 0));
    }
    for node in 1..=3 {
        assert!((1..=3).contains(&leaders(&ranges, node)), "{ranges:?}");
    }
}

#[test]
fn a_dead_nodes_replicas_are_replaced_where_there_is_a_node() {
    let mut ranges: Vec<Range> = (1..=4).map(|id| range(id, &[1, 2, 3])).collect();
    // Node 3 is dead: it is left out.
    let before: Vec<_> = ranges.iter().map(|range| range.voters.clone()).collect();
    settle(&[node(1), node(2)], &mut ranges, 3);
    let after: Vec<_> = ranges.iter().map(|range| range.voters.clone()).collect();
    assert_eq!(before, after);
    settle(&[node(1), node(2), node(4)], &mut ranges, 3);
    for range in &ranges {
        let mut nodes: Vec<u64> = range.voters.iter().map(|p| p.location.node.0).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2, 4]);
    }
}

#[test]
fn a_replica_that_is_given_up_is_replaced_on_a_free_node_or_on_its_own() {
    for free in [false, true] {
        let mut nodes = vec![node(1), node(2), node(3)];
        nodes.extend(free.then(|| node(4)));
        let mut ranges = vec![range(1, &[1, 2, 3])];
        ranges[0].given_up = Some(ReplicaId(103));
        let steps = plan(&nodes, &ranges, 3, true);
        let [Step::Change { voters, .. }] = steps.as_slice() else {
            panic!("one change: {steps:?}");
        };
        let new: Vec<Location> = voters
            .iter()
            .filter(|slot| matches!(slot, Slot::New(_)))
            .map(|slot| slot.location())
            .collect();
        let wanted = if free { at(4, 0) } else { at(3, 0) };
        assert_eq!((voters.len(), new), (3, vec![wanted]));
        // If the old one is still there, not on its node.
        ranges[0].not_on = Some(NodeId(3));
        assert_eq!(plan(&nodes, &ranges, 3, true).len(), usize::from(free));
        ranges[0].not_on = None;
        settle(&nodes, &mut ranges, 3);
        assert!(ranges[0].voters.iter().all(|p| p.replica != ReplicaId(103)));
    }
}

#[test]
fn a_learner_that_is_given_up_is_made_anew_and_is_not_made_a_voter() {
    let mut ranges = vec![range(1, &[1])];
    settle(&[node(1), node(2)], &mut ranges, 3);
    let learner = ranges[0].learners[0];
    ranges[0].given_up = Some(learner.replica);
    let steps = plan(&[node(1), node(2), node(3)], &ranges, 3, true);
    let Some(Step::Change { voters, .. }) = steps.first() else {
        panic!("a change: {steps:?}");
    };
    assert!(!voters.contains(&Slot::Here(learner)), "{voters:?}");
    settle(&[node(1), node(2)], &mut ranges, 3);
    assert_ne!(ranges[0].learners[0].replica, learner.replica);
}

#[test]
fn a_shard_that_failed_is_taken_only_if_there_is_no_other() {
    let mut failed = node(4);
    failed.avoided = vec![ShardId(0), ShardId(1)];
    // Node 3 is dead.
    let ranges = vec![range(1, &[1, 2, 3])];
    let targets = |nodes: &[Node]| {
        let steps = plan(nodes, &ranges, 3, true);
        let [Step::Change { voters, .. }] = steps.as_slice() else {
            panic!("one change: {steps:?}");
        };
        let new = voters.iter().filter(|slot| matches!(slot, Slot::New(_)));
        new.map(|slot| slot.location()).collect::<Vec<_>>()
    };
    let nodes = [node(1), node(2), failed.clone(), node(5)];
    assert_eq!(targets(&nodes), [at(5, 0)]);
    assert_eq!(targets(&nodes[..3]), [at(4, 0)]);
    failed.avoided = vec![ShardId(0)];
    assert_eq!(targets(&[node(1), node(2), failed]), [at(4, 1)]);
}

#[test]
fn replicas_and_leaders_are_spread_over_five_nodes() {
    let mut ranges: Vec<Range> = (1..=20).map(|id| range(id, &[1, 2, 3])).collect();
    let nodes: Vec<Node> = (1..=5).map(node).collect();
    settle(&nodes, &mut ranges, 3);
    for node in 1..=5 {
        let on = |place: &ReplicaPlace| place.location.node == NodeId(node);
        let held = ranges.iter().filter(|r| r.voters.iter().any(on)).count();
        assert!((11..=13).contains(&held), "node {node} holds {held}");
        assert!((3..=6).contains(&leaders(&ranges, node)));
    }
}

#[test]
fn without_spreading_dead_nodes_are_replaced_and_half_done_changes_are_ended() {
    let nodes: Vec<Node> = (1..=4).map(node).collect();
    let mut ranges: Vec<Range> = (1..=8).map(|id| range(id, &[1, 2, 3])).collect();
    assert_ne!(plan(&nodes, &ranges, 3, true), [], "node 4 has nothing");
    assert_eq!(plan(&nodes, &ranges, 3, false), []);
    ranges[5].is_joint = true;
    let steps = plan(&nodes, &ranges, 3, false);
    assert!(
        matches!(&*steps, [Step::Change { range, .. }] if *range == RangeId(6)),
        "{steps:?}"
    );
    // Node 2 is dead.
    let alive = [node(1), node(3), node(4)];
    assert_eq!(plan(&alive, &ranges, 3, false).len(), 8);
}

#[test]
fn a_busy_range_and_a_silent_node_are_left_alone() {
    let mut busy = range(2, &[1]);
    busy.busy = true;
    let mut silent = node(2);
    silent.accepts_new = false;
    assert_eq!(
        plan(&[node(1), silent], &[busy, range(3, &[1])], 3, true),
        []
    );
}

#[test]
fn a_node_that_drains_is_given_nothing_and_keeps_its_replicas() {
    let mut nodes: Vec<Node> = (1..=4).map(node).collect();
    let mut ranges: Vec<Range> = (1..=8).map(|id| range(id, &[1, 2, 3])).collect();
    settle(&nodes, &mut ranges, 3);
    let on = |ranges: &[Range], node: u64| {
        let on = |place: &ReplicaPlace| place.location.node == NodeId(node);
        ranges.iter().filter(|r| r.voters.iter().any(on)).count()
    };
    let before = on(&ranges, 2);
    assert!(leaders(&ranges, 2) > 0 && before > 0);
    (nodes[1].accepts_new, nodes[1].drains) = (false, true);
    for range in &mut ranges {
        range.caught_up = range.voters.iter().map(|place| place.replica).collect();
    }
    settle(&nodes, &mut ranges, 3);
    assert_eq!((leaders(&ranges, 2), on(&ranges, 2)), (0, before));
    // Also without spreading, and of a range that has nobody else it is not asked.
    let mut alone = range(9, &[2, 3, 1]);
    alone.caught_up.clear();
    assert_eq!(plan(&nodes, std::slice::from_ref(&alone), 3, false), []);
    alone.caught_up = vec![ReplicaId(903)];
    let to = ReplicaId(903);
    let steps = plan(&nodes, &[alone], 3, false);
    assert!(
        steps.contains(&Step::Lead {
            range: RangeId(9),
            to
        }),
        "{steps:?}"
    );
}

#[test]
fn a_lost_replica_of_a_node_that_drains_is_replaced_there_only_without_another_node() {
    let mut nodes: Vec<Node> = (1..=3).map(node).collect();
    (nodes[2].accepts_new, nodes[2].drains) = (false, true);
    let mut lost = range(1, &[1, 2, 3]);
    lost.given_up = lost.voters.last().map(|place| place.replica);
    let on = |steps: &[Step]| {
        let new = steps.iter().find_map(|step| match step {
            Step::Change { voters, .. } => {
                let new = voters.iter().find(|slot| matches!(slot, Slot::New(_)));
                new.map(|slot| slot.location().node)
            }
            _ => None,
        });
        new.map(|node| node.0)
    };
    assert_eq!(
        on(&plan(&nodes, std::slice::from_ref(&lost), 3, false)),
        Some(3)
    );
    nodes.push(node(4));
    assert_eq!(on(&plan(&nodes, &[lost], 3, false)), Some(4));
}

#[test]
fn a_learner_stays_on_a_node_that_drains() {
    let mut nodes = vec![node(1), node(2)];
    let mut ranges = vec![range(1, &[1])];
    settle(&nodes, &mut ranges, 3);
    assert_eq!(ranges[0].learners.len(), 1);
    (nodes[1].accepts_new, nodes[1].drains) = (false, true);
    assert_eq!(plan(&nodes, &ranges, 3, true), []);
}

#[test]
fn the_factor_may_be_raised_and_lowered() {
    let mut ranges: Vec<Range> = (1..=5).map(|id| range(id, &[1, 2, 3])).collect();
    let nodes: Vec<Node> = (1..=5).map(node).collect();
    settle(&nodes, &mut ranges, 5);
    assert!(ranges.iter().all(|range| range.voters.len() == 5));
    settle(&nodes, &mut ranges, 3);
    assert!(ranges.iter().all(|range| range.voters.len() == 3));
    settle(&nodes, &mut ranges, 1);
    assert!(ranges.iter().all(|range| range.voters.len() == 1));
}

#[test]
fn a_replica_moves_to_the_shard_of_a_node_that_holds_the_fewest() {
    let mut nodes = vec![node(1), node(2), node(3)];
    // Of ranges 1 and 3 replicas are on shard 1, of range 2 on shard 0.
    let ranges = [range(1, &[1, 2]), range(2, &[1, 2]), range(3, &[2])];
    let shard = |nodes: &[Node], of| least_loaded_shard(nodes, &ranges, NodeId(of));
    assert_eq!(shard(&nodes, 1), Some(at(1, 0)), "of equal ones the first");
    assert_eq!(shard(&nodes, 2), Some(at(2, 0)));
    assert_eq!(shard(&nodes, 3), Some(at(3, 0)));
    nodes[1].avoided = vec![ShardId(0)];
    assert_eq!(
        shard(&nodes, 2),
        Some(at(2, 1)),
        "one that has failed comes last"
    );
    nodes[2].shards = 0;
    assert_eq!(shard(&nodes, 3), None);
    assert_eq!(shard(&nodes, 9), None);
}
