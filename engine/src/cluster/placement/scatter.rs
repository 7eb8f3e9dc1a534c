//! An operator's order to scatter ranges: their replicas and leaders are spread evenly, by number, over nodes
//! and shards, whatever their loads are. The first parts of a range that an operator has split at many keys
//! are scattered in the same way ([`crate::cluster::split_merge::split`]). Pure.
//!
//! The goals of all ranges are computed once ([`goals`]). Those of one range are reached one after the other,
//! within the limits of balance. If a goal fails three times, it is given up together with the range's other
//! goals. Goals are in memory only: another manager does not know them, and the operator may give the order
//! again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::load_balance::{Allowance, Picture, Proposal};
use super::moves;
use super::{Node, Range, Step};
use crate::boot_time::BootTime;
use crate::types::{Location, NodeId, RangeId, ShardId};

/// How often a goal of a range may fail.
const TRIES: u8 = 3;
/// Goals that are not reached by then are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(1);
/// So many passes make numbers as even as they get.
const PASSES: usize = 10;

/// What is to become of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Goal {
    /// The replica on one shard must go to another.
    Move(Location, Location),
    /// The replica on a shard must lead.
    Lead(Location),
}

impl Goal {
    /// Whether it needs nothing more, because it is reached or cannot be reached any longer.
    fn is_over(self, range: &Range) -> bool {
        let has = |at: Location| range.places().any(|place| place.location == at);
        match self {
            Goal::Move(from, to) => {
                let is_taken = || {
                    let mut others = range.places().filter(|place| place.location != from);
                    others.any(|place| place.location.node == to.node)
                };
                !has(from) || is_taken()
            }
            Goal::Lead(to) => range.led_at() == Some(to) || !has(to),
        }
    }

    fn step(self, range: &Range) -> Option<(Step, Location)> {
        match self {
            Goal::Move(from, to) => {
                let replica = range.places().find(|place| place.location == from)?.replica;
                Some((moves::step(range, replica, to), to))
            }
            Goal::Lead(to) => {
                let (range, replica) = (range.id, range.ready_at(to)?);
                Some((Step::Lead { range, to: replica }, to))
            }
        }
    }
}

/// The goals of ranges, of each in the order in which they are to be reached.
type Goals = BTreeMap<RangeId, VecDeque<Goal>>;

/// The goals that are not reached yet.
pub(in crate::cluster) struct Scatter {
    goals: Goals,
    failures: BTreeMap<RangeId, u8>,
    until: Option<BootTime>,
}

impl Scatter {
    /// None.
    pub fn new() -> Scatter {
        Scatter {
            goals: Goals::new(),
            failures: BTreeMap::new(),
            until: None,
        }
    }

    /// Takes an order. It replaces what is left of earlier ones for the same ranges.
    pub fn begin(&mut self, goals: Goals, now: BootTime) {
        for range in goals.keys() {
            self.failures.remove(range);
        }
        self.goals.extend(goals);
        self.until = Some(now + FORGOTTEN_AFTER);
    }

    /// Whether nothing is left to be done.
    pub fn is_empty(&self) -> bool {
        self.goals.is_empty()
    }

    /// Gives up what is left to be done to a range. What is under way goes on.
    pub fn forget(&mut self, range: RangeId) {
        self.goals.remove(&range);
    }

    /// Whether a range has goals.
    pub fn has(&self, range: RangeId) -> bool {
        self.goals.contains_key(&range)
    }

    /// Forgets what is reached, and what cannot be reached.
    pub fn observe(&mut self, ranges: &[Range], now: BootTime) {
        if self.until.is_some_and(|until| now >= until) {
            *self = Scatter::new();
        }
        let ranges: BTreeMap<RangeId, &Range> = ranges.iter().map(|r| (r.id, r)).collect();
        self.goals.retain(|range, goals| {
            let Some(range) = ranges.get(range) else {
                return false;
            };
            // What is under way is not over, whatever is expected of it.
            while !range.busy && goals.front().is_some_and(|goal| goal.is_over(range)) {
                goals.pop_front();
            }
            !goals.is_empty()
        });
    }

    /// Notes that an order to a range has failed.
    pub fn failed(&mut self, range: RangeId) {
        if self.has(range) {
            let failures = self.failures.entry(range).or_default();
            *failures += 1;
            if *failures >= TRIES {
                self.goals.remove(&range);
            }
        }
    }

