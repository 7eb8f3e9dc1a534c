//! Merges as the manager orders them, and the ranges that it merges on its own.

use super::*;
use crate::cluster::record::FIRST_NEW_RANGE;
use crate::cluster::split_merge::merge::{MERGES_MAX, MergeStep};

const LONG: u32 = 11 * 60;

impl Case {
    /// Splits the users' range at keys; gives the ids of the ranges.
    fn split_at(&mut self, keys: &[&str]) -> Vec<RangeId> {
        self.split_range_at(USERS, keys)
    }

    /// Splits a range at keys; gives the ids of its parts.
    fn split_range_at(&mut self, range: RangeId, keys: &[&str]) -> Vec<RangeId> {
        let keys = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        let mut order = self
            .manager
            .begin_split(range, keys, self.now)
            .expect("an order");
        while let Some(mut piece) = order.next_piece() {
            let reason = SplitReason::Manual;
            let step = self.manager.split_step(&mut piece, reason, self.now);
            let (_, request, _) = step.expect("a step");
            self.apply(&request).expect("it is split");
            order.ended(piece, Ok(()));
            self.pass(1);
        }
        order.parts().iter().map(|part| part.range).collect()
    }

    /// What the merge of a range with its right neighbour would be now.
    fn merge(&mut self, range: RangeId) -> Result<MergeStep, OrderError> {
        let right = self.manager.right_neighbour(range)?;
        self.manager.merge_step([range, right], self.now)
    }

    fn mergeable(&self) -> Vec<RangeId> {
        self.mergeable_at(0, &[])
    }

    /// At a time of the wall clock, beside pairs that are being merged.
    fn mergeable_at(&self, wall_ms: u64, merging: &[(RangeId, RangeId)]) -> Vec<RangeId> {
        let times = (self.now, wall_ms);
        let found = self.manager.mergeable(times, merging, |_| false);
        found.into_iter().map(|(left, _)| left).collect()
    }

    /// Has the leader of a range take over its right neighbour.
    fn merged(&mut self, left: RangeId, right: RangeId) {
        let gone = self.ranges.remove(&right).expect("it is there");
        let left = self.ranges.get_mut(&left).expect("it is there");
        left.keys.end = gone.keys.end;
        left.epoch.version = left.epoch.version.max(gone.epoch.version) + 1;
    }
}

#[test]
fn neighbours_on_the_same_shards_are_merged_and_the_view_has_one_range_for_their_keys() {
    let mut case = Case::new();
    let ranges = case.split_at(&["g", "m"]);
    let step = case.merge(ranges[1]).expect("a step");
    let versions = |id| case.ranges[&id].epoch.version;
    let wanted = ClusterRequest::Merge {
        range: ranges[1],
        version: versions(ranges[1]),
        right: ranges[2],
        right_version: versions(ranges[2]),
    };
    assert_eq!(step, MergeStep::Merge(at(1), Box::new(wanted)));
    let again = case.merge(ranges[1]);
    assert!(matches!(again, Err(OrderError::Conflict(_))), "{again:?}");
    case.merged(ranges[1], ranges[2]);
    case.pass(1);
    assert!(case.range(ranges[2]).is_none());
    // Its rows are deleted, after the left range is written down.
    let rows = case.manager.unsaved(case.now);
    let place = |range: RangeId| {
        let key = record::key(record::RANGE, range.0);
        rows.iter().position(|(row, _)| *row == key)
    };
    let (left, gone) = (
        place(ranges[1]).expect("a row"),
        place(ranges[2]).expect("a row"),
    );
    assert!(left < gone && rows[gone].1.is_empty());
    case.manager.saved(&rows);
    assert!(case.manager.unsaved(case.now).is_empty());
}

#[test]
fn an_order_merges_no_other_neighbour_than_the_one_it_is_for() {
    let mut case = Case::new();
    let ranges = case.split_at(&["g", "m"]);
    let pair = [ranges[0], ranges[1]];
    case.merged(ranges[0], ranges[1]);
    case.pass(1);
    // The answer to the merge was lost: the next range must stay.
    let step = case.manager.merge_step(pair, case.now).expect("a step");
    assert_eq!(step, MergeStep::Done);
    // Meanwhile the left range was split.
    let mut case = Case::new();
    let ranges = case.split_at(&["m"]);
    let pair = [ranges[0], ranges[1]];
    let between = case.split_range_at(ranges[0], &["g"])[1];
    let refused = case.manager.merge_step(pair, case.now);
    let why = refused.expect_err("a refusal").to_string();
    assert!(
        why.contains(&format!("its right neighbour is range {between} now")),
        "{why}"
    );
}

