//! After all faults, each range has as many voters as it should, each on a running node of its own,
//! and no other replicas; and the manager knows that. A node that drains leads nothing, and one that
//! is decommissioned holds nothing.

use std::collections::{BTreeMap, BTreeSet};

use rangedb_engine::cluster::{MembershipStatus, View, placement};
use rangedb_engine::types::{NodeId, RangeId, ReplicaId};

use super::voters::ENOUGH;
use crate::sim::cluster::Look;

/// The first range that is not as it should be, in the manager's view or in fact; `None` if there
/// is none.
pub fn missing(view: &View, nodes: &[NodeId], looks: &[Look]) -> Option<String> {
    let membership = |node: NodeId| {
        let mut known = view.nodes.iter();
        let known = known.find(|known| known.record.id == node);
        known.map_or(MembershipStatus::Active, |known| known.membership)
    };
    let mut leaving = nodes.iter();
    let leaving = leaving.find(|node| membership(**node) == MembershipStatus::Decommissioning);
    if let Some(node) = leaving {
        return Some(format!("node {node} is still being decommissioned"));
    }
    let holders: BTreeSet<NodeId> = nodes
        .iter()
        .copied()
        .filter(|node| membership(*node).keeps_replicas())
        .collect();
    for range in &view.ranges {
        let id = range.descriptor.range;
        let places = &range.descriptor.replicas;
        let mut on: BTreeSet<NodeId> = places.iter().map(|place| place.location.node).collect();
        on.retain(|node| holders.contains(node));
        // A node that drains keeps its replicas. It gets a new one only in place of its own.
        let takers = holders
            .iter()
            .filter(|node| membership(**node) == MembershipStatus::Active);
        let possible: BTreeSet<&NodeId> = takers.chain(&on).collect();
        if possible.len() < ENOUGH.min(holders.len()) {
            // The only node that could replace a lost replica drains, so the lost one stays listed.
            continue;
        }
        let (voters_wanted, all_wanted) = placement::wanted(possible.len(), ENOUGH);
        let leader = range.leader.map(|at| membership(at.node));
        let is_whole = range.voters.len() == voters_wanted
            && places.len() == all_wanted
            && on.len() == all_wanted
            && leader == Some(MembershipStatus::Active)
            && (!range.under_replicated || possible.len() < holders.len())
            && !range.unavailable;
        let listed: BTreeSet<ReplicaId> = places.iter().map(|place| place.replica).collect();
        let there = looks.iter().filter(|look| look.status.route.range == id);
        let there: BTreeSet<ReplicaId> = there.map(|look| look.status.replica).collect();
        if !is_whole || listed != there {
            let known = view.nodes.iter().map(|node| (node.record.id, node.state));
            let known: Vec<_> = known.collect();
            return Some(format!("{range:?}, there are {there:?}, nodes {known:?}"));
        }
    }
    let known: BTreeSet<RangeId> = view.ranges.iter().map(|r| r.descriptor.range).collect();
    let there: BTreeSet<RangeId> = looks.iter().map(|look| look.status.route.range).collect();
    (known != there).then(|| format!("the manager knows {known:?}, there are {there:?}"))
}

/// The ranges that were ever split, or split off, with those of their replicas that are really there.
pub fn born(looks: &[Look]) -> BTreeMap<RangeId, BTreeSet<ReplicaId>> {
    let mut born: BTreeMap<RangeId, BTreeSet<ReplicaId>> = BTreeMap::new();
    for status in looks.iter().map(|look| &look.status) {
        if status.route.epoch.version > 1 {
            let born = born.entry(status.route.range).or_default();
            born.extend((status.applied > 0).then_some(status.replica));
        }
    }
    born
}
