//! Balance by load: which leaders and replicas move because shards use different amounts of CPU time. Pure.
//!
//! The inputs are the CPU time of each shard, and of each range at its leader: as reported, corrected by what
//! is expected of the orders that are under way ([`super::loads`]). Shards of all nodes are compared with
//! each other, not nodes: two nodes differ only where their shards do. The busiest shard comes first:
//!
//! - It hands leaderships to replicas on shards with less load, the largest loads first. That copies no data.
//! - If that is not enough, replicas that it leads move to shards with less load, on its own node or on
//!   others, and the leadership goes with them.
//!
//! Balance looks at the mean loads over 5 minutes, so loads that jump or change sides move nothing. A load
//! moves only if two shards differ by enough ([`LASTING`]). Moves begin at one difference and go on down to
//! half of it, so that they do not begin again soon. Loads of the last 10 s count only if they differ by half
//! a core ([`EXTREME`]), so that a shard that fills up at once does not have to wait for minutes.
//!
//! A load moves only if the other shard is not busier afterwards than the first one: the move must not cross
//! the middle ([`keeps_order`]). So a hot range that would make any shard busy does not wander. What a shard
//! gives away in one plan must be at least a third of the difference, or it is not worth the trouble. Several
//! ranges count together, since a shard with many small ones could not get rid of them otherwise.
//!
//! An [`Allowance`] limits what balance may order in one round: moves because of load, moves because of
//! numbers ([`super::count_balance`]) and moves that an operator ordered ([`super::scatter`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::loads::{Cpu, Expected, Loads, ShardCpu, Span, shift};
use super::moves;
use super::room::is_small;
use super::{Node, Range, Step};
use crate::types::{Location, NodeId, RangeId, SYSTEM_RANGE};

/// A difference of the loads of two shards because of which loads move.
pub(in crate::cluster) struct Difference {
    span: Span,
    /// From where on loads move, and to where, in thousandths of a core.
    begins: i64,
    ends: i64,
    /// How the reason of a move names it.
    words: &'static str,
}

/// Shards differ for long.
pub(in crate::cluster) const LASTING: Difference = Difference {
    span: Span::Long,
    begins: 150,
    ends: 75,
    words: "over the last 5 minutes",
};
/// A shard is filled while another one is idle.
pub(in crate::cluster) const EXTREME: Difference = Difference {
    span: Span::Short,
    begins: 500,
    ends: 75,
    words: "for 15 s, by half a core,",
};
/// A range with so much CPU time at its leader carries load, in thousandths of a core.
const CARRIES_LOAD: u32 = 10;
/// Replicas with hardly any bytes that may be on their way to a shard at the same time.
pub(in crate::cluster) const SMALL_MOVES_MAX: usize = 32;
/// Leaderships of ranges without load that may be on their way to a shard at the same time.
pub(in crate::cluster) const LEADS_MAX: usize = 32;

/// The load of a range at its leader.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cluster) struct RangeLoad {
    pub cpu: Cpu,
}

impl RangeLoad {
    /// Whether nobody uses the range.
    pub fn is_idle(self) -> bool {
        self.cpu.short == 0 && self.cpu.long == 0
    }

    /// Whether the range carries load, now or often.
    pub fn carries_load(self) -> bool {
        self.cpu.short.max(self.cpu.long) >= CARRIES_LOAD
    }
}

/// The cost of a step of balance.
#[derive(Clone, Copy, Debug)]
pub(in crate::cluster) struct Cost {
    /// Whether the range has hardly any bytes.
    pub is_small: bool,
    /// Whether the step costs next to nothing: the range carries no load, and no more than a little is copied.
    pub is_cheap: bool,
}

/// Replicas that are on their way to a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cluster) struct Incoming {
    large: usize,
    /// Those with hardly any bytes.
    small: usize,
}

impl Incoming {
    /// Counts one more.
    pub fn add(&mut self, is_small: bool) {
        match is_small {
            true => self.small += 1,
            false => self.large += 1,
        }
    }
}

/// The nodes, ranges and loads that balance compares.
pub(in crate::cluster) struct Picture<'a> {
    pub nodes: &'a [Node],
    /// All ranges, those with an order as they will be after it.
    pub ranges: &'a [Range],
    pub loads: &'a BTreeMap<RangeId, RangeLoad>,
    /// Ranges that get no order of balance now.
    pub resting: &'a BTreeSet<RangeId>,
}

