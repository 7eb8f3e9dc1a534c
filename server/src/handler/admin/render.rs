//! The state of the cluster as JSON: the only place that makes it. Other tools rely on the names,
//! so names may be added but never changed. Keys of ranges are lower-case hexadecimal digits. Pure.

use std::collections::BTreeMap;

use rangedb_engine::cluster::settings::{self, SETTINGS};
use rangedb_engine::cluster::{NodeHealth, NodeView, RangeView, Setting, View};
use rangedb_engine::error::OrderError;
use rangedb_engine::range::{Keyspace, ReplicaPlace};
use rangedb_engine::types::{NodeId, ReplicaId};
use serde_json::{Value, json};

/// The leaders and replicas on one node.
#[derive(Clone, Copy, Default)]
struct Load {
    leaders: usize,
    replicas: usize,
}

fn loads(view: &View) -> BTreeMap<NodeId, Load> {
    let mut loads: BTreeMap<NodeId, Load> = BTreeMap::new();
    for range in &view.ranges {
        if let Some(leader) = range.leader {
            loads.entry(leader.node).or_default().leaders += 1;
        }
        for replica in &range.descriptor.replicas {
            loads.entry(replica.location.node).or_default().replicas += 1;
        }
    }
    loads
}

fn all_nodes(view: &View) -> Vec<Value> {
    let loads = loads(view);
    let node = |node: &NodeView| {
        let load = loads.get(&node.record.id).copied().unwrap_or_default();
        json!({
            "id": node.record.id.0,
            "address": node.record.address,
            "http": node.record.http,
            "state": state_name(node.state),
            "shards": node.record.shards,
            "leaders": load.leaders,
            "replicas": load.replicas,
            "started_ms": node.record.started_ms,
            "version": node.record.release,
        })
    };
    view.nodes.iter().map(node).collect()
}

fn state_name(state: NodeHealth) -> &'static str {
    match state {
        NodeHealth::Alive => "alive",
        NodeHealth::Silent => "silent",
        NodeHealth::Dead => "dead",
        NodeHealth::Unreachable => "unreachable",
    }
}

/// The state of a replica: its own trouble, or else its node's.
fn replica_state(view: &View, range: &RangeView, replica: &ReplicaPlace) -> &'static str {
    let mut troubles = range.troubles.iter();
    let trouble = troubles.find(|(id, _)| *id == replica.replica);
    let mut nodes = view.nodes.iter();
    let node = nodes.find(|node| node.record.id == replica.location.node);
    match (trouble, node.map(|node| node.state)) {
        (Some((_, trouble)), _) => trouble.name(),
        (None, Some(NodeHealth::Alive) | None) => "ok",
        (None, Some(state)) => state_name(state),
    }
}

/// All replicas that cannot do their part: lost, missing or behind.
fn troubles(view: &View) -> Vec<Value> {
    let of_range = |range: &RangeView| {
        let replicas = range.descriptor.replicas.iter();
        let troubled = replicas.filter_map(|place| {
            let mut troubles = range.troubles.iter();
            let (_, trouble) = troubles.find(|(id, _)| *id == place.replica)?;
            Some(json!({
                "range": range.descriptor.range.0,
                "replica": place.replica.0,
                "node": place.location.node.0,
                "shard": place.location.shard.0,
                "state": trouble.name(),
            }))
        });
        troubled.collect::<Vec<Value>>()
    };
    view.ranges.iter().flat_map(of_range).collect()
}

/// What keeps the cluster from being whole: ranges first, each with its nodes that are not well, then
/// nodes.
fn reasons(view: &View) -> Vec<Value> {
    let mut reasons = Vec::new();
    for range in &view.ranges {
        let health = match (range.unavailable, range.under_replicated) {
            (true, _) => "unavailable",
            (_, true) => "degraded",
            _ if !range.troubles.is_empty() => "degraded",
            _ => continue,
        };
        let replicas = range.descriptor.replicas.iter();
        let unwell = replicas.filter_map(|replica| {
            let state = replica_state(view, range, replica);
            (state != "ok").then_some((replica.location.node.0, state))
        });
        let unwell: Vec<(u64, &str)> = unwell.collect();
        let nodes: Vec<u64> = unwell.iter().map(|(node, _)| *node).collect();
        let why = match unwell.as_slice() {
            [] if range.unavailable => "no replica leads it with a majority".to_owned(),
            [] => format!("it has {} voters, too few", range.voters.len()),
            unwell => {
                let states = unwell
                    .iter()
                    .map(|(node, state)| format!("on node {node}: {state}"));
                format!("its replicas {}", Vec::from_iter(states).join(", "))
            }
        };
        reasons.push(json!({
            "health": health,
            "range": range.descriptor.range.0,
            "nodes": nodes,
            "reason": why,
        }));
    }
    let absent = view.nodes.iter().filter(|n| n.state != NodeHealth::Alive);
    reasons.extend(absent.map(|node| {
        json!({
            "health": "degraded",
            "range": null,
            "nodes": [node.record.id.0],
            "reason": format!("the node is {}", state_name(node.state)),
        })
    }));
    reasons
}

