//! What becomes of the manager's orders. Each order is recorded with its reason, and followed through the
//! reports of the range's leader until it has ended. No I/O here.

use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::decision_log::NewDecision;
use crate::cluster::manager::planning_state::{Origin, UnderWay, Why};
use crate::cluster::manager::{Manager, ORDER_COOLDOWN};
use crate::cluster::message::{ClusterRequest, DecisionKind};
use crate::cluster::placement::room;
use crate::range::ReplicaPlace;
use crate::types::{Location, RangeId, ReplicaId};

/// A range of which nothing is done for so long does not become what was ordered. For a moment nothing is
/// done when a leader that must go has another one finish its change.
const QUIET_MAX: Duration = Duration::from_secs(3);
/// How long the leadership may take to follow a replica.
const LEAD_TIMEOUT: Duration = Duration::from_mins(1);

impl Manager {
    /// Notes an order that is about to be given, after [`Manager::order`], and why it is.
    pub fn note(&mut self, request: &ClusterRequest, why: Why, now: BootTime) {
        let Some((new, leads)) = self.decision(request, why.reason, why.expected, now) else {
            return;
        };
        let (range, kind, from, to) = (new.range, new.kind, new.from, new.to);
        tracing::debug!(%range, ?kind, reason = new.reason, "the manager has decided");
        if why.origin == Origin::Continued
            && let Some(order) = self.planning.under_way.get_mut(&range)
        {
            order.since = now;
            return;
        }
        let earlier = "another order came before it had ended";
        self.end(range, Err(earlier.to_owned()), now);
        let route = from.zip(to);
        // A leader's replica takes the leadership along to another shard of its node.
        let goes_along = kind == DecisionKind::MoveReplica
            && leads
            && (why.origin == Origin::Balance
                || route.is_some_and(|(from, to)| from.node == to.node));
        if let Some(to) = to.filter(|_| goes_along) {
            self.moves.lead_after(range, to, now);
        }
        let takes_load = goes_along || kind == DecisionKind::MoveLeader;
        if let Some(route) = route.filter(|_| takes_load) {
            let known = self.ranges.get(&range);
            let cpu = known.map_or(0, |known| known.cpu(now).short);
            self.planning.loads.begin(range, route, cpu);
        }
        if why.origin == Origin::Balance {
            if !why.is_cheap {
                self.planning.given.push_back(now);
            }
            if takes_load {
                self.planning.moved.insert(range, now);
            }
        }
        let weight = match request {
            ClusterRequest::Change { .. } => {
                let known = self.ranges.get(&range);
                let bytes = known.map_or(0, |known| self.bytes(known, now));
                if why.origin == Origin::Duty && !room::is_small(bytes) {
                    self.planning.changes.push_back(now);
                }
                room::weight(bytes)
            }
            _ => 0,
        };
        let decision = self.planning.decisions.note(new, now);
        let order = UnderWay {
            decision,
            kind,
            to,
            origin: why.origin,
            since: now,
            weight,
            reached: None,
            quiet: None,
        };
        self.planning.under_way.insert(range, order);
        self.watch(range);
    }

    /// Notes that the leader of a range has begun to move a replica because an operator wants it, or because
    /// something else needs it there: see [`crate::cluster::placement::moves`].
    pub fn move_accepted(
        &mut self,
        range: RangeId,
        replica: ReplicaId,
        to: Location,
        now: BootTime,
    ) {
        self.moves.accepted(range, replica, to, now);
        self.watch(range);
    }

