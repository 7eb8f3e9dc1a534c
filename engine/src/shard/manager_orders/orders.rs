//! Orders to the manager and questions about the cluster. Orders change the leader of a range, move a
//! replica, set a setting, or let a node leave.
//!
//! The manager refuses what cannot be done, gives the order to the shard that leads the range, and gives no
//! other order for that range for a while. It gives the orders of its own plan in the same way. Runs on the
//! shard that hosts the manager.

use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::Manager;
use crate::cluster::manager::planning_state::Why;
use crate::cluster::message::Report;
use crate::cluster::placement::{Range, Step, moves};
use crate::cluster::split_merge::split;
use crate::cluster::{
    ClusterRequest, ClusterResponse, MembershipStatus, SplitReason, record, voter_on,
};
use crate::env::{Clock, Env, is_unsent};
use crate::error::{Fate, OrderError};
use crate::range::ReplicaPlace;
use crate::shard::ShardInner;
use crate::shard::manager_orders::merge_orders::{self, MergeReason};
use crate::shard::manager_orders::split_orders;
use crate::types::{Location, NodeId, RangeId, ReplicaId, ShardId};

/// Time limit of an order.
pub(in crate::shard) const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// Why an order was not given whose new replicas got no ids.
pub(in crate::shard) const NO_IDS: &str = "the ids of its new replicas were not written down";

impl<E: Env> ShardInner<E> {
    /// Answers a request that only the manager answers, which is here.
    pub(in crate::shard) async fn answer_as_manager(
        self: &Rc<Self>,
        request: ClusterRequest,
    ) -> ClusterResponse {
        let now = E::now();
        match request {
            ClusterRequest::Report(report) => {
                let is_there = (self.agent.is_at)(report.node.id, &report.node.address);
                self.take_report(report, is_there)
            }
            ClusterRequest::TargetFailed { at } => self.with_manager(|manager| {
                manager.target_failed(at, now);
                ClusterResponse::Done
            }),
            ClusterRequest::View => {
                self.with_manager(|manager| ClusterResponse::View(manager.view(now)))
            }
            ClusterRequest::History => {
                self.with_manager(|manager| ClusterResponse::Settings(manager.history().to_vec()))
            }
            ClusterRequest::Leaving { node, dry_run } => {
                self.with_manager(|manager| match manager.leaving(node, dry_run, now) {
                    Ok(leaving) => ClusterResponse::Leaving(leaving),
                    Err(why) => ClusterResponse::Refused(why),
                })
            }
            ClusterRequest::Join { token } => self.join(token).await,
            ClusterRequest::Set { name, value } => self.set(&name, &value).await,
            ClusterRequest::SetMembership { node, status } => {
                self.set_membership(node, status).await
            }
            ClusterRequest::SplitRange {
                range,
                keys,
                held_until_ms,
            } => {
                let reason = SplitReason::Manual;
                self.split_by_order(range, keys, held_until_ms, reason)
                    .await
            }
            ClusterRequest::SplitInto {
                range,
                parts,
                held_until_ms,
            } => self.split_into(range, parts, held_until_ms).await,
            ClusterRequest::HotRanges { top } => self.hot_ranges(top).await,
            ClusterRequest::ReleaseRange { range } => self.release(range).await,
            ClusterRequest::MergeRange { range } => {
                self.merge_by_order(range, MergeReason::Manual).await
            }
            ClusterRequest::TransferLeader { range, to } => {
                self.transfer(range, to, Why::operator()).await
            }
            ClusterRequest::MoveReplica {
                range,
                from,
                to,
                shard,
            } => {
                let why = Why::operator();
                self.move_replica(range, from, (to, shard), why).await
            }
            ClusterRequest::Decisions => self.decisions(),
            ClusterRequest::Scatter { keys } => self.scatter(&keys),
            _ => self.not_here(),
        }
    }

    /// Takes a shard's report. If it tells of new bounds of a range, they are written down and passed on
    /// at once: clients look for the ranges' leaders in the view. If an order has ended by it, the next ones
    /// are given at once.
    fn take_report(&self, report: Report, is_there: bool) -> ClusterResponse {
        let now = E::now();
        let mut is_urgent = false;
        let response = self.with_manager(|manager| {
            let response = manager.take(report, is_there, now);
            is_urgent = manager.take_new_bounds() | manager.take_has_ended();
            response
        });
        if is_urgent {
            self.report_soon();
        }
        response
    }

