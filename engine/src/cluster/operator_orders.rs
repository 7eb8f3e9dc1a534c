//! The checks that the manager makes before it follows an operator's order. No I/O here.
//!
//! An order that takes a node away is refused if it would leave a range without a majority, or without enough
//! nodes for its replicas. Nodes that drain count as away, since they are about to stop.

use std::collections::BTreeSet;
use std::time::Duration;

use super::manager::{KnownRange, Manager};
use super::message::NodeHealth;
use super::placement::Range;
use super::record::{MembershipRecord, MembershipStatus, NodeRecord, Setting};
use super::settings;
use crate::boot_time::BootTime;
use crate::error::OrderError;
use crate::types::{Location, NodeId, RangeId, ReplicaId};
use crate::words::counted;

/// A dead node takes no order before it is started: a retry does not help soon.
const DEAD_NODE_RETRY: Duration = Duration::from_secs(30);
/// How long a change of a membership may take to be written down.
const DECIDE_TIMEOUT: Duration = Duration::from_secs(6);
/// At most so many ranges are named in a refusal.
const NAMED_MAX: usize = 10;

impl Manager {
    /// The shard that leads a range, and the range, for an operator's order.
    ///
    /// # Errors
    /// The range is unknown, or cannot take an order now.
    pub fn orderable(
        &self,
        range: RangeId,
        now: BootTime,
    ) -> Result<(Location, Range), OrderError> {
        let known = self.ranges.get(&range);
        let known = known.ok_or_else(|| no_range(range))?;
        let found = self.range(known, now);
        let leader = found
            .leader
            .and_then(|id| known.record.descriptor.location(id));
        match leader {
            None => {
                let why = format!("range {range} has no leader now");
                Err(OrderError::busy(why))
            }
            Some(_) if found.busy => {
                let why = format!("a change of range {range} is under way, or it has no quorum");
                Err(OrderError::busy(why))
            }
            Some(leader) => Ok((leader, found)),
        }
    }

    /// All changes of settings, oldest first.
    pub fn history(&self) -> &[Setting] {
        &self.settings
    }

    /// A new change of a setting; it is in force once [`Manager::set`] is called.
    ///
    /// # Errors
    /// There is no such setting, or it may not have this value.
    pub fn new_setting(&self, name: &str, value: &str, at_ms: u64) -> Result<Setting, OrderError> {
        settings::check(name, value)?;
        Ok(Setting {
            version: self.settings.last().map_or(0, |last| last.version) + 1,
            name: name.to_owned(),
            value: value.to_owned(),
            at_ms,
        })
    }

    /// Puts a setting in force; its row is durable.
    pub fn set(&mut self, setting: Setting) {
        self.settings.push(setting);
    }

