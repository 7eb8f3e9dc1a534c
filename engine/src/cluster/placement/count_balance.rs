//! Balance by number: nodes hold about equally many replicas and lead about equally many ranges. Pure.
//!
//! Numbers within a tenth of the average are left alone, and so is a difference of one. Leaders of ranges
//! that are in use move first. Such a leader moves only if, by the mean loads of 5 minutes, the shard that
//! gets it is not busier afterwards than the shard that gave it, and if this has held for half a minute. The
//! rule covers the smallest loads too, since many of them together are a large one. Leaders of idle ranges
//! move whatever the loads are. So balance by number never undoes a move that was made because of load
//! ([`super::load_balance`]).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::load_balance::{Allowance, Picture, Proposal, RangeLoad, keeps_order, leader_targets};
use super::loads::{Expected, Loads, Span};
use super::moves;
use super::room::is_small;
use super::{Plan, Range, Step};
use crate::types::{Location, NodeId, RangeId, SYSTEM_RANGE, ShardId};
use crate::words::counted;

/// The moves because of numbers. `expected` are the loads of the shards.
pub(in crate::cluster) fn by_count(
    picture: &Picture<'_>,
    loads: &Loads,
    expected: &mut Expected,
    allowance: &mut Allowance,
) -> Vec<Proposal> {
    let mut proposals = replicas(picture, allowance);
    let moved: Vec<RangeId> = proposals.iter().map(|moved| moved.step.range()).collect();
    proposals.extend(leaders(picture, &moved, (loads, expected), allowance));
    proposals
}

/// Whether two of several numbers with this sum differ too much.
fn is_uneven((full, empty): (usize, usize), sum: usize, numbers: usize) -> bool {
    let is_off = full * numbers * 10 > sum * 11 || empty * numbers * 10 < sum * 9;
    full >= empty + 2 && is_off
}

/// Moves replicas from the fullest nodes to the emptiest.
fn replicas(picture: &Picture<'_>, allowance: &mut Allowance) -> Vec<Proposal> {
    let mut plan = Plan::new(picture.nodes, picture.ranges, 0);
    let sum = plan.load.values().sum();
    let mut proposals = Vec::new();
    for range in picture.ranges.iter().filter(|range| picture.is_free(range)) {
        let nodes: Vec<NodeId> = range.voters.iter().map(|p| p.location.node).collect();
        let full = range
            .voters
            .iter()
            .max_by_key(|place| plan.node_load(place.location.node));
        let empty = plan.others(&nodes).first().copied();
        let (Some(full), Some(empty)) = (full.copied(), empty) else {
            continue;
        };
        let (from, loads) = (full.location, |plan: &Plan<'_>| {
            (plan.node_load(full.location.node), plan.node_load(empty))
        });
        // A leader's load would go to who knows where.
        let is_busy = range.led_at() == Some(from) && picture.load(range.id).carries_load();
        let has_learner = range.learners.iter().any(|p| p.location.node == empty);
        if is_busy || has_learner || !is_uneven(loads(&plan), sum, picture.nodes.len()) {
            continue;
        }
        let Some(to) = emptiest_shard(picture, &plan, (range, empty), allowance) else {
            continue;
        };
        let step = moves::step(range, full.replica, to);
        let cost = picture.cost(range, &step);
        if !allowance.take(&step, to, cost) {
            continue;
        }
        let words = |(full, empty): (usize, usize), verb| {
            let node = from.node;
            format!(
                "node {node} {verb} {full} replicas and node {empty_node} {empty}",
                empty_node = to.node
            )
        };
        let reason = words(loads(&plan), "has");
        plan.load.entry(from).and_modify(|load| *load -= 1);
        *plan.load.entry(to).or_default() += 1;
        proposals.push(Proposal {
            step,
            is_cheap: cost.is_cheap,
            reason,
            expected: words(loads(&plan), "will have"),
        });
    }
    proposals
}

/// The shard of a node that has the fewest replicas, of those that may be sent one of a range.
fn emptiest_shard(
    picture: &Picture<'_>,
    plan: &Plan<'_>,
    (range, node): (&Range, NodeId),
    allowance: &Allowance,
) -> Option<Location> {
    let shards = picture.nodes.iter().find(|n| n.id == node)?.shards;
    let shards = (0..shards).map(|shard| Location {
        node,
        shard: ShardId(shard),
    });
    let may_come = |at: Location| allowance.may_come(at, is_small(range.bytes));
    let fit = shards.filter(|at| !plan.is_avoided(*at) && may_come(*at));
    fit.min_by_key(|at| plan.load.get(at).copied().unwrap_or_default())
}

/// Whether a leadership with this load may go from one shard to another because of numbers.
fn may_go(
    load: RangeLoad,
    route: (Location, Location),
    loads: &Loads,
    expected: &Expected,
) -> bool {
    let long = load.cpu.long;
    load.is_idle()
        || keeps_order(expected.of(Span::Long), route, long)
            && loads.exceeded(Span::Long, route, 2 * i64::from(long) - 1)
}

/// Makes the nodes that accept new leaders lead equally many ranges. The leader of the system range stays,
/// and so do those of ranges that are `moved`.
fn leaders(
    picture: &Picture<'_>,
    moved: &[RangeId],
    (loads, expected): (&Loads, &mut Expected),
    allowance: &mut Allowance,
) -> Vec<Proposal> {
    let users = || picture.ranges.iter().filter(|r| r.id != SYSTEM_RANGE);
    let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
    let accepting = picture.nodes.iter().filter(|node| node.accepts_new);
    led.extend(accepting.map(|node| (node.id, 0)));
    for node in users().filter_map(Range::led_on) {
        *led.entry(node).or_default() += 1;
    }
    let (sum, nodes) = (led.values().sum(), led.len());
    let free = |range: &&Range| picture.is_free(range) && !moved.contains(&range.id);
    let mut ranges: Vec<&Range> = users().filter(free).collect();
    ranges.sort_by_key(|range| Reverse(picture.load(range.id).cpu.long));
    let mut proposals = Vec::new();
    for range in ranges {
        let Some(from) = range.led_at() else {
            continue;
        };
        let count = |led: &BTreeMap<NodeId, usize>, at: Location| {
            led.get(&at.node).copied().unwrap_or(usize::MAX)
        };
        let others = leader_targets(picture, range).into_iter();
        let Some(to) = others.min_by_key(|at| count(&led, *at)) else {
            continue;
        };
        let (counts, load) = ((count(&led, from), count(&led, to)), picture.load(range.id));
        if !is_uneven(counts, sum, nodes) || !may_go(load, (from, to), loads, expected) {
            continue;
        }
        let Some(replica) = range.ready_at(to) else {
            continue;
        };
        let step = Step::Lead {
            range: range.id,
            to: replica,
        };
        let cost = picture.cost(range, &step);
        if !allowance.take(&step, to, cost) {
            continue;
        }
        *led.entry(from.node).or_default() -= 1;
        *led.entry(to.node).or_default() += 1;
        expected.shift((from, to), load.cpu);
        let words = |(full, empty): (usize, usize), verb| {
            format!(
                "node {} {verb} {} and node {} {empty}",
                from.node,
                counted(full as u64, "range"),
                to.node
            )
        };
        proposals.push(Proposal {
            step,
            is_cheap: cost.is_cheap,
            reason: words(counts, "leads"),
            expected: words((count(&led, from), count(&led, to)), "will lead"),
        });
    }
    proposals
}