    /// The next steps.
    pub fn steps(&self, picture: &Picture<'_>, allowance: &mut Allowance) -> Vec<Proposal> {
        let mut proposals = Vec::new();
        for range in picture.ranges.iter().filter(|range| picture.is_free(range)) {
            let goal = self.goals.get(&range.id).and_then(VecDeque::front);
            let Some((step, to)) = goal.and_then(|goal| goal.step(range)) else {
                continue;
            };
            let cost = picture.cost(range, &step);
            if picture.accepts_new(to.node) && allowance.take(&step, to, cost) {
                proposals.push(Proposal {
                    step,
                    is_cheap: cost.is_cheap,
                    reason: "the range is to be scattered, by an operator's order or after a split at many keys".to_owned(),
                    expected: "these ranges are spread evenly by number".to_owned(),
                });
            }
        }
        proposals
    }
}

/// How many there are on each node and shard.
#[derive(Default)]
struct Tally {
    nodes: BTreeMap<NodeId, usize>,
    shards: BTreeMap<Location, usize>,
}

impl Tally {
    fn of(places: impl Iterator<Item = Location>) -> Tally {
        let mut tally = Tally::default();
        for at in places {
            *tally.nodes.entry(at.node).or_default() += 1;
            *tally.shards.entry(at).or_default() += 1;
        }
        tally
    }

    fn node(&self, node: NodeId) -> usize {
        self.nodes.get(&node).copied().unwrap_or_default()
    }

    fn shard(&self, at: Location) -> usize {
        self.shards.get(&at).copied().unwrap_or_default()
    }

    fn shift(&mut self, from: Location, to: Location) {
        self.nodes.entry(from.node).and_modify(|count| *count -= 1);
        self.shards.entry(from).and_modify(|count| *count -= 1);
        *self.nodes.entry(to.node).or_default() += 1;
        *self.shards.entry(to).or_default() += 1;
    }

    /// How far nodes, and of those shards, are from being even: sums of squares.
    fn unevenness(&self) -> (usize, usize) {
        let squares = |counts: &mut dyn Iterator<Item = &usize>| counts.map(|n| n * n).sum();
        (
            squares(&mut self.nodes.values()),
            squares(&mut self.shards.values()),
        )
    }

    /// The shard of a node that has the fewest.
    fn emptiest_shard(&self, node: &Node) -> Option<Location> {
        let shards = (0..node.shards).map(ShardId);
        let fit = shards.filter(|shard| !node.avoided.contains(shard));
        let fit = fit.map(|shard| Location {
            node: node.id,
            shard,
        });
        fit.min_by_key(|at| self.shard(*at))
    }
}

/// The replicas and leaders of ranges, as they are to be.
struct Layout<'a> {
    nodes: &'a [Node],
    ranges: &'a [&'a Range],
    /// Where the voters of each range are to be, in the order of its voters.
    places: Vec<Vec<Location>>,
    replicas: Tally,
    /// Which of them is to lead.
    leaders: Vec<Option<usize>>,
}

/// Where replicas and leaders of these ranges must go to be spread evenly. Without `may_move` only leaders
/// go elsewhere.
pub(in crate::cluster) fn goals(nodes: &[Node], ranges: &[&Range], may_move: bool) -> Goals {
    let places = ranges.iter().map(|range| {
        let places = range.voters.iter().map(|place| place.location);
        places.collect::<Vec<Location>>()
    });
    let places: Vec<Vec<Location>> = places.collect();
    let leaders = ranges.iter().map(|range| {
        let mut voters = range.voters.iter();
        voters.position(|place| Some(place.replica) == range.leader)
    });
    let mut layout = Layout {
        nodes,
        ranges,
        replicas: Tally::of(places.iter().flatten().copied()),
        places,
        leaders: leaders.collect(),
    };
    let passes = || 0..PASSES;
    if may_move {
        passes().all(|_| layout.spread_over_nodes());
        passes().all(|_| layout.spread_over_shards());
    }
    let mut led = layout.led();
    passes().all(|_| layout.spread_leaders(&mut led));
    // Where the shards of nodes lead different numbers, leaders may have to change places.
    let chosen = layout.leaders.clone();
    layout.choose_leaders();
    if layout.led().unevenness() >= led.unevenness() {
        layout.leaders = chosen;
    }
    layout.goals()
}

