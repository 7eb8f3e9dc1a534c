//! Nodes that leave: what the manager knows of their progress. No I/O here; it runs on the shard that hosts
//! the manager.
//!
//! What operators have decided about a node ([`MembershipStatus`]) is a row of the system range.
//! [`placement`](crate::cluster::placement) moves leaderships away from a node that drains, and replicas away
//! from one that is decommissioned. This file counts what is left. Once a node that is being decommissioned
//! holds nothing, this file makes it a decommissioned one. `stuck` says why a range is still on a node.
//! `shards` is about a node that stays but gives up some of its shards.

mod shards;
mod stuck;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::departure::STUCK_AFTER;
use crate::cluster::manager::known_shards::KnownShard;
use crate::cluster::manager::{KnownRange, Manager};
use crate::cluster::message::{Follower, Leaving, LedRange, NodeHealth};
use crate::cluster::operator_orders::no_node;
use crate::cluster::placement;
use crate::cluster::record::{MembershipStatus, Row};
use crate::error::OrderError;
use crate::types::{Location, NodeId, RangeId, ShardId};

impl Manager {
    /// What operators have decided about a node.
    pub fn membership(&self, node: NodeId) -> MembershipStatus {
        self.memberships.get(&node).copied().unwrap_or_default()
    }

    /// Whether a shard of a node accepts no leadership because of its disk. Such a node is given
    /// nothing, like one that drains.
    pub(in crate::cluster) fn has_slow_disk(&self, node: NodeId) -> bool {
        let mut shards = self.shards.known.iter();
        shards.any(|(at, shard)| at.node == node && shard.slow_disk)
    }

    /// Decides for each node that is being decommissioned and holds nothing that it is
    /// decommissioned; gives the rows that say so.
    pub(in crate::cluster) fn decide_emptied(&mut self, now: BootTime) -> Vec<Row> {
        let leaving = self.memberships.iter();
        let leaving = leaving.filter(|(_, status)| **status == MembershipStatus::Decommissioning);
        let leaving: Vec<NodeId> = leaving.map(|(node, _)| *node).collect();
        let mut rows = Vec::new();
        for node in leaving {
            if self.holds_nothing(node, now)
                && let Some(decision) = self.decide_decommissioned(node, now)
            {
                rows.push(decision.row());
                // One at a time; the others follow with the next report.
                break;
            }
        }
        rows
    }

    /// Whether a node has no replica, and none is on its way to it: see [`crate::cluster::manager::departure`].
    fn holds_nothing(&self, node: NodeId, now: BootTime) -> bool {
        self.has_reported(node, now)
            && self.ranges_on(node, now).is_empty()
            && self.all_have_rested(node)
    }

    /// Whether all shards of a node have reported to this manager, or it is not alive.
    fn has_reported(&self, node: NodeId, now: BootTime) -> bool {
        let Some(known) = self.nodes.get(&node) else {
            return true;
        };
        let shards = (0..known.record.shards).map(ShardId);
        let mut shards = shards.map(|shard| Location { node, shard });
        self.node_health(known, now) != NodeHealth::Alive
            || shards.all(|at| self.shards.known.contains_key(&at))
    }

    /// What the shards of a node have reported, if the node is alive.
    fn shards_of(&self, node: NodeId, now: BootTime) -> impl Iterator<Item = &KnownShard> {
        let known = self.nodes.get(&node);
        let alive = known.is_some_and(|node| self.node_health(node, now) == NodeHealth::Alive);
        let shards = self.shards.known.iter();
        let shards = shards.filter(move |(at, _)| alive && at.node == node);
        shards.map(|(_, shard)| shard)
    }

    /// The ranges of which a node has a replica: as a member, or left over on its disk.
    pub(in crate::cluster) fn ranges_on(&self, node: NodeId, now: BootTime) -> BTreeSet<RangeId> {
        let mut ranges: BTreeSet<RangeId> = BTreeSet::new();
        for known in self.ranges.values() {
            let descriptor = &known.record.descriptor;
            if descriptor.locations().any(|at| at.node == node) {
                ranges.insert(descriptor.range);
            }
        }
        for shard in self.shards_of(node, now) {
            ranges.extend(shard.ranges());
        }
        ranges
    }

    /// How far a node has left; with `dry_run`, what its decommissioning would do.
    ///
    /// # Errors
    /// There is no such node.
    pub fn leaving(
        &self,
        node: NodeId,
        dry_run: bool,
        now: BootTime,
    ) -> Result<Leaving, OrderError> {
        let membership = self.membership(node);
        if !self.nodes.contains_key(&node) || membership == MembershipStatus::Removed {
            return Err(no_node(node));
        }
        let moves_away = dry_run || !membership.keeps_replicas();
        let leaders = self.led_by(node, now);
        let requests = self.shards_of(node, now).map(|shard| shard.in_flight).sum();
        let replicas = self.ranges_on(node, now);
        let left = match moves_away {
            true => replicas.len(),
            false => leaders.len(),
        };
        let (per_minute, stuck) = match dry_run {
            true => (0, Duration::ZERO),
            false => self.progress(node, left, now),
        };
        let blocked = self.blocked(node, moves_away, stuck >= STUCK_AFTER, now);
        Ok(Leaving {
            node,
            membership,
            leaders_left: leaders.len() as u64,
            replicas_left: replicas.len() as u64,
            per_minute,
            stuck_ms: stuck.as_millis() as u64,
            requests_left: requests,
            blocked,
            moves: match dry_run {
                true => self.departures(node, now),
                false => Vec::new(),
            },
            is_done: match membership {
                MembershipStatus::Draining => {
                    leaders.is_empty() && requests == 0 && self.has_reported(node, now)
                }
                status => status == MembershipStatus::Decommissioned,
            },
        })
    }