    /// Gives a new node its id.
    async fn join(&self, token: u128) -> ClusterResponse {
        let given = self.of_manager(|manager| manager.give_node_id(token));
        let Some((node, rows)) = given else {
            return self.not_here();
        };
        if !rows.is_empty() && self.write_down(&rows).await.is_err() {
            return self.not_here();
        }
        self.with_manager(|manager| {
            manager.gave_node_id(token, node);
            ClusterResponse::Joined(node)
        })
    }

    /// Follows an operator's decision about a node, once it is durable.
    async fn set_membership(&self, node: NodeId, status: MembershipStatus) -> ClusterResponse {
        let now = E::now();
        let decision = match self.ask_own_manager(|manager| manager.decide(node, status, now)) {
            Ok(decision) => decision,
            Err(refusal) => return *refusal,
        };
        let written = self.write_down(&[decision.row()]).await;
        let response = self.with_manager(|manager| {
            match written {
                Ok(()) => manager.decided(decision),
                Err(_) => manager.undecided(),
            }
            ClusterResponse::Done
        });
        match written {
            Ok(()) => response,
            Err(Fate::NotApplied) => self.not_here(),
            Err(Fate::Unknown) => {
                let why = format!(
                    "whether node {node} is {} is not known; look, and give the order again",
                    status.name()
                );
                ClusterResponse::Refused(OrderError::Unknown(why))
            }
        }
    }

    pub(super) async fn transfer(
        self: &Rc<Self>,
        range: RangeId,
        to: Option<NodeId>,
        why: Why,
    ) -> ClusterResponse {
        let now = E::now();
        let chosen = self.of_manager(|manager| choose_leader(manager, range, to, (why, now)));
        match chosen {
            None => self.not_here(),
            Some(Err(why)) => ClusterResponse::Refused(why),
            Some(Ok((at, request))) => self.give_order(at, range, &request).await,
        }
    }

    pub(super) async fn move_replica(
        self: &Rc<Self>,
        range: RangeId,
        from: NodeId,
        to: (NodeId, Option<ShardId>),
        why: Why,
    ) -> ClusterResponse {
        let now = E::now();
        let chosen = self.of_manager(|manager| choose_move(manager, (range, from), to, (why, now)));
        match chosen {
            None => self.not_here(),
            Some(Err(why)) => ClusterResponse::Refused(why),
            Some(Ok(_)) if !self.save_ids().await => {
                self.of_manager(|manager| manager.not_followed(range, NO_IDS, now));
                self.not_here()
            }
            Some(Ok((at, request, moved))) => {
                let response = self.give_order(at, range, &request).await;
                if let ClusterResponse::Done = response {
                    let (replica, to) = moved;
                    self.of_manager(|manager| manager.move_accepted(range, replica, to, E::now()));
                }
                response
            }
        }
    }

    pub(in crate::shard) async fn set(&self, name: &str, value: &str) -> ClusterResponse {
        let at_ms = self.around.clock.wall_ms();
        let setting = match self.ask_own_manager(|manager| manager.new_setting(name, value, at_ms))
        {
            Ok(setting) => setting,
            Err(refusal) => return *refusal,
        };
        let key = record::key(record::SETTING, setting.version);
        match self.write_down(&[(key, record::encode(&setting))]).await {
            Ok(()) => {}
            Err(Fate::NotApplied) => return self.not_here(),
            Err(Fate::Unknown) => {
                let why = format!(
                    "whether {name} is set to {value} is not known; look, and set it again"
                );
                return ClusterResponse::Refused(OrderError::Unknown(why));
            }
        }
        tracing::info!(
            event = "setting_changed",
            "the setting {name} of the cluster is {value:?} now"
        );
        self.with_manager(|manager| {
            manager.set(setting);
            ClusterResponse::Done
        })
    }

