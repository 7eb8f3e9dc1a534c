//! What is shown, without a cluster.

use rangedb_engine::cluster::{
    BlockReason, BoundsPhase, HotRange, MembershipStatus, NodeHealth, NodeRecord, NodeView,
    RangeRates, RangeStats, RangeView, ReplicaFault, Setting, ShardStats, SplitBlocked, SplitPart,
    View,
};
use rangedb_engine::error::OrderError;
use rangedb_engine::range::usage::hot_keys::HotKey;
use rangedb_engine::range::{Descriptor, Keyspace, ReplicaPlace};
use rangedb_engine::types::{
    Epoch, KeyRange, Location, NodeId, NodeStats, RangeId, ReplicaId, ShardId,
};
use rangedb_protocol::admin::Health;
use serde::Serialize;
use serde_json::{Value, json};

use super::render;
use crate::test_node;

fn in_json(answer: impl Serialize) -> Value {
    serde_json::to_value(answer).expect("an answer has a text")
}

fn location(node: u64, shard: u16) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(shard),
    }
}

fn range(id: u64, keys: KeyRange, places: &[(u64, u64, u16)]) -> RangeView {
    let replica = |&(replica, node, shard): &(u64, u64, u16)| ReplicaPlace {
        replica: ReplicaId(replica),
        location: location(node, shard),
    };
    let descriptor = Descriptor {
        range: RangeId(id),
        epoch: Epoch {
            version: 1,
            conf: 4,
        },
        keyspace: if id == 1 {
            Keyspace::System
        } else {
            Keyspace::User
        },
        keys,
        replicas: places.iter().map(replica).collect(),
    };
    let leader = descriptor.replicas.first().map(|replica| replica.location);
    RangeView {
        voters: vec![ReplicaId(101), ReplicaId(102)],
        descriptor,
        leader,
        term: 5,
        applied: 60,
        lag: vec![(ReplicaId(102), 3), (ReplicaId(103), u64::MAX)],
        faults: Vec::new(),
        under_replicated: false,
        unavailable: false,
        phase: BoundsPhase::None,
        born_ms: 6,
        parts: vec![(ReplicaId(101), 1), (ReplicaId(102), 3)],
        held_until_ms: 0,
        split_blocked: None,
        stats: RangeStats {
            bytes: 7000,
            live_bytes: 5000,
            reads_per_second: 40,
            writes_per_second: 30,
            cpu_millis_per_second: 20,
            read_bytes_per_second: 900,
            written_bytes_per_second: 800,
            waiting: 3,
            long: RangeRates {
                reads_per_second: 4,
                writes_per_second: 3,
                cpu_millis_per_second: 2,
                read_bytes_per_second: 90,
                written_bytes_per_second: 80,
            },
        },
    }
}

fn node_stats() -> NodeStats {
    NodeStats {
        p50_micros: Some(90),
        p99_micros: Some(900),
        disk_free: Some(1_000),
        disk_total: Some(4_000),
        clock_error_micros: Some(7),
        is_clock_kept: Some(true),
    }
}

fn view() -> View {
    let node = |id: u64| NodeView {
        record: NodeRecord {
            address: format!("n{id}:7400"),
            http: format!("n{id}:7480"),
            shards: 2,
            started_ms: 8,
            release: "0.1.0".to_owned(),
            ..test_node::record(id)
        },
        state: NodeHealth::Alive,
        membership: MembershipStatus::Active,
        slow_disk: false,
        shards: [10, 15]
            .map(|cpu| ShardStats {
                cpu,
                bytes: 9000,
                node: node_stats(),
            })
            .to_vec(),
    };
    let keys = KeyRange {
        start: vec![0, 0xff],
        end: None,
    };
    View {
        version: 1,
        leader: location(1, 0),
        system: vec![location(1, 0)],
        nodes: vec![node(1), node(2), node(3)],
        ranges: vec![
            range(1, KeyRange::all(), &[(11, 1, 0)]),
            range(2, keys, &[(101, 1, 0), (102, 2, 1), (103, 3, 1)]),
        ],
        settings: vec![Setting {
            version: 2,
            name: "dead-after".to_owned(),
            value: "1m".to_owned(),
            at_ms: 7,
        }],
    }
}

