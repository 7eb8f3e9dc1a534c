//! Planning: what the manager orders next, and why. No I/O here; it runs on the shard that hosts the manager.
//!
//! Each round ([`Manager::plan`]) begins with what is necessary: moves that operators ordered, repairs and
//! drains. Balance follows, for ranges without an order: first what an operator has had scattered, then
//! loads, then numbers. The algorithms are in [`crate::cluster::placement`]; this folder chooses among their
//! steps, gives reasons for them (`reasons`), and follows each order until it has ended (`progress`). An
//! order that is under way counts as carried out, so that the next round does not give it again. A range that
//! is stuck holds up no other. Balance keeps to limits:
//!
//! - at most [`ORDERS_MAX`] orders in [`ORDERS_PER`], in the whole cluster. Orders that cost next to nothing
//!   do not count: those for ranges without load, if they move a leadership or a replica with hardly any
//!   bytes;
//! - of those at most [`LEADS_MAX`](load_balance::LEADS_MAX) leaderships that are on their way to a shard;
//! - at most `moves-max` replicas that are on their way to a shard, including those of repairs. Of replicas
//!   with hardly any bytes at most [`SMALL_MOVES_MAX`](load_balance::SMALL_MOVES_MAX) instead;
//! - the leadership of a range that is not idle moves at most once in `REST`;
//! - after a failed order a range is left alone for a while, twice as long each time;
//! - numbers are not balanced while an order splits a range into many.
//!
//! Repairs have limits of their own, again by what is copied ([`placement::room`]). When an order ends, the next
//! round begins at once ([`Manager::take_has_ended`]), so that limits are what many small steps wait for, and not
//! time.
//!
//! Every order is a decision, which is shown with its reason and its end
//! ([`crate::cluster::manager::decision_log`]).

mod progress;
mod reasons;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::planning_state::{
    ORDERS_MAX, ORDERS_PER, Origin, Planned, Planning, Why,
};
use crate::cluster::manager::{Goal, KnownRange, Manager};
use crate::cluster::message::NodeHealth;
use crate::cluster::placement::count_balance;
use crate::cluster::placement::load_balance::{
    self, Allowance, EXTREME, Incoming, LASTING, Picture, Proposal, RangeLoad,
};
use crate::cluster::placement::loads::Cpu;
use crate::cluster::placement::room;
use crate::cluster::placement::scatter;
use crate::cluster::placement::{self, Node, Range, Slot, Step};
use crate::cluster::record::MembershipStatus;
use crate::cluster::settings;
use crate::error::OrderError;
use crate::mutant::{self, Mutant};
use crate::range::{Descriptor, Keyspace, ReplicaPlace};
use crate::types::{KeyRange, Location, NodeId, RangeId, ReplicaId};

/// An order of which nothing is heard for so long has failed.
const UNHEARD_MAX: Duration = Duration::from_mins(10);

impl Manager {
    /// Takes what has changed since the last round. Once in a round, before [`Manager::plan`].
    pub fn observe(&mut self, now: BootTime) {
        self.planning.forget_old(now);
        let cpu: Vec<(Location, u32)> = self
            .shards
            .known
            .iter()
            .filter(|(at, _)| {
                let node = self.nodes.get(&at.node);
                node.is_some_and(|node| {
                    at.shard.0 < node.record.shards
                        && self.node_health(node, now) == NodeHealth::Alive
                })
            })
            .map(|(at, shard)| (*at, shard.stats.cpu))
            .collect();
        let ranges = self.ranges.values().filter_map(|known| {
            let cpu = known.cpu(now);
            let has_load = cpu.short > 0 || cpu.long > 0;
            let range = known.record.descriptor.range;
            let led_at = || self.expected(known, now).led_at();
            let led_at = || self.moves.leads_to(range).or_else(led_at);
            Some((has_load.then(led_at)??, cpu))
        });
        let ranges: Vec<(Location, Cpu)> = ranges.collect();
        self.planning
            .loads
            .observe(cpu.into_iter(), ranges.into_iter(), now);
        let unheard = self.planning.under_way.iter();
        let unheard = unheard.filter(|(range, order)| {
            now >= order.since + UNHEARD_MAX || !self.ranges.contains_key(range)
        });
        let unheard: Vec<RangeId> = unheard.map(|(range, _)| *range).collect();
        for range in unheard {
            self.end(range, Err("nothing is heard of the range".to_owned()), now);
        }
        if !self.planning.scatter.is_empty() {
            let ranges = self.ranges.values().map(|known| self.range(known, now));
            let ranges: Vec<Range> = ranges.collect();
            self.planning.scatter.observe(&ranges, now);
        }
    }

