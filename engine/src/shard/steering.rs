//! An operator's orders to the manager: another leader for a range, another place for a replica.
//!
//! The manager chooses which shard gets which request, refuses impossible orders, and gives the
//! range no other order for a while. The rest is the same as for its own orders. Lives on the shard
//! that hosts the manager.

use std::rc::Rc;

use super::Inner;
use super::management::ORDER_TIMEOUT;
use crate::cluster::manager::{Manager, voter_on};
use crate::cluster::placement::Slot;
use crate::cluster::{Ask, Told};
use crate::env::{Env, Instant, Now};
use crate::types::{Location, NodeId, RangeId};

impl<E: Env> Inner<E> {
    pub(super) async fn transfer(self: &Rc<Self>, range: RangeId, to: Option<NodeId>) -> Told {
        let now = Now::<E>::now();
        let chosen = {
            let mut manager = self.management.manager.borrow_mut();
            manager
                .as_mut()
                .map(|manager| choose_leader(manager, range, to, now))
        };
        match chosen {
            None => self.not_here(),
            Some(Err(why)) => Told::Refused(why),
            Some(Ok((at, ask))) => self.order(at, ask).await,
        }
    }

    pub(super) async fn move_replica(
        self: &Rc<Self>,
        range: RangeId,
        from: NodeId,
        to: Location,
    ) -> Told {
        let now = Now::<E>::now();
        let chosen = {
            let mut manager = self.management.manager.borrow_mut();
            manager
                .as_mut()
                .map(|manager| choose_move(manager, range, from, to, now))
        };
        match chosen {
            None => self.not_here(),
            Some(Err(why)) => Told::Refused(why),
            Some(Ok(_)) if !self.save_replica_ids().await => self.not_here(),
            Some(Ok((at, ask))) => self.order(at, ask).await,
        }
    }

    async fn order(self: &Rc<Self>, at: Location, ask: Ask) -> Told {
        let told = self.ask(at, &ask, ORDER_TIMEOUT).await;
        told.unwrap_or_else(|| Told::Refused(format!("shard {at} does not answer")))
    }
}

/// The request that makes another node lead a range, and the shard that gets it.
fn choose_leader<E: Env>(
    manager: &mut Manager<E>,
    range: RangeId,
    to: Option<NodeId>,
    now: Now<E>,
) -> Result<(Location, Ask), String> {
    let (at, found) = manager.orderable(range, now)?;
    let replica = match to {
        Some(node) => {
            manager.check_node(node, now)?;
            if node == at.node {
                return Err(format!("node {node} leads range {range} already"));
            }
            voter_on(&found, node)
                .ok_or_else(|| format!("node {node} has no voting replica of range {range}"))?
        }
        None => {
            let others = found.voters.iter().map(|place| place.location.node);
            let mut others = others.filter(|node| *node != at.node);
            let fit = others.find(|node| manager.check_node(*node, now).is_ok());
            fit.and_then(|node| voter_on(&found, node))
                .ok_or_else(|| format!("range {range} has no other replica that could lead"))?
        }
    };
    let ask = Ask::HandOver { range, to: replica };
    manager.order(&ask, now);
    Ok((at, ask))
}

/// The request that moves a replica, and the shard that gets it.
fn choose_move<E: Env>(
    manager: &mut Manager<E>,
    range: RangeId,
    from: NodeId,
    to: Location,
    now: Now<E>,
) -> Result<(Location, Ask), String> {
    let (at, found) = manager.orderable(range, now)?;
    let shards = manager.check_node(to.node, now)?.shards;
    if to.shard.0 >= shards {
        return Err(format!(
            "node {} has {shards} shards, counted from 0",
            to.node
        ));
    }
    let all = || found.voters.iter().chain(&found.learners);
    if !all().any(|place| place.location.node == from) {
        return Err(format!("node {from} has no replica of range {range}"));
    }
    if all().any(|place| place.location == to) {
        return Err(format!("shard {to} has a replica of range {range} already"));
    }
    // Two voters on one node would be lost together.
    if from != to.node
        && found
            .voters
            .iter()
            .any(|place| place.location.node == to.node)
    {
        return Err(format!(
            "node {} has a replica of range {range} already",
            to.node
        ));
    }
    let moved = |places: &[crate::range::ReplicaPlace]| -> Vec<Slot> {
        let slot = |place: &crate::range::ReplicaPlace| {
            if place.location.node == from {
                Slot::New(to)
            } else {
                Slot::Here(*place)
            }
        };
        places.iter().map(slot).collect()
    };
    let (voters, learners) = (moved(&found.voters), moved(&found.learners));
    let ask = Ask::Change {
        range,
        voters: manager.place(&voters),
        learners: manager.place(&learners),
    };
    manager.order(&ask, now);
    Ok((at, ask))
}
