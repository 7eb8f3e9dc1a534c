//! Nodes that drain, are decommissioned and are removed, with a manager that is fed with reports.

use std::collections::BTreeMap;

use super::*;
use crate::cluster::placement::Step;
use crate::cluster::record::MembershipRecord;

/// Gives an order whose row is durable at once.
fn order(case: &mut Case, node: u64, status: MembershipStatus) -> Result<(), OrderError> {
    let decision = case.manager.decide(NodeId(node), status, case.now)?;
    case.manager.decided(decision);
    Ok(())
}

/// Why an order was refused until somebody changes the cluster's state.
fn conflict(refused: Result<(), OrderError>) -> String {
    match refused {
        Err(OrderError::Conflict(why)) => why,
        other => panic!("it is no conflict: {other:?}"),
    }
}

/// The replicas that are to lead ranges.
fn given_away(case: &Case) -> BTreeMap<RangeId, ReplicaId> {
    let steps = case.manager.plan(case.now).into_iter();
    let leads = steps.filter_map(|planned| match planned.step {
        Step::Lead { range, to } => Some((range, to)),
        Step::Change { .. } => None,
    });
    leads.collect()
}

fn leaving(case: &Case, node: u64) -> crate::cluster::Leaving {
    let leaving = case.manager.leaving(NodeId(node), false, case.now);
    leaving.expect("it is known")
}

#[test]
fn a_node_that_drains_gives_all_leaderships_to_voters_that_have_caught_up() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(5);
    assert_eq!(given_away(&case), BTreeMap::new());
    order(&mut case, 1, MembershipStatus::Draining).expect("two voters stay");
    let given = given_away(&case);
    let ranges: Vec<RangeId> = given.keys().copied().collect();
    assert_eq!(ranges, [SYSTEM_RANGE, RangeId(2)]);
    // One each: both others lead nothing yet.
    let to: BTreeSet<ReplicaId> = given.into_values().collect();
    assert_eq!(to, [ReplicaId(2), ReplicaId(3)].into());
    let left = leaving(&case, 1);
    assert_eq!((left.leaders_left, left.is_done), (2, false));
    assert_eq!(left.blocked, []);
    // Replica 3 alone has matched, then none.
    case.lost = vec![2];
    case.pass(1);
    let to: BTreeSet<ReplicaId> = given_away(&case).into_values().collect();
    assert_eq!(to, [ReplicaId(3)].into());
    case.lost = vec![2, 3];
    case.pass(1);
    assert_eq!(given_away(&case), BTreeMap::new());
    let why = "no voter has matched".to_owned();
    let blocked = [(SYSTEM_RANGE, why.clone()), (RangeId(2), why)];
    assert_eq!(leaving(&case, 1).blocked, blocked);
    // The others have nothing to give away.
    assert!(!leaving(&case, 2).is_done, "it is active");
    order(&mut case, 1, MembershipStatus::Active).expect("it is taken back");
    order(&mut case, 3, MembershipStatus::Draining).expect_err("replicas 2 and 3 are lost");
    case.lost.clear();
    case.pass(1);
    order(&mut case, 3, MembershipStatus::Draining).expect("two voters stay");
    assert!(leaving(&case, 3).is_done);
    assert_eq!(given_away(&case), BTreeMap::new(), "it leads nothing");
}

#[test]
fn a_drain_that_would_leave_no_majority_is_refused_and_one_more_decision_waits() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(5);
    order(&mut case, 3, MembershipStatus::Draining).expect("two voters stay");
    order(&mut case, 3, MembershipStatus::Draining).expect("it drains already");
    let why = conflict(order(&mut case, 2, MembershipStatus::Draining));
    assert!(why.contains("range 2: 1 of its 3 voters"), "{why}");
    order(&mut case, 3, MembershipStatus::Active).expect("it is taken back");
    // Two at once: the first is being written down.
    let first = case
        .manager
        .decide(NodeId(3), MembershipStatus::Draining, case.now);
    let first = first.expect("two voters stay");
    let second = case
        .manager
        .decide(NodeId(2), MembershipStatus::Draining, case.now);
    assert!(busy(second).is_some());
    case.manager.decided(first);
    conflict(order(&mut case, 2, MembershipStatus::Draining));
    order(&mut case, 3, MembershipStatus::Active).expect("it is taken back");
    case.nodes = vec![1, 2];
    case.pass(4);
    let why = conflict(order(&mut case, 2, MembershipStatus::Draining));
    assert!(why.contains("1 of its 3 voters"), "node 3 is silent: {why}");
    let unknown = order(&mut case, 9, MembershipStatus::Draining);
    assert!(matches!(unknown, Err(OrderError::NotFound(why)) if why.contains('9')));
}

