//! What the view shows while reports of a split arrive one after another.

use super::*;

#[test]
fn the_view_has_each_key_in_one_range_in_whatever_order_reports_come() {
    // The range is split at m, the right part at t; then leaders move.
    let mut case = Case::new();
    let old = case.ranges[&USERS].clone();
    let middle = case.split(USERS, "m");
    case.pass(1);
    let right = case.split(middle, "t");
    let whole = |case: &Case| vec![(String::new(), 2, old.epoch.version)] == case.starts();
    for order in [
        [1, 2, 3],
        [3, 2, 1],
        [2, 1, 3],
        [2, 3, 1],
        [1, 3, 2],
        [3, 1, 2],
    ] {
        case.manager = Manager::new(1, at(1), &[], std::iter::empty(), case.now);
        case.led_by.clear();
        let old_report = case.report_of(1, &[&old]);
        case.manager.take(old_report, true, case.now);
        assert!(whole(&case), "{:?}", case.starts());
        // Each of the three ranges is led by another node.
        case.led_by = [(USERS, 1), (middle, 2), (right, 3)].into();
        // What waits for another range is taken with a later report.
        for _ in 0..3 {
            order.iter().for_each(|node| case.report(*node));
        }
        let wanted = vec![
            (String::new(), 2, 2),
            ("m".to_owned(), middle.0, 3),
            ("t".to_owned(), right.0, 3),
        ];
        assert_eq!(case.starts(), wanted, "{order:?}");
        // A leader that does not know yet that it is none reports the range as it was.
        let old_report = case.report_of(1, &[&old]);
        case.manager.take(old_report, true, case.now);
        assert_eq!(case.starts(), wanted, "{order:?}");
    }
}

#[test]
fn both_ranges_of_a_split_are_taken_from_one_report_and_written_at_once() {
    let mut case = Case::new();
    let rows = case.manager.unsaved(case.now);
    case.manager.saved(&rows);
    case.manager.take_new_bounds();
    assert!(case.manager.unsaved(case.now).is_empty());
    let child = case.split(USERS, "m");
    case.report(1);
    assert!(case.manager.take_new_bounds() && !case.manager.take_new_bounds());
    let rows = case.manager.unsaved(case.now);
    let keys: Vec<&[u8]> = rows.iter().map(|(key, _)| &**key).collect();
    let key = |range: RangeId| record::key(record::RANGE, range.0);
    // The right part first: a manager that finds only that cuts the other.
    assert_eq!(keys, [key(child), key(USERS)]);
    let mut case = Case::new();
    let old = case.manager.unsaved(case.now);
    let known = [old, vec![rows[0].clone()]].concat();
    case.manager = Manager::new(2, at(1), &known, std::iter::empty(), case.now);
    case.check_tiling();
    assert_eq!(case.starts().len(), 2);
}

#[test]
fn a_part_without_a_leader_is_waited_for_and_not_for_ever() {
    let mut case = Case::new();
    let child = case.split(USERS, "m");
    let parent = case.ranges[&USERS].clone();
    let report = case.report_of(1, &[&parent]);
    let take = |case: &mut Case| case.manager.take(report.clone(), true, case.now);
    take(&mut case);
    assert_eq!(case.starts(), [(String::new(), 2, 1)], "the old bounds");
    let refused = case.begin(USERS, &["a"]);
    assert!(
        matches!(refused, Err(OrderError::Conflict(_))),
        "{refused:?}"
    );
    case.now += Duration::from_secs(11);
    take(&mut case);
    assert_eq!(case.starts(), [(String::new(), 2, 2)], "what is known");
    case.pass(1);
    assert_eq!(case.starts()[1].1, child.0);
}

#[test]
fn a_replica_of_a_new_range_that_no_shard_reports_is_replaced_after_a_while() {
    let mut case = Case::new();
    let child = case.split(USERS, "m");
    let lost = Case::replica_on(&case.ranges[&child], 2).expect("it has one");
    case.missing.insert(lost);
    case.pass(1);
    let view = case.range(child).expect("it is known");
    assert!(view.faults.is_empty() && !view.under_replicated, "not yet");
    let is_replaced = |case: &Case| {
        let steps = case.manager.plan(case.now);
        steps.iter().any(|planned| {
            matches!(&planned.step, Step::Change { range, voters, .. }
                if *range == child && voters.contains(&Slot::New(at(2))))
        })
    };
    assert!(!is_replaced(&case));
    case.pass(3);
    let view = case.range(child).expect("it is known");
    assert_eq!(view.faults, [(lost, ReplicaFault::Missing)]);
    assert!(view.under_replicated && is_replaced(&case));
    assert!(
        case.range(USERS)
            .is_some_and(|range| range.faults.is_empty())
    );
}