    /// The next steps to order.
    pub fn plan(&self, now: BootTime) -> Vec<Planned> {
        let (nodes, mut ranges) = self.placed(now);
        let mut allowance = self.allowance(now);
        let mut planned = Vec::new();
        for step in self.moves.steps(&nodes, &mut ranges, now) {
            let why = match step {
                Step::Change { .. } => Why::operator(),
                Step::Lead { .. } => Why {
                    reason: "the leadership goes with the replica".to_owned(),
                    expected: String::new(),
                    origin: Origin::Continued,
                    is_cheap: false,
                },
            };
            planned.push(Planned { step, why });
        }
        let mut room = self.planning.room(now);
        for step in self.leave_shards(&nodes, &mut ranges, &mut room, now) {
            let why = Why {
                reason: "a node has given up the shard that has a replica".to_owned(),
                expected: "the replica is on a shard that stays".to_owned(),
                origin: Origin::Duty,
                is_cheap: false,
            };
            planned.push(Planned { step, why });
        }
        for step in placement::plan(&nodes, &ranges, self.factor(), room) {
            let why = self.why_necessary(&step, now);
            planned.push(Planned { step, why });
        }
        for Planned { step, .. } in &planned {
            take_place(&mut ranges, step, &mut allowance.incoming);
        }
        for Proposal {
            step,
            is_cheap,
            reason,
            expected,
        } in self.balance(&nodes, &mut ranges, &mut allowance, now)
        {
            let why = Why {
                reason,
                expected,
                origin: Origin::Balance,
                is_cheap,
            };
            planned.push(Planned { step, why });
        }
        planned.retain(|planned| !self.meets_another(&planned.step));
        planned
    }

    /// Whether a step makes a replica on a shard that has one of the range which is no member. A shard takes no
    /// second one: what a change that failed has left there must go first, and goes once the range rests.
    fn meets_another(&self, step: &Step) -> bool {
        let range = step.range();
        step.new_places().any(|at| {
            let shard = self.shards.known.get(&at);
            let held = shard.and_then(|shard| shard.held.get(&range));
            held.zip(self.ranges.get(&range))
                .is_some_and(|(held, known)| {
                    let descriptor = &known.record.descriptor;
                    descriptor.location(held.replica).is_none()
                })
        })
    }

    fn balance(
        &self,
        nodes: &[Node],
        ranges: &mut [Range],
        allowance: &mut Allowance,
        now: BootTime,
    ) -> Vec<Proposal> {
        let Planning {
            loads,
            scatter,
            moved,
            ..
        } = &self.planning;
        let cost: BTreeMap<RangeId, RangeLoad> = self
            .ranges
            .iter()
            .filter_map(|(range, known)| {
                self.fresh(known, now)?;
                let cpu = known.cpu(now);
                Some((*range, RangeLoad { cpu }))
            })
            .collect();
        let is_unready =
            |range: RangeId| self.planning.is_paused(range, now) || self.moves.leads_after(range);
        let ids = || self.ranges.keys().copied();
        let mut resting: BTreeSet<RangeId> = ids().filter(|range| is_unready(*range)).collect();
        // What a stage orders is busy for the next one.
        let mut proposals = Vec::new();
        let mut settle = |ranges: &mut [Range], stage: Vec<Proposal>| {
            for proposal in &stage {
                take_place(ranges, &proposal.step, &mut BTreeMap::new());
            }
            proposals.extend(stage);
        };
        let stage = scatter.steps(&Picture::new(nodes, ranges, &cost, &resting), allowance);
        settle(ranges, stage);
        if self.setting("balance") != Some("off") {
            let has_moved = |range: &RangeId| {
                let cost = cost.get(range);
                let has_load = cost.is_some_and(|cost| !cost.is_idle());
                scatter.has(*range) || has_load && moved.contains_key(range)
            };
            resting.extend(ids().filter(has_moved));
            let mut expected = loads.expected();
            for difference in [&EXTREME, &LASTING] {
                let picture = Picture::new(nodes, ranges, &cost, &resting);
                let compared = (loads, difference);
                let stage = load_balance::by_load(&picture, compared, &mut expected, allowance);
                settle(ranges, stage);
            }
            if !self.planning.splits_into_many(now) {
                let picture = Picture::new(nodes, ranges, &cost, &resting);
                let stage = count_balance::by_count(&picture, loads, &mut expected, allowance);
                settle(ranges, stage);
            }
        }
        proposals
    }

