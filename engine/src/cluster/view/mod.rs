//! How the manager derives the view of the cluster from what it knows. No I/O here. The view itself is a
//! message ([`View`]).
//!
//! A view has a version, and the manager sends one to a shard only when the shard has another version. Some
//! things change all the time: how far ranges have applied their logs, what blocks their splits, and the
//! loads and sizes of ranges and shards. These make no new version and are not in the views that are sent.
//! The answer to a request for the view contains all of them, as of the shards' last reports.

use std::collections::BTreeMap;

mod overlap;

use crate::boot_time::BootTime;
use crate::cluster::manager::{KnownNode, KnownRange, Manager, SILENT_AFTER};
use crate::cluster::message::{
    NodeHealth, NodeView, RangeStats, RangeView, ReplicaFault, ShardStats, View,
};
use crate::cluster::placement;
use crate::cluster::record::{MembershipStatus, NodeRecord, Setting};
use crate::range::{Descriptor, ReplicaPlace};
use crate::types::{Location, NodeId, ReplicaId, SYSTEM_RANGE, ShardId};

impl Manager {
    pub(in crate::cluster) fn node_health(&self, node: &KnownNode, now: BootTime) -> NodeHealth {
        if now < node.heard + SILENT_AFTER {
            return match self.health.unreached_since(node.record.id, now) {
                None => NodeHealth::Alive,
                Some(since) if now >= since + self.dead_after() => NodeHealth::Dead,
                Some(_) => NodeHealth::Unreachable,
            };
        }
        // A node that lost its folder comes back under a new id, at the same address.
        let replaced = self.nodes.values().any(|other| {
            other.record.address == node.record.address
                && other.record.id > node.record.id
                && now < other.heard + SILENT_AFTER
        });
        if replaced || now >= node.heard + self.dead_after() {
            NodeHealth::Dead
        } else {
            NodeHealth::Silent
        }
    }

    /// What is wrong with members of a range, for those with which something is.
    pub(in crate::cluster) fn faults(
        &self,
        known: &KnownRange,
        now: BootTime,
    ) -> Vec<(ReplicaId, ReplicaFault)> {
        let (descriptor, dead_after) = (&known.record.descriptor, self.dead_after());
        let fault = |place: &ReplicaPlace| {
            let (replica, shard) = (place.replica, self.shards.known.get(&place.location));
            let fault = self
                .health
                .fault(descriptor.range, replica, dead_after, now);
            let is_unreadable = shard.is_some_and(|shard| shard.unreadable.contains(&replica));
            let fault = fault.or(is_unreadable.then_some(ReplicaFault::Unreadable));
            fault.map(|fault| (replica, fault))
        };
        descriptor.replicas.iter().filter_map(fault).collect()
    }

    /// The state of the cluster as of now.
    pub fn view(&self, now: BootTime) -> View {
        let mut view = self.outline(now);
        for (node, known) in view.nodes.iter_mut().zip(self.shown_nodes()) {
            node.shards = self.shard_stats(&known.record);
        }
        for (range, known) in view.ranges.iter_mut().zip(self.ranges.values()) {
            range.parts = self.parts_of(&range.descriptor);
            range.split_blocked = self.split_blocked(known, now);
            if let Some(report) = self.fresh(known, now) {
                range.applied = report.applied;
                range.stats = report.stats;
                let followers = report.followers.iter();
                range.lag = followers.map(|other| (other.replica, other.lag)).collect();
            }
        }
        view
    }

    /// The nodes that are in views.
    fn shown_nodes(&self) -> impl Iterator<Item = &KnownNode> {
        let nodes = self.nodes.values();
        nodes.filter(|known| self.membership(known.record.id) != MembershipStatus::Removed)
    }

    /// The state of the cluster as of now, without what changes all the time.
    fn outline(&self, now: BootTime) -> View {
        let nodes = self.shown_nodes().map(|known| NodeView {
            record: known.record.clone(),
            state: self.node_health(known, now),
            membership: self.membership(known.record.id),
            slow_disk: self.has_slow_disk(known.record.id),
            shards: Vec::new(),
        });
        let nodes: Vec<NodeView> = nodes.collect();
        let alive = |node: NodeId| {
            let mut nodes = nodes.iter();
            nodes.any(|view| view.record.id == node && view.state == NodeHealth::Alive)
        };
        let usable = nodes
            .iter()
            .filter(|view| view.state != NodeHealth::Dead && view.membership.keeps_replicas());
        let (wanted, _) = placement::wanted(usable.count(), self.factor());
        let ranges = self.ranges.values().map(|known| {
            let descriptor = known.record.descriptor.clone();
            let report = self.fresh(known, now);
            let faults = self.faults(known, now);
            let live = known.record.voters.iter().filter(|voter| {
                let place = descriptor.location(**voter);
                let is_well = faults.iter().all(|(replica, _)| replica != *voter);
                is_well && place.is_some_and(|place| alive(place.node))
            });
            let wanted = wanted.max(known.record.voters.len());
            RangeView {
                under_replicated: live.count() < wanted,
                unavailable: report.is_none_or(|report| !report.has_quorum),
                phase: report.map_or_else(Default::default, |report| report.phase),
                born_ms: known.record.born_ms,
                parts: Vec::new(),
                held_until_ms: self.held_until_ms(descriptor.range),
                split_blocked: None,
                leader: report.and_then(|report| descriptor.location(report.leader)),
                term: report.map_or(0, |report| report.term),
                applied: 0,
                stats: RangeStats::default(),
                lag: Vec::new(),
                voters: known.record.voters.clone(),
                faults,
                descriptor,
            }
        });
        let ranges: Vec<RangeView> = ranges.collect();
        let system = ranges.iter().find(|r| r.descriptor.range == SYSTEM_RANGE);
        let system = system.map_or_else(Vec::new, |range| range.descriptor.locations().collect());
        let mut settings: BTreeMap<&str, &Setting> = BTreeMap::new();
        settings.extend(self.settings.iter().map(|s| (s.name.as_str(), s)));
        View {
            version: self.published.view.version,
            leader: self.here,
            system,
            nodes,
            ranges,
            settings: settings.into_values().cloned().collect(),
        }
    }

