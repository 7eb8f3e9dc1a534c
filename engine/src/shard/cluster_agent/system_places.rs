//! Where the system range may be: the shards that a search for the cluster's manager asks, and whether the manager
//! that is here must search for another one.

use crate::cluster::View;
use crate::env::{Clock, Env};
use crate::mutant::{self, Mutant};
use crate::shard::liveness::availability::{Availability, availability};
use crate::shard::{RangeHandle, ShardInner};
use crate::types::{Location, ShardId};

impl<E: Env> ShardInner<E> {
    /// The shards that may have replicas of the system range: from the manager's view, and from a
    /// replica here, which may know more after a restart.
    pub(super) fn known_system(&self) -> Vec<Location> {
        let mut known = self.agent.system.borrow().clone();
        if let Some(running) = self.system_replica() {
            let replica = running.replica;
            replica.with_state(|state| known.extend(state.descriptor.locations()));
        }
        known
    }

    /// Shards that may know where the system range is now. A shard that was cut off while all
    /// replicas of the system range moved knows none of them. First come shards that were heard of
    /// lately, then those of this node.
    pub(super) fn acquaintances(&self) -> Vec<Location> {
        let now = E::now();
        let mut known = Vec::new();
        for replica in self.ranges.replicas() {
            replica.with_state(|state| known.extend(state.descriptor.locations()));
        }
        known.retain(|at| self.liveness.is_there(*at, now));
        let node = self.location.node;
        let own = (0..self.agent.node.shards).map(ShardId);
        known.extend(own.map(|shard| Location { node, shard }));
        let view = self.agent.view.borrow();
        known.extend(view.nodes.iter().map(|node| Location {
            node: node.record.id,
            shard: ShardId(0),
        }));
        known
    }

    /// Whether this shard leads the system range, as far as it knows, but reaches no majority. Perhaps its replica
    /// is no member any more, and another shard manages the cluster. A group that is awake finds out that no majority
    /// follows; one that sleeps, that no majority is there.
    pub(super) fn may_be_deposed(&self) -> bool {
        if mutant::is(Mutant::DeposedManagerAsksNobody) {
            return false;
        }
        self.system_replica()
            .is_some_and(|RangeHandle { replica, raft }| {
                let is_there = || availability(self, &replica, &raft, E::now());
                let lacks_quorum = replica.leadership.lacks_quorum();
                let leads = replica.leading().is_some();
                leads && (lacks_quorum || is_there() == Availability::NoQuorum)
            })
    }

    /// A shard of another node, any of those that may know where the system range is now. Never the same one: it may
    /// be down, or take this shard for the manager.
    pub(super) fn any_other_node(&self) -> Option<Location> {
        let mut others = self.known_system();
        others.extend(self.acquaintances());
        others.retain(|at| at.node != self.location.node);
        let random = self.around.clock.random_u64();
        let one = random.checked_rem(others.len() as u64)?;
        Some(others[one as usize])
    }

    /// Remembers the replicas of the system range when the one here is removed, and passes them on
    /// like a view so that they outlive the process: the last view may be older than they are.
    pub(in crate::shard) fn remember_system(&self) {
        let system = self.known_system();
        let agent = &self.agent;
        agent.system.borrow_mut().clone_from(&system);
        let before = agent.view.borrow().clone();
        self.tell(View {
            system,
            ..View::clone(&before)
        });
    }
}
