//! Placement: where replicas and leaders should be, and the next steps from the present state. Pure; the
//! manager calls it.
//!
//! This file has the steps that are necessary: it completes the members of ranges and empties nodes. Its
//! other files decide what is desirable: balance by load (`load_balance`) and by number (`count_balance`),
//! and an operator's order to scatter (`scatter`). `loads` and `load_mean` hold the loads that these compare,
//! and [`moves`] remembers the moves that operators have ordered. [`room`] bounds the changes of members that are
//! under way, by the bytes that they copy. `cluster/planning` decides which step is ordered, and when.
//!
//! Each range wants as many voters as the replication factor; with fewer nodes, the largest odd number that
//! the nodes allow. Learners fill up to the factor, as far as there are nodes. So a second node gets
//! learners, and a third turns one voter into three, in one change of members. A voter on a dead node is
//! replaced if there is a node for the new one. A voter that does not do its part is replaced too, on the
//! same node or on another. The number of voters never falls because nodes are missing.
//!
//! A node that is decommissioned does not count, so its replicas are replaced as if it were dead. They may
//! lead these changes themselves, since they are alive. A node that drains keeps its replicas and gives up
//! its leaderships. It gets nothing new, unless one of its own replicas has to be replaced and no other node
//! can take the new one.

pub(in crate::cluster) mod count_balance;
pub(in crate::cluster) mod load_balance;
pub(in crate::cluster) mod load_mean;
pub(in crate::cluster) mod loads;
pub mod moves;
pub mod room;
pub(in crate::cluster) mod scatter;

use std::collections::BTreeMap;

use self::room::Room;
use crate::range::ReplicaPlace;
use crate::types::{Location, NodeId, RangeId, ReplicaId, ShardId};

/// Most leadership transfers away from nodes that drain ordered at the same time: somebody waits for these.
const DRAIN_TRANSFERS_MAX: usize = 256;

/// A node, as placement sees it. Dead nodes are left out, and those that are decommissioned.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's id, never used for another one.
    pub id: NodeId,
    /// How many shards may get replicas: those with the lowest numbers.
    pub shards: u16,
    /// Whether it may get new replicas and leaderships: it is alive and does not drain.
    pub accepts_new: bool,
    /// Whether others must lead what it leads.
    pub drains: bool,
    /// Shards that have failed to make a replica: others are preferred.
    pub avoided: Vec<ShardId>,
}

/// A range, as placement sees it.
#[derive(Clone, Debug)]
pub struct Range {
    /// The range's id, never used for another one.
    pub id: RangeId,
    /// The replicas with a vote.
    pub voters: Vec<ReplicaPlace>,
    /// The replicas without a vote.
    pub learners: Vec<ReplicaPlace>,
    /// A member that does not do its part, and must be replaced.
    pub given_up: Option<ReplicaId>,
    /// A node that must not get a replica: the one to be replaced is still there.
    pub not_on: Option<NodeId>,
    /// The leader, if known.
    pub leader: Option<ReplicaId>,
    /// The members that lack so little that they may take the lead.
    pub caught_up: Vec<ReplicaId>,
    /// About how many bytes a replica has.
    pub bytes: u64,
    /// Whether a joint change was left half done: the voters are those before and after it.
    pub is_joint: bool,
    /// Whether no order may be given now: a change is under way, or there is no leader.
    pub busy: bool,
}

impl Range {
    /// The leader's place, if it is a voter.
    pub fn led_at(&self) -> Option<Location> {
        let mut voters = self.voters.iter();
        let leader = voters.find(|place| Some(place.replica) == self.leader)?;
        Some(leader.location)
    }

    /// The leader's node, if it is a voter.
    pub fn led_on(&self) -> Option<NodeId> {
        Some(self.led_at()?.node)
    }

    /// The voter at a shard, if it has caught up.
    pub fn ready_at(&self, at: Location) -> Option<ReplicaId> {
        let mut voters = self.voters.iter();
        let found = voters.find(|place| place.location == at)?.replica;
        self.caught_up.contains(&found).then_some(found)
    }

