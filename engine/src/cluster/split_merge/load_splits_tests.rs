//! Which ranges are split because of their size or their load, and where the new part goes.

use super::*;
use crate::cluster::message::{BlockReason, SplitBlocked};
use crate::cluster::split_merge::load_splits::{TooHot, Way};

fn shard(node: u64, shard: u16) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(shard),
    }
}

/// Node 1 leads all ranges and is busy; the others are idle.
fn busy_case(shards: u16) -> Case {
    let mut case = Case::new();
    case.shards = shards;
    case.cpu.insert(shard(1, 0), 900);
    case.cpu_of_range.insert(USERS, 800);
    case.pass(11);
    case
}

fn hot(case: &Case) -> Vec<TooHot> {
    case.manager.too_hot(case.now, |_| false)
}

fn to(case: &Case) -> Option<(Location, Way)> {
    let hot = hot(case);
    assert!(hot.len() <= 1, "{hot:?}");
    hot.first().map(|hot| (hot.to, hot.way))
}

/// Leaves a range with the replica of one node.
fn only_on(case: &mut Case, range: RangeId, node: u64) {
    let descriptor = case.ranges.get_mut(&range).expect("it is there");
    descriptor.epoch.conf += 1;
    descriptor
        .replicas
        .retain(|place| place.location == at(node));
    case.pass(1);
}

#[test]
fn a_hot_range_of_a_busy_shard_is_split_if_a_much_idler_one_takes_a_part() {
    let mut case = busy_case(1);
    case.cpu.insert(shard(2, 0), 300);
    case.pass(1);
    let wanted = TooHot {
        range: USERS,
        version: 1,
        leader: at(1),
        cpu_millis: 800,
        to: at(3),
        way: Way::Lead(NodeId(3)),
    };
    assert_eq!(hot(&case), [wanted]);
    // The system range is never split.
    case.cpu_of_range.insert(SYSTEM_RANGE, 800);
    case.pass(11);
    assert_eq!(hot(&case), [wanted]);
    // The others are as busy, to some points.
    for node in [2, 3] {
        case.cpu.insert(shard(node, 0), 701);
    }
    case.pass(1);
    assert_eq!(hot(&case), []);
    case.cpu.insert(shard(2, 0), 700);
    case.pass(1);
    assert_eq!(to(&case), Some((at(2), Way::Lead(NodeId(2)))));
    // The shard is not busy.
    case.cpu.insert(shard(1, 0), 600);
    case.cpu.insert(shard(2, 0), 0);
    case.pass(1);
    assert_eq!(hot(&case), []);
    case.cpu.insert(shard(1, 0), 601);
    case.pass(1);
    assert_eq!(to(&case), Some((at(2), Way::Lead(NodeId(2)))));
    // The range is not hot any more, or not for long enough.
    case.cpu_of_range.insert(USERS, 250);
    case.pass(1);
    assert_eq!(hot(&case), []);
    // A change of a fifth is told at once.
    case.cpu_of_range.insert(USERS, 300);
    case.pass(9);
    assert_eq!(hot(&case), []);
    case.pass(2);
    assert_eq!(hot(&case).len(), 1);
}

#[test]
fn what_drains_is_silent_lags_or_settles_takes_no_part() {
    let mut case = busy_case(1);
    case.cpu.insert(shard(3, 0), 300);
    case.pass(1);
    assert_eq!(to(&case).map(|to| to.0), Some(at(2)));
    let settling = |busy: Location| case.manager.too_hot(case.now, |at| at == busy);
    assert_eq!(settling(at(2))[0].to, at(3));
    assert_eq!(settling(at(1)), []);
    case.lagging.insert(ReplicaId(12));
    case.pass(1);
    assert_eq!(to(&case).map(|to| to.0), Some(at(3)), "node 2 lags");
    case.lagging.clear();
    let drained = MembershipRecord {
        node: NodeId(2),
        status: MembershipStatus::Draining,
    };
    case.manager.decided(drained);
    case.pass(1);
    assert_eq!(to(&case).map(|to| to.0), Some(at(3)), "node 2 drains");
    for _ in 0..8 {
        case.now += REPORT;
        [1, 2].into_iter().for_each(|node| case.report(node));
    }
    assert_eq!(to(&case), None, "node 3 is silent");
}

