//! What a range writes to its log and its tables, under bytes that were changed at random.

use std::borrow::Cow;

use bytes::Bytes;
use rangedb_fuzz::fuzz;

use crate::range::command::format;
use crate::range::command::v1;
use crate::range::command::{self, Action, Command, Entry, RangeOrder, SplitOrder};
use crate::range::sessions::{ClientMarks, SavedRequest};
use crate::range::state::RangeState;
use crate::range::{Descriptor, Keyspace, ReplicaPlace};
use crate::request::{Batch, Condition, Expected, Outcome, RequestId};
use crate::types::{
    ClientId, DataId, Epoch, KeyRange, Location, MergeId, NodeId, RangeId, ReplicaId, ShardId,
    Timestamp,
};
use crate::wal::LogId;

fn writes() -> Vec<Batch> {
    let key = || Bytes::from_static(b"key");
    let value = || Bytes::from_static(b"a value that is not stored in place of its address");
    let mut conditional = Batch::set_all([(key(), Some(value())), (key(), None)]);
    conditional.conditions = vec![
        Condition {
            key: key(),
            expected: Expected::Version(Timestamp(7)),
        },
        Condition {
            key: key(),
            expected: Expected::Exists,
        },
    ];
    vec![
        Batch::put(key(), value()),
        Batch::delete(key()),
        Batch::compare_and_swap(key(), Expected::Value(value()), None),
        Batch::compare_and_swap(key(), Expected::Absent, Some(value())),
        Batch::add(key(), -4),
        conditional,
    ]
}

fn descriptor() -> Descriptor {
    let place = |id| ReplicaPlace {
        replica: ReplicaId(id),
        location: Location {
            node: NodeId(id),
            shard: ShardId(0),
        },
    };
    Descriptor {
        range: RangeId(7),
        epoch: Epoch {
            version: 1,
            conf: 2,
        },
        keyspace: Keyspace::User,
        keys: KeyRange {
            start: b"a".to_vec(),
            end: Some(b"z".to_vec()),
        },
        replicas: vec![place(1), place(2), place(3)],
    }
}

/// Entries are read in place: nothing is decoded, and nothing allocated, unless the last byte says
/// that one is of the first format.
#[test]
fn entries() {
    let request_id = RequestId {
        client: ClientId(1 << 100),
        sequence: 3,
        lowest_unanswered: 2,
        first_tried: Timestamp(99),
    };
    let (epoch, writes) = (
        Epoch {
            version: 1,
            conf: 2,
        },
        writes(),
    );
    let mut actions: Vec<Action<'_>> = writes
        .iter()
        .map(|batch| Action::Write { request_id, batch })
        .collect();
    let orders = [
        RangeOrder::SetGcThreshold { threshold: 5 },
        RangeOrder::NoOp,
        RangeOrder::Split(SplitOrder {
            key: b"m".to_vec(),
            child: RangeId(8),
            replicas: (1..=3)
                .map(|id| (ReplicaId(id), ReplicaId(id + 10)))
                .collect(),
            served: 4,
        }),
    ];
    actions.extend(orders.iter().map(Action::Order));
    let command = |(timestamp, action)| Command {
        timestamp,
        epoch,
        action,
    };
    let entry = Entry {
        ceiling: 9,
        commands: (1..).zip(actions).map(command).collect(),
    };
    let corpus = [entry, Entry::default()];
    let corpus = corpus.map(|entry| command::encode(&entry, 0).expect("bytes").to_vec());
    fuzz("entries", &corpus, |bytes, meter| {
        let read = || {
            let current = format::current(bytes)?;
            command::access(&current).map(drop)
        };
        meter.decode(read).is_ok()
    });
}

/// An entry of the first format is written anew, in today's format.
#[test]
fn entries_of_the_first_format() {
    let corpus = v1::tests::samples();
    let tally = fuzz("entries of the first format", &corpus, |bytes, meter| {
        let Ok(current) = meter.decode(|| format::current(bytes)) else {
            return false;
        };
        if let Cow::Owned(anew) = &current {
            command::access(anew).expect("it was written by this release");
            let again = format::current(anew).expect("it is today's format");
            assert!(matches!(again, Cow::Borrowed(_)));
        }
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn rows_of_sessions() {
    let marks = ClientMarks {
        lowest_unanswered: 3,
        last_seen: Timestamp(4),
    };
    fuzz("marks", &[marks.encode()], |bytes, meter| {
        let Some(marks) = meter.decode(|| ClientMarks::decode(bytes)) else {
            return false;
        };
        assert_eq!(ClientMarks::decode(&marks.encode()), Some(marks));
        true
    });
    let version = Timestamp(7);
    let outcomes = [
        Outcome::Done {
            version,
            existed: true,
        },
        Outcome::Number { version, value: -1 },
        Outcome::ConditionFailed {
            current: Some(version),
            condition: 3,
        },
        Outcome::Numbers {
            version,
            values: [1, -1].into(),
        },
        Outcome::NotANumber,
        Outcome::Moved,
    ];
    let saved = |outcome| SavedRequest {
        decided: Timestamp(9),
        outcome,
    };
    let corpus = outcomes.map(|outcome| saved(outcome).encode().expect("bytes"));
    fuzz("pairs", &corpus, |bytes, meter| {
        let Ok(request) = meter.decode(|| SavedRequest::decode(bytes)) else {
            return false;
        };
        let again = request.encode().expect("bytes");
        assert_eq!(SavedRequest::decode(&again).expect("a request"), request);
        true
    });
}

#[test]
fn descriptors_and_states() {
    let bytes = descriptor().encode().expect("bytes");
    fuzz("descriptors", &[bytes], |bytes, meter| {
        let Ok(found) = meter.decode(|| Descriptor::decode(bytes)) else {
            return false;
        };
        let again = found.encode().expect("bytes");
        assert_eq!(Descriptor::decode(&again).expect("a descriptor"), found);
        true
    });
    let first = LogId {
        term: 3,
        leader: ReplicaId(9),
        index: 5,
    };
    let state = |first| {
        let membership = Bytes::from_static(b"membership");
        RangeState::created(descriptor(), membership, first)
    };
    let plain = |first| state(first).encode(&[]).expect("bytes");
    let mut frozen = state(Some(first));
    frozen.frozen = Some(MergeId {
        left: RangeId(2),
        version: 7,
    });
    let parts = [(b"m".to_vec(), DataId(3))];
    let frozen = frozen.encode(&parts).expect("bytes");
    let mut merged = state(Some(first));
    merged.borders.add(vec![(b"p".to_vec(), Timestamp(88))]);
    let merged = merged.encode(&parts).expect("bytes");
    fuzz(
        "states",
        &[plain(None), plain(Some(first)), frozen, merged],
        |bytes, meter| {
            let Ok(found) = meter.decode(|| RangeState::decode(bytes)) else {
                return false;
            };
            let (found, parts) = found;
            let again = found.encode(&parts).expect("bytes");
            let (second, other_parts) = RangeState::decode(&again).expect("a state");
            assert_eq!(second.encode(&other_parts).expect("bytes"), again);
            assert_eq!((other_parts, second.frozen), (parts, found.frozen));
            assert_eq!(second.borders, found.borders);
            assert_eq!(second.descriptor, found.descriptor);
            assert_eq!(
                (second.applied, second.last_ts),
                (found.applied, found.last_ts)
            );
            assert_eq!(second.membership, found.membership);
            true
        },
    );
}
