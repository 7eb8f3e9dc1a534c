//! A shard that its node gives up, because it was started with fewer shards.
//!
//! It serves what it has, takes no replica, and reports like any other, while the cluster's manager moves
//! its replicas to shards that stay. Once it has none it never has one again in this process, and the node
//! may do without it from the next start on. Lives on the shard's thread.

use crate::env::Env;
use crate::shard::{Shard, ShardInner};
use crate::types::ReplicaId;

impl<E: Env> ShardInner<E> {
    /// Whether the node gives this shard up.
    pub(super) fn is_given_up(&self) -> bool {
        self.agent.node.gives_up(self.location.shard)
    }
}

impl<E: Env> Shard<E> {
    /// If the node gives this shard up and it has no replica: the highest id of a replica that it had.
    /// That it has none is durable, and stays so.
    pub fn emptied(&self) -> Option<ReplicaId> {
        let ShardInner { wal, closing, .. } = &*self.inner;
        let is_empty = self.inner.is_given_up()
            && !closing.get()
            && self.inner.ranges.replicas().is_empty()
            && !self.inner.ranges.is_creating()
            && wal.contents().is_empty();
        is_empty.then(|| wal.highest_replica())
    }
}