impl<'a> Picture<'a> {
    pub fn new(
        nodes: &'a [Node],
        ranges: &'a [Range],
        loads: &'a BTreeMap<RangeId, RangeLoad>,
        resting: &'a BTreeSet<RangeId>,
    ) -> Picture<'a> {
        Picture {
            nodes,
            ranges,
            loads,
            resting,
        }
    }

    pub fn load(&self, range: RangeId) -> RangeLoad {
        self.loads.get(&range).copied().unwrap_or_default()
    }

    /// The cost of a step of a range.
    pub fn cost(&self, range: &Range, step: &Step) -> Cost {
        let is_small = is_small(range.bytes);
        let copies_little = is_small || matches!(step, Step::Lead { .. });
        Cost {
            is_small,
            is_cheap: copies_little && !self.load(range.id).carries_load(),
        }
    }

    /// Whether balance may order something of a range.
    pub fn is_free(&self, range: &Range) -> bool {
        !range.busy && !self.resting.contains(&range.id)
    }

    pub fn accepts_new(&self, node: NodeId) -> bool {
        self.nodes.iter().any(|n| n.id == node && n.accepts_new)
    }

    fn is_avoided(&self, at: Location) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| node.id == at.node && node.avoided.contains(&at.shard))
    }
}

/// What balance may still order. What costs next to nothing is limited by what is on its way to each shard
/// alone, so that thousands of idle ranges are spread within a minute.
pub(in crate::cluster) struct Allowance {
    /// Orders that are not cheap, of the whole cluster.
    pub orders: usize,
    /// Replicas that may be on their way to a shard at the same time, of which those with hardly any bytes
    /// have a limit of their own; with 0 none may.
    pub moves_max: usize,
    /// Replicas that are on their way to each shard.
    pub incoming: BTreeMap<Location, Incoming>,
    /// Leaderships that are on their way to each shard.
    pub leads: BTreeMap<Location, usize>,
}

impl Allowance {
    /// Whether a replica may be sent to a shard now.
    pub fn may_come(&self, to: Location, is_small: bool) -> bool {
        let Incoming { large, small } = self.incoming.get(&to).copied().unwrap_or_default();
        match is_small {
            true => self.moves_max > 0 && small < SMALL_MOVES_MAX,
            false => large < self.moves_max,
        }
    }

    /// Takes leave for a step; gives whether it is allowed. The replica or the leadership goes to this shard.
    pub fn take(&mut self, step: &Step, to: Location, cost: Cost) -> bool {
        let Cost { is_small, is_cheap } = cost;
        let leads = self.leads.get(&to).copied().unwrap_or_default();
        let may_go = match step {
            Step::Change { .. } => self.may_come(to, is_small),
            Step::Lead { .. } => !is_cheap || leads < LEADS_MAX,
        };
        if !may_go || !is_cheap && self.orders == 0 {
            return false;
        }
        if !is_cheap {
            self.orders -= 1;
        }
        match step {
            Step::Change { .. } => self.incoming.entry(to).or_default().add(is_small),
            Step::Lead { .. } => *self.leads.entry(to).or_default() += 1,
        }
        true
    }
}

/// A step that balance wants, and why.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Proposal {
    pub step: Step,
    pub is_cheap: bool,
    pub reason: String,
    pub expected: String,
}

/// Whether a load may go from one shard to another without making that one the busier one. Where nothing
/// is known of a shard it may.
pub(super) fn keeps_order(cpu: &ShardCpu, (from, to): (Location, Location), load: u32) -> bool {
    match (cpu.get(&from), cpu.get(&to)) {
        (Some(from), Some(to)) => from - to >= 2 * i64::from(load),
        _ => true,
    }
}

/// How a range's load can leave a shard.
#[derive(Clone, Copy)]
enum By {
    Leader,
    Replica,
}

/// A range whose load is to go to a shard.
struct Departure<'a> {
    range: &'a Range,
    to: Location,
}

/// The moves because of load, where shards differ like this. `expected` are the loads of the shards; those of
/// the moves are counted.
pub(in crate::cluster) fn by_load(
    picture: &Picture<'_>,
    (loads, difference): (&Loads, &Difference),
    expected: &mut Expected,
    allowance: &mut Allowance,
) -> Vec<Proposal> {
    let of = |range: &Range| picture.load(range.id).cpu.of(difference.span);
    let mut led: BTreeMap<Location, Vec<&Range>> = BTreeMap::new();
    for range in picture.ranges {
        let is_users = range.id != SYSTEM_RANGE && of(range) > 0;
        if let Some(at) = range
            .led_at()
            .filter(|_| is_users && picture.is_free(range))
        {
            led.entry(at).or_default().push(range);
        }
    }
    let mut busiest: Vec<(Location, Vec<&Range>)> = led.into_iter().collect();
    busiest.sort_by_key(|(at, _)| Reverse(expected.of(difference.span).get(at).copied()));
    let mut proposals = Vec::new();
    for (from, mut ranges) in busiest {
        let cpu = expected.of(difference.span);
        let idlest = cpu.values().min().copied().unwrap_or_default();
        if cpu
            .get(&from)
            .is_none_or(|cpu| cpu - idlest <= difference.ends)
        {
            continue;
        }
        ranges.sort_by_key(|range| Reverse(of(range)));
        for by in [By::Leader, By::Replica] {
            let compared = (loads, difference, &*expected);
            let departures = departures(picture, compared, allowance, from, &ranges, by);
            if departures.is_empty() {
                continue;
            }
            for departure in departures {
                let proposal = departure.propose(picture, (from, difference), expected, allowance);
                proposals.extend(proposal);
            }
            break;
        }
    }
    proposals
}

