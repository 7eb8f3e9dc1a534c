//! Limits: how many changes of small and of large ranges are under way, and what settings forbid. No cluster
//! runs.

use super::*;

/// How many ranges have three replicas.
fn complete(model: &Model) -> usize {
    let ranges = model.ranges.values();
    ranges.filter(|range| range.replicas.len() == 3).count()
}

#[test]
fn a_thousand_empty_ranges_are_completed_in_seconds_and_large_ones_a_few_at_a_time() {
    for (bytes, at_least, at_most) in [(0, 1000, 1000), (1 << 30, 64, 80)] {
        let mut model = Model::new(3, 1);
        (model.bytes, model.move_takes) = (bytes, ROUND / 2);
        for _ in 0..1000 {
            model.range(&[(1, 0)], 0.0);
        }
        model.pass(5);
        let complete = complete(&model);
        assert!((at_least..=at_most).contains(&complete), "{complete}");
    }
}

#[test]
fn large_changes_are_not_begun_faster_if_rounds_come_faster() {
    let mut model = Model::new(3, 1);
    model.bytes = 1 << 30;
    for _ in 0..100 {
        model.range(&[(1, 0)], 0.0);
    }
    model.round();
    let given = model.given.len();
    assert!((1..=8).contains(&given), "{given}");
    for _ in 0..5 {
        model.now += Duration::from_millis(50);
        model.order();
    }
    assert_eq!(model.given.len(), given);
    model.round();
    assert_eq!(model.given.len(), given + 8);
}

#[test]
fn small_ranges_that_are_stuck_hold_up_others_for_a_moment() {
    let mut model = Model::new(3, 1);
    for _ in 0..300 {
        model.range(&[(1, 0)], 0.0);
    }
    model.round();
    let mut stuck = 0;
    for range in model.ranges.values_mut() {
        range.is_stuck = range.doing.is_some();
        stuck += usize::from(range.is_stuck);
    }
    assert_eq!(stuck, 256);
    model.pass(5);
    assert_eq!(complete(&model), 0, "there is no room");
    model.pass(10);
    assert_eq!(complete(&model), 44);
}

#[test]
fn a_new_node_gets_its_part_of_many_small_ranges_soon_and_large_ones_slowly() {
    for (bytes, at_least, at_most) in [(0, 200, 225), (1 << 30, 20, 90)] {
        let mut model = Model::new(4, 1);
        (model.bytes, model.move_takes) = (bytes, ROUND / 2);
        for _ in 0..300 {
            model.range(&[(1, 0), (2, 0), (3, 0)], 0.0);
        }
        model.pass(20);
        let moved = model.replicas(at(4, 0));
        assert!((at_least..=at_most).contains(&moved), "{moved}");
    }
}

#[test]
fn the_end_of_an_order_calls_for_the_next_round_once() {
    let mut model = Model::new(3, 1);
    model.move_takes = ROUND / 2;
    model.range(&[(1, 0)], 0.0);
    model.round();
    assert!(!model.manager.take_has_ended(), "it is given");
    model.round();
    assert_eq!(complete(&model), 1);
    assert!(model.manager.take_has_ended());
    assert!(!model.manager.take_has_ended());
}

#[test]
fn without_moves_only_leaders_go() {
    let mut model = Model::new(1, 2);
    model.set("moves-max", "0");
    for _ in 0..8 {
        model.range(&[(1, 0)], 100.0);
    }
    assert_eq!(model.orders_in(120), 0);
    model.set("moves-max", "2");
    model.set("balance", "off");
    assert_eq!(model.orders_in(120), 0);
    model.set("balance", "on");
    assert_eq!(model.orders_in(120), 4);
}

#[test]
fn a_stuck_change_holds_up_no_other_range() {
    let mut model = Model::new(3, 1);
    let stuck = model.range(&[(1, 0), (2, 0), (3, 0)], 0.0);
    let refusing = model.range(&[(1, 0), (2, 0), (3, 0)], 0.0);
    for _ in 0..10 {
        model.range(&[(1, 0), (2, 0), (3, 0)], 30.0);
    }
    model.ranges.get_mut(&stuck).expect("it is there").is_stuck = true;
    model
        .ranges
        .get_mut(&refusing)
        .expect("it is there")
        .refuses = true;
    model.pass(60);
    for node in 1..=3 {
        let cpu = model.cpu(at(node, 0)) - IDLE_CPU;
        assert!((90.0..=120.0).contains(&cpu), "node {node}: {cpu}");
    }
    // A range that refuses gets an order less and less often, and the decision names the reason.
    let asked = model.given.iter().filter(|given| given.range == refusing);
    assert!((1..=4).contains(&asked.count()));
    let last = model.manager.planning.decisions.last();
    let mut of_range = last.iter().filter(|d| d.range == RangeId(refusing));
    let decision = of_range.next_back().expect("it was ordered to move");
    assert_eq!(decision.outcome, Outcome::Failed("it is busy".to_owned()));
    assert!(decision.reason.contains("leads"), "{decision:?}");
}
