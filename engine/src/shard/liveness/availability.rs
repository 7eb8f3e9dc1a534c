//! Whether a range can be served, as far as one shard knows from its liveness and its leases. Runs on
//! the shard's thread.

use crate::boot_time::BootTime;
use crate::env::Env;
use crate::raft;
use crate::range::replica::Replica;
use crate::range::state::RangeState;
use crate::range::{Descriptor, RaftGroup};
use crate::shard::ShardInner;
use crate::types::ReplicaId;

/// Whether a range can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// A majority of its voters is alive.
    Available,
    /// No majority of its voters is alive.
    NoQuorum,
    /// It serves nothing, because its replicas hold different rows and no majority agrees.
    Halted,
}

/// Whether a majority of the voters is alive as far as this shard knows: they are `me`, or their
/// shards send heartbeats.
pub(in crate::shard) fn majority_is_there<E: Env>(
    inner: &ShardInner<E>,
    raft: &RaftGroup<E>,
    (me, voters, descriptor): (ReplicaId, &[ReplicaId], &Descriptor),
    now: BootTime,
) -> bool {
    let is_there = |id| {
        let place = descriptor.location(id);
        let is_there = |place| inner.liveness.is_there(place, now) && !raft.has_lost(id);
        id == me || place.is_some_and(is_there)
    };
    let there = voters.iter().filter(|id| is_there(**id)).count();
    there * 2 > voters.len()
}

/// Whether the range of a replica can be served, as far as this shard knows. That of a replica which
/// is not a member, or not yet, is no concern of this shard.
pub(in crate::shard) fn availability<E: Env>(
    inner: &ShardInner<E>,
    replica: &Replica<E>,
    raft: &RaftGroup<E>,
    now: BootTime,
) -> Availability {
    let me = replica.group.replica;
    let is_there = |state: &RangeState| {
        let (voters, _) = raft::voters(&state.membership.body).unwrap_or_default();
        let is_member = state.descriptor.location(me).is_some() && !voters.is_empty();
        !is_member || majority_is_there(inner, raft, (me, &voters, &state.descriptor), now)
    };
    if replica.is_halted() {
        Availability::Halted
    } else if raft.has_lease() || replica.with_state(is_there) {
        Availability::Available
    } else {
        Availability::NoQuorum
    }
}