impl Layout<'_> {
    fn accepting(&self, node: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.id == node && n.accepts_new)
    }

    fn shift(&mut self, (index, slot): (usize, usize), to: Location) {
        self.replicas.shift(self.places[index][slot], to);
        self.places[index][slot] = to;
    }

    /// Moves replicas from the fullest nodes to the emptiest; gives whether any moved.
    fn spread_over_nodes(&mut self) -> bool {
        let mut has_moved = false;
        for index in 0..self.ranges.len() {
            let on = |node| self.replicas.node(node);
            let places = &self.places[index];
            let learners = self.ranges[index].learners.iter();
            let is_free = |node: &&Node| {
                let mut taken = places.iter().map(|at| at.node);
                let mut learners = learners.clone().map(|place| place.location.node);
                node.accepts_new
                    && taken.all(|taken| taken != node.id)
                    && learners.all(|taken| taken != node.id)
            };
            let free = self.nodes.iter().filter(is_free);
            let empty = free.min_by_key(|node| on(node.id));
            let full = places.iter().enumerate().max_by_key(|(_, at)| on(at.node));
            if let (Some(empty), Some((slot, full))) = (empty, full)
                && on(full.node) >= on(empty.id) + 2
                && let Some(to) = self.replicas.emptiest_shard(empty)
            {
                self.shift((index, slot), to);
                has_moved = true;
            }
        }
        has_moved
    }

    /// Moves replicas from the fullest shards of their nodes to the emptiest; gives whether any moved.
    fn spread_over_shards(&mut self) -> bool {
        let mut has_moved = false;
        for index in 0..self.ranges.len() {
            for slot in 0..self.places[index].len() {
                let full = self.places[index][slot];
                let node = self.accepting(full.node);
                let empty = node.and_then(|node| self.replicas.emptiest_shard(node));
                let on = |at| self.replicas.shard(at);
                if let Some(empty) = empty.filter(|empty| on(full) >= on(*empty) + 2) {
                    self.shift((index, slot), empty);
                    has_moved = true;
                }
            }
        }
        has_moved
    }

    fn leader_at(&self, index: usize) -> Option<Location> {
        self.places[index].get(self.leaders[index]?).copied()
    }

    /// Gives leaderships to nodes, and of those to shards, that lead fewer; gives whether any moved.
    fn spread_leaders(&mut self, led: &mut Tally) -> bool {
        let mut has_moved = false;
        for index in 0..self.ranges.len() {
            let Some(from) = self.leader_at(index) else {
                continue;
            };
            let count = |at: Location| (led.node(at.node), led.shard(at));
            let places = self.places[index].iter().copied().enumerate();
            let others = places.filter(|(_, at)| *at != from && self.accepting(at.node).is_some());
            let Some((slot, to)) = others.min_by_key(|(_, at)| count(*at)) else {
                continue;
            };
            let ((full, full_shard), (empty, empty_shard)) = (count(from), count(to));
            let helps_nodes = full >= empty + 2;
            let helps_shards = full == empty + 1 && full_shard >= empty_shard + 2;
            if helps_nodes || helps_shards {
                led.shift(from, to);
                self.leaders[index] = Some(slot);
                has_moved = true;
            }
        }
        has_moved
    }

    fn led(&self) -> Tally {
        Tally::of((0..self.ranges.len()).filter_map(|index| self.leader_at(index)))
    }

    /// Chooses leaders anew, one after the other: where the fewest are led until then.
    fn choose_leaders(&mut self) {
        let mut led = Tally::default();
        for index in 0..self.ranges.len() {
            let Some(before) = self.leaders[index] else {
                continue;
            };
            let places = self.places[index].iter().copied().enumerate();
            let accepting = places.filter(|(_, at)| self.accepting(at.node).is_some());
            let best = accepting
                .min_by_key(|(slot, at)| (led.node(at.node), led.shard(*at), *slot != before));
            if let Some((slot, at)) = best {
                self.leaders[index] = Some(slot);
                *led.nodes.entry(at.node).or_default() += 1;
                *led.shards.entry(at).or_default() += 1;
            }
        }
    }

    fn goals(&self) -> Goals {
        let mut goals = Goals::new();
        for (index, range) in self.ranges.iter().enumerate() {
            let (before, after) = (range.voters.iter(), self.places[index].iter());
            let moves = before.zip(after).map(|(place, to)| (place.location, *to));
            let moves: Vec<(Location, Location)> = moves.filter(|(from, to)| from != to).collect();
            let lead = self.leader_at(index);
            let is_new = moves.iter().any(|(_, to)| Some(*to) == lead);
            // A replica that leads takes the leadership along.
            let goes_along = moves
                .iter()
                .any(|(from, to)| range.led_at() == Some(*from) && Some(*to) == lead);
            let must_change = lead != range.led_at() && !goes_along;
            let lead = lead.filter(|_| must_change).map(Goal::Lead);
            let moves = moves.iter().map(|(from, to)| Goal::Move(*from, *to));
            let of_range: VecDeque<Goal> = match is_new {
                true => moves.chain(lead).collect(),
                // It is handed over before a replica that leads must go.
                false => lead.into_iter().chain(moves).collect(),
            };
            if !of_range.is_empty() {
                goals.insert(range.id, of_range);
            }
        }
        goals
    }
}