    /// The ranges that cannot leave a node now, and why; with `all` also why the others are still there.
    fn blocked(
        &self,
        node: NodeId,
        moves_away: bool,
        all: bool,
        now: BootTime,
    ) -> Vec<(RangeId, String)> {
        let leaders = self.led_by(node, now);
        let blocked = match moves_away {
            true => self.blocked_replicas(node, now),
            false => self.blocked_leaders(node, &leaders, now),
        };
        let mut blocked: BTreeMap<RangeId, String> = blocked.into_iter().collect();
        if all && moves_away {
            for range in self.ranges_on(node, now) {
                let why = || self.why_replica_stays(range, node, now);
                blocked.entry(range).or_insert_with(why);
            }
        } else if all {
            for known in leaders {
                let why = || self.why_leader_stays(known, now);
                let range = known.record.descriptor.range;
                blocked.entry(range).or_insert_with(why);
            }
        }
        blocked.into_iter().collect()
    }

    /// The ranges that a node leads, and those that it may lead, as their leader is not known.
    pub(in crate::cluster) fn led_by(&self, node: NodeId, now: BootTime) -> Vec<&KnownRange> {
        let ranges = self.ranges.values();
        let led = ranges.filter(|known| {
            let descriptor = &known.record.descriptor;
            match self.fresh(known, now) {
                Some(report) => {
                    let leader = descriptor.location(report.leader);
                    leader.is_some_and(|at| at.node == node)
                }
                None => {
                    let alive = self.nodes.get(&node);
                    let alive =
                        alive.is_some_and(|n| self.node_health(n, now) == NodeHealth::Alive);
                    alive && descriptor.locations().any(|at| at.node == node)
                }
            }
        });
        led.collect()
    }

    /// Which of these ranges no other node can lead now, and why.
    fn blocked_leaders(
        &self,
        node: NodeId,
        led: &[&KnownRange],
        now: BootTime,
    ) -> Vec<(RangeId, String)> {
        let takers = self.takers(node, now);
        let why = |known: &KnownRange| {
            let Some(report) = self.fresh(known, now) else {
                return Some("its leader is not known");
            };
            let voters = report.followers.iter().filter(|follower| {
                let at = known.record.descriptor.location(follower.replica);
                let votes = report.voters.contains(&follower.replica);
                votes && at.is_some_and(|at| takers.contains(&at.node))
            });
            no_successor(report, &voters.collect::<Vec<_>>())
        };
        let blocked = led
            .iter()
            .filter_map(|known| Some((known.record.descriptor.range, why(known)?.to_owned())));
        blocked.collect()
    }

    /// Which ranges cannot leave a node now, and why.
    fn blocked_replicas(&self, node: NodeId, now: BootTime) -> Vec<(RangeId, String)> {
        let mut blocked = self.decommission_objections(node, now);
        for known in self.ranges.values() {
            let descriptor = &known.record.descriptor;
            let is_named = blocked.iter().any(|(range, _)| *range == descriptor.range);
            if is_named || descriptor.locations().all(|at| at.node != node) {
                continue;
            }
            let why = match self.fresh(known, now) {
                None => "its leader is not known",
                Some(report) if !report.has_quorum => "its leader reaches no majority",
                Some(_) => continue,
            };
            blocked.push((descriptor.range, why.to_owned()));
        }
        blocked
    }

    /// Where the replicas of a node would go.
    fn departures(&self, node: NodeId, now: BootTime) -> Vec<(RangeId, Location)> {
        let (mut nodes, ranges) = self.placed(now);
        nodes.retain(|other| other.id != node);
        let steps = placement::complete(&nodes, &ranges, self.factor());
        let mut moves = Vec::new();
        for step in steps {
            let range = step.range();
            let is_there = self.ranges.get(&range).is_some_and(|known| {
                let mut at = known.record.descriptor.locations();
                at.any(|at| at.node == node)
            });
            let places = step.new_places().filter(|_| is_there);
            moves.extend(places.map(|at| (range, at)));
        }
        moves
    }
}

/// Why none of these voters can take the lead from its present leader; `None` if one can.
fn no_successor(report: &LedRange, voters: &[&Follower]) -> Option<&'static str> {
    if voters.iter().any(|voter| voter.has_caught_up()) {
        None
    } else if report.voters.len() < 2 {
        Some("it has no other voter")
    } else if voters.iter().all(|voter| !voter.answers) {
        Some("no other voter answers")
    } else {
        Some("no voter has matched")
    }
}