    /// Gives an order to the leader of a range. One that was refused does not keep the next waiting.
    pub(in crate::shard) async fn give_order(
        self: &Rc<Self>,
        at: Location,
        range: RangeId,
        request: &ClusterRequest,
    ) -> ClusterResponse {
        let timeout = match request {
            ClusterRequest::Split { .. } => split_orders::SPLIT_TIMEOUT,
            ClusterRequest::Merge { .. } => merge_orders::MERGE_TIMEOUT,
            _ => ORDER_TIMEOUT,
        };
        let response = self.try_ask(at, request, timeout).await;
        let response = response.unwrap_or_else(|error| {
            let why = format!("shard {at}, which leads range {range}, does not answer: {error}");
            ClusterResponse::Refused(match is_unsent(&error) {
                true => OrderError::busy(why),
                false => OrderError::Unknown(why),
            })
        });
        self.tell_order(at, range, request, &response);
        if let Some(manager) = self.agent.manager.borrow_mut().as_mut() {
            match &response {
                // Reports will tell.
                ClusterResponse::Refused(OrderError::Unknown(_)) => {}
                ClusterResponse::Refused(why) => {
                    manager.not_followed(range, &why.to_string(), E::now());
                }
                _ => self.count_move(manager, request),
            }
        }
        response
    }

    /// Logs an order and what became of it. The plan gives an order that was refused again and again:
    /// the same words are logged once in a while.
    fn tell_order(
        &self,
        at: Location,
        range: RangeId,
        request: &ClusterRequest,
        response: &ClusterResponse,
    ) {
        let order = in_words(request);
        let outcome = match response {
            ClusterResponse::Refused(why) => format!("it refuses: {why}"),
            _ => match request {
                ClusterRequest::Split { .. } | ClusterRequest::Merge { .. } => {
                    "it has done so".to_owned()
                }
                _ => "it begins".to_owned(),
            },
        };
        let words =
            format!("shard {at}, which leads range {range}, was ordered {order}: {outcome}");
        let told = &self.agent.given_orders.told;
        if told.is_news(range, &words, E::now()) {
            tracing::info!("{words}");
        }
    }
}

/// An order to the leader of a range, in words for the log.
fn in_words(request: &ClusterRequest) -> String {
    let list = |places: &[ReplicaPlace]| {
        let place = |p: &ReplicaPlace| format!("replica {} at {}", p.replica, p.location);
        places.iter().map(place).collect::<Vec<_>>().join(", ")
    };
    match request {
        ClusterRequest::Change {
            voters, learners, ..
        } => match learners.is_empty() {
            true => format!("to have the voters {}", list(voters)),
            false => format!(
                "to have the voters {} and the learners {}",
                list(voters),
                list(learners)
            ),
        },
        ClusterRequest::TransferLeadership { to, .. } => {
            format!("to hand its leadership to replica {to}")
        }
        ClusterRequest::Split { key, child, .. } => {
            let key = split::shown(key);
            format!("to split it at {key}, where range {child} begins")
        }
        ClusterRequest::Merge { right, .. } => {
            format!("to take over range {right}, its right neighbour")
        }
        _ => "what no leader is ordered".to_owned(),
    }
}

/// The request for a step of the plan, and the shard that gets it.
pub(in crate::shard) fn ask_of(
    manager: &mut Manager,
    step: Step,
    now: BootTime,
) -> Option<(Location, ClusterRequest)> {
    let range = step.range();
    let at = manager.leader_of(range, now)?;
    Some((at, request(manager, step)))
}

/// The request for a step. New replicas get their ids.
fn request(manager: &mut Manager, step: Step) -> ClusterRequest {
    match step {
        Step::Change {
            range,
            voters,
            learners,
        } => ClusterRequest::Change {
            range,
            voters: manager.place(&voters),
            learners: manager.place(&learners),
        },
        Step::Lead { range, to } => ClusterRequest::TransferLeadership { range, to },
    }
}

/// The request that makes another node lead a range, and the shard that gets it.
fn choose_leader(
    manager: &mut Manager,
    range: RangeId,
    to: Option<NodeId>,
    (why, now): (Why, BootTime),
) -> Result<(Location, ClusterRequest), OrderError> {
    let (at, found) = manager.orderable(range, now)?;
    let replica = match to {
        Some(node) => {
            manager.check_node(node, now)?;
            if node == at.node {
                let why = format!(
                    "node {node} leads range {range} already; give another node that has a voting replica of it"
                );
                return Err(OrderError::Conflict(why));
            }
            voter_on(&found, node).ok_or_else(|| {
                let why = format!(
                    "node {node} has no voting replica of range {range}; `rangedb range show {range}` lists its \
                     replicas"
                );
                OrderError::NotFound(why)
            })?
        }
        None => {
            let others = found.voters.iter().map(|place| place.location.node);
            let mut others = others.filter(|node| *node != at.node).peekable();
            if others.peek().is_none() {
                let why = format!(
                    "range {range} has no other voting replica that could lead it; `rangedb range show {range}` \
                     lists its replicas"
                );
                return Err(OrderError::Conflict(why));
            }
            let fit = others.find(|node| manager.check_node(*node, now).is_ok());
            fit.and_then(|node| voter_on(&found, node)).ok_or_else(|| {
                let why = format!("no other node that could lead range {range} answers");
                OrderError::busy(why)
            })?
        }
    };
    let request = ClusterRequest::TransferLeadership { range, to: replica };
    manager.order(&request, now);
    manager.note(&request, why, now);
    Ok((at, request))
}

