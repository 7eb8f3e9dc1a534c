//! Splits against a state alone: what each side gets, and which orders do not fit.

use super::*;
use crate::range::Keyspace;
use crate::range::command::{self, Action, ArchivedAction, ArchivedRangeOrder, Command, Entry};
use crate::range::command::{RangeOrder, SplitOrder};
use crate::types::{Location, NodeId, ShardId};

const BEFORE: Epoch = Epoch {
    version: 4,
    conf: 9,
};
const AT: Timestamp = Timestamp::from_ms(500);

fn place(id: u64) -> ReplicaPlace {
    ReplicaPlace {
        replica: ReplicaId(id),
        location: Location {
            node: NodeId(id),
            shard: ShardId(0),
        },
    }
}

fn state() -> RangeState {
    let places: Vec<ReplicaPlace> = (1..=3).map(place).collect();
    let descriptor = Descriptor {
        range: RangeId(7),
        epoch: BEFORE,
        keyspace: Keyspace::User,
        keys: KeyRange {
            start: b"b".to_vec(),
            end: Some(b"y".to_vec()),
        },
        replicas: places.clone(),
    };
    let membership = raft::encode_membership(&raft::members(&places)).expect("encodes");
    let mut state = RangeState::created(descriptor, membership.into(), Some(FIRST));
    state.gc_threshold = Timestamp::from_ms(40);
    state
}

fn order(key: &str) -> SplitOrder {
    SplitOrder {
        key: key.as_bytes().to_vec(),
        child: RangeId(8),
        replicas: (1..=3)
            .map(|id| (ReplicaId(id), ReplicaId(20 - id)))
            .collect(),
        served: Timestamp::from_ms(450).0,
    }
}

/// Applies the order as an entry holds it.
fn split(state: &mut RangeState, order: SplitOrder, proposed: Epoch) -> Option<RangeState> {
    let order = RangeOrder::Split(order);
    let command = Command {
        timestamp: AT.0,
        epoch: proposed,
        action: Action::Order(&order),
    };
    let entry = Entry {
        ceiling: 5,
        commands: vec![command],
    };
    let bytes = command::encode(&entry, 0).expect("encodes");
    assert!(command::is_split(&bytes));
    let entry = command::access(&bytes).expect("is read");
    let [command] = entry.commands.as_slice() else {
        panic!("one command");
    };
    let ArchivedAction::Order(ArchivedRangeOrder::Split(order)) = &command.action else {
        panic!("a split");
    };
    apply(state, order, command.epoch.epoch(), AT).expect("applies")
}

#[test]
fn both_sides_have_their_keys_one_version_and_the_promises_that_were_made() {
    let mut left = state();
    let borders = [b"d", b"p"].map(|key| (key.to_vec(), AT));
    left.borders.add(borders.to_vec());
    let right = split(&mut left, order("m"), BEFORE).expect("it fits");
    assert_eq!(left.borders.all(), &borders[..1]);
    assert_eq!(right.borders.all(), &borders[1..]);
    let version = BEFORE.version + 1;
    assert_eq!(left.descriptor.epoch, Epoch { version, ..BEFORE });
    assert_eq!(right.descriptor.epoch, left.descriptor.epoch);
    assert_eq!(
        left.descriptor.keys.interval(),
        (&b"b"[..], Some(&b"m"[..]))
    );
    assert_eq!(
        right.descriptor.keys.interval(),
        (&b"m"[..], Some(&b"y"[..]))
    );
    assert_eq!(
        (right.last_ts, right.ceiling),
        (AT, Timestamp::from_ms(450))
    );
    assert_eq!(right.gc_threshold, left.gc_threshold);
    assert_eq!(right.applied, Some(FIRST));
    let members = raft::replicas(&right.membership.body).expect("is read");
    let (voters, is_joint) = raft::voters(&right.membership.body).expect("is read");
    assert_eq!(members, right.descriptor.replicas);
    assert_eq!(voters, [17, 18, 19].map(ReplicaId));
    assert!(!is_joint);
    for parent in 1..=3 {
        let beside = order("m").replicas.into_iter();
        let mut beside = beside.filter(|pair| pair.0 == ReplicaId(parent));
        let (_, beside) = beside.next().expect("it has a child");
        let at = right.descriptor.location(beside);
        assert_eq!(at, left.descriptor.location(ReplicaId(parent)));
    }
}

#[test]
fn an_order_that_does_not_fit_changes_nothing() {
    let other_version = Epoch {
        version: BEFORE.version - 1,
        ..BEFORE
    };
    let mut too_few = order("m");
    too_few.replicas.pop();
    let mut other_replica = order("m");
    other_replica.replicas[0].0 = ReplicaId(4);
    let orders = [
        (order("m"), other_version),
        (order("b"), BEFORE),
        (order("a"), BEFORE),
        (order("y"), BEFORE),
        (too_few, BEFORE),
        (other_replica, BEFORE),
    ];
    for (order, proposed) in orders {
        let mut state = state();
        let before = state.descriptor.clone();
        assert!(
            split(&mut state, order.clone(), proposed).is_none(),
            "{order:?}"
        );
        assert_eq!(state.descriptor, before);
    }
}