    /// All replicas.
    pub fn places(&self) -> impl Iterator<Item = &ReplicaPlace> {
        self.voters.iter().chain(&self.learners)
    }
}

/// A replica that there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// One that exists.
    Here(ReplicaPlace),
    /// One that must be made here.
    New(Location),
}

impl Slot {
    /// Where it is, or will be.
    pub fn location(self) -> Location {
        match self {
            Slot::Here(place) => place.location,
            Slot::New(location) => location,
        }
    }
}

/// A step towards the wanted placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These must become the members of a range.
    Change {
        /// The range whose members change.
        range: RangeId,
        /// All voters after the change.
        voters: Vec<Slot>,
        /// All learners after the change.
        learners: Vec<Slot>,
    },
    /// Another replica must lead a range.
    Lead {
        /// The range whose leader changes.
        range: RangeId,
        /// The replica that must lead.
        to: ReplicaId,
    },
}

impl Step {
    /// Where it has new replicas made.
    pub fn new_places(&self) -> impl Iterator<Item = Location> {
        let (voters, learners): (&[Slot], &[Slot]) = match self {
            Step::Change {
                voters, learners, ..
            } => (voters, learners),
            Step::Lead { .. } => (&[], &[]),
        };
        let slots = voters.iter().chain(learners);
        slots.filter_map(|slot| match slot {
            Slot::New(location) => Some(*location),
            Slot::Here(_) => None,
        })
    }

    /// The range that it is about.
    pub fn range(&self) -> RangeId {
        match self {
            Step::Change { range, .. } | Step::Lead { range, .. } => *range,
        }
    }
}

/// The next steps that complete the members of ranges and that empty nodes: dead nodes are replaced,
/// changes that were left half done are ended, and nodes that drain give up their leaderships. The changes of
/// members keep to the room that there is.
pub fn plan(nodes: &[Node], ranges: &[Range], factor: usize, room: Room) -> Vec<Step> {
    let mut plan = Plan::new(nodes, ranges, factor);
    let drained = plan.drain_leaders();
    let is_drained = |range: RangeId| drained.iter().any(|step| step.range() == range);
    plan.complete(room, is_drained);
    plan.steps.extend(drained);
    plan.steps
}

/// All changes of members that complete the members of ranges.
pub fn complete(nodes: &[Node], ranges: &[Range], factor: usize) -> Vec<Step> {
    let mut plan = Plan::new(nodes, ranges, factor);
    plan.complete(Room::ENDLESS, |_| false);
    plan.steps
}

/// The most voters that a range has, and the most replicas.
pub fn wanted(nodes: usize, factor: usize) -> (usize, usize) {
    let all = nodes.min(factor);
    let voters = if all.is_multiple_of(2) {
        all.saturating_sub(1)
    } else {
        all
    };
    (voters, all)
}

/// The shard of a node that should be given the next replica; `None`: it is none of these nodes, or
/// has no shard.
pub fn least_loaded_shard(nodes: &[Node], ranges: &[Range], node: NodeId) -> Option<Location> {
    Plan::new(nodes, ranges, 0).shard(node)
}

/// Steps that are being planned, and what they make of the numbers of replicas.
pub(in crate::cluster) struct Plan<'a> {
    nodes: &'a [Node],
    ranges: &'a [Range],
    factor: usize,
    /// Replicas on each shard, including those that are ordered.
    pub load: BTreeMap<Location, usize>,
    steps: Vec<Step>,
}