    /// The decision that an order is, and whether it moves the replica that leads.
    fn decision(
        &self,
        request: &ClusterRequest,
        reason: String,
        expected: String,
        now: BootTime,
    ) -> Option<(NewDecision, bool)> {
        let range = request.range()?;
        let record = &self.ranges.get(&range)?.record;
        let leader = self.leader_of(range, now);
        let (kind, from, to) = match request {
            ClusterRequest::TransferLeadership { to, .. } => {
                let to = record.descriptor.location(*to);
                (DecisionKind::MoveLeader, leader, to)
            }
            ClusterRequest::Change {
                voters, learners, ..
            } => {
                let wanted = || voters.iter().chain(learners);
                let has = |id: ReplicaId| record.descriptor.location(id).is_some();
                let new = wanted().find(|place| !has(place.replica));
                let mut old = record.descriptor.replicas.iter();
                let gone = old.find(|old| wanted().all(|place| place.replica != old.replica));
                let promoted = voters.iter().find(|p| !record.voters.contains(&p.replica));
                let kind = match (new.or(promoted), gone) {
                    (Some(_), Some(_)) => DecisionKind::MoveReplica,
                    (None, Some(_)) => DecisionKind::RemoveReplica,
                    (_, None) => DecisionKind::AddReplica,
                };
                let at = |place: &ReplicaPlace| place.location;
                (kind, gone.map(at), new.or(promoted).map(at))
            }
            _ => return None,
        };
        let new = NewDecision {
            range,
            kind,
            reason,
            from,
            to,
            expected,
        };
        Some((new, leader.is_some() && from == leader))
    }

    /// Whether an order has ended since this was last asked: what waited for its end can be ordered now.
    pub fn take_has_ended(&mut self) -> bool {
        std::mem::take(&mut self.planning.has_ended)
    }

    /// Notes that the leader of a range did not follow its order, and why.
    pub fn not_followed(&mut self, range: RangeId, why: &str, now: BootTime) {
        self.refused(range);
        // A replica that has moved may not be ready to lead yet: it is asked again.
        let order = self.planning.under_way.get(&range);
        if order.is_some_and(|order| order.reached.is_none()) {
            self.end(range, Err(why.to_owned()), now);
        }
    }

    /// Follows an order with a report of its range's leader. `is_reached`: the range is what it was to be.
    pub(in crate::cluster) fn follow(&mut self, range: RangeId, is_reached: bool, now: BootTime) {
        let follows = self.moves.leads_after(range);
        let led_at = self.leader_of(range, now);
        let report = self.ranges.get(&range);
        let report = report.and_then(|known| self.fresh(known, now));
        let is_busy = report.is_none_or(|report| report.is_changing());
        let Some(order) = self.planning.under_way.get_mut(&range) else {
            return;
        };
        if is_reached && order.reached.is_none() {
            order.reached = Some(now);
        }
        order.quiet = order.quiet.or(Some(now)).filter(|_| !is_busy);
        let is_quiet = order.quiet.is_some_and(|since| now >= since + QUIET_MAX);
        let is_late = is_quiet && now >= order.since + ORDER_COOLDOWN;
        let leads = order.kind == DecisionKind::MoveLeader;
        let result = match order.reached {
            _ if leads && led_at.is_some() && led_at == order.to => Ok(()),
            _ if leads && is_late => Err("the other replica did not take the lead"),
            Some(_) if !leads && !follows => Ok(()),
            Some(at) if !leads && now >= at + LEAD_TIMEOUT => {
                Err("the replica has moved, but it does not lead")
            }
            None if is_late => Err("its leader gave it up; the log of its node says why"),
            _ => return,
        };
        self.end(range, result.map_err(str::to_owned), now);
    }

    pub(in crate::cluster) fn end(
        &mut self,
        range: RangeId,
        result: Result<(), String>,
        now: BootTime,
    ) {
        let Some(order) = self.planning.under_way.remove(&range) else {
            return;
        };
        self.planning.has_ended = true;
        let is_done = result.is_ok();
        self.planning.decisions.ended(order.decision, result);
        self.planning.loads.ended(range, is_done, now);
        if is_done {
            self.planning.paused.remove(&range);
            return;
        }
        self.moves.stays(range);
        if order.origin == Origin::Balance {
            self.planning.scatter.failed(range);
            self.planning.moved.remove(&range);
            self.planning.pause(range, now);
        }
    }
}