/// Which ranges a shard gives away, the largest loads first; none if that is not worth it.
fn departures<'a>(
    picture: &Picture<'_>,
    (loads, difference, expected): (&Loads, &Difference, &Expected),
    allowance: &Allowance,
    from: Location,
    ranges: &[&'a Range],
    by: By,
) -> Vec<Departure<'a>> {
    let span = difference.span;
    let expected = expected.of(span);
    let mut cpu = expected.clone();
    let gap = |cpu: &ShardCpu, to: Location| match (cpu.get(&from), cpu.get(&to)) {
        (Some(from), Some(to)) => from - to,
        _ => 0,
    };
    let (mut taken, mut widest) = (0, 0);
    let mut exceeded: BTreeMap<Location, bool> = BTreeMap::new();
    let mut departures = Vec::new();
    for range in ranges {
        let load = picture.load(range.id).cpu.of(span);
        let is_worse = |to: &Location| {
            let has_begun = || loads.exceeded(span, (from, *to), difference.begins);
            gap(&cpu, *to) > difference.ends
                && keeps_order(&cpu, (from, *to), load)
                && *exceeded.entry(*to).or_insert_with(has_begun)
        };
        let targets = match by {
            By::Leader => leader_targets(picture, range),
            By::Replica => replica_targets(picture, range, from, expected, allowance),
        };
        let fit = targets.into_iter().filter(is_worse);
        // Of equal ones, one on the same node.
        let Some(to) = fit.min_by_key(|to| (cpu.get(to).copied(), to.node != from.node)) else {
            continue;
        };
        widest = widest.max(gap(expected, to));
        taken += 2 * i64::from(load);
        shift(&mut cpu, (from, to), load.into());
        departures.push(Departure { range, to });
    }
    if taken * 3 < widest {
        departures.clear();
    }
    departures
}

/// The shards that could lead a range instead.
pub(super) fn leader_targets(picture: &Picture<'_>, range: &Range) -> Vec<Location> {
    let voters = range.voters.iter();
    let fit = voters.filter(|place| {
        Some(place.replica) != range.leader
            && range.caught_up.contains(&place.replica)
            && picture.accepts_new(place.location.node)
    });
    fit.map(|place| place.location).collect()
}

/// The shards that could have the leading replica of a range instead.
fn replica_targets(
    picture: &Picture<'_>,
    range: &Range,
    from: Location,
    expected: &ShardCpu,
    allowance: &Allowance,
) -> Vec<Location> {
    let others = || range.places().filter(|place| place.location != from);
    let shards = expected.keys().copied().filter(|to| {
        *to != from
            && picture.accepts_new(to.node)
            && !picture.is_avoided(*to)
            && allowance.may_come(*to, is_small(range.bytes))
            && others().all(|place| place.location.node != to.node)
    });
    shards.collect()
}

impl Departure<'_> {
    /// The step, if it is allowed.
    fn propose(
        &self,
        picture: &Picture<'_>,
        (from, difference): (Location, &Difference),
        expected: &mut Expected,
        allowance: &mut Allowance,
    ) -> Option<Proposal> {
        let Departure { range, to } = *self;
        let step = match range.voters.iter().find(|place| place.location == to) {
            Some(voter) => Step::Lead {
                range: range.id,
                to: voter.replica,
            },
            None => moves::step(range, range.leader?, to),
        };
        let cost = picture.cost(range, &step);
        if !allowance.take(&step, to, cost) {
            return None;
        }
        let used = |expected: &Expected| {
            let cpu = expected.of(difference.span);
            (percent(cpu.get(&from)), percent(cpu.get(&to)))
        };
        let (busy, idle) = used(expected);
        let reason = format!(
            "{} shard {from} has used more CPU time than shard {to}: {busy} of a core against {idle}",
            difference.words
        );
        let load = picture.load(range.id).cpu;
        expected.shift((from, to), load);
        let (busy, idle) = used(expected);
        let expected = format!(
            "shard {from} uses {busy} and shard {to} {idle}: the range takes {} along",
            percent(Some(&load.of(difference.span).into()))
        );
        Some(Proposal {
            step,
            is_cheap: cost.is_cheap,
            reason,
            expected,
        })
    }
}

fn percent(cpu: Option<&i64>) -> String {
    let cpu = cpu.copied().unwrap_or_default().max(0);
    format!("{}.{}%", cpu / 10, cpu % 10)
}