#[test]
fn ranges_are_shown_as_tools_expect_them() {
    let mut view = view();
    view.nodes[2].state = NodeHealth::Unreachable;
    view.ranges[1].faults = vec![(ReplicaId(102), ReplicaFault::Lost)];
    (view.ranges[1].phase, view.ranges[1].held_until_ms) = (BoundsPhase::Splitting, u64::MAX);
    view.ranges[0].split_blocked = Some(SplitBlocked {
        reason: BlockReason::SingleKey,
        since_ms: 9,
        key: Some(b"m".to_vec()),
    });
    let shown = in_json(render::ranges(&view));
    let blocked = json!({ "reason": "single_key", "since_ms": 9, "key": "6d" });
    assert_eq!(shown["ranges"][0]["split_blocked"], blocked);
    assert_eq!(shown["ranges"][0]["system"], true);
    assert_eq!(shown["ranges"][0]["state"], "serving");
    assert_eq!(shown["ranges"][0]["held_until_ms"], 0);
    assert_eq!(
        shown["ranges"][1],
        json!({
            "id": 2,
            "system": false,
            "start": "00ff",
            "end": null,
            "epoch": { "version": 1, "conf": 4 },
            "leader_node": 1,
            "leader_shard": 0,
            "replicas": [
                { "replica": 101, "node": 1, "shard": 0, "voter": true, "lag": 0,
                  "parts": 1, "state": "ok" },
                { "replica": 102, "node": 2, "shard": 1, "voter": true, "lag": 3,
                  "parts": 3, "state": "lost" },
                { "replica": 103, "node": 3, "shard": 1, "voter": false, "lag": null,
                  "parts": null, "state": "unreachable" },
            ],
            "term": 5,
            "applied": 60,
            "under_replicated": false,
            "unavailable": false,
            "state": "splitting",
            "born_ms": 6,
            "held_until_ms": u64::MAX,
            "split_blocked": null,
            "bytes": 7000,
            "live_bytes": 5000,
            "reads_per_second": 40,
            "writes_per_second": 30,
            "cpu_millis_per_second": 20,
            "read_bytes_per_second": 900,
            "written_bytes_per_second": 800,
            "waiting": 3,
            "over_5m": {
                "reads_per_second": 4,
                "writes_per_second": 3,
                "cpu_millis_per_second": 2,
                "read_bytes_per_second": 90,
                "written_bytes_per_second": 80,
            },
        })
    );
}

#[test]
fn hot_ranges_are_shown_with_their_keys() {
    let key = |key: &[u8], share| HotKey {
        key: key.to_vec(),
        share,
    };
    let hot = HotRange {
        range: RangeId(7),
        cpu_millis_per_second: 400,
        keys: vec![key(b"m", 625), key(b"\xff", 2)],
    };
    let wanted = json!({ "ranges": [{ "id": 7, "cpu_millis_per_second": 400, "keys": [
        { "key": "6d", "share": 0.625 }, { "key": "ff", "share": 0.002 },
    ] }] });
    assert_eq!(in_json(render::hot_ranges(&[hot])), wanted);
}

#[test]
fn a_split_is_shown_with_what_was_not_done() {
    let part = |range: u64, start: &[u8], end: Option<&[u8]>| SplitPart {
        range: RangeId(range),
        keys: KeyRange {
            start: start.to_vec(),
            end: end.map(<[u8]>::to_vec),
        },
    };
    let parts = vec![part(2, b"", Some(b"m")), part(9, b"m", None)];
    let shown = in_json(render::split((
        parts,
        Some(OrderError::Conflict("why".to_owned())),
    )));
    let wanted = json!({
        "ranges": [{ "id": 2, "start": "", "end": "6d" }, { "id": 9, "start": "6d", "end": null }],
        "failed": { "reason": "why", "unknown": false },
    });
    assert_eq!(shown, wanted);
}