/// The request that moves a replica, the shard that gets it, and which replica moves where.
fn choose_move(
    manager: &mut Manager,
    (range, from): (RangeId, NodeId),
    (node, shard): (NodeId, Option<ShardId>),
    (why, now): (Why, BootTime),
) -> Result<(Location, ClusterRequest, (ReplicaId, Location)), OrderError> {
    let (at, found) = manager.orderable(range, now)?;
    let record = manager.check_node(node, now)?;
    let to = match shard {
        Some(shard) => (!record.gives_up(shard)).then_some(Location { node, shard }),
        None => manager.least_loaded_shard(node, now),
    };
    let to = to.ok_or_else(|| {
        let shards = record.staying_shards();
        let others = match record.leaving_shards {
            0 => String::new(),
            leaving => format!("; it gives up {leaving} more"),
        };
        let on = shard.map_or_else(String::new, |shard| format!(" on shard {shard}"));
        let has = match shards {
            1 => "1 shard, which is shard 0".to_owned(),
            _ => format!(
                "{shards} shards, counted from 0 to {}",
                shards.saturating_sub(1)
            ),
        };
        let why = format!("node {node} takes no replica{on}: it has {has}{others}");
        OrderError::Invalid(why)
    })?;
    let replica = check_move(&found, from, to)?;
    let request = request(manager, moves::step(&found, replica, to));
    manager.order(&request, now);
    manager.note(&request, why, now);
    Ok((at, request, (replica, to)))
}

/// The replica of a range on a node, a voter before a learner, if it can move there.
fn check_move(range: &Range, from: NodeId, to: Location) -> Result<ReplicaId, OrderError> {
    let id = range.id;
    let all = || range.voters.iter().chain(&range.learners);
    let Some(moved) = all().find(|place| place.location.node == from) else {
        let why = format!(
            "node {from} has no replica of range {id}; `rangedb range show {id}` lists its replicas"
        );
        return Err(OrderError::NotFound(why));
    };
    if all().any(|place| place.location == to) {
        let why = format!(
            "shard {to} has a replica of range {id} already; give a shard of a node that has none"
        );
        return Err(OrderError::Conflict(why));
    }
    // Two voters on one node would be lost together.
    let mut voters = range.voters.iter();
    if from != to.node && voters.any(|place| place.location.node == to.node) {
        let node = to.node;
        let why =
            format!("node {node} has a replica of range {id} already; give a node that has none");
        return Err(OrderError::Conflict(why));
    }
    Ok(moved.replica)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReplicaId;

    #[test]
    fn a_replica_moves_from_where_it_is_to_where_none_is() {
        let at = |node: u64, shard: u16| Location {
            node: NodeId(node),
            shard: ShardId(shard),
        };
        let place = |node: u64| ReplicaPlace {
            replica: ReplicaId(node),
            location: at(node, 0),
        };
        let range = Range {
            id: RangeId(7),
            voters: vec![place(1), place(2)],
            learners: vec![place(3)],
            given_up: None,
            not_on: None,
            leader: Some(ReplicaId(1)),
            caught_up: Vec::new(),
            bytes: 0,
            is_joint: false,
            busy: false,
        };
        let check = |from: u64, to| check_move(&range, NodeId(from), to);
        let moves = |replica: u64| Ok(ReplicaId(replica));
        assert_eq!(check(1, at(4, 0)), moves(1));
        assert_eq!(check(1, at(1, 1)), moves(1), "to another shard of its node");
        assert_eq!(check(1, at(3, 1)), moves(1), "to a node that has a learner");
        assert_eq!(check(3, at(4, 0)), moves(3));
        assert!(matches!(check(4, at(5, 0)), Err(OrderError::NotFound(_))));
        for to in [at(1, 0), at(2, 0), at(2, 1), at(3, 0)] {
            assert!(matches!(check(1, to), Err(OrderError::Conflict(_))), "{to}");
        }
    }
}
