//! Where the system range may be: the shards that a search for the cluster's manager asks.

use crate::cluster::View;
use crate::env::Env;
use crate::shard::ShardInner;
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