#[test]
fn nodes_are_shown_with_what_they_hold() {
    let shown = in_json(render::nodes(&view()));
    assert_eq!(
        shown["nodes"][0],
        json!({
            "id": 1,
            "address": "n1:7400",
            "http": "n1:7480",
            "state": "alive",
            "membership": "active",
            "slow_disk": false,
            "shards": 2,
            "leaders": 2,
            "replicas": 2,
            "started_ms": 8,
            "version": "0.1.0",
            "cpu": 25,
            "shards_cpu": [10, 15],
            "shards_leaving": 0,
            "bytes": 18000,
            "p50_us": 90,
            "p99_us": 900,
            "disk_free": 1_000,
            "disk_total": 4_000,
            "clock_error_us": 7,
            "clock_kept": true,
        })
    );
}

#[test]
fn health_is_the_worst_that_there_is() {
    let mut view = view();
    let shown = render::status(&view, 10);
    assert_eq!(shown.health, Health::Ok);
    assert_eq!(shown.cluster, format!("{:032x}", 10));
    view.nodes[2].state = NodeHealth::Silent;
    assert_eq!(render::status(&view, 10).health, Health::Degraded);
    view.nodes[2].state = NodeHealth::Alive;
    view.ranges[1].faults = vec![(ReplicaId(103), ReplicaFault::Missing)];
    let shown = in_json(render::status(&view, 10));
    assert_eq!(shown["health"], "degraded");
    let trouble = json!({ "range": 2, "replica": 103, "node": 3, "shard": 1, "state": "missing" });
    assert_eq!(shown["replicas_in_trouble"], json!([trouble]));
    view.ranges[1].faults.clear();
    view.ranges[1].under_replicated = true;
    let shown = render::status(&view, 10);
    assert_eq!(
        (shown.health, shown.under_replicated),
        (Health::Degraded, 1)
    );
    view.ranges[0].unavailable = true;
    let shown = render::status(&view, 10);
    assert_eq!((shown.health, shown.unavailable), (Health::Unavailable, 1));
}

#[test]
fn what_is_not_well_is_named_with_its_nodes_and_the_reason() {
    let mut view = view();
    assert_eq!(in_json(render::status(&view, 10))["reasons"], json!([]));
    view.nodes[1].state = NodeHealth::Dead;
    view.ranges[1].under_replicated = true;
    view.ranges[1].faults = vec![(ReplicaId(103), ReplicaFault::Missing)];
    view.ranges[0].unavailable = true;
    assert_eq!(
        in_json(render::status(&view, 10))["reasons"],
        json!([
            { "health": "unavailable", "range": 1, "nodes": [],
              "reason": "no replica leads it with a majority" },
            { "health": "degraded", "range": 2, "nodes": [2, 3],
              "reason": "its replicas on node 2: dead, on node 3: missing" },
            { "health": "degraded", "range": null, "nodes": [2], "reason": "the node is dead" },
        ])
    );
}

#[test]
fn a_node_that_others_have_replaced_is_not_missed() {
    let mut view = view();
    view.nodes[2].state = NodeHealth::Dead;
    assert_eq!(render::status(&view, 10).health, Health::Degraded);
    view.ranges[1].descriptor.replicas.pop();
    assert_eq!(render::status(&view, 10).health, Health::Ok);
    view.nodes[2].state = NodeHealth::Silent;
    assert_eq!(render::status(&view, 10).health, Health::Degraded);
    view.nodes[2].membership = MembershipStatus::Decommissioned;
    let shown = render::status(&view, 10);
    assert_eq!((shown.health, shown.reasons.len()), (Health::Ok, 0));
}

#[test]
fn settings_are_shown_whether_set_or_not() {
    let view = view();
    let found = render::setting(&view, "dead-after").expect("there is one");
    assert_eq!(
        (found.value.as_deref(), found.version),
        (Some("1m"), Some(2))
    );
    assert_eq!(
        (found.in_force.as_str(), found.source.as_str()),
        ("1m", "cluster")
    );
    let unset = render::setting(&view, "balance").expect("there is one");
    let unset = in_json(unset);
    assert_eq!(unset["value"], json!(null));
    assert_eq!(
        (&unset["in_force"], &unset["source"]),
        (&json!("on"), &json!("default"))
    );
    let unknown = render::setting(&view, "colour");
    assert!(matches!(unknown, Err(OrderError::NotFound(why)) if why.contains("dead-after")));
    assert_eq!(render::settings(&view).settings.len(), 8);
    assert_eq!(render::history(&view.settings).history[0].value, "1m");
}