    /// What the shards of a node last reported of their load and size; nothing of those that have not.
    fn shard_stats(&self, node: &NodeRecord) -> Vec<ShardStats> {
        let stats = (0..node.shards).map(|shard| {
            let at = Location {
                node: node.id,
                shard: ShardId(shard),
            };
            self.shards
                .known
                .get(&at)
                .map_or_else(ShardStats::default, |shard| shard.stats)
        });
        stats.collect()
    }

    /// Under how many data ids the rows of a range's replicas lie, as their shards last reported.
    fn parts_of(&self, descriptor: &Descriptor) -> Vec<(ReplicaId, u16)> {
        let parts = descriptor.replicas.iter().filter_map(|place| {
            let shard = self.shards.known.get(&place.location)?;
            let parts = shard.parts(descriptor.range, place.replica)?;
            Some((place.replica, parts))
        });
        parts.collect()
    }

    /// Makes a new view for the shards if something has changed.
    pub fn refresh(&mut self, now: BootTime) {
        let view = self.outline(now);
        if view != self.published.view {
            self.log_faults(&view);
            self.log_nodes(&view);
            self.published.publish(view);
        }
    }

    /// Logs what has newly gone wrong with a replica or a node.
    fn log_faults(&self, view: &View) {
        let before = self.published.view.ranges.iter();
        let before = before.flat_map(|range| {
            let range_id = range.descriptor.range;
            range.faults.iter().map(move |fault| (range_id, *fault))
        });
        let before: Vec<_> = before.collect();
        for range in &view.ranges {
            let range_id = range.descriptor.range;
            let news = range.faults.iter();
            for (replica, fault) in news.filter(|news| !before.contains(&(range_id, **news))) {
                let at = range.descriptor.location(*replica);
                let node = at.and_then(|at| self.nodes.get(&at.node));
                let address = node.map_or("", |known| &known.record.address);
                let at = at.unwrap_or_default();
                if *fault == ReplicaFault::Unreadable {
                    tracing::warn!(range = %range_id, %replica, %at, address, "a replica cannot read all its rows");
                    continue;
                }
                tracing::warn!(range = %range_id, %replica, %at, address, fault = fault.name(), "a replica is a member by name only");
            }
        }
    }

    /// Logs nodes that are new, and nodes whose state is another one. The rows that a manager is made
    /// of are no news.
    fn log_nodes(&self, view: &View) {
        let is_made = self.published.view.version != self.term << 32;
        for node in &view.nodes {
            let (id, address) = (node.record.id, &node.record.address);
            let mut before = self.published.view.nodes.iter();
            let before = before.find(|known| known.record.id == id);
            let before = before.map(|known| known.state);
            if before.is_none() && is_made {
                tracing::info!(
                    event = "node_joined",
                    "node {id} at {address} has joined the cluster"
                );
            }
            if before != Some(node.state) {
                self.log_state(node, before);
            }
        }
    }

    fn log_state(&self, node: &NodeView, before: Option<NodeHealth>) {
        let (id, address) = (node.record.id, &node.record.address);
        match node.state {
            NodeHealth::Alive if before.is_some() => tracing::info!(
                event = "node_back",
                "node {id} at {address} is back: it reports again, and other nodes reach it"
            ),
            NodeHealth::Alive => {}
            NodeHealth::Silent => tracing::warn!(
                event = "node_silent",
                "node {id} at {address} is silent: it has not reported for {} s",
                SILENT_AFTER.as_secs()
            ),
            NodeHealth::Dead => tracing::error!(
                event = "node_dead",
                "node {id} at {address} is dead: it was silent or out of reach for {} s, or a new node is \
                 at its address; its replicas are replaced where another node is free",
                self.dead_after().as_secs()
            ),
            NodeHealth::Unreachable => tracing::warn!(
                event = "node_unreachable",
                "node {id} reports, but no other node reaches it at {address}: is its --advertise right?"
            ),
        }
    }
}
