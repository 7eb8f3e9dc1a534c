//! Feeds messages and records of the cluster's manager, with bytes changed at random, to their decoders.

use rangedb_fuzz::fuzz;

use crate::cluster::message::{
    ClusterRequest, ClusterResponse, Follower, HeldReplica, LedRange, View, ViewNews,
    decode_request, decode_response, encode_request, encode_response,
};
use crate::cluster::record::{
    self, HeldRecord, MembershipRecord, MembershipStatus, NodeRecord, RangeRecord, Setting,
};
use crate::cluster::{
    BlockReason, Decision, DecisionKind, HighestIds, HotRange, Leaving, NodeHealth, NodeView,
    Outcome, RangeStats, RangeView, ReplicaFault, ShardStats, SplitBlocked, SplitPart, SplitReason,
};
use crate::error::OrderError;
use crate::range::usage::hot_keys::HotKey;
use crate::range::{Descriptor, Keyspace, ReplicaPlace};
use crate::types::{Epoch, KeyRange, Location, NodeId, NodeStats, RangeId, ReplicaId, ShardId};

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
        leaving_shards: 1,
        incarnation: NodeRecord::incarnation(4, 99),
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

fn decision() -> Decision {
    Decision {
        id: 7,
        at_ms: 9,
        range: RangeId(7),
        kind: DecisionKind::MoveReplica,
        reason: "why".to_owned(),
        from: Some(AT),
        to: None,
        expected: String::new(),
        outcome: Outcome::Failed("why not".to_owned()),
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
        faults: vec![(ReplicaId(9), ReplicaFault::Missing)],
        under_replicated: true,
        unavailable: false,
        phase: crate::cluster::BoundsPhase::Splitting,
        born_ms: 6,
        parts: vec![(ReplicaId(9), 2)],
        held_until_ms: u64::MAX,
        split_blocked: Some(SplitBlocked {
            reason: BlockReason::SingleKey,
            since_ms: 9,
            key: Some(b"k".to_vec()),
        }),
        stats: RangeStats::default(),
    };
    let node = NodeView {
        record: node(),
        state: NodeHealth::Alive,
        membership: MembershipStatus::Draining,
        slow_disk: true,
        shards: vec![ShardStats {
            cpu: 7,
            bytes: 9,
            node: NodeStats {
                p50_micros: Some(90),
                disk_free: Some(1),
                is_clock_kept: Some(true),
                ..NodeStats::default()
            },
        }],
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
    let led = LedRange {
        descriptor: descriptor(),
        voters: vec![ReplicaId(9)],
        changing: true,
        phase: crate::cluster::BoundsPhase::Merging,
        is_joint: false,
        has_quorum: true,
        leader: ReplicaId(9),
        term: 4,
        applied: 100,
        followers: vec![Follower {
            replica: ReplicaId(10),
            matched: Some(99),
            lag: 1,
            stalls: true,
            answers: true,
            lost: false,
            takes_snapshot: false,
        }],
        stats: RangeStats::default(),
        parts: 2,
    };
    let held = HeldReplica {
        range: RangeId(8),
        replica: ReplicaId(11),
        conf: 2,
        left: false,
        is_empty: true,
        bounds: Some((b"m".to_vec(), 3)),
        parts: 1,
    };
    let report = crate::cluster::message::Report {
        from: AT,
        node: node(),
        known: 8,
        number: 3,
        since: Some(2),
        led: vec![led],
        held: vec![held],
        gone: vec![RangeId(5)],
        highest: HighestIds::default(),
        peers: Vec::new(),
        in_flight: 2,
        slow_disk: true,
        unreadable: vec![ReplicaId(9)],
        stats: ShardStats::default(),
    };
    let leaving = Leaving {
        node: AT.node,
        membership: MembershipStatus::Decommissioning,
        leaders_left: 1,
        replicas_left: 2,
        requests_left: 3,
        blocked: vec![(RangeId(7), "why".to_owned())],
        moves: vec![(RangeId(7), AT)],
        is_done: false,
        per_minute: 3,
        stuck_ms: 4,
    };
    let range = RangeId(7);
    let hot_key = HotKey {
        key: b"m".to_vec(),
        share: 900,
    };
    let requests = [
        ClusterRequest::Report(report),
        ClusterRequest::View,
        ClusterRequest::Join { token: 1 << 100 },
        ClusterRequest::Set {
            name: "balance".to_owned(),
            value: "off".to_owned(),
        },
        ClusterRequest::TransferLeader {
            range,
            to: Some(NodeId(2)),
        },
        ClusterRequest::MoveReplica {
            range,
            from: NodeId(1),
            to: AT.node,
            shard: Some(AT.shard),
        },
        ClusterRequest::SetMembership {
            node: AT.node,
            status: MembershipStatus::Draining,
        },
        ClusterRequest::SplitRange {
            range,
            keys: vec![b"m".to_vec()],
            held_until_ms: Some(9),
        },
        ClusterRequest::ReleaseRange { range },
        ClusterRequest::Decisions,
        ClusterRequest::Scatter {
            keys: descriptor().keys,
        },
        ClusterRequest::SplitKeys {
            range: RangeId(8),
            version: 3,
            parts: 4,
        },
        ClusterRequest::Split {
            reason: SplitReason::Size,
            range,
            version: 1,
            key: b"m".to_vec(),
            child: RangeId(8),
            replicas: vec![(ReplicaId(9), ReplicaId(10))],
        },
        ClusterRequest::Leaving {
            node: AT.node,
            dry_run: true,
        },
        ClusterRequest::Create {
            descriptor: descriptor(),
            replica: ReplicaId(9),
        },
        ClusterRequest::Change {
            range,
            voters: vec![PLACE],
            learners: vec![PLACE],
        },
        ClusterRequest::SplitInto {
            range,
            parts: 4,
            held_until_ms: Some(9),
        },
        ClusterRequest::HotRanges { top: 10 },
        ClusterRequest::HotKeys { range, top: 10 },
        ClusterRequest::LoadKeys { range, version: 3 },
    ];
    let tally = fuzz(
        "asks",
        &requests.map(|request| encode_request(&request)),
        |bytes, meter| {
            let Some(request) = meter.decode(|| decode_request(bytes)) else {
                return false;
            };
            assert_eq!(decode_request(&encode_request(&request)), Some(request));
            true
        },
    );
    assert!(tally.accepted > 100, "{tally:?}");
    let responses = [
        ClusterResponse::NotHere {
            leader: None,
            system: vec![AT],
        },
        ClusterResponse::Done,
        ClusterResponse::Refused(OrderError::busy("a change is under way")),
        ClusterResponse::View(view()),
        ClusterResponse::Synced {
            view: Some(ViewNews {
                since: Some(7),
                view: view(),
                gone: vec![RangeId(5)],
            }),
            remove: vec![(RangeId(8), ReplicaId(11))],
            superseded: None,
            unmet: false,
            wants_whole: true,
        },
        ClusterResponse::Leaving(leaving),
        ClusterResponse::Joined(NodeId(4)),
        ClusterResponse::Settings(vec![setting()]),
        ClusterResponse::Split {
            ranges: vec![SplitPart {
                range: RangeId(7),
                keys: descriptor().keys,
            }],
            failed: Some(OrderError::busy("why")),
        },
        ClusterResponse::Decisions(vec![decision()]),
        ClusterResponse::Scattered(7),
        ClusterResponse::HotRanges(vec![HotRange {
            range,
            cpu_millis_per_second: 300,
            keys: vec![hot_key.clone()],
        }]),
        ClusterResponse::HotKeys(vec![hot_key]),
        ClusterResponse::LoadKeys {
            keys: vec![b"m".to_vec()],
            hot: Some(b"m".to_vec()),
        },
        ClusterResponse::NoLoadKey {
            reason: BlockReason::NoKey,
            key: None,
        },
    ];
    let tally = fuzz(
        "tolds",
        &responses.map(|response| encode_response(&response)),
        |bytes, meter| {
            let Some(response) = meter.decode(|| decode_response(bytes)) else {
                return false;
            };
            assert_eq!(decode_response(&encode_response(&response)), Some(response));
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
    let membership = MembershipRecord {
        node: NodeId(3),
        status: MembershipStatus::Decommissioned,
    };
    fuzz(
        "memberships",
        &[record::encode(&membership)],
        |bytes, meter| {
            let Some(found) = meter.decode(|| record::decode::<MembershipRecord>(bytes)) else {
                return false;
            };
            assert_eq!(record::decode(&record::encode(&found)), Some(found));
            true
        },
    );
    let held = HeldRecord {
        range: RangeId(7),
        until_ms: u64::MAX,
    };
    fuzz(
        "ranges that are held",
        &[record::encode(&held)],
        |bytes, meter| {
            let Some(found) = meter.decode(|| record::decode::<HeldRecord>(bytes)) else {
                return false;
            };
            assert_eq!(record::decode(&record::encode(&found)), Some(found));
            true
        },
    );
    let range = RangeRecord {
        descriptor: descriptor(),
        voters: vec![ReplicaId(9)],
        born_ms: 9,
    };
    fuzz("records of ranges", &[range.row().1], |bytes, meter| {
        let Some(found) = meter.decode(|| RangeRecord::of_value(bytes)) else {
            return false;
        };
        assert_eq!(RangeRecord::of_value(&found.row().1), Some(found));
        true
    });
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
