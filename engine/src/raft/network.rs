//! openraft's network on the environment's links between shards.
//!
//! A group of one voter sends nothing. Whatever openraft would send is answered `unreachable`
//! with the link's own words, which openraft takes as a peer to be tried again later; pre-vote and
//! transfer, whose defaults would grant and succeed, are answered the same way.

use std::future::Future;
use std::io;

use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::env::{Env, Transport};
use crate::raft::state_machine::SnapshotHandle;
use crate::raft::type_config::TypeConfig;
use crate::types::{Location, ReplicaId};

/// Makes the links of one group.
pub struct Links<E: Env> {
    transport: E::Transport,
}

impl<E: Env> Links<E> {
    /// Links over the shard's transport.
    pub fn new(transport: E::Transport) -> Links<E> {
        Links { transport }
    }
}

/// The link to one other replica.
pub struct Link<E: Env> {
    transport: E::Transport,
    to: Location,
}

impl<E: Env> RaftNetworkFactory<TypeConfig<E>> for Links<E> {
    type Network = Link<E>;

    async fn new_client(&mut self, _: ReplicaId, place: &Location) -> Link<E> {
        Link {
            transport: self.transport.clone(),
            to: *place,
        }
    }
}

impl<E: Env> Link<E> {
    async fn refused(&self) -> Unreachable<TypeConfig<E>> {
        let error = match self.transport.call(self.to, bytes::Bytes::new()).await {
            Err(error) => error,
            Ok(_) => io::Error::other("the peer answered an empty request"),
        };
        Unreachable::new(&error)
    }
}

impl<E: Env> RaftNetworkV2<TypeConfig<E>> for Link<E> {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig<E>>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        Err(self.refused().await.into())
    }

    async fn vote(
        &mut self,
        _: VoteRequest<TypeConfig<E>>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        Err(self.refused().await.into())
    }

    async fn pre_vote(
        &mut self,
        _: VoteRequest<TypeConfig<E>>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        Err(self.refused().await.into())
    }

    async fn full_snapshot(
        &mut self,
        _: VoteOf<TypeConfig<E>>,
        _: SnapshotOf<TypeConfig<E>, SnapshotHandle>,
        _: impl Future<Output = ReplicationClosed> + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<E>>, StreamingError<TypeConfig<E>>> {
        Err(self.refused().await.into())
    }

    async fn transfer_leader(
        &mut self,
        _: TransferLeaderRequest<TypeConfig<E>>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<E>>, RPCError<TypeConfig<E>>> {
        Err(self.refused().await.into())
    }
}