#[test]
fn a_node_is_decommissioned_once_it_holds_nothing_and_only_where_its_replicas_can_go() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(5);
    let why = conflict(order(&mut case, 3, MembershipStatus::Decommissioning));
    assert!(
        why.contains("it has 3 voters, and the cluster has 2 other active nodes"),
        "{why}"
    );
    case.nodes = vec![1, 2, 3, 4];
    case.pass(5);
    let dry_run = case.manager.leaving(NodeId(3), true, case.now);
    let dry_run = dry_run.expect("it is known");
    assert_eq!(dry_run.moves, [(SYSTEM_RANGE, at(4)), (RangeId(2), at(4))]);
    assert_eq!(case.planned(), None, "nothing was ordered");
    order(&mut case, 3, MembershipStatus::Decommissioning).expect("node 4 is free");
    assert_eq!(case.planned(), Some((vec![4], vec![1, 2])));
    assert!(!case.range().under_replicated, "it still does its part");
    conflict(order(&mut case, 3, MembershipStatus::Removed));
    let rows = |case: &mut Case| {
        let rows = case.manager.unsaved(case.now);
        case.manager.saved(&rows);
        let found = rows
            .iter()
            .find_map(|(key, value)| MembershipRecord::of_row(key, value));
        found.map(|record| (record.node, record.status))
    };
    assert_eq!(rows(&mut case), None, "it holds both ranges");
    case.members = vec![1, 2, 4];
    case.pass(1);
    // A replica that is no member any more is still on its disk.
    case.left_over = vec![3];
    case.pass(1);
    assert_eq!(rows(&mut case), None);
    assert_eq!(leaving(&case, 3).replicas_left, 2);
    assert_eq!(leaving(&case, 3).blocked, []);
    // After ten seconds without progress everything that is left is named.
    case.pass(10);
    assert_eq!(rows(&mut case), None);
    let left = leaving(&case, 3);
    assert!(left.stuck_ms >= 10_000, "{left:?}");
    let why = "its replica is no member any more, and is about to be removed".to_owned();
    assert_eq!(
        left.blocked,
        [(SYSTEM_RANGE, why.clone()), (RangeId(2), why)]
    );
    case.left_over.clear();
    // Changes that began after the order bring no replica to it.
    case.changing = true;
    case.pass(1);
    let decommissioned = (NodeId(3), MembershipStatus::Decommissioned);
    assert_eq!(rows(&mut case), Some(decommissioned));
    assert!(leaving(&case, 3).is_done);
    assert_eq!(case.planned(), None);
}

#[test]
fn a_node_that_was_removed_is_not_shown_and_its_reports_are_refused_by_later_managers_too() {
    let mut case = Case::new(&[1, 2, 3]);
    case.pass(5);
    conflict(order(&mut case, 3, MembershipStatus::Removed));
    case.nodes = vec![1, 2, 4];
    case.members = vec![1, 2, 4];
    case.pass(4);
    conflict(order(&mut case, 3, MembershipStatus::Removed));
    case.pass(DEAD_AFTER_S);
    assert_eq!(case.state(3), Some(NodeHealth::Dead));
    let mut rows = case.manager.unsaved(case.now);
    let decision = case
        .manager
        .decide(NodeId(3), MembershipStatus::Removed, case.now);
    let decision = decision.expect("others have its replicas");
    rows.push(decision.row());
    case.manager.decided(decision);
    assert_eq!(case.state(3), None);
    assert_eq!(case.report(3), ClusterResponse::Removed);
    let gone = order(&mut case, 3, MembershipStatus::Active);
    assert!(matches!(gone, Err(OrderError::NotFound(_))), "{gone:?}");

    case.manager = Manager::new(2, at(1), &rows, std::iter::empty(), case.now);
    assert_eq!(case.report(3), ClusterResponse::Removed);
    case.pass(5);
    assert_eq!(case.state(3), None);
    let (next, _) = case.manager.give_node_id(77);
    assert!(next > NodeId(4), "its id is not given again");
}

#[test]
fn a_change_that_was_under_way_at_the_order_may_bring_a_replica_and_is_waited_for() {
    let mut case = Case::new(&[1, 2, 3, 4]);
    case.pass(5);
    let rows = |case: &mut Case| {
        case.pass(1);
        let rows = case.manager.unsaved(case.now);
        case.manager.saved(&rows);
        case.manager.membership(NodeId(4))
    };
    case.changing = true;
    case.pass(1);
    order(&mut case, 4, MembershipStatus::Decommissioning).expect("it holds nothing");
    for _ in 0..12 {
        assert_eq!(rows(&mut case), MembershipStatus::Decommissioning);
    }
    case.changing = false;
    assert_eq!(rows(&mut case), MembershipStatus::Decommissioned);
}

#[test]
fn two_nodes_are_decommissioned_at_a_time_and_what_is_left_is_told_with_the_rate() {
    let mut case = Case::new(&[1, 2, 3, 4, 5]);
    case.pass(5);
    order(&mut case, 2, MembershipStatus::Decommissioning).expect("two nodes are free");
    order(&mut case, 3, MembershipStatus::Decommissioning).expect("two nodes are free");
    let why = conflict(
        order(&mut case, 4, MembershipStatus::Decommissioning).and_then(|()| {
            // It holds nothing, so it may leave; but then the others have nowhere to go.
            order(&mut case, 5, MembershipStatus::Decommissioning)?;
            order(&mut case, 1, MembershipStatus::Decommissioning)
        }),
    );
    assert!(why.contains("0 other active nodes"), "{why}");
    for node in [4, 5] {
        order(&mut case, node, MembershipStatus::Active).expect("it stays");
    }
    drop(case.manager.unsaved(case.now));
    // One change takes both nodes out of a range.
    assert_eq!(case.planned(), Some((vec![4, 5], vec![1])));
    case.members = vec![1, 4, 5];
    case.pass(5);
    for node in [2, 3] {
        let left = leaving(&case, node);
        assert_eq!((left.replicas_left, left.is_done), (0, false), "{left:?}");
        assert_eq!(left.per_minute, 24, "two ranges in five seconds");
    }
    let rows = |case: &mut Case| {
        let rows = case.manager.unsaved(case.now);
        case.manager.saved(&rows);
    };
    rows(&mut case);
    rows(&mut case);
    for node in [2, 3] {
        assert!(leaving(&case, node).is_done, "node {node}");
    }
}
