//! Merges against states alone: what a freeze holds back, what the left range gets, and which orders do
//! not fit.

use super::*;
use crate::lsm::LsmError;
use crate::range::apply::{self, Applied, Effect, Step};
use crate::range::command::{self, Action, Command, Entry, FreezeOrder, MergeOrder, RangeOrder};
use crate::range::rows::Rows;
use crate::range::state::FIRST;
use crate::range::{Descriptor, Keyspace, ReplicaPlace};
use crate::request::{Batch, Outcome, RequestId};
use crate::types::{ClientId, KeyRange, Location, NodeId, ReplicaId, ShardId};
use crate::wal::{LogEntry, LogId, Payload};

const EPOCH: Epoch = Epoch {
    version: 4,
    conf: 9,
};
const MERGE: MergeId = MergeId {
    left: RangeId(7),
    version: EPOCH.version,
};

struct NoRows;

impl Rows for NoRows {
    fn newest<R>(
        &self,
        _: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError> {
        Ok(look(None))
    }

    fn insert(&mut self, _: &[u8], _: Timestamp, _: Option<&[u8]>) {}
}

fn state(range: u64, start: &str, end: Option<&str>) -> RangeState {
    let place = |id: u64| ReplicaPlace {
        replica: ReplicaId(10 * range + id),
        location: Location {
            node: NodeId(id),
            shard: ShardId(0),
        },
    };
    let places: Vec<ReplicaPlace> = (1..=3).map(place).collect();
    let descriptor = Descriptor {
        range: RangeId(range),
        epoch: EPOCH,
        keyspace: Keyspace::User,
        keys: KeyRange {
            start: start.into(),
            end: end.map(Into::into),
        },
        replicas: places.clone(),
    };
    let membership = raft::encode_membership(&raft::members(&places)).expect("encodes");
    RangeState::created(descriptor, membership.into(), Some(FIRST))
}

/// Applies an entry with one command, at this millisecond.
fn step(state: &mut RangeState, ms: u64, action: Action<'_>) -> Step {
    let command = Command {
        timestamp: Timestamp::from_ms(ms).0,
        epoch: Epoch { conf: 0, ..EPOCH },
        action,
    };
    let entry = Entry {
        ceiling: Timestamp::from_ms(ms + 500).0,
        commands: vec![command],
    };
    let payload = Payload::Commands(command::encode(&entry, 0).expect("encodes"));
    apply_entry(state, payload)
}

fn apply_entry(state: &mut RangeState, payload: Payload) -> Step {
    let index = state.applied.map_or(1, |applied| applied.index + 1);
    let id = LogId {
        term: 1,
        leader: ReplicaId(1),
        index,
    };
    apply::apply(state, &mut NoRows, &LogEntry { id, payload }).expect("applies")
}

fn order(state: &mut RangeState, ms: u64, order: &RangeOrder) -> Step {
    step(state, ms, Action::Order(order))
}

fn put(state: &mut RangeState, ms: u64, key: &str) -> Step {
    let request_id = RequestId {
        client: ClientId(1),
        sequence: ms,
        lowest_unanswered: 1,
        first_tried: Timestamp::from_ms(ms),
    };
    let key = crate::types::Blob::copy_from_slice(key.as_bytes());
    let batch = Batch::set_all([(key.clone(), Some(key))]);
    let batch = &batch;
    step(state, ms, Action::Write { request_id, batch })
}

fn is_done(step: &Step) -> bool {
    matches!(
        step.results.as_slice(),
        [Applied::Outcome(Outcome::Done { .. })]
    )
}

fn is_moved(step: &Step) -> bool {
    step.results == [Applied::Outcome(Outcome::Moved)]
}

fn freeze(served_ms: u64) -> RangeOrder {
    RangeOrder::Freeze(FreezeOrder {
        merge: MERGE,
        conf: EPOCH.conf,
        served: Timestamp::from_ms(served_ms).0,
    })
}

fn merge_of(right: &RangeState) -> MergeOrder {
    MergeOrder {
        merge: MERGE,
        conf: EPOCH.conf,
        right: right.range(),
        right_version: right.descriptor.epoch.version,
        border: right.descriptor.keys.start.clone(),
        end: right.descriptor.keys.end.clone(),
        last_ts: right.last_ts,
        ceiling: right.ceiling,
        gc_threshold: right.gc_threshold,
    }
}

#[test]
fn a_frozen_range_applies_nothing_and_its_time_stands_still_until_it_thaws() {
    let mut state = state(8, "m", Some("z"));
    assert!(is_done(&put(&mut state, 100, "n")));
    assert!(is_done(&order(&mut state, 110, &freeze(90))));
    let (last, ceiling) = (state.last_ts, state.ceiling);
    assert_eq!(state.frozen, Some(MERGE));
    assert_eq!(ceiling, Timestamp::from_ms(90), "what was served, exactly");
    assert!(is_moved(&put(&mut state, 120, "n")));
    let threshold = Timestamp::from_ms(115).0;
    let collect = RangeOrder::SetGcThreshold { threshold };
    assert!(is_moved(&order(&mut state, 130, &collect)));
    assert!(is_moved(&order(&mut state, 135, &freeze(134))));
    apply_entry(&mut state, Payload::Blank);
    assert_eq!((state.last_ts, state.ceiling), (last, ceiling));
    assert_eq!(state.gc_threshold, Timestamp::ZERO);
    let other = MergeId {
        version: EPOCH.version + 1,
        ..MERGE
    };
    let thaw = |merge| RangeOrder::Unfreeze { merge };
    assert!(is_moved(&order(&mut state, 140, &thaw(other))));
    assert_eq!(state.frozen, Some(MERGE));
    let thawed = order(&mut state, 150, &thaw(MERGE));
    assert!(is_done(&thawed) && thawed.effects == [Effect::Thawed]);
    assert!(is_done(&put(&mut state, 160, "n")));
}

#[test]
fn the_left_range_gets_the_keys_the_time_and_the_promises_of_the_right_one() {
    let (mut left, mut right) = (state(7, "c", Some("m")), state(8, "m", None));
    right.descriptor.epoch.version = 11;
    right.gc_threshold = Timestamp::from_ms(60);
    right.last_ts = Timestamp::from_ms(900);
    right.ceiling = Timestamp::from_ms(9_000);
    let merge = RangeOrder::Merge(merge_of(&right));
    let merged = order(&mut left, 100, &merge);
    assert!(is_done(&merged));
    assert_eq!(merged.effects, [Effect::Absorb(RangeId(8), MERGE)]);
    assert_eq!(left.descriptor.keys.interval(), (&b"c"[..], None));
    assert_eq!(left.descriptor.epoch.version, 12, "above both");
    assert_eq!((left.last_ts, left.ceiling), (right.last_ts, right.ceiling));
    assert_eq!(left.gc_threshold, right.gc_threshold);
    // Once only.
    assert!(is_moved(&order(&mut left, 1_000, &merge)));
}

#[test]
fn a_merge_that_was_cancelled_has_no_effect_and_one_that_took_place_is_not_cancelled() {
    let right = state(8, "m", None);
    let merge = RangeOrder::Merge(merge_of(&right));
    let cancel = RangeOrder::CancelMerge { merge: MERGE };
    let mut left = state(7, "c", Some("m"));
    assert!(is_done(&order(&mut left, 100, &cancel)));
    let cancelled = left.descriptor.clone();
    assert_eq!(cancelled.epoch.version, EPOCH.version + 1);
    assert!(is_moved(&order(&mut left, 110, &merge)));
    assert!(is_moved(&order(&mut left, 120, &cancel)));
    assert_eq!(left.descriptor, cancelled);
    let mut left = state(7, "c", Some("m"));
    assert!(is_done(&order(&mut left, 100, &merge)));
    let merged = left.descriptor.clone();
    assert!(is_moved(&order(&mut left, 110, &cancel)));
    assert_eq!(left.descriptor, merged);
}

#[test]
fn orders_for_other_bounds_or_members_change_nothing() {
    let right = state(8, "m", None);
    let other_conf = MergeOrder {
        conf: EPOCH.conf - 1,
        ..merge_of(&right)
    };
    let other_border = MergeOrder {
        border: b"n".to_vec(),
        ..merge_of(&right)
    };
    let earlier = MergeOrder {
        merge: MergeId {
            version: EPOCH.version - 1,
            ..MERGE
        },
        ..merge_of(&right)
    };
    for unfit in [other_conf, other_border, earlier] {
        let mut left = state(7, "c", Some("m"));
        let before = left.descriptor.clone();
        let unfit = RangeOrder::Merge(unfit);
        assert!(is_moved(&order(&mut left, 100, &unfit)), "{unfit:?}");
        assert_eq!(left.descriptor, before);
    }
    let mut right = right;
    right.descriptor.epoch.conf += 1;
    assert!(is_moved(&order(&mut right, 100, &freeze(90))));
    assert_eq!(right.frozen, None);
}

#[test]
fn the_row_of_a_frozen_state_round_trips_and_a_plain_one_is_as_it_was() {
    let mut state = state(8, "m", None);
    let plain = state.encode(&[]).expect("encodes");
    state.frozen = Some(MERGE);
    let parts = [(b"p".to_vec(), crate::types::DataId(9))];
    let row = state.encode(&parts).expect("encodes");
    let (again, found) = RangeState::decode(&row).expect("decodes");
    assert_eq!((again.frozen, found.as_slice()), (Some(MERGE), &parts[..]));
    assert_eq!(again.descriptor, state.descriptor);
    let (again, found) = RangeState::decode(&plain).expect("decodes");
    assert_eq!((again.frozen, found.as_slice()), (None, &[][..]));
}

#[test]
fn a_range_remembers_the_borders_that_it_lost_until_nobody_reads_from_before_the_merge() {
    let mut right = state(8, "m", None);
    assert!(is_done(&order(&mut right, 50, &freeze(40))));
    let mut left = state(7, "c", Some("m"));
    let merge = RangeOrder::Merge(merge_of(&right));
    assert!(is_done(&order(&mut left, 100, &merge)));
    let merged = (b"m".to_vec(), left.last_ts);
    assert_eq!(left.borders.all(), std::slice::from_ref(&merged));
    // The right range had taken over others, too.
    let earlier = (b"t".to_vec(), Timestamp::from_ms(30));
    absorb_borders(&mut left, vec![earlier.clone()]);
    assert_eq!(left.borders.all(), [merged.clone(), earlier.clone()]);

    let parts = [(b"p".to_vec(), crate::types::DataId(9))];
    let row = left.encode(&parts).expect("encodes");
    let (again, found) = RangeState::decode(&row).expect("decodes");
    assert_eq!(
        (&again.borders, found.as_slice()),
        (&left.borders, &parts[..])
    );
    assert_eq!((again.frozen, &again.descriptor), (None, &left.descriptor));

    let collect = |ms: u64| RangeOrder::SetGcThreshold {
        threshold: Timestamp::from_ms(ms).0,
    };
    step(&mut left, 200, Action::Order(&collect(30)));
    assert_eq!(left.borders.all(), [merged]);
    step(&mut left, 300, Action::Order(&collect(150)));
    assert_eq!(left.borders.all(), []);
    let (again, _) = RangeState::decode(&left.encode(&[]).expect("encodes")).expect("decodes");
    assert_eq!(again.borders, left.borders);
}
