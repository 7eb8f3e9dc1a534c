//! Everything that one shard of a node says to another: closed enums, so that a shard's inbox
//! has no surprise in it.

use std::os::fd::OwnedFd;
use std::time::Instant;

use bytes::Bytes;
use rangedb_engine::range::Route;
use rangedb_engine::shard::ShardStatus;

/// What arrives in a shard's inbox.
#[derive(Debug)]
pub enum ShardMessage {
    /// A request of a client that talks to another shard. Answered with [`ShardReply::Frame`].
    Request {
        /// The sender's number for it.
        id: ForwardId,
        /// The client's frame.
        frame: Bytes,
        /// When the client gives up.
        deadline: Option<Instant>,
    },
    /// A connection whose preamble named this shard.
    Connection(HandedOver),
    /// The ranges of the sender, all of them.
    Routes(Vec<Route>),
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
    /// How the shard is.
    Status {
        /// Which request.
        id: ForwardId,
        /// The answer.
        status: Box<ShardStatus>,
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