impl<'a> Plan<'a> {
    /// A plan without steps.
    pub fn new(nodes: &'a [Node], ranges: &'a [Range], factor: usize) -> Plan<'a> {
        let mut load = BTreeMap::new();
        for node in nodes {
            for shard in (0..node.shards).map(ShardId) {
                let node = node.id;
                load.insert(Location { node, shard }, 0);
            }
        }
        for range in ranges {
            for place in range.voters.iter().chain(&range.learners) {
                if let Some(load) = load.get_mut(&place.location) {
                    *load += 1;
                }
            }
        }
        Plan {
            nodes,
            ranges,
            factor,
            load,
            steps: Vec::new(),
        }
    }

    fn is_usable(&self, node: NodeId) -> bool {
        self.nodes.iter().any(|n| n.id == node)
    }

    /// How many replicas a node has.
    pub fn node_load(&self, node: NodeId) -> usize {
        let of_node = self.load.iter().filter(|(at, _)| at.node == node);
        of_node.map(|(_, load)| load).sum()
    }

    /// The least loaded shard of a node; one that has failed only if there is no other.
    fn shard(&self, node: NodeId) -> Option<Location> {
        let of_node = self.load.iter().filter(|(at, _)| at.node == node);
        let best = of_node.min_by_key(|(at, load)| (self.is_avoided(**at), **load));
        best.map(|(at, _)| *at)
    }

    /// Whether a shard has failed to make a replica.
    pub fn is_avoided(&self, at: Location) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| node.id == at.node && node.avoided.contains(&at.shard))
    }

    /// Whether all shards of a node have failed.
    pub fn all_avoided(&self, node: NodeId) -> bool {
        let mut of_node = self.load.keys().filter(|at| at.node == node);
        of_node.all(|at| self.is_avoided(*at))
    }

    /// The nodes that accept new replicas, except these, the least loaded first.
    pub fn others(&self, but: &[NodeId]) -> Vec<NodeId> {
        let accepting = self.nodes.iter().filter(|node| node.accepts_new);
        let mut others: Vec<NodeId> = accepting
            .map(|node| node.id)
            .filter(|id| !but.contains(id))
            .collect();
        others.sort_by_key(|id| (self.all_avoided(*id), self.node_load(*id), *id));
        others
    }

    /// A slot on a node: the learner that is there, or a new replica.
    fn slot(&mut self, range: &Range, node: NodeId) -> Option<Slot> {
        let mut learners = range.learners.iter();
        let is_well = |place: &&ReplicaPlace| Some(place.replica) != range.given_up;
        if let Some(learner) = learners.find(|place| place.location.node == node && is_well(place))
        {
            return Some(Slot::Here(*learner));
        }
        let at = self.shard(node)?;
        *self.load.entry(at).or_default() += 1;
        Some(Slot::New(at))
    }

    /// Orders for each range the replicas that it lacks, and the removal of those that are too
    /// many.
    fn complete(&mut self, mut room: Room, is_drained: impl Fn(RangeId) -> bool) {
        let (voters_wanted, all_wanted) = wanted(self.nodes.len(), self.factor);
        let ranges = self.ranges;
        for range in ranges.iter().filter(|range| !range.busy) {
            if !room.has(range.bytes) || is_drained(range.id) {
                continue;
            }
            let voters_wanted = voters_wanted.max(range.voters.len().min(self.factor));
            let kept = self.voters_to_keep(range, voters_wanted);
            let mut voters: Vec<Slot> = kept.iter().map(|place| Slot::Here(*place)).collect();
            let but = kept.iter().map(|place| place.location.node);
            let but: Vec<NodeId> = but.chain(range.not_on).collect();
            let mut others = self.others(&but);
            others.extend(self.draining_members(range, &but));
            // A learner has the data already. A node whose replica is to be replaced may fail
            // again.
            others.sort_by_key(|node| {
                let all = range.voters.iter().chain(&range.learners);
                let mut given_up = all.filter(|place| Some(place.replica) == range.given_up);
                let given_up = given_up.any(|place| place.location.node == *node);
                let mut learners = range.learners.iter();
                let learns = learners.any(|place| place.location.node == *node);
                (self.all_avoided(*node), given_up, !learns)
            });
            let missing = voters_wanted - kept.len();
            if others.len() >= missing {
                for node in others.drain(..missing) {
                    let slot = self.slot(range, node);
                    voters.extend(slot);
                }
            } else {
                voters = range
                    .voters
                    .iter()
                    .map(|place| Slot::Here(*place))
                    .collect();
                let held = |node: &NodeId| voters.iter().all(|slot| slot.location().node != *node);
                others.retain(held);
            }
            let learners_wanted = all_wanted.saturating_sub(voters.len());
            let mut learners = Vec::new();
            for node in others.into_iter().take(learners_wanted) {
                let slot = self.slot(range, node);
                learners.extend(slot);
            }
            if self.change(range, voters, learners) {
                room.take(range.bytes);
            }
        }
    }

    /// The nodes that drain and have a member of a range: a learner stays there, and a replica that does
    /// not do its part may be replaced there.
    fn draining_members(&self, range: &Range, but: &[NodeId]) -> Vec<NodeId> {
        let drains = |node: &NodeId| self.nodes.iter().any(|n| n.id == *node && n.drains);
        let all = range.voters.iter().chain(&range.learners);
        let gone = |place: &&ReplicaPlace| Some(place.replica) == range.given_up;
        let stays = |place: &&ReplicaPlace| range.learners.contains(place) || gone(place);
        let on = all.filter(stays).map(|place| place.location.node);
        on.filter(|node| !but.contains(node) && drains(node))
            .collect()
    }

    /// For each node that accepts new leaders, or leads a range: how many it leads.
    pub fn led(&self, ranges: impl Iterator<Item = &'a Range>) -> BTreeMap<NodeId, usize> {
        let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
        led.extend(
            self.nodes
                .iter()
                .filter(|n| n.accepts_new)
                .map(|n| (n.id, 0)),
        );
        for node in ranges.filter_map(Range::led_on) {
            *led.entry(node).or_default() += 1;
        }
        led
    }

    /// Gives the leaderships of nodes that drain to voters that have caught up: to those whose nodes
    /// lead the fewest ranges.
    fn drain_leaders(&self) -> Vec<Step> {
        let drains: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|n| n.drains)
            .map(|n| n.id)
            .collect();
        let mut steps = Vec::new();
        if drains.is_empty() {
            return steps;
        }
        let mut led = self.led(self.ranges.iter());
        led.retain(|node, _| !drains.contains(node));
        let accepts = |node: NodeId| self.nodes.iter().any(|n| n.id == node && n.accepts_new);
        for range in self.ranges.iter().filter(|range| !range.busy) {
            let is_drained = range.led_on().is_some_and(|node| drains.contains(&node));
            if !is_drained || steps.len() >= DRAIN_TRANSFERS_MAX {
                continue;
            }
            let fit = range.voters.iter().filter(|place| {
                accepts(place.location.node) && range.caught_up.contains(&place.replica)
            });
            let count = |node: NodeId| led.get(&node).copied().unwrap_or_default();
            if let Some(to) = fit.min_by_key(|place| count(place.location.node)) {
                *led.entry(to.location.node).or_default() += 1;
                steps.push(Step::Lead {
                    range: range.id,
                    to: to.replica,
                });
            }
        }
        steps
    }

    /// The voters that stay: on usable nodes, one on each node, the leader first.
    fn voters_to_keep(&self, range: &Range, wanted: usize) -> Vec<ReplicaPlace> {
        let mut voters = range.voters.clone();
        voters.retain(|place| {
            self.is_usable(place.location.node) && Some(place.replica) != range.given_up
        });
        let load = |place: &ReplicaPlace| self.node_load(place.location.node);
        voters.sort_by_key(|place| (Some(place.replica) != range.leader, load(place)));
        let mut kept: Vec<ReplicaPlace> = Vec::new();
        for place in voters {
            let beside = |other: &ReplicaPlace| other.location.node == place.location.node;
            if kept.len() < wanted && !kept.iter().any(beside) {
                kept.push(place);
            }
        }
        kept
    }

    /// Has these become the members; gives whether that is a change.
    fn change(&mut self, range: &Range, voters: Vec<Slot>, learners: Vec<Slot>) -> bool {
        let same = |slots: &[Slot], places: &[ReplicaPlace]| {
            let is_there = |slot: &Slot| places.iter().any(|place| *slot == Slot::Here(*place));
            slots.len() == places.len() && slots.iter().all(is_there)
        };
        let is_change =
            range.is_joint || !same(&voters, &range.voters) || !same(&learners, &range.learners);
        if is_change {
            self.steps.push(Step::Change {
                range: range.id,
                voters,
                learners,
            });
        }
        is_change
    }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
