//! What this shard knows of the cluster.

use super::Shard;
use crate::cluster::{Ask, NodeRecord, NodeState, NodeView, RangeView, Told, View};
use crate::env::Env;
use crate::error::Error;
use crate::types::ReplicaId;

impl<E: Env> Shard<E> {
    /// Asks the manager of the cluster, wherever it is.
    ///
    /// # Errors
    /// [`Error::NotLeader`] if it is not found.
    pub async fn manage(&self, ask: Ask) -> Result<Told, Error> {
        match ask {
            Ask::View => Ok(Told::View(self.own_view())),
            _ => Err(Error::NotLeader(None)),
        }
    }

    fn own_view(&self) -> View {
        let here = self.inner.location;
        let groups = self.inner.groups();
        let ranges = groups.iter().map(|(replica, _)| {
            let leading = replica.leading();
            let leader = replica.leader();
            replica.with_state(|state| {
                let of = &state.descriptor.replicas;
                RangeView {
                    descriptor: state.descriptor.clone(),
                    voters: of.iter().map(|r| r.replica).collect::<Vec<ReplicaId>>(),
                    leader: leader.and_then(|l| state.descriptor.location(l)),
                    term: leading.map_or(0, |leading| leading.term),
                    applied: state.applied.map_or(0, |id| id.index),
                    lag: Vec::new(),
                    under_replicated: false,
                    unavailable: leader.is_none(),
                }
            })
        });
        let node = NodeRecord {
            id: here.node,
            address: String::new(),
            http: String::new(),
            shards: 1,
            life: 0,
            started_ms: 0,
            release: String::new(),
        };
        View {
            version: 1,
            leader: here,
            system: vec![here],
            nodes: vec![NodeView {
                record: node,
                state: NodeState::Alive,
            }],
            ranges: ranges.collect(),
            settings: Vec::new(),
        }
    }
}
