//! Everything that one shard of a node says to another: closed enums, so that a shard's inbox
//! has no surprise in it.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use rangedb_engine::range::Route;
use rangedb_protocol::ShardState;
use rangedb_protocol::preamble::Preamble;

use crate::env::Now;

/// What arrives in a shard's inbox.
#[derive(Debug)]
pub enum ShardMessage {
    /// A request of a client that talks to another shard. Answered with [`ShardReply::Frame`].
    Request {
        /// The sender's number for it.
        id: ForwardId,
        /// The client's frame.
        frame: Bytes,
        /// When its bytes came.
        received: Now,
        /// When the client gives up.
        deadline: Option<Now>,
    },
    /// A connection whose preamble named this shard.
    Connection(HandedOver),
    /// The ranges of the sender, all of them: at its start, and again whenever they have changed.
    Routes(Vec<Route>),
    /// The sender stops: it has answered everything and asks for no more.
    Drained,
    /// A question of a replica, or of the cluster's management. Answered with
    /// [`ShardReply::Answer`].
    Question {
        /// The sender's number for it.
        id: ForwardId,
        /// The question.
        question: Bytes,
    },
    /// Asks for [`ShardReply::Status`].
    Status {
        /// The sender's number for it.
        id: ForwardId,
    },
}

/// What comes back, in a lane of its own.
#[derive(Debug)]
pub enum ShardReply {
    /// The reply to a client, ready to be sent.
    Frame {
        /// Which request.
        id: ForwardId,
        /// The reply's frame.
        frame: Vec<u8>,
    },
    /// The answer to a question.
    Answer {
        /// Which question.
        id: ForwardId,
        /// The answer.
        answer: Bytes,
    },
    /// How the shard is.
    Status {
        /// Which request.
        id: ForwardId,
        /// The answer.
        status: Box<ShardState>,
    },
}

/// A shard's number for something it waits for from one other shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardId(pub usize);

/// A connection on its way to another shard: exactly its preamble has been read.
#[derive(Debug)]
pub struct HandedOver {
    /// The socket.
    pub socket: OwnedFd,
    /// What the client said first.
    pub preamble: Preamble,
}
