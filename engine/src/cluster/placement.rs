//! Placement of replicas and leaders: the next steps, from the present state. Pure.
//!
//! Each range wants as many voters as the replication factor, or the largest odd number of nodes
//! that there are, and learners for the rest of the factor. So a second node gets learners, and a
//! third turns one voter into three, in one change of members. A voter on a dead node is replaced
//! if there is a node for it. So is a voter that does not do its part, on the same node or on
//! another. The number of voters never falls because nodes are missing. When all that is done,
//! replicas and leaders are spread evenly, a few at a time.
//!
//! A node that is decommissioned is none of these nodes, so its replicas are replaced like those of
//! a dead one, by its live replicas' leaders. A node that drains keeps what it has but its
//! leaderships, and gets nothing.

use std::collections::BTreeMap;

use crate::range::ReplicaPlace;
use crate::types::{Location, NodeId, RangeId, ReplicaId, SYSTEM_RANGE, ShardId};

/// Most changes of members ordered at the same time.
const CHANGES_MAX: usize = 8;
/// Most leadership transfers ordered at the same time.
const TRANSFERS_MAX: usize = 16;
/// The same, away from nodes that drain: somebody waits for these.
const DRAIN_TRANSFERS_MAX: usize = 256;
/// A replica that lacks at most this many entries has caught up.
pub const CAUGHT_UP: u64 = 100;

/// A node, as placement sees it. Dead nodes are left out, and those that are decommissioned.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// How many shards may get replicas: those with the lowest numbers.
    pub shards: u16,
    /// Whether it may get new replicas and leaders.
    pub alive: bool,
    /// Whether others must lead what it leads.
    pub drains: bool,
    /// Shards that have failed to make a replica: others are preferred.
    pub avoided: Vec<ShardId>,
}

/// A range, as placement sees it.
#[derive(Clone, Debug)]
pub struct Range {
    /// Its id.
    pub id: RangeId,
    /// Its voters.
    pub voters: Vec<ReplicaPlace>,
    /// Its learners.
    pub learners: Vec<ReplicaPlace>,
    /// A member that does not do its part, and must be replaced.
    pub given_up: Option<ReplicaId>,
    /// A node that must not get a replica: the one to be replaced is still there.
    pub not_on: Option<NodeId>,
    /// The leader, if known.
    pub leader: Option<ReplicaId>,
    /// The members that lack so little that they may take the lead.
    pub caught_up: Vec<ReplicaId>,
    /// Whether a joint change was left half done: the voters are those before and after it.
    pub is_joint: bool,
    /// Whether no order may be given now: a change is under way, or there is no leader.
    pub busy: bool,
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
    fn location(self) -> Location {
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
        /// The range.
        range: RangeId,
        /// Its voters.
        voters: Vec<Slot>,
        /// Its learners.
        learners: Vec<Slot>,
    },
    /// Another replica must lead a range.
    Lead {
        /// The range.
        range: RangeId,
        /// The replica that must lead.
        to: ReplicaId,
    },
}

impl Step {
    /// The range that it is about.
    pub fn range(&self) -> RangeId {
        match self {
            Step::Change { range, .. } | Step::Lead { range, .. } => *range,
        }
    }
}

/// The next steps. Without `spread`, only those that complete the members of ranges and that empty
/// nodes: dead nodes are replaced, changes that were left half done are ended, and nodes that drain
/// give up their leaderships.
pub fn plan(nodes: &[Node], ranges: &[Range], factor: usize, spread: bool) -> Vec<Step> {
    let mut plan = Plan::new(nodes, ranges, factor);
    let drained = plan.drain_leaders();
    let is_drained = |range: RangeId| drained.iter().any(|step| step.range() == range);
    plan.complete(CHANGES_MAX, is_drained);
    // Nothing is spread while a change is under way. Ranges without a leader do not delay it.
    let at_rest = ranges
        .iter()
        .all(|range| !range.busy || range.leader.is_none());
    if spread && plan.steps.is_empty() && drained.is_empty() && at_rest {
        plan.spread_replicas();
        if plan.steps.is_empty() {
            plan.spread_leaders();
        }
    }
    plan.steps.extend(drained);
    plan.steps
}

