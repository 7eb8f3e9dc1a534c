//! How a split changes a range's state: the range keeps the keys before the split's key, and a new range,
//! its child, gets the others. How the leader splits its range is in `shard/split_merge/split.rs`, and how a
//! replica makes the child's beside it in `range/replica/split.rs`.
//!
//! The rows stay where they are: parent and child share a data id, and each owns the rows of its interval.
//! The child begins with the parent's members, each replica beside the parent's. Its timestamps continue
//! above the split's, and it inherits what bounds reads and retries of its keys: the ceiling, the
//! collection threshold, and the requests of sessions. Pure and deterministic, as a part of
//! [`crate::range::apply`].

use crate::error::Fatal;
use crate::raft::{self, AppliedMembership};
use crate::range::Descriptor;
use crate::range::command::ArchivedSplitOrder;
use crate::range::state::{FIRST, RangeState};
use crate::types::{Epoch, KeyRange, RangeId, ReplicaId, ReplicaPlace, Timestamp};

/// Splits the range and gives the child's state, if the order still fits it: its bounds are those of the
/// version `proposed`, no joint change of members is half done, and the order names every replica.
///
/// # Errors
/// The membership in the state is damaged.
pub fn apply(
    state: &mut RangeState,
    order: &ArchivedSplitOrder,
    proposed: Epoch,
    timestamp: Timestamp,
) -> Result<Option<RangeState>, Fatal> {
    let Some((descriptor, membership)) = child_of(state, order, proposed)? else {
        return Ok(None);
    };
    let child = RangeState {
        applied: Some(FIRST),
        membership: AppliedMembership {
            log_id: None,
            body: membership.into(),
        },
        last_ts: timestamp,
        ceiling: Timestamp(order.served.to_native()),
        gc_threshold: state.gc_threshold,
        sessions: state.sessions.split_off(&order.key),
        frozen: None,
        borders: state.borders.split_off(&order.key),
        descriptor,
    };
    state.descriptor.keys.end = Some(order.key.to_vec());
    state.descriptor.epoch.version += 1;
    Ok(Some(child))
}

/// The descriptor and the membership with which the child begins; `None` if the order does not fit the
/// range.
///
/// # Errors
/// The membership in the state is damaged.
pub fn child_of(
    state: &RangeState,
    order: &ArchivedSplitOrder,
    proposed: Epoch,
) -> Result<Option<(Descriptor, Vec<u8>)>, Fatal> {
    let before = &state.descriptor;
    let key: &[u8] = &order.key;
    if proposed.version != before.epoch.version
        || !before.keys.contains(key)
        || key == before.keys.start.as_slice()
        || order.replicas.len() != before.replicas.len()
    {
        return Ok(None);
    }
    let renamed = |id: ReplicaId| child_beside(order, id);
    let damaged = |error: std::io::Error| {
        Fatal::Inconsistent(format!("the membership of range {}: {error}", before.range))
    };
    let (_, is_joint) = raft::voters(&state.membership.body).map_err(damaged)?;
    let membership = raft::renamed(&state.membership.body, renamed).map_err(damaged)?;
    let replicas = before.replicas.iter().map(|place| {
        Some(ReplicaPlace {
            replica: renamed(place.replica)?,
            location: place.location,
        })
    });
    let replicas: Option<Vec<ReplicaPlace>> = replicas.collect();
    let Some((membership, mut replicas)) = membership.zip(replicas).filter(|_| !is_joint) else {
        return Ok(None);
    };
    replicas.sort_by_key(|place| place.replica);
    let descriptor = Descriptor {
        range: RangeId(order.child.0.to_native()),
        epoch: Epoch {
            version: before.epoch.version + 1,
            conf: before.epoch.conf,
        },
        keyspace: before.keyspace,
        keys: KeyRange {
            start: key.to_vec(),
            end: before.keys.end.clone(),
        },
        replicas,
    };
    Ok(Some((descriptor, membership)))
}

/// The child's replica beside a replica of the parent.
pub fn child_beside(order: &ArchivedSplitOrder, parent: ReplicaId) -> Option<ReplicaId> {
    let mut pairs = pairs(order);
    pairs
        .find(|(replica, _)| *replica == parent)
        .map(|pair| pair.1)
}

fn pairs(order: &ArchivedSplitOrder) -> impl Iterator<Item = (ReplicaId, ReplicaId)> + '_ {
    order.replicas.iter().map(|pair| {
        let id = |id: &crate::types::ArchivedReplicaId| ReplicaId(id.0.to_native());
        (id(&pair.0), id(&pair.1))
    })
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
