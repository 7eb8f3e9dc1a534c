//! The state of the cluster in terms of the wire protocol. Pure.

use std::collections::BTreeMap;

use rangedb_engine::cluster::settings::{self, Rule, SETTINGS};
use rangedb_engine::cluster::{
    self, BoundsPhase, MembershipStatus, NodeHealth, NodeView, Outcome, RangeView, ReplicaFault,
    View,
};
use rangedb_engine::error::OrderError;
use rangedb_engine::range::{Keyspace, ReplicaPlace};
use rangedb_engine::types::{NodeId, ReplicaId};
use rangedb_engine::words::counted;
use rangedb_protocol::admin::{
    Balance, BlockReason, BlockedRange, BoundsState, ClusterStatus, Decision, Departure, Health,
    HealthReason, History, HotKey, HotRange, HotRanges, Leaving, Liveness, Membership, Node,
    NodeStats, Nodes, Range, Ranges, Replica, ReplicaInTrouble, ReplicaState, Setting,
    SettingChange, Settings, Split, SplitBlocked, SplitFailure, SplitPart,
};

/// The leaders and replicas on one node.
#[derive(Clone, Copy, Default)]
struct Load {
    leaders: u64,
    replicas: u64,
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

fn all_nodes(view: &View) -> Vec<Node> {
    let loads = loads(view);
    let node = |shown: &NodeView| {
        let (record, mut node) = (&shown.record, Node::default());
        let load = loads.get(&record.id).copied().unwrap_or_default();
        node.id = record.id.0;
        node.address = record.address.clone();
        node.http = record.http.clone();
        node.liveness = liveness(shown.state);
        node.membership = membership(shown.membership);
        node.slow_disk = shown.slow_disk;
        node.shards = record.shards;
        node.leaders = load.leaders;
        node.replicas = load.replicas;
        node.started_ms = record.started_ms;
        node.version = record.release.clone();
        node.shards_cpu = shown.shards.iter().map(|shard| shard.cpu).collect();
        node.cpu = node.shards_cpu.iter().sum();
        node.bytes = shown.shards.iter().map(|shard| shard.bytes).sum();
        node.stats = node_stats(shown);
        node
    };
    view.nodes.iter().map(node).collect()
}

/// What a node has told of itself. Its shards tell the same, one perhaps a moment later than another. What a
/// node told that is not heard from any more is no news.
fn node_stats(shown: &NodeView) -> NodeStats {
    let mut stats = NodeStats::default();
    stats.shards_leaving = shown.record.leaving_shards;
    let told = shown.shards.iter().map(|shard| shard.node);
    let told = told.filter(|_| shown.state == NodeHealth::Alive);
    let Some(told) = told.max_by_key(|told| told.disk_total) else {
        return stats;
    };
    (stats.p50_us, stats.p99_us) = (told.p50_micros, told.p99_micros);
    (stats.disk_free, stats.disk_total) = (told.disk_free, told.disk_total);
    (stats.clock_error_us, stats.clock_kept) = (told.clock_error_micros, told.is_clock_kept);
    stats
}

fn liveness(state: NodeHealth) -> Liveness {
    match state {
        NodeHealth::Alive => Liveness::Alive,
        NodeHealth::Silent => Liveness::Silent,
        NodeHealth::Dead => Liveness::Dead,
        NodeHealth::Unreachable => Liveness::Unreachable,
    }
}

fn membership(status: MembershipStatus) -> Membership {
    match status {
        MembershipStatus::Active => Membership::Active,
        MembershipStatus::Draining => Membership::Draining,
        MembershipStatus::Decommissioning => Membership::Decommissioning,
        MembershipStatus::Decommissioned => Membership::Decommissioned,
        // It is not shown.
        MembershipStatus::Removed => Membership::Unknown,
    }
}

/// Whether the cluster lacks a node: it is not alive, and other nodes have not taken its replicas.
fn is_missed(view: &View, node: &NodeView) -> bool {
    let holds = |range: &RangeView| {
        let mut at = range.descriptor.locations();
        at.any(|at| at.node == node.record.id)
    };
    let is_replaced = node.state == NodeHealth::Dead || !node.membership.keeps_replicas();
    node.state != NodeHealth::Alive && (!is_replaced || view.ranges.iter().any(holds))
}

/// The fault of a replica itself.
fn fault(range: &RangeView, replica: ReplicaId) -> Option<ReplicaState> {
    let mut faults = range.faults.iter();
    let (_, fault) = faults.find(|(id, _)| *id == replica)?;
    Some(match fault {
        ReplicaFault::Lost => ReplicaState::Lost,
        ReplicaFault::Missing => ReplicaState::Missing,
        ReplicaFault::Behind => ReplicaState::Behind,
        ReplicaFault::Unreadable => ReplicaState::Unreadable,
    })
}

/// The state of a replica: its own fault, or else its node's.
fn replica_state(view: &View, range: &RangeView, replica: &ReplicaPlace) -> ReplicaState {
    let node = || {
        let mut nodes = view.nodes.iter();
        nodes.find(|node| node.record.id == replica.location.node)
    };
    fault(range, replica.replica).unwrap_or_else(|| match node().map(|node| node.state) {
        Some(NodeHealth::Alive) | None => ReplicaState::Ok,
        Some(NodeHealth::Silent) => ReplicaState::Silent,
        Some(NodeHealth::Dead) => ReplicaState::Dead,
        Some(NodeHealth::Unreachable) => ReplicaState::Unreachable,
    })
}

/// All replicas that cannot do their part: lost, missing, behind or unreadable.
fn faulty_replicas(view: &View) -> Vec<ReplicaInTrouble> {
    let of_range = |range: &RangeView| {
        let replicas = range.descriptor.replicas.iter();
        let faulty = replicas.filter_map(|place| {
            let mut faulty = ReplicaInTrouble::default();
            faulty.state = fault(range, place.replica)?;
            faulty.range = range.descriptor.range.0;
            faulty.replica = place.replica.0;
            faulty.node = place.location.node.0;
            faulty.shard = place.location.shard.0;
            Some(faulty)
        });
        faulty.collect::<Vec<ReplicaInTrouble>>()
    };
    view.ranges.iter().flat_map(of_range).collect()
}

/// What keeps the cluster from being whole: ranges first, each with its nodes that are not well, then
/// nodes.
fn reasons(view: &View) -> Vec<HealthReason> {
    let mut reasons = Vec::new();
    for range in &view.ranges {
        let health = match (range.unavailable, range.under_replicated) {
            (true, _) => Health::Unavailable,
            (_, true) => Health::Degraded,
            _ if !range.faults.is_empty() => Health::Degraded,
            _ => continue,
        };
        let replicas = range.descriptor.replicas.iter();
        let unwell = replicas.filter_map(|replica| {
            let state = replica_state(view, range, replica);
            (state != ReplicaState::Ok).then_some((replica.location.node.0, state))
        });
        let unwell: Vec<(u64, ReplicaState)> = unwell.collect();
        let nodes: Vec<u64> = unwell.iter().map(|(node, _)| *node).collect();
        let why = match unwell.as_slice() {
            [] if range.unavailable => "no replica leads it with a majority".to_owned(),
            [] => {
                let voters = counted(range.voters.len() as u64, "voter");
                format!("it has {voters}, too few")
            }
            unwell => {
                let states = unwell
                    .iter()
                    .map(|(node, state)| format!("on node {node}: {state}"));
                format!("its replicas {}", Vec::from_iter(states).join(", "))
            }
        };
        reasons.push(reason(health, Some(range.descriptor.range.0), nodes, why));
    }
    let absent = view.nodes.iter().filter(|node| is_missed(view, node));
    reasons.extend(absent.map(|node| {
        let why = format!("the node is {}", liveness(node.state));
        reason(Health::Degraded, None, vec![node.record.id.0], why)
    }));
    reasons
}

fn reason(health: Health, range: Option<u64>, nodes: Vec<u64>, why: String) -> HealthReason {
    let mut reason = HealthReason::default();
    reason.health = health;
    reason.range = range;
    reason.nodes = nodes;
    reason.reason = why;
    reason
}

/// The answer to `nodes`.
pub(super) fn nodes(view: &View) -> Nodes {
    Nodes {
        nodes: all_nodes(view),
    }
}

/// The answer to `ranges`.
pub(super) fn ranges(view: &View) -> Ranges {
    let ranges = view.ranges.iter().map(|shown| range(view, shown));
    Ranges {
        ranges: ranges.collect(),
    }
}

fn range(view: &View, shown: &RangeView) -> Range {
    let (descriptor, mut range) = (&shown.descriptor, Range::default());
    let replicas = descriptor.replicas.iter();
    range.id = descriptor.range.0;
    range.system = descriptor.keyspace == Keyspace::System;
    range.start = descriptor.keys.start.clone();
    range.end = descriptor.keys.end.clone();
    range.epoch.version = descriptor.epoch.version;
    range.epoch.conf = descriptor.epoch.conf;
    range.leader_node = shown.leader.map(|leader| leader.node.0);
    range.leader_shard = shown.leader.map(|leader| leader.shard.0);
    range.replicas = replicas.map(|place| replica(view, shown, place)).collect();
    range.term = shown.term;
    range.applied = shown.applied;
    range.under_replicated = shown.under_replicated;
    range.unavailable = shown.unavailable;
    range.state = match shown.phase {
        BoundsPhase::None => BoundsState::Serving,
        BoundsPhase::Splitting => BoundsState::Splitting,
        BoundsPhase::Freezing => BoundsState::Freezing,
        BoundsPhase::Frozen => BoundsState::Frozen,
        BoundsPhase::Merging => BoundsState::Merging,
    };
    range.borders.born_ms = shown.born_ms;
    range.borders.held_until_ms = shown.held_until_ms;
    range.borders.split_blocked = shown.split_blocked.as_ref().map(split_blocked);
    range.stats.bytes = shown.stats.bytes;
    range.stats.live_bytes = shown.stats.live_bytes;
    range.stats.reads_per_second = shown.stats.reads_per_second;
    range.stats.writes_per_second = shown.stats.writes_per_second;
    range.stats.cpu_millis_per_second = shown.stats.cpu_millis_per_second;
    range.stats.read_bytes_per_second = shown.stats.read_bytes_per_second;
    range.stats.written_bytes_per_second = shown.stats.written_bytes_per_second;
    range.stats.waiting = shown.stats.waiting;
    let (long, shown) = (&mut range.stats.over_5m, shown.stats.long);
    long.reads_per_second = shown.reads_per_second;
    long.writes_per_second = shown.writes_per_second;
    long.cpu_millis_per_second = shown.cpu_millis_per_second;
    long.read_bytes_per_second = shown.read_bytes_per_second;
    long.written_bytes_per_second = shown.written_bytes_per_second;
    range
}

fn split_blocked(shown: &cluster::SplitBlocked) -> SplitBlocked {
    let mut blocked = SplitBlocked::default();
    blocked.reason = match shown.reason {
        cluster::BlockReason::SingleKey => BlockReason::SingleKey,
        cluster::BlockReason::NoKey => BlockReason::NoKey,
        cluster::BlockReason::Lagging => BlockReason::Lagging,
        cluster::BlockReason::Changing => BlockReason::Changing,
        cluster::BlockReason::Limit => BlockReason::Limit,
    };
    blocked.since_ms = shown.since_ms;
    blocked.key.clone_from(&shown.key);
    blocked
}

/// The answer to `hot_ranges`.
pub(super) fn hot_ranges(hot: &[cluster::HotRange]) -> HotRanges {
    let range = |shown: &cluster::HotRange| {
        let keys = shown.keys.iter().map(|hot| {
            let mut key = HotKey::default();
            key.key.clone_from(&hot.key);
            key.share = f64::from(hot.share) / 1000.0;
            key
        });
        let mut range = HotRange::default();
        range.id = shown.range.0;
        range.cpu_millis_per_second = shown.cpu_millis_per_second;
        range.keys = keys.collect();
        range
    };
    HotRanges {
        ranges: hot.iter().map(range).collect(),
    }
}

/// The answers to `split_range` and `split_into`.
pub(super) fn split((ranges, failed): (Vec<cluster::SplitPart>, Option<OrderError>)) -> Split {
    let part = |part: cluster::SplitPart| SplitPart {
        id: part.range.0,
        start: part.keys.start,
        end: part.keys.end,
    };
    Split {
        ranges: ranges.into_iter().map(part).collect(),
        failed: failed.map(|why| SplitFailure {
            reason: why.to_string(),
            unknown: matches!(why, OrderError::Unknown(_)),
        }),
    }
}

fn replica(view: &View, range: &RangeView, place: &ReplicaPlace) -> Replica {
    let mut replica = Replica::default();
    replica.replica = place.replica.0;
    replica.node = place.location.node.0;
    replica.shard = place.location.shard.0;
    replica.voter = range.voters.contains(&place.replica);
    replica.lag = match range.lag.iter().find(|lag| lag.0 == place.replica) {
        _ if range.leader == Some(place.location) => Some(0),
        Some((_, lag)) if *lag != u64::MAX => Some(*lag),
        _ => None,
    };
    let parts = range.parts.iter().find(|parts| parts.0 == place.replica);
    replica.parts = parts.map(|(_, parts)| *parts);
    replica.state = replica_state(view, range, place);
    replica
}

/// The answer to `status`.
pub(super) fn status(view: &View, cluster: u128) -> ClusterStatus {
    let count = |is: fn(&RangeView) -> bool| view.ranges.iter().filter(|r| is(r)).count() as u64;
    let mut status = ClusterStatus::default();
    status.cluster = format!("{cluster:032x}");
    status.ranges = view.ranges.len() as u64;
    status.under_replicated = count(|range| range.under_replicated);
    status.unavailable = count(|range| range.unavailable);
    status.replicas_in_trouble = faulty_replicas(view);
    status.system_leader.node = view.leader.node.0;
    status.system_leader.shard = view.leader.shard.0;
    status.nodes = all_nodes(view);
    let is_one_missed = view.nodes.iter().any(|node| is_missed(view, node));
    status.health = if status.unavailable > 0 {
        Health::Unavailable
    } else if status.under_replicated > 0 || !status.replicas_in_trouble.is_empty() || is_one_missed
    {
        Health::Degraded
    } else {
        Health::Ok
    };
    status.reasons = reasons(view);
    status
}

/// The answer to `node_leaving`. With `dry_run` it was asked what a decommissioning would do.
pub(super) fn leaving(known: &cluster::Leaving, dry_run: bool) -> Leaving {
    let mut leaving = Leaving::default();
    let node = known.node.0;
    let moves_away = dry_run || !known.membership.keeps_replicas();
    leaving.decommissioning = moves_away.then_some(node);
    let drains = known.membership == MembershipStatus::Draining && !moves_away;
    leaving.draining = drains.then_some(node);
    leaving.membership = membership(known.membership);
    leaving.leaders_left = known.leaders_left;
    leaving.replicas_left = moves_away.then_some(known.replicas_left);
    leaving.requests_left = known.requests_left;
    leaving.done = known.is_done;
    leaving.ranges_per_minute = known.per_minute;
    leaving.stuck_ms = known.stuck_ms;
    for (range, reason) in &known.blocked {
        let mut blocked = BlockedRange::default();
        blocked.range = range.0;
        blocked.reason.clone_from(reason);
        leaving.blocked.push(blocked);
    }
    for (range, to) in &known.moves {
        let mut departure = Departure::default();
        departure.range = range.0;
        departure.node = to.node.0;
        departure.shard = to.shard.0;
        leaving.moves.push(departure);
    }
    leaving
}

/// The answer to `config_get` without a name: every setting. One that was never set has no value.
pub(super) fn settings(view: &View) -> Settings {
    Settings {
        settings: SETTINGS.iter().map(|rule| known(view, rule)).collect(),
    }
}

/// The answer to `config_get` with a name.
///
/// # Errors
/// There is no such setting.
pub(super) fn setting(view: &View, name: &str) -> Result<Setting, OrderError> {
    Ok(known(view, settings::rule(name)?))
}

fn known(view: &View, rule: &Rule) -> Setting {
    let mut all = view.settings.iter();
    let set = all.find(|setting| setting.name == rule.name);
    let mut setting = Setting::default();
    setting.name = rule.name.to_owned();
    setting.in_force = set.map_or(rule.default, |set| &set.value).to_owned();
    setting.source = set.map_or("default", |_| "cluster").to_owned();
    setting.value = set.map(|set| set.value.clone());
    setting.version = set.map(|set| set.version);
    setting.at_ms = set.map(|set| set.at_ms);
    setting.may_be = rule.may_be.to_owned();
    setting
}

/// The answer to `balance`.
pub(super) fn balance(decisions: Vec<cluster::Decision>) -> Balance {
    let each = |known: cluster::Decision| {
        let mut decision = Decision::default();
        decision.id = known.id;
        decision.at_ms = known.at_ms;
        decision.range = known.range.0;
        decision.kind = known.kind.name().to_owned();
        decision.reason = known.reason;
        decision.from = known.from.map(|at| at.to_string());
        decision.to = known.to.map(|at| at.to_string());
        decision.expected = known.expected;
        decision.outcome = match known.outcome {
            Outcome::UnderWay => "under_way".to_owned(),
            Outcome::Done => "done".to_owned(),
            Outcome::Failed(why) => format!("failed: {why}"),
        };
        decision
    };
    Balance {
        decisions: decisions.into_iter().map(each).collect(),
    }
}

/// The answer to `config_history`, oldest first.
pub(super) fn history(settings: &[cluster::Setting]) -> History {
    let each = |set: &cluster::Setting| {
        let mut change = SettingChange::default();
        change.name = set.name.clone();
        change.value = set.value.clone();
        change.version = set.version;
        change.at_ms = set.at_ms;
        change
    };
    History {
        history: settings.iter().map(each).collect(),
    }
}