    /// What balance may still order.
    fn allowance(&self, now: BootTime) -> Allowance {
        let mut incoming: BTreeMap<Location, Incoming> = BTreeMap::new();
        for known in self.ranges.values() {
            let Some(Goal::Members { voters, learners }) = self.goal(known, now) else {
                continue;
            };
            let record = &known.record;
            let is_small = room::is_small(self.bytes(known, now));
            let is_new = |place: &&ReplicaPlace| !record.voters.contains(&place.replica);
            let is_absent =
                |place: &&ReplicaPlace| record.descriptor.location(place.replica).is_none();
            let coming = voters.iter().filter(is_new);
            for place in coming.chain(learners.iter().filter(is_absent)) {
                incoming.entry(place.location).or_default().add(is_small);
            }
        }
        let recent = self.planning.given.iter();
        let recent = recent.filter(|at| now < **at + ORDERS_PER).count();
        Allowance {
            orders: ORDERS_MAX.saturating_sub(recent),
            moves_max: self.moves_max(),
            incoming,
            leads: self.planning.leads(),
        }
    }

    fn moves_max(&self) -> usize {
        let name = "moves-max";
        let default = || settings::rule(name).map(|rule| rule.default).ok();
        let text = self.setting(name).or_else(default);
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// What a range is becoming by an order that is under way.
    fn goal<'a>(&self, known: &'a KnownRange, now: BootTime) -> Option<&'a Goal> {
        let (_, goal) = known.ordered.as_ref()?;
        let is_changing = self
            .fresh(known, now)
            .is_some_and(|report| report.changing && matches!(goal, Goal::Members { .. }));
        (self.is_ordered(known, now) || is_changing).then_some(goal)
    }

    /// Nodes that keep their replicas, and all ranges, as placement sees them: those with an order as they
    /// will be after it.
    pub(in crate::cluster) fn placed(&self, now: BootTime) -> (Vec<Node>, Vec<Range>) {
        let avoided = self.health.avoided(now);
        let nodes = self.nodes.values().filter_map(|known| {
            let state = self.node_health(known, now);
            let id = known.record.id;
            let of_node = avoided.iter().filter(|at| at.node == id);
            let membership = self.membership(id);
            let is_drained =
                membership == MembershipStatus::Draining && !mutant::is(Mutant::DrainedNodeLeads);
            let drains = is_drained || self.has_slow_disk(id);
            (state != NodeHealth::Dead && membership.keeps_replicas()).then(|| Node {
                id,
                shards: known.record.staying_shards(),
                accepts_new: state == NodeHealth::Alive && !drains,
                drains,
                avoided: of_node.map(|at| at.shard).collect(),
            })
        });
        let ranges = self.ranges.values();
        let ranges = ranges.map(|known| self.expected(known, now));
        (nodes.collect(), ranges.collect())
    }

    /// A range as placement sees it: with an order, as it will be after that.
    fn expected(&self, known: &KnownRange, now: BootTime) -> Range {
        let mut range = self.range(known, now);
        let goal = self.goal(known, now);
        match goal.filter(|_| range.busy) {
            Some(Goal::Members { voters, learners }) => {
                range.voters.clone_from(voters);
                range.learners.clone_from(learners);
                let order = self.planning.under_way.get(&range.id);
                if range.led_at().is_none() {
                    let to = order.and_then(|order| order.to);
                    let at_goal = |place: &&ReplicaPlace| Some(place.location) == to;
                    range.leader = voters.iter().find(at_goal).map(|place| place.replica);
                }
            }
            Some(Goal::Leader(to)) => range.leader = Some(*to),
            _ => {}
        }
        range
    }

    /// The shard of a node that should be given the next replica; see
    /// [`placement::least_loaded_shard`].
    pub fn least_loaded_shard(&self, node: NodeId, now: BootTime) -> Option<Location> {
        let (nodes, ranges) = self.placed(now);
        placement::least_loaded_shard(&nodes, &ranges, node)
    }

    /// Takes an order to scatter the users' ranges that have keys in an interval; gives how many orders that
    /// takes.
    ///
    /// # Errors
    /// The interval is empty.
    pub fn scatter(&mut self, keys: &KeyRange, now: BootTime) -> Result<u64, OrderError> {
        if keys.end.as_ref().is_some_and(|end| *end <= keys.start) {
            let why = "the interval to scatter has no keys: its end must come after its start";
            return Err(OrderError::Invalid(why.to_owned()));
        }
        let is_in = |descriptor: &Descriptor| {
            let own = &descriptor.keys;
            descriptor.keyspace == Keyspace::User
                && own.end.as_ref().is_none_or(|end| *end > keys.start)
                && keys.end.as_ref().is_none_or(|end| own.start < *end)
        };
        Ok(self.scatter_those(is_in, now))
    }

    /// Has ranges scattered among themselves; gives how many orders that takes.
    pub fn scatter_those(&mut self, is_one: impl Fn(&Descriptor) -> bool, now: BootTime) -> u64 {
        let (nodes, ranges) = self.placed(now);
        let is_in = |range: &&Range| {
            let known = self.ranges.get(&range.id);
            known.is_some_and(|known| is_one(&known.record.descriptor))
        };
        let mut ranges: Vec<&Range> = ranges.iter().filter(is_in).collect();
        ranges.sort_by_key(|range| {
            let known = self.ranges.get(&range.id);
            known.map(|known| &known.record.descriptor.keys.start)
        });
        let goals = scatter::goals(&nodes, &ranges, self.moves_max() > 0);
        let orders = goals.values().map(VecDeque::len).sum::<usize>() as u64;
        self.planning.scatter.begin(goals, now);
        orders
    }

    /// How many of these ranges are still to be scattered, or have an order of it under way.
    pub fn scattering(&self, ranges: &[RangeId]) -> usize {
        let Planning {
            scatter, under_way, ..
        } = &self.planning;
        let is_busy = |range: &&RangeId| scatter.has(**range) || under_way.contains_key(*range);
        ranges.iter().filter(is_busy).count()
    }

    /// Gives up what is left to be done to scatter these ranges.
    pub fn stop_scattering(&mut self, ranges: &[RangeId]) {
        let scatter = &mut self.planning.scatter;
        ranges.iter().for_each(|range| scatter.forget(*range));
    }

    /// How many shards may get replicas and leaders.
    pub(in crate::cluster) fn open_shards(&self, now: BootTime) -> usize {
        let (nodes, _) = self.placed(now);
        let accepting = nodes.iter().filter(|node| node.accepts_new);
        accepting.map(|node| usize::from(node.shards)).sum()
    }
}