/// The answer to `nodes`.
pub(super) fn nodes(view: &View) -> Value {
    json!({ "nodes": all_nodes(view) })
}

/// The answer to `ranges`.
pub(super) fn ranges(view: &View) -> Value {
    let ranges = view.ranges.iter().map(|shown| range(view, shown));
    json!({ "ranges": ranges.collect::<Vec<Value>>() })
}

fn range(view: &View, range: &RangeView) -> Value {
    let descriptor = &range.descriptor;
    let lag = |replica: ReplicaId, leads: bool| match range.lag.iter().find(|l| l.0 == replica) {
        _ if leads => Some(0),
        Some((_, lag)) if *lag != u64::MAX => Some(*lag),
        _ => None,
    };
    let replicas = descriptor.replicas.iter().map(|replica| {
        json!({
            "replica": replica.replica.0,
            "node": replica.location.node.0,
            "shard": replica.location.shard.0,
            "voter": range.voters.contains(&replica.replica),
            "lag": lag(replica.replica, range.leader == Some(replica.location)),
            "state": replica_state(view, range, replica),
        })
    });
    json!({
        "id": descriptor.range.0,
        "system": descriptor.keyspace == Keyspace::System,
        "start": hex(&descriptor.keys.start),
        "end": descriptor.keys.end.as_deref().map(hex),
        "epoch": { "version": descriptor.epoch.version, "conf": descriptor.epoch.conf },
        "leader_node": range.leader.map(|leader| leader.node.0),
        "leader_shard": range.leader.map(|leader| leader.shard.0),
        "replicas": replicas.collect::<Vec<Value>>(),
        "term": range.term,
        "applied": range.applied,
        "under_replicated": range.under_replicated,
        "unavailable": range.unavailable,
    })
}

/// The answer to `status`.
pub(super) fn status(view: &View, cluster: u128) -> Value {
    let count = |is: fn(&RangeView) -> bool| view.ranges.iter().filter(|range| is(range)).count();
    let unavailable = count(|range| range.unavailable);
    let under_replicated = count(|range| range.under_replicated);
    let troubles = troubles(view);
    let all_alive = view.nodes.iter().all(|n| n.state == NodeHealth::Alive);
    let health = if unavailable > 0 {
        "unavailable"
    } else if under_replicated > 0 || !troubles.is_empty() || !all_alive {
        "degraded"
    } else {
        "ok"
    };
    json!({
        "health": health,
        "cluster": format!("{cluster:032x}"),
        "ranges": view.ranges.len(),
        "under_replicated": under_replicated,
        "unavailable": unavailable,
        "reasons": reasons(view),
        "replicas_in_trouble": troubles,
        "system_leader": { "node": view.leader.node.0, "shard": view.leader.shard.0 },
        "nodes": all_nodes(view),
    })
}

/// The answer to `config_get` without a name: every setting. One that was never set has no value.
pub(super) fn settings(view: &View) -> Value {
    let all = SETTINGS
        .iter()
        .map(|(name, may_be)| known(view, name, may_be));
    json!({ "settings": all.collect::<Vec<Value>>() })
}

/// The answer to `config_get` with a name.
///
/// # Errors
/// There is no such setting.
pub(super) fn setting(view: &View, name: &str) -> Result<Value, OrderError> {
    Ok(known(view, name, settings::rule(name)?))
}

fn known(view: &View, name: &str, may_be: &str) -> Value {
    let set = view.settings.iter().find(|setting| setting.name == name);
    json!({
        "name": name,
        "value": set.map(|set| &set.value),
        "version": set.map(|set| set.version),
        "at_ms": set.map(|set| set.at_ms),
        "may_be": may_be,
    })
}

/// The answer to `config_history`, oldest first.
pub(super) fn history(settings: &[Setting]) -> Value {
    let each = |set: &Setting| {
        json!({
            "name": set.name,
            "value": set.value,
            "version": set.version,
            "at_ms": set.at_ms,
        })
    };
    json!({ "history": settings.iter().map(each).collect::<Vec<Value>>() })
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
