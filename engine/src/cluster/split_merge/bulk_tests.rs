//! Orders to split a range at many keys: coarse parts first, which are scattered, and then the others.

use super::*;

/// A new order to split the first range at so many keys.
fn begun(case: &mut Case, keys: usize) -> SplitOrder {
    let keys: Vec<String> = (0..keys).map(|n| format!("{n:04}")).collect();
    let keys: Vec<&str> = keys.iter().map(|key| &**key).collect();
    case.begin(USERS, &keys).expect("it can be split")
}

/// How many ranges each node leads.
fn led(case: &Case) -> Vec<usize> {
    let ranges = case.ranges.keys().filter(|range| **range != SYSTEM_RANGE);
    let mut led = vec![0; 3];
    ranges.for_each(|range| led[case.leader(*range) as usize - 1] += 1);
    led
}

/// Carries out what the manager plans, one round of it.
fn follow_plan(case: &mut Case) {
    case.pass(1);
    case.manager.observe(case.now);
    for planned in case.manager.plan(case.now) {
        let Step::Lead { range, to } = planned.step else {
            panic!("no replica has to move: {:?}", planned.step);
        };
        let request = ClusterRequest::TransferLeadership { range, to };
        case.manager.order(&request, case.now);
        case.manager.note(&request, planned.why, case.now);
        let node = case.ranges[&range].location(to).expect("a member").node;
        case.led_by.insert(range, node.0);
    }
}

#[test]
fn a_thousand_keys_need_ten_rounds() {
    let mut case = Case::new();
    let mut order = begun(&mut case, 1000);
    assert_eq!(case.carry_out(&mut order, |_| None).len(), 10);
    assert_eq!(case.starts().len(), 1001);
}

#[test]
fn coarse_parts_are_scattered_before_they_are_split_further() {
    let mut case = Case::new();
    let mut order = begun(&mut case, 1000);
    let parts = case.manager.coarse_parts(1001, case.now);
    assert_eq!(parts, 12, "four of each shard");
    order.begin_coarse(parts);
    let rounds = case.carry_out(&mut order, |_| None);
    assert_eq!(rounds.len(), 4);
    assert!(order.is_coarse());
    let parts: Vec<RangeId> = order.parts().iter().map(|part| part.range).collect();
    assert_eq!((parts.len(), led(&case)), (12, vec![12, 0, 0]));

    let is_part = |descriptor: &Descriptor| parts.contains(&descriptor.range);
    assert_eq!(case.manager.scatter_those(is_part, case.now), 8);
    assert_eq!(case.manager.scattering(&parts), 8);
    let mut rounds = 0;
    while case.manager.scattering(&parts) > 0 {
        follow_plan(&mut case);
        rounds += 1;
        assert!(rounds < 10, "{:?}", led(&case));
    }
    assert_eq!(led(&case), [4, 4, 4]);
    // Beside twelve ranges on three shards eight more are few.
    let later = [8, 9].map(|ranges| case.manager.coarse_parts(ranges, case.now));
    assert_eq!(later, [1, 3]);

    assert!(order.go_on() && !order.is_coarse());
    case.carry_out(&mut order, |_| None);
    assert_eq!(case.starts().len(), 1001);
    let (ranges, failed) = parts_of(order);
    assert_eq!((ranges, failed), (1001, None));
    let led = led(&case);
    let (most, least) = (led.iter().max(), led.iter().min());
    let (most, least) = most.zip(least).expect("three nodes");
    assert!(*most * 10 <= *least * 12, "{led:?}");
}

fn parts_of(order: SplitOrder) -> (usize, Option<OrderError>) {
    let (ranges, failed) = parts(order.response());
    (ranges.len(), failed)
}

#[test]
fn an_order_for_few_keys_or_without_balance_needs_no_coarse_parts() {
    let mut case = Case::new();
    let parts = |case: &Case, ranges| case.manager.coarse_parts(ranges, case.now);
    for (ranges, wanted) in [(2, 1), (5, 1), (6, 3), (12, 6), (24, 12), (1001, 12)] {
        assert_eq!(parts(&case, ranges), wanted, "{ranges}");
    }
    case.shards = 4;
    case.pass(1);
    assert_eq!(parts(&case, 1001), 48);
    let off = case.manager.new_setting("balance", "off", 1);
    case.manager.set(off.expect("it may be set"));
    assert_eq!(parts(&case, 1001), 1);
}

#[test]
fn coarse_parts_have_about_as_many_keys_each_and_none_is_lost() {
    for (keys, count) in [(2, 2), (5, 3), (11, 12), (100, 12), (1000, 48)] {
        let mut case = Case::new();
        let mut order = begun(&mut case, keys);
        order.begin_coarse(count);
        case.carry_out(&mut order, |_| None);
        let made = order.parts().len();
        assert_eq!(made, count.min(keys + 1), "{keys} keys");
        assert_eq!(order.go_on(), made <= keys);
        let left = order.waiting.iter().map(|piece| piece.cuts.len() + 1);
        let (most, least) = (left.clone().max(), left.min());
        if let Some((most, least)) = most.zip(least) {
            assert!(most <= least + 1, "{most} and {least} of {keys}");
        }
        case.carry_out(&mut order, |_| None);
        assert_eq!(parts_of(order), (keys + 1, None));
        assert_eq!(case.starts().len(), keys + 1);
    }
}

#[test]
fn after_a_failure_the_coarse_parts_are_not_split() {
    let mut case = Case::new();
    let mut order = begun(&mut case, 100);
    order.begin_coarse(12);
    let refuses = |_: &[u8]| Some(OrderError::Conflict("it has no room".to_owned()));
    case.carry_out(&mut order, refuses);
    assert!(!order.is_coarse() && !order.go_on());
    assert!(order.next_piece().is_none());
    assert!(matches!(order.response(), ClusterResponse::Refused(_)));
}

#[test]
fn numbers_are_not_balanced_while_a_range_is_split_into_many() {
    let mut case = Case::new();
    let mut order = begun(&mut case, 100);
    let until = case.now + Duration::from_mins(1);
    case.manager.begin_bulk(&mut order, case.now, until);
    case.carry_out(&mut order, |_| None);
    assert_eq!(led(&case), [12, 0, 0], "coarse parts");
    let moves = |case: &mut Case| {
        case.pass(1);
        case.manager.observe(case.now);
        case.manager.plan(case.now).len()
    };
    assert_eq!(moves(&mut case), 0);
    case.manager.end_bulk(USERS);
    assert!(moves(&mut case) > 0);

    let soon = case.now + Duration::from_secs(3);
    case.manager.planning.bulk_splits.insert(USERS, soon);
    assert_eq!(moves(&mut case), 0);
    // Its end was never noted.
    case.pass(6);
    assert!(moves(&mut case) > 0);
}