/// Has a range count as what a step makes of it, and as busy. New replicas are on their way to their shards.
fn take_place(ranges: &mut [Range], step: &Step, incoming: &mut BTreeMap<Location, Incoming>) {
    let Ok(index) = ranges.binary_search_by_key(&step.range(), |range| range.id) else {
        return;
    };
    let range = &mut ranges[index];
    range.busy = true;
    match step {
        Step::Lead { to, .. } => range.leader = Some(*to),
        Step::Change {
            voters, learners, ..
        } => {
            let leader = range.led_at();
            let is_small = room::is_small(range.bytes);
            let mut place = |slot: &Slot| match slot {
                Slot::Here(place) => *place,
                Slot::New(location) => {
                    incoming.entry(*location).or_default().add(is_small);
                    // It has no id yet.
                    ReplicaPlace {
                        replica: ReplicaId(0),
                        location: *location,
                    }
                }
            };
            range.voters = voters.iter().map(&mut place).collect();
            range.learners = learners.iter().map(&mut place).collect();
            let is_new = |place: &&ReplicaPlace| place.replica == ReplicaId(0);
            if leader.is_some() && range.led_at().is_none() {
                range.leader = range.voters.iter().find(is_new).map(|place| place.replica);
            }
        }
    }
}

#[cfg(test)]
#[path = "planning_tests.rs"]
mod tests;
