//! All messages between the shards of a node, as closed enums.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use rangedb_engine::env::Lane;
use rangedb_engine::range::Route;
use rangedb_protocol::ShardState;
use rangedb_protocol::preamble::Preamble;

/// A message to another shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// A connection whose preamble wants this shard.
    Connection(HandedOver),
    /// All routes of the sender: sent at its start and whenever they change.
    Routes(Vec<Route>),
    /// The sender is stopping: it has answered everything and sends no more requests.
    Drained,
    /// A request of a replica, of the cluster's management or of a gateway. The reply is
    /// [`ShardReply::Answer`].
    Question {
        /// The sender's id for it.
        id: QuestionId,
        /// The lane in which it was sent.
        lane: Lane,
        /// The encoded request.
        question: Bytes,
    },
    /// Asks for the shard's status. The reply is [`ShardReply::Status`].
    Status {
        /// The sender's id for it.
        id: QuestionId,
    },
}

/// A reply, which travels in a lane of its own.
#[derive(Debug)]
pub enum ShardReply {
    /// The reply to a [`ShardMessage::Question`].
    Answer {
        /// The id of the request.
        id: QuestionId,
        /// The encoded response.
        answer: Bytes,
    },
    /// The reply to a [`ShardMessage::Status`].
    Status {
        /// The id of the request.
        id: QuestionId,
        /// The shard's status.
        status: Box<ShardState>,
    },
}

/// A shard's id for a request that waits for the reply of one other shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuestionId(pub usize);

/// A connection on its way to another shard; only its preamble has been read.
#[derive(Debug)]
pub struct HandedOver {
    /// The socket.
    pub socket: OwnedFd,
    /// Its preamble.
    pub preamble: Preamble,
}