#[test]
fn replicas_of_the_right_range_move_first() {
    let mut case = Case::new();
    let ranges = case.split_at(&["m"]);
    let elsewhere = Location {
        node: NodeId(2),
        shard: ShardId(1),
    };
    let right = case.ranges.get_mut(&ranges[1]).expect("it is there");
    let place = right
        .replicas
        .iter_mut()
        .find(|place| place.location == at(2));
    place.expect("a replica").location = elsewhere;
    right.epoch.conf += 1;
    case.pass(1);
    let step = case.merge(ranges[0]).expect("a step");
    let wanted = MergeStep::Move {
        range: ranges[1],
        from: NodeId(2),
        to: at(2),
    };
    assert_eq!(step, wanted);
}

#[test]
fn what_cannot_be_merged_is_refused_with_a_reason() {
    let mut case = Case::new();
    let ranges = case.split_at(&["m"]);
    let refused = case.merge(ranges[1]);
    assert!(
        matches!(&refused, Err(OrderError::Conflict(why)) if why.contains("last keys")),
        "{refused:?}"
    );
    let refused = case.merge(RangeId(99));
    assert!(
        matches!(refused, Err(OrderError::NotFound(_))),
        "{refused:?}"
    );
    let refused = case.merge(SYSTEM_RANGE);
    assert!(
        matches!(refused, Err(OrderError::Invalid(_))),
        "{refused:?}"
    );
    case.changing.insert(ranges[1]);
    case.pass(1);
    let refused = case.merge(ranges[0]);
    assert!(
        matches!(refused, Err(OrderError::Conflict(_))),
        "{refused:?}"
    );
}

#[test]
fn the_manager_merges_what_is_small_and_cold_for_long_and_is_not_held() {
    let mut case = Case::new();
    let ranges = case.split_at(&["g", "m", "t"]);
    assert!(ranges[1].0 >= FIRST_NEW_RANGE);
    assert!(case.mergeable().is_empty(), "they are new");
    case.pass(LONG);
    // Pairs that have no range in common.
    assert_eq!(case.mergeable(), [ranges[0], ranges[2]]);
    // Beside one that is being merged, and when as many are as may be.
    let merging = (ranges[1], ranges[2]);
    assert_eq!(case.mergeable_at(0, &[merging]), []);
    let merging = (ranges[2], ranges[3]);
    assert_eq!(case.mergeable_at(0, &[merging]), [ranges[0]]);
    let others = [(RangeId(1000), RangeId(1001)); MERGES_MAX];
    assert_eq!(case.mergeable_at(0, &others), []);
    case.bytes.insert(ranges[1], 70 << 20);
    case.pass(1);
    assert_eq!(case.mergeable(), [ranges[2]], "a quarter of 256 MiB");
    let held = record::HeldRecord {
        range: ranges[3],
        until_ms: 5,
    };
    case.manager.held(held);
    assert!(case.mergeable().is_empty());
    assert_eq!(case.mergeable_at(6, &[]), [ranges[2]]);
    case.manager.set(crate::cluster::Setting {
        version: 1,
        name: "merge".to_owned(),
        value: "off".to_owned(),
        at_ms: 0,
    });
    assert!(case.mergeable_at(6, &[]).is_empty());
}

#[test]
fn a_replica_of_a_range_that_is_no_more_is_to_go() {
    let mut case = Case::new();
    let ranges = case.split_at(&["m"]);
    let right = case.ranges[&ranges[1]].clone();
    let replica = Case::replica_on(&right, 3).expect("a replica");
    let ask = |case: &mut Case, leads: bool| {
        let ranges: Vec<&Descriptor> = case.ranges.values().collect();
        let mut report = case.report_of(3, &ranges);
        report.held.retain(|held| held.replica != replica);
        match leads {
            true => report.led.push(LedRange {
                leader: replica,
                ..case.led(&right)
            }),
            false => report.held.push(HeldReplica {
                range: right.range,
                replica,
                conf: right.epoch.conf,
                left: false,
                is_empty: false,
                bounds: Some((right.keys.start.clone(), right.epoch.version)),
                parts: 1,
            }),
        }
        match case.manager.take(report, true, case.now) {
            ClusterResponse::Synced { remove, .. } => remove,
            other => panic!("{other:?}"),
        }
    };
    assert!(ask(&mut case, false).is_empty(), "it may thaw");
    case.merged(ranges[0], ranges[1]);
    for leads in [false, true] {
        case.pass(1);
        assert_eq!(ask(&mut case, leads), [(right.range, replica)], "{leads}");
    }
}