/// All changes of members that complete the members of ranges.
pub fn complete(nodes: &[Node], ranges: &[Range], factor: usize) -> Vec<Step> {
    let mut plan = Plan::new(nodes, ranges, factor);
    plan.complete(usize::MAX, |_| false);
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

struct Plan<'a> {
    nodes: &'a [Node],
    ranges: &'a [Range],
    factor: usize,
    /// Replicas on each shard, including those that are ordered.
    load: BTreeMap<Location, usize>,
    steps: Vec<Step>,
}

impl<'a> Plan<'a> {
    fn new(nodes: &'a [Node], ranges: &'a [Range], factor: usize) -> Plan<'a> {
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

    fn node_load(&self, node: NodeId) -> usize {
        let of_node = self.load.iter().filter(|(at, _)| at.node == node);
        of_node.map(|(_, load)| load).sum()
    }

    /// The least loaded shard of a node; one that has failed only if there is no other.
    fn shard(&self, node: NodeId) -> Option<Location> {
        let of_node = self.load.iter().filter(|(at, _)| at.node == node);
        let best = of_node.min_by_key(|(at, load)| (self.is_avoided(**at), **load));
        best.map(|(at, _)| *at)
    }

    fn is_avoided(&self, at: Location) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| node.id == at.node && node.avoided.contains(&at.shard))
    }

    /// Whether all shards of a node have failed.
    fn all_avoided(&self, node: NodeId) -> bool {
        let mut of_node = self.load.keys().filter(|at| at.node == node);
        of_node.all(|at| self.is_avoided(*at))
    }

    /// The live nodes except these, the least loaded first.
    fn others(&self, but: &[NodeId]) -> Vec<NodeId> {
        let alive = self.nodes.iter().filter(|node| node.alive);
        let mut others: Vec<NodeId> = alive
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
    fn complete(&mut self, changes_max: usize, is_drained: impl Fn(RangeId) -> bool) {
        let (voters_wanted, all_wanted) = wanted(self.nodes.len(), self.factor);
        let ranges = self.ranges;
        for range in ranges.iter().filter(|range| !range.busy) {
            if self.steps.len() >= changes_max {
                return;
            }
            if is_drained(range.id) {
                continue;
            }
            let voters_wanted = voters_wanted.max(range.voters.len().min(self.factor));
            let kept = self.voters_to_keep(range, voters_wanted);
            let mut voters: Vec<Slot> = kept.iter().map(|place| Slot::Here(*place)).collect();
            let but = kept.iter().map(|place| place.location.node);
            let but: Vec<NodeId> = but.chain(range.not_on).collect();
            let mut others = self.others(&but);
            others.extend(self.draining_learners(range, &but));
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
            self.change(range, voters, learners);
        }
    }

    /// The nodes that drain and have a learner of a range: it stays.
    fn draining_learners(&self, range: &Range, but: &[NodeId]) -> Vec<NodeId> {
        let learners = range.learners.iter().map(|place| place.location.node);
        let kept = learners.filter(|node| !but.contains(node));
        kept.filter(|node| self.nodes.iter().any(|n| n.id == *node && n.drains))
            .collect()
    }

    /// The leader's node of a range, if it is a voter.
    fn led_on(range: &Range) -> Option<NodeId> {
        let mut voters = range.voters.iter();
        let leader = voters.find(|place| Some(place.replica) == range.leader)?;
        Some(leader.location.node)
    }

    /// How many ranges each live node leads.
    fn led(&self, ranges: impl Iterator<Item = &'a Range>) -> BTreeMap<NodeId, usize> {
        let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
        led.extend(self.nodes.iter().filter(|n| n.alive).map(|n| (n.id, 0)));
        for node in ranges.filter_map(Plan::led_on) {
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
        let alive = |node: NodeId| self.nodes.iter().any(|n| n.id == node && n.alive);
        for range in self.ranges.iter().filter(|range| !range.busy) {
            let is_drained = Plan::led_on(range).is_some_and(|node| drains.contains(&node));
            if !is_drained || steps.len() >= DRAIN_TRANSFERS_MAX {
                continue;
            }
            let fit = range.voters.iter().filter(|place| {
                alive(place.location.node) && range.caught_up.contains(&place.replica)
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

    fn change(&mut self, range: &Range, voters: Vec<Slot>, learners: Vec<Slot>) {
        let same = |slots: &[Slot], places: &[ReplicaPlace]| {
            let is_there = |slot: &Slot| places.iter().any(|place| *slot == Slot::Here(*place));
            slots.len() == places.len() && slots.iter().all(is_there)
        };
        if range.is_joint || !same(&voters, &range.voters) || !same(&learners, &range.learners) {
            self.steps.push(Step::Change {
                range: range.id,
                voters,
                learners,
            });
        }
    }

    /// Moves replicas from the fullest nodes to the emptiest.
    fn spread_replicas(&mut self) {
        let ranges = self.ranges;
        for range in ranges {
            if self.steps.len() >= CHANGES_MAX {
                return;
            }
            let nodes: Vec<NodeId> = range.voters.iter().map(|p| p.location.node).collect();
            let full = nodes.iter().max_by_key(|node| self.node_load(**node));
            let empty = self.others(&nodes).first().copied();
            let empty = empty.filter(|node| !self.all_avoided(*node));
            let (Some(full), Some(empty)) = (full.copied(), empty) else {
                continue;
            };
            let has_learner = range.learners.iter().any(|p| p.location.node == empty);
            if has_learner || self.node_load(full) < self.node_load(empty) + 2 {
                continue;
            }
            let mut voters = Vec::new();
            for place in &range.voters {
                if place.location.node != full {
                    voters.push(Slot::Here(*place));
                } else if let Some(load) = self.load.get_mut(&place.location) {
                    *load -= 1;
                }
            }
            voters.extend(self.slot(range, empty));
            let learners = range.learners.iter().map(|place| Slot::Here(*place));
            self.change(range, voters, learners.collect());
        }
    }

    /// Makes live nodes lead equally many ranges. The leader of the system range stays.
    fn spread_leaders(&mut self) {
        let users = || self.ranges.iter().filter(|r| r.id != SYSTEM_RANGE);
        let mut led = self.led(users());
        let mut steps = Vec::new();
        for range in users().filter(|range| !range.busy) {
            let Some(from) = Plan::led_on(range) else {
                continue;
            };
            let count = |node: NodeId| led.get(&node).copied().unwrap_or(usize::MAX);
            let alive = |node: NodeId| self.nodes.iter().any(|n| n.id == node && n.alive);
            let voters = range.voters.iter().filter(|p| alive(p.location.node));
            let Some(to) = voters.min_by_key(|place| count(place.location.node)) else {
                continue;
            };
            if steps.len() < TRANSFERS_MAX && count(to.location.node) + 2 <= count(from) {
                *led.entry(from).or_default() -= 1;
                *led.entry(to.location.node).or_default() += 1;
                steps.push(Step::Lead {
                    range: range.id,
                    to: to.replica,
                });
            }
        }
        self.steps.extend(steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64) -> Node {
        Node {
            id: NodeId(id),
            shards: 2,
            alive: true,
            drains: false,
            avoided: Vec::new(),
        }
    }

    fn at(node: u64, shard: u16) -> Location {
        Location {
            node: NodeId(node),
            shard: ShardId(shard),
        }
    }

    fn range(id: u64, voters: &[u64]) -> Range {
        let place = |node: &u64| ReplicaPlace {
            replica: ReplicaId(id * 100 + node),
            location: at(*node, (id % 2) as u16),
        };
        let voters: Vec<ReplicaPlace> = voters.iter().map(place).collect();
        Range {
            id: RangeId(id),
            leader: voters.first().map(|place| place.replica),
            caught_up: voters.iter().map(|place| place.replica).collect(),
            voters,
            learners: Vec::new(),
            given_up: None,
            not_on: None,
            is_joint: false,
            busy: false,
        }
    }

    /// Does what the steps say, at once; new replicas get ids of their own.
    fn apply(ranges: &mut [Range], steps: &[Step], next: &mut u64) {
        let mut made = |slot: &Slot| match slot {
            Slot::Here(place) => *place,
            Slot::New(location) => {
                *next += 1;
                ReplicaPlace {
                    replica: ReplicaId(*next),
                    location: *location,
                }
            }
        };
        for step in steps {
            match step {
                Step::Change {
                    range,
                    voters,
                    learners,
                } => {
                    let range = ranges.iter_mut().find(|r| r.id == *range).expect("known");
                    range.voters = voters.iter().map(&mut made).collect();
                    range.learners = learners.iter().map(&mut made).collect();
                    range.given_up = None;
                    if !range.voters.iter().any(|p| Some(p.replica) == range.leader) {
                        range.leader = range.voters.first().map(|p| p.replica);
                    }
                }
                Step::Lead { range, to } => {
                    let range = ranges.iter_mut().find(|r| r.id == *range).expect("known");
                    assert!(range.voters.iter().any(|p| p.replica == *to));
                    range.leader = Some(*to);
                }
            }
        }
    }

    /// Plans and applies until nothing is left to do.
    fn settle(nodes: &[Node], ranges: &mut [Range], factor: usize) {
        let replicas = ranges
            .iter()
            .flat_map(|r| r.voters.iter().chain(&r.learners));
        let mut next = 10_000 + replicas.map(|place| place.replica.0).max().unwrap_or(0);
        for _ in 0..1000 {
            let steps = plan(nodes, ranges, factor, true);
            if steps.is_empty() {
                return;
            }
            apply(ranges, &steps, &mut next);
            for range in ranges.iter() {
                let nodes: Vec<NodeId> = range.voters.iter().map(|p| p.location.node).collect();
                let mut unique = nodes.clone();
                unique.sort();
                unique.dedup();
                assert_eq!(
                    unique.len(),
                    nodes.len(),
                    "one replica on a node: {range:?}"
                );
            }
        }
        panic!("it never settles: {ranges:?}");
    }

    fn leaders(ranges: &[Range], node: u64) -> usize {
        let leads = |range: &&Range| {
            let mut voters = range.voters.iter();
            voters.any(|p| Some(p.replica) == range.leader && p.location.node == NodeId(node))
        };
        ranges.iter().filter(leads).count()
    }

    #[test]
    fn a_second_node_holds_learners_and_a_third_makes_one_voter_three() {
        let mut ranges: Vec<Range> = (1..=6).map(|id| range(id, &[1])).collect();
        settle(&[node(1), node(2)], &mut ranges, 3);
        for range in &ranges {
            assert_eq!((range.voters.len(), range.learners.len()), (1, 1));
        }
        let steps = plan(&[node(1), node(2), node(3)], &ranges, 3, true);
        let Some(Step::Change {
            voters, learners, ..
        }) = steps.first()
        else {
            panic!("a change comes first: {steps:?}");
        };
        assert_eq!((voters.len(), learners.len()), (3, 0));
        settle(&[node(1), node(2), node(3)], &mut ranges, 3);
        for range in &ranges {
            assert_eq!((range.voters.len(), range.learners.len()), (3, 0));
        }
        for node in 1..=3 {
            assert!((1..=3).contains(&leaders(&ranges, node)), "{ranges:?}");
        }
    }

    #[test]
    fn a_dead_nodes_replicas_are_replaced_where_there_is_a_node() {
        let mut ranges: Vec<Range> = (1..=4).map(|id| range(id, &[1, 2, 3])).collect();
        // Node 3 is dead: it is left out.
        let before: Vec<_> = ranges.iter().map(|range| range.voters.clone()).collect();
        settle(&[node(1), node(2)], &mut ranges, 3);
        let after: Vec<_> = ranges.iter().map(|range| range.voters.clone()).collect();
        assert_eq!(before, after);
        settle(&[node(1), node(2), node(4)], &mut ranges, 3);
        for range in &ranges {
            let mut nodes: Vec<u64> = range.voters.iter().map(|p| p.location.node.0).collect();
            nodes.sort_unstable();
            assert_eq!(nodes, [1, 2, 4]);
        }
    }

    #[test]
    fn a_replica_that_is_given_up_is_replaced_on_a_free_node_or_on_its_own() {
        for free in [false, true] {
            let mut nodes = vec![node(1), node(2), node(3)];
            nodes.extend(free.then(|| node(4)));
            let mut ranges = vec![range(1, &[1, 2, 3])];
            ranges[0].given_up = Some(ReplicaId(103));
            let steps = plan(&nodes, &ranges, 3, true);
            let [Step::Change { voters, .. }] = steps.as_slice() else {
                panic!("one change: {steps:?}");
            };
            let new: Vec<Location> = voters
                .iter()
                .filter(|slot| matches!(slot, Slot::New(_)))
                .map(|slot| slot.location())
                .collect();
            let wanted = if free { at(4, 0) } else { at(3, 0) };
            assert_eq!((voters.len(), new), (3, vec![wanted]));
            // If the old one is still there, not on its node.
            ranges[0].not_on = Some(NodeId(3));
            assert_eq!(plan(&nodes, &ranges, 3, true).len(), usize::from(free));
            ranges[0].not_on = None;
            settle(&nodes, &mut ranges, 3);
            assert!(ranges[0].voters.iter().all(|p| p.replica != ReplicaId(103)));
        }
    }

    #[test]
    fn a_learner_that_is_given_up_is_made_anew_and_is_not_made_a_voter() {
        let mut ranges = vec![range(1, &[1])];
        settle(&[node(1), node(2)], &mut ranges, 3);
        let learner = ranges[0].learners[0];
        ranges[0].given_up = Some(learner.replica);
        let steps = plan(&[node(1), node(2), node(3)], &ranges, 3, true);
        let Some(Step::Change { voters, .. }) = steps.first() else {
            panic!("a change: {steps:?}");
        };
        assert!(!voters.contains(&Slot::Here(learner)), "{voters:?}");
        settle(&[node(1), node(2)], &mut ranges, 3);
        assert_ne!(ranges[0].learners[0].replica, learner.replica);
    }

    #[test]
    fn a_shard_that_failed_is_taken_only_if_there_is_no_other() {
        let mut failed = node(4);
        failed.avoided = vec![ShardId(0), ShardId(1)];
        // Node 3 is dead.
        let ranges = vec![range(1, &[1, 2, 3])];
        let targets = |nodes: &[Node]| {
            let steps = plan(nodes, &ranges, 3, true);
            let [Step::Change { voters, .. }] = steps.as_slice() else {
                panic!("one change: {steps:?}");
            };
            let new = voters.iter().filter(|slot| matches!(slot, Slot::New(_)));
            new.map(|slot| slot.location()).collect::<Vec<_>>()
        };
        let nodes = [node(1), node(2), failed.clone(), node(5)];
        assert_eq!(targets(&nodes), [at(5, 0)]);
        assert_eq!(targets(&nodes[..3]), [at(4, 0)]);
        failed.avoided = vec![ShardId(0)];
        assert_eq!(targets(&[node(1), node(2), failed]), [at(4, 1)]);
    }

    #[test]
    fn replicas_and_leaders_are_spread_over_five_nodes() {
        let mut ranges: Vec<Range> = (1..=20).map(|id| range(id, &[1, 2, 3])).collect();
        let nodes: Vec<Node> = (1..=5).map(node).collect();
        settle(&nodes, &mut ranges, 3);
        for node in 1..=5 {
            let on = |place: &ReplicaPlace| place.location.node == NodeId(node);
            let held = ranges.iter().filter(|r| r.voters.iter().any(on)).count();
            assert!((11..=13).contains(&held), "node {node} holds {held}");
            assert!((3..=6).contains(&leaders(&ranges, node)));
        }
    }

    #[test]
    fn without_spreading_dead_nodes_are_replaced_and_half_done_changes_are_ended() {
        let nodes: Vec<Node> = (1..=4).map(node).collect();
        let mut ranges: Vec<Range> = (1..=8).map(|id| range(id, &[1, 2, 3])).collect();
        assert_ne!(plan(&nodes, &ranges, 3, true), [], "node 4 has nothing");
        assert_eq!(plan(&nodes, &ranges, 3, false), []);
        ranges[5].is_joint = true;
        let steps = plan(&nodes, &ranges, 3, false);
        assert!(
            matches!(&*steps, [Step::Change { range, .. }] if *range == RangeId(6)),
            "{steps:?}"
        );
        // Node 2 is dead.
        let alive = [node(1), node(3), node(4)];
        assert_eq!(plan(&alive, &ranges, 3, false).len(), CHANGES_MAX);
    }

    #[test]
    fn a_busy_range_and_a_silent_node_are_left_alone() {
        let mut busy = range(2, &[1]);
        busy.busy = true;
        let mut silent = node(2);
        silent.alive = false;
        assert_eq!(
            plan(&[node(1), silent], &[busy, range(3, &[1])], 3, true),
            []
        );
    }

    #[test]
    fn a_node_that_drains_is_given_nothing_and_keeps_its_replicas() {
        let mut nodes: Vec<Node> = (1..=4).map(node).collect();
        let mut ranges: Vec<Range> = (1..=8).map(|id| range(id, &[1, 2, 3])).collect();
        settle(&nodes, &mut ranges, 3);
        let on = |ranges: &[Range], node: u64| {
            let on = |place: &ReplicaPlace| place.location.node == NodeId(node);
            ranges.iter().filter(|r| r.voters.iter().any(on)).count()
        };
        let before = on(&ranges, 2);
        assert!(leaders(&ranges, 2) > 0 && before > 0);
        (nodes[1].alive, nodes[1].drains) = (false, true);
        for range in &mut ranges {
            range.caught_up = range.voters.iter().map(|place| place.replica).collect();
        }
        settle(&nodes, &mut ranges, 3);
        assert_eq!((leaders(&ranges, 2), on(&ranges, 2)), (0, before));
        // Also without spreading, and of a range that has nobody else it is not asked.
        let mut alone = range(9, &[2, 3, 1]);
        alone.caught_up.clear();
        assert_eq!(plan(&nodes, std::slice::from_ref(&alone), 3, false), []);
        alone.caught_up = vec![ReplicaId(903)];
        let to = ReplicaId(903);
        let steps = plan(&nodes, &[alone], 3, false);
        assert!(
            steps.contains(&Step::Lead {
                range: RangeId(9),
                to
            }),
            "{steps:?}"
        );
    }

    #[test]
    fn a_learner_stays_on_a_node_that_drains() {
        let mut nodes = vec![node(1), node(2)];
        let mut ranges = vec![range(1, &[1])];
        settle(&nodes, &mut ranges, 3);
        assert_eq!(ranges[0].learners.len(), 1);
        (nodes[1].alive, nodes[1].drains) = (false, true);
        assert_eq!(plan(&nodes, &ranges, 3, true), []);
    }

    #[test]
    fn the_factor_may_be_raised_and_lowered() {
        let mut ranges: Vec<Range> = (1..=5).map(|id| range(id, &[1, 2, 3])).collect();
        let nodes: Vec<Node> = (1..=5).map(node).collect();
        settle(&nodes, &mut ranges, 5);
        assert!(ranges.iter().all(|range| range.voters.len() == 5));
        settle(&nodes, &mut ranges, 3);
        assert!(ranges.iter().all(|range| range.voters.len() == 3));
        settle(&nodes, &mut ranges, 1);
        assert!(ranges.iter().all(|range| range.voters.len() == 1));
    }

    #[test]
    fn a_replica_moves_to_the_shard_of_a_node_that_holds_the_fewest() {
        let mut nodes = vec![node(1), node(2), node(3)];
        // Of ranges 1 and 3 replicas are on shard 1, of range 2 on shard 0.
        let ranges = [range(1, &[1, 2]), range(2, &[1, 2]), range(3, &[2])];
        let shard = |nodes: &[Node], of| least_loaded_shard(nodes, &ranges, NodeId(of));
        assert_eq!(shard(&nodes, 1), Some(at(1, 0)), "of equal ones the first");
        assert_eq!(shard(&nodes, 2), Some(at(2, 0)));
        assert_eq!(shard(&nodes, 3), Some(at(3, 0)));
        nodes[1].avoided = vec![ShardId(0)];
        assert_eq!(
            shard(&nodes, 2),
            Some(at(2, 1)),
            "one that has failed comes last"
        );
        nodes[2].shards = 0;
        assert_eq!(shard(&nodes, 3), None);
        assert_eq!(shard(&nodes, 9), None);
    }
}