    /// Checks that a node may be given replicas and leaders.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check_node(&self, node: NodeId, now: BootTime) -> Result<&NodeRecord, OrderError> {
        let known = self.nodes.get(&node);
        let known = known.ok_or_else(|| no_node(node))?;
        match self.membership(node) {
            MembershipStatus::Active => {}
            status => {
                let name = status.name();
                let why = match status {
                    MembershipStatus::Removed => format!("node {node} is {name}: name another one"),
                    _ => format!(
                        "node {node} is {name}: name another one, or take that back with `rangedb node \
                         undrain {node}`"
                    ),
                };
                return Err(OrderError::Conflict(why));
            }
        }
        match self.node_health(known, now) {
            NodeHealth::Alive => Ok(&known.record),
            NodeHealth::Dead => {
                let why = format!("node {node} is dead");
                Err(OrderError::busy_for(why, DEAD_NODE_RETRY))
            }
            NodeHealth::Silent | NodeHealth::Unreachable => {
                let why = format!("node {node} does not answer");
                Err(OrderError::busy(why))
            }
        }
    }

    /// The row of an operator's decision about a node, if it is allowed. Call [`Manager::decided`]
    /// when the row is durable; no other decision is taken meanwhile.
    ///
    /// # Errors
    /// Why it is not allowed.
    pub fn decide(
        &mut self,
        node: NodeId,
        status: MembershipStatus,
        now: BootTime,
    ) -> Result<MembershipRecord, OrderError> {
        if self.deciding.is_some_and(|until| now < until) {
            let why = "another node's drain, decommission or removal is being written down";
            return Err(OrderError::busy(why));
        }
        self.check_decision(node, status, now)?;
        // An order that was given already is written down again: its first try may have failed.
        let status = match (self.membership(node), status) {
            (MembershipStatus::Decommissioned, MembershipStatus::Decommissioning) => {
                MembershipStatus::Decommissioned
            }
            _ => status,
        };
        self.deciding = Some(now + DECIDE_TIMEOUT);
        Ok(MembershipRecord { node, status })
    }

    /// The same for the manager's own decision that a node is decommissioned.
    pub(super) fn decide_decommissioned(
        &mut self,
        node: NodeId,
        now: BootTime,
    ) -> Option<MembershipRecord> {
        if self.deciding.is_some_and(|until| now < until) {
            return None;
        }
        self.deciding = Some(now + DECIDE_TIMEOUT);
        let status = MembershipStatus::Decommissioned;
        Some(MembershipRecord { node, status })
    }

    /// Puts a decision in force; its row is durable.
    pub fn decided(&mut self, MembershipRecord { node, status }: MembershipRecord) {
        self.deciding = None;
        let before = self.memberships.insert(node, status).unwrap_or_default();
        if before != status {
            tracing::info!(
                event = "membership_changed",
                "node {node} is {} now, and was {} before",
                status.name(),
                before.name()
            );
        }
    }

    /// Notes that a decision was not written down.
    pub fn undecided(&mut self) {
        self.deciding = None;
    }

    fn check_decision(
        &self,
        node: NodeId,
        status: MembershipStatus,
        now: BootTime,
    ) -> Result<(), OrderError> {
        use MembershipStatus::{Active, Decommissioned, Decommissioning, Draining, Removed};
        if !self.nodes.contains_key(&node) {
            return Err(no_node(node));
        }
        match (self.membership(node), status) {
            (Removed, Removed) => Ok(()),
            (Removed, _) => Err(OrderError::NotFound(format!(
                "node {node} was removed; `rangedb node ls` lists the nodes"
            ))),
            (_, Active) | (Draining, Draining) => Ok(()),
            (Decommissioning | Decommissioned, Decommissioning) => Ok(()),
            (before @ (Decommissioning | Decommissioned), Draining) => {
                let name = before.name();
                let why =
                    format!("node {node} is {name}; `rangedb node undrain {node}` takes that back");
                Err(OrderError::Conflict(why))
            }
            (Active, Draining) => refuse_if(node, "drain", &self.drain_objections(node, now)),
            (_, Decommissioning) => {
                let objections = self.decommission_objections(node, now);
                refuse_if(node, "be decommissioned", &objections)
            }
            (_, Removed) => self.check_removal(node, now),
            (_, Decommissioned) => {
                let why = "a node is decommissioned by the manager, once it holds nothing";
                Err(OrderError::Invalid(why.to_owned()))
            }
        }
    }

    fn check_removal(&self, node: NodeId, now: BootTime) -> Result<(), OrderError> {
        let left = self.ranges_on(node, now).len();
        let known = self.nodes.get(&node);
        let is_dead = known.is_some_and(|node| self.node_health(node, now) == NodeHealth::Dead);
        let is_out = is_dead || self.membership(node) == MembershipStatus::Decommissioned;
        let why = match (is_out, left) {
            (true, 0) => return Ok(()),
            (true, left) => format!(
                "node {node} still has a replica of {left} ranges: wait until other nodes have taken \
                 them over, or decommission it"
            ),
            (false, _) => format!(
                "node {node} is neither dead nor decommissioned: `node decommission {node} --wait` \
                 moves its replicas away first"
            ),
        };
        Err(OrderError::Conflict(why))
    }

    /// The ranges that would lack a majority if the node stopped, and why.
    fn drain_objections(&self, node: NodeId, now: BootTime) -> Vec<(RangeId, String)> {
        let on_node = self.ranges.values().filter(|known| votes_on(known, node));
        let objection = |known: &KnownRange| {
            let stay = self.voters_that_stay(known, node, now).len();
            let voters = known.record.voters.len();
            let why = format!(
                "{stay} of its {} would be left",
                counted(voters as u64, "voter")
            );
            (stay * 2 <= voters).then_some((known.record.descriptor.range, why))
        };
        on_node.filter_map(objection).collect()
    }

    /// The ranges whose replica on the node cannot be moved, and why.
    pub(super) fn decommission_objections(
        &self,
        node: NodeId,
        now: BootTime,
    ) -> Vec<(RangeId, String)> {
        let takers: BTreeSet<NodeId> = self.takers(node, now);
        let on_node = self.ranges.values().filter(|known| {
            let mut at = known.record.descriptor.locations();
            at.any(|at| at.node == node)
        });
        let objection = |known: &KnownRange| {
            let voters = known.record.voters.len();
            let mut there = known.record.descriptor.locations();
            let can_lose_majority = votes_on(known, node);
            let alive = self.voters_alive(known, now).len();
            let its = counted(voters as u64, "voter");
            let why = if alive * 2 <= voters {
                format!("{alive} of its {its} can vote now, too few to move a replica")
            } else if can_lose_majority && takers.len() < voters {
                let others = counted(takers.len() as u64, "other active node");
                format!("it has {its}, and the cluster has {others}")
            } else if there.all(|at| at.node == node) && takers.is_empty() {
                "no other active node can take its replica".to_owned()
            } else {
                return None;
            };
            Some((known.record.descriptor.range, why))
        };
        on_node.filter_map(objection).collect()
    }

    /// The nodes but this one that may be given replicas.
    pub(super) fn takers(&self, but: NodeId, now: BootTime) -> BTreeSet<NodeId> {
        let others = self.nodes.keys().copied().filter(|node| *node != but);
        others
            .filter(|node| self.check_node(*node, now).is_ok())
            .collect()
    }

    /// The voters of a range on nodes that are alive and have no fault.
    fn voters_alive(&self, known: &KnownRange, now: BootTime) -> Vec<Location> {
        let faults = self.faults(known, now);
        let voters = known.record.voters.iter();
        let well = voters.filter(|voter| faults.iter().all(|(id, _)| id != *voter));
        let places = well.filter_map(|voter| known.record.descriptor.location(*voter));
        let alive = places.filter(|at| {
            let node = self.nodes.get(&at.node);
            node.is_some_and(|node| self.node_health(node, now) == NodeHealth::Alive)
        });
        alive.collect()
    }

    /// The voters that are alive when this node and those that drain already have stopped.
    fn voters_that_stay(&self, known: &KnownRange, node: NodeId, now: BootTime) -> Vec<Location> {
        let mut alive = self.voters_alive(known, now);
        alive
            .retain(|at| at.node != node && self.membership(at.node) != MembershipStatus::Draining);
        alive
    }
}

