//! All messages between the shards of a node, as closed enums.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use rangedb_engine::env::MessageClass;
use rangedb_engine::range::Route;
use rangedb_protocol::ShardState;
use rangedb_protocol::handshake::Handshake;

/// A message to another shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// A connection whose handshake wants this shard.
    Connection(PassedConnection),
    /// All routes of the sender: sent at its start and whenever they change.
    Routes(Vec<Route>),
    /// The sender is stopping: it has answered everything and sends no more requests.
    Finished,
    /// A request of a replica, of the cluster's manager or of a gateway. The reply is
    /// [`ShardReply::Response`].
    Request {
        /// The sender's id for it.
        id: ShardRequestId,
        /// The class of the message.
        class: MessageClass,
        /// The encoded request.
        request: Bytes,
    },
    /// Asks for the shard's status. The reply is [`ShardReply::Status`].
    Status {
        /// The sender's id for it.
        id: ShardRequestId,
    },
}

/// A reply, which travels in a channel of its own.
#[derive(Debug)]
pub enum ShardReply {
    /// The reply to a [`ShardMessage::Request`].
    Response {
        /// The id of the request.
        id: ShardRequestId,
        /// The encoded response.
        response: Bytes,
    },
    /// The reply to a [`ShardMessage::Status`].
    Status {
        /// The id of the request.
        id: ShardRequestId,
        /// The shard's status.
        status: Box<ShardState>,
    },
}

/// A shard's id for a request that waits for the reply of one other shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRequestId(pub usize);

/// A connection on its way to another shard; only its handshake has been read.
#[derive(Debug)]
pub struct PassedConnection {
    /// The socket, which this shard no longer uses.
    pub socket: OwnedFd,
    /// What the client has sent in its handshake.
    pub handshake: Handshake,
}