#[test]
fn without_a_voter_elsewhere_the_part_moves_to_a_free_shard_of_any_node() {
    let mut case = busy_case(2);
    only_on(&mut case, USERS, 1);
    for (at, cpu) in [
        ((2, 0), 100),
        ((2, 1), 50),
        ((3, 0), 700),
        ((3, 1), 70),
        ((1, 1), 60),
    ] {
        case.cpu.insert(shard(at.0, at.1), cpu);
    }
    case.pass(1);
    let move_from_1 = Way::Move(NodeId(1));
    assert_eq!(to(&case), Some((shard(2, 1), move_from_1)));
    // The same node is as good as another one.
    case.cpu.insert(shard(1, 1), 10);
    case.pass(1);
    assert_eq!(to(&case), Some((shard(1, 1), move_from_1)));
}

#[test]
fn a_node_that_has_a_voter_gets_no_other() {
    let mut case = busy_case(2);
    // The voters' shards are busy, the others of their nodes idle.
    for node in [2, 3] {
        case.cpu.insert(shard(node, 0), 900);
    }
    case.pass(1);
    assert_eq!(to(&case), Some((shard(1, 1), Way::Move(NodeId(1)))));
    case.cpu.insert(shard(1, 1), 900);
    case.pass(1);
    assert_eq!(to(&case), None);
}

#[test]
fn shards_give_and_take_one_part_in_a_round_and_the_hottest_range_comes_first() {
    let mut case = busy_case(1);
    let second = case.split(USERS, "m");
    case.pass(1);
    assert_eq!(hot(&case), [], "what is left must show that it is hot");
    case.cpu_of_range.insert(USERS, 300);
    case.cpu_of_range.insert(second, 400);
    case.pass(11);
    let ranges: Vec<RangeId> = hot(&case).iter().map(|hot| hot.range).collect();
    assert_eq!(ranges, [second]);
    // Another busy shard gives a part, too.
    case.led_by.insert(USERS, 2);
    case.cpu.insert(shard(2, 0), 700);
    case.pass(1);
    let pairs = hot(&case)
        .iter()
        .map(|hot| (hot.range, hot.to))
        .collect::<Vec<_>>();
    assert_eq!(pairs, [(second, at(3))], "there is one idle shard");
    let hottest = case.manager.hottest(1, case.now);
    assert_eq!(hottest, [(second, 400, Some(at(1)))]);
    let hottest = case.manager.hottest(9, case.now);
    assert_eq!(hottest[1], (USERS, 300, Some(at(2))));
    assert_eq!(hottest.len(), 2, "the system range is no user's");
}

#[test]
fn the_setting_switches_splits_by_load_off() {
    let mut case = busy_case(1);
    let set = |case: &mut Case, value: &str| {
        let setting = case.manager.new_setting("split-by-load", value, 1);
        case.manager.set(setting.expect("it may be set"));
        hot(case).len()
    };
    assert_eq!(set(&mut case, "off"), 0);
    assert_eq!(set(&mut case, "on"), 1);
    // A change of members is under way.
    case.changing.insert(USERS);
    case.pass(1);
    assert_eq!(hot(&case), []);
}