fn votes_on(known: &KnownRange, node: NodeId) -> bool {
    let mut replicas = known.record.descriptor.replicas.iter();
    let voters = &known.record.voters;
    replicas.any(|place| place.location.node == node && voters.contains(&place.replica))
}

/// Refuses an order if there are objections; names the first ranges.
fn refuse_if(node: NodeId, what: &str, objections: &[(RangeId, String)]) -> Result<(), OrderError> {
    if objections.is_empty() {
        return Ok(());
    }
    let named = objections.iter().take(NAMED_MAX);
    let named: Vec<String> = named
        .map(|(range, why)| format!("range {range}: {why}"))
        .collect();
    let more = match objections.len() - named.len() {
        0 => String::new(),
        more => format!("; and {more} more ranges"),
    };
    let why = format!("node {node} cannot {what}: {}{more}", named.join("; "));
    Err(OrderError::Conflict(why))
}

/// The refusal of an order about a range that is not known.
pub(super) fn no_range(range: RangeId) -> OrderError {
    OrderError::NotFound(format!(
        "there is no range {range}; `rangedb range ls` shows those there are"
    ))
}

/// The refusal of an order about a node that is not known.
pub(super) fn no_node(node: NodeId) -> OrderError {
    OrderError::NotFound(format!(
        "there is no node {node}; `rangedb node ls` lists the nodes"
    ))
}

/// The voter of a range on a node.
pub fn voter_on(range: &Range, node: NodeId) -> Option<ReplicaId> {
    let mut voters = range.voters.iter();
    let found = voters.find(|place| place.location.node == node)?;
    Some(found.replica)
}
