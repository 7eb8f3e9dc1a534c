//! Replicas and leaders that are spread by number, by the manager itself and by an operator's order, over a
//! made-up cluster.

use super::*;

#[test]
fn a_new_node_takes_its_share_by_itself() {
    let mut model = Model::new(3, 2);
    for number in 0..24_u16 {
        let shard = number % 2;
        let first = u64::from(number) % 3;
        let places = (0..3).map(|node| ((first + node) % 3 + 1, shard));
        model.range(&places.collect::<Vec<_>>(), 20.0);
    }
    model.pass(60);
    assert_eq!(model.given.len(), 0);
    model.nodes = 4;
    model.pass(300);
    let held = |node| model.replicas(at(node, 0)) + model.replicas(at(node, 1));
    for node in 1..=4 {
        assert!(
            (16..=20).contains(&held(node)),
            "node {node}: {}",
            held(node)
        );
        assert!((5..=7).contains(&model.leaders(node)), "node {node}");
    }
    assert_eq!(model.orders_in(1800), 0, "it is balanced");
}

#[test]
fn scattered_ranges_are_spread_over_nodes_and_shards() {
    let mut model = Model::new(3, 2);
    model.set("balance", "off");
    for _ in 0..24 {
        model.range(&[(1, 0), (2, 0), (3, 0)], 0.0);
    }
    model.pass(10);
    let interval = |start: &str, end: Option<&str>| KeyRange {
        start: start.into(),
        end: end.map(Into::into),
    };
    for (start, end) in [("b", "a"), ("a", "a"), ("", "")] {
        let refused = model
            .manager
            .scatter(&interval(start, Some(end)), model.now);
        assert!(matches!(refused, Err(OrderError::Invalid(why)) if why.contains("start")));
    }
    // The first twelve.
    let keys = interval("", Some("00014"));
    let orders = model
        .manager
        .scatter(&keys, model.now)
        .expect("it has keys");
    model.pass(400);
    assert_eq!(model.given.len() as u64, orders);
    let touched: BTreeSet<u64> = model.given.iter().map(|given| given.range).collect();
    assert!(touched.iter().all(|range| *range < 14), "{touched:?}");
    for node in 1..=3 {
        assert_eq!(model.replicas(at(node, 1)), 6);
        let led = |shard| {
            let led = model.ranges.range(..14);
            led.filter(|(_, range)| range.led_at() == at(node, shard))
                .count()
        };
        assert_eq!((led(0), led(1)), (2, 2), "node {node}");
    }
    let again = model.manager.scatter(&keys, model.now);
    assert_eq!(again, Ok(0), "they are spread");
}

#[test]
fn a_thousand_idle_ranges_are_led_by_all_nodes_soon() {
    let mut model = Model::new(3, 1);
    for _ in 0..1000 {
        model.range(&[(1, 0), (2, 0), (3, 0)], 0.0);
    }
    model.pass(30);
    let led = [1, 2, 3].map(|node| model.leaders(node));
    let (most, least) = (led.iter().max(), led.iter().min());
    let (most, least) = most.zip(least).expect("three nodes");
    assert!(*most * 10 <= *least * 12, "{led:?}");
    assert!(
        model
            .given
            .iter()
            .all(|given| given.is_cheap && !given.is_move)
    );
    assert_eq!(model.orders_in(60), 0, "it is balanced");
}

#[test]
fn leaders_with_load_are_spread_slowly_beside_many_without() {
    let mut model = Model::new(3, 1);
    for number in 0..300 {
        let load = if number % 10 == 0 { 12.0 } else { 0.0 };
        model.range(&[(1, 0), (2, 0), (3, 0)], load);
    }
    model.pass(20);
    let led = [1, 2, 3].map(|node| model.leaders(node));
    assert!(led.iter().all(|led| *led >= 80), "{led:?}");
    assert!(model.given.iter().all(|given| given.is_cheap));
    model.pass(30);
    let costly = model.given.iter().filter(|given| !given.is_cheap).count();
    assert!(
        (1..=2 * ORDERS_MAX + ORDERS_MAX).contains(&costly),
        "{costly}"
    );
}

#[test]
fn ranges_that_are_merged_are_left_where_they_are_until_that_ends() {
    let mut model = Model::new(5, 1);
    // Node 3 has more replicas than nodes 4 and 5.
    for _ in 0..3 {
        model.range(&[(1, 0), (2, 0), (3, 0)], 0.0);
    }
    let merging = [RangeId(2), RangeId(3)];
    model.manager.begin_merge(merging);
    model.pass(120);
    let moved: Vec<u64> = model.given.iter().map(|given| given.range).collect();
    assert!(!moved.is_empty(), "the third range moves");
    assert!(moved.iter().all(|range| *range == 4), "{moved:?}");
    model.manager.end_merge(merging);
    model.pass(120);
    let moved = model.given.iter().filter(|given| given.range != 4);
    assert!(moved.count() > 0);
    assert_eq!(model.orders_in(1800), 0, "it is balanced");
}

#[test]
fn after_a_restart_a_node_that_leads_everything_gives_it_away_without_a_storm() {
    let mut model = Model::new(3, 2);
    for number in 0..60 {
        let shard = number % 2;
        model.range(&[(1, shard), (2, shard), (3, shard)], 12.0);
    }
    model.pass(60);
    for node in 1..=3 {
        assert!((18..=22).contains(&model.leaders(node)));
    }
    model.pass(120);
    assert!(model.given.len() <= 44, "{}", model.given.len());
    assert_eq!(model.orders_in(1800), 0, "it is balanced");
}