#[test]
fn a_range_that_cannot_be_split_says_why_and_is_tried_again_later_and_later() {
    let mut case = busy_case(1);
    let shown = |case: &Case| case.range(USERS).expect("it is known").split_blocked;
    let fail = |case: &mut Case, by, reason, key: Option<&[u8]>, wall_ms| {
        let key = key.map(<[u8]>::to_vec);
        let pause = case
            .manager
            .split_failed((USERS, by), (reason, key), (case.now, wall_ms));
        pause.expect("the range is known")
    };
    assert_eq!(shown(&case), None);
    let single = |since_ms| {
        Some(SplitBlocked {
            reason: BlockReason::SingleKey,
            since_ms,
            key: Some(b"k".to_vec()),
        })
    };
    for (round, seconds) in [60, 120, 240].into_iter().enumerate() {
        assert_eq!(hot(&case).len(), 1);
        let wall_ms = 7 + round as u64;
        let pause = fail(
            &mut case,
            SplitReason::Load,
            BlockReason::SingleKey,
            Some(b"k"),
            wall_ms,
        );
        assert_eq!(pause, seconds);
        assert_eq!(shown(&case), single(7));
        case.pass(u32::try_from(seconds).expect("it is short") - 1);
        assert_eq!(hot(&case), []);
        case.pass(2);
    }
    // Shards are not told of it.
    let known = case.manager.published.view.ranges.iter();
    assert!(known.into_iter().all(|range| range.split_blocked.is_none()));
    // Its size may be split all the same.
    case.bytes.insert(USERS, 1 << 30);
    case.pass(1);
    assert_eq!(case.manager.too_large(case.now).len(), 1);
    assert_eq!(
        fail(&mut case, SplitReason::Size, BlockReason::NoKey, None, 50),
        60
    );
    assert_eq!(case.manager.too_large(case.now), []);
    assert_eq!(hot(&case).len(), 1);
    assert_eq!(shown(&case), single(7), "the load comes first");
    // When it is cold it need not be split, and when it is small, too.
    case.cpu_of_range.insert(USERS, 10);
    case.pass(400);
    let no_key = shown(&case).expect("it is too large");
    assert_eq!(
        (no_key.reason, no_key.since_ms, no_key.key),
        (BlockReason::NoKey, 50, None)
    );
    assert_eq!(case.manager.too_large(case.now).len(), 1);
    case.bytes.clear();
    case.pass(1);
    assert_eq!(shown(&case), None);
    // A split ends it all.
    fail(&mut case, SplitReason::Load, BlockReason::Limit, None, 99);
    assert!(shown(&case).is_some());
    case.split(USERS, "m");
    case.pass(1);
    assert_eq!(shown(&case), None);
}

#[test]
fn a_replica_that_lags_is_named_as_what_stands_in_the_way() {
    let mut case = busy_case(1);
    let why = |case: &Case| case.manager.why_not_split(USERS, case.now);
    assert_eq!(why(&case), BlockReason::Changing);
    case.lagging.insert(ReplicaId(13));
    case.pass(1);
    assert_eq!(why(&case), BlockReason::Lagging);
}

#[test]
fn a_range_that_is_too_large_is_found_and_cut_into_as_many_parts_as_it_needs() {
    let mut case = Case::new();
    let found = |case: &mut Case, bytes| {
        case.bytes.insert(USERS, bytes);
        case.bytes.insert(SYSTEM_RANGE, bytes);
        case.pass(1);
        let found = case.manager.too_large(case.now).into_iter();
        let parts = found.map(|large| (large.range, large.leader, large.parts));
        parts.collect::<Vec<_>>()
    };
    // The setting's default is 256 MiB.
    assert_eq!(found(&mut case, 256 << 20), []);
    assert_eq!(found(&mut case, 257 << 20), [(USERS, at(1), 2)]);
    assert_eq!(found(&mut case, 1 << 30), [(USERS, at(1), 8)]);
    let set = |case: &mut Case, value: &str| {
        let setting = case.manager.new_setting("range-size-max", value, 1);
        case.manager.set(setting.expect("it may be set"));
    };
    set(&mut case, "16MiB");
    assert_eq!(found(&mut case, 40 << 20), [(USERS, at(1), 5)]);
    case.changing.insert(USERS);
    assert_eq!(found(&mut case, 40 << 20), []);
    case.changing.clear();
    set(&mut case, "4GiB");
    assert_eq!(found(&mut case, 40 << 20), []);
}
