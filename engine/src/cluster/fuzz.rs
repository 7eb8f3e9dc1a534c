//! Messages and records of the cluster's manager, under bytes that were changed at random.

use rangedb_fuzz::fuzz;

use crate::cluster::message::{Ask, Told, View, decode_ask, decode_told, encode_ask, encode_told};
use crate::cluster::record::{self, NodeRecord, RangeRecord, Setting};
use crate::cluster::{HighestIds, NodeState, NodeView, RangeView, Trouble};
use crate::error::OrderError;
use crate::range::{Descriptor, Keyspace, ReplicaPlace};
use crate::types::{Epoch, KeyRange, Location, NodeId, RangeId, ReplicaId, ShardId};

const AT: Location = Location {
    node: NodeId(3),
    shard: ShardId(1),
};
const PLACE: ReplicaPlace = ReplicaPlace {
    replica: ReplicaId(9),
    location: AT,
};

fn descriptor() -> Descriptor {
    Descriptor {
        range: RangeId(7),
        epoch: Epoch {
            version: 1,
            conf: 2,
        },
        keyspace: Keyspace::User,
        keys: KeyRange {
            start: b"a".to_vec(),
            end: None,
        },
        replicas: vec![PLACE],
    }
}

fn node() -> NodeRecord {
    NodeRecord {
        id: NodeId(3),
        address: "10.0.0.1:7400".to_owned(),
        http: "127.0.0.1:7480".to_owned(),
        shards: 2,
        life: NodeRecord::life(4, 99),
        started_ms: 5,
        release: "0.1.0".to_owned(),
    }
}

fn setting() -> Setting {
    Setting {
        version: 7,
        name: "dead-after".to_owned(),
        value: "5m".to_owned(),
        at_ms: 9,
    }
}

fn view() -> View {
    let range = RangeView {
        descriptor: descriptor(),
        voters: vec![ReplicaId(9)],
        leader: Some(AT),
        term: 4,
        applied: 100,
        lag: vec![(ReplicaId(9), u64::MAX)],
        troubles: vec![(ReplicaId(9), Trouble::Missing)],
        under_replicated: true,
        unavailable: false,
    };
    let node = NodeView {
        record: node(),
        state: NodeState::Alive,
    };
    View {
        version: 8,
        leader: AT,
        system: vec![AT],
        nodes: vec![node],
        ranges: vec![range],
        settings: vec![setting()],
    }
}

#[test]
fn questions_and_answers() {
    let report = crate::cluster::message::Report {
        from: AT,
        node: node(),
        known: 8,
        led: Vec::new(),
        held: Vec::new(),
        highest: HighestIds::default(),
        peers: Vec::new(),
    };
    let range = RangeId(7);
    let asks = [
        Ask::Report(report),
        Ask::View,
        Ask::Join { token: 1 << 100 },
        Ask::Set {
            name: "balance".to_owned(),
            value: "off".to_owned(),
        },
        Ask::TransferLeader {
            range,
            to: Some(NodeId(2)),
        },
        Ask::MoveReplica {
            range,
            from: NodeId(1),
            to: AT.node,
            shard: Some(AT.shard),
        },
        Ask::Create {
            descriptor: descriptor(),
            replica: ReplicaId(9),
        },
        Ask::Change {
            range,
            voters: vec![PLACE],
            learners: vec![PLACE],
        },
    ];
    let tally = fuzz("asks", &asks.map(|ask| encode_ask(&ask)), |bytes, meter| {
        let Some(ask) = meter.decode(|| decode_ask(bytes)) else {
            return false;
        };
        assert_eq!(decode_ask(&encode_ask(&ask)), Some(ask));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
    let tolds = [
        Told::NotHere {
            leader: None,
            system: vec![AT],
        },
        Told::Done,
        Told::Refused(OrderError::busy("a change is under way")),
        Told::View(view()),
        Told::Joined(NodeId(4)),
        Told::Settings(vec![setting()]),
    ];
    let tally = fuzz(
        "tolds",
        &tolds.map(|told| encode_told(&told)),
        |bytes, meter| {
            let Some(told) = meter.decode(|| decode_told(bytes)) else {
                return false;
            };
            assert_eq!(decode_told(&encode_told(&told)), Some(told));
            true
        },
    );
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn records() {
    fuzz(
        "records of nodes",
        &[record::encode(&node())],
        |bytes, meter| {
            let Some(found) = meter.decode(|| record::decode::<NodeRecord>(bytes)) else {
                return false;
            };
            assert_eq!(record::decode(&record::encode(&found)), Some(found));
            true
        },
    );
    let range = RangeRecord {
        descriptor: descriptor(),
        voters: vec![ReplicaId(9)],
    };
    fuzz(
        "records of ranges",
        &[record::encode(&range)],
        |bytes, meter| {
            let Some(found) = meter.decode(|| record::decode::<RangeRecord>(bytes)) else {
                return false;
            };
            assert_eq!(record::decode(&record::encode(&found)), Some(found));
            true
        },
    );
    fuzz("settings", &[record::encode(&setting())], |bytes, meter| {
        let Some(found) = meter.decode(|| record::decode::<Setting>(bytes)) else {
            return false;
        };
        assert_eq!(record::decode(&record::encode(&found)), Some(found));
        true
    });
    fuzz(
        "tokens",
        &[record::token_key(u128::MAX - 1)],
        |bytes, meter| meter.decode(|| record::token_of(bytes)).is_some(),
    );
}
