//! The lanes between the shards of a node: for each ordered pair one for messages and one for
//! replies, lock-free and bounded.
//!
//! A full lane of messages is told to the client as overload; nothing waits for room on the data
//! path. A reply is never lost: a shard asks another for no more at a time than the lane of
//! replies holds. Lives on its shard's thread; only [`LaneEnds`] travels, before the shard runs.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use rangedb_engine::error::Error;
use rangedb_engine::range::Route;
use rangedb_engine::types::ShardId;
use rangedb_protocol::ShardState;
use slab::Slab;
use tokio::sync::oneshot;

use crate::handler::Call;
use crate::net::connection::Connection;
use crate::shard::lane::{LaneEnd, LaneReceiver, LaneSender, lane};
use crate::shard::message::{ForwardId, HandedOver, ShardMessage, ShardReply};

/// Messages on their way from one shard to another.
const MESSAGES_MAX: usize = 1024;
/// Questions of one shard to another that wait for their reply; the lane of replies holds them.
const WAITING_MAX: usize = 1024;
/// Bytes of clients' requests among them.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// When to try again after a full lane.
const RETRY_AFTER_MS: u32 = 5;

/// One shard's ends of all lanes, before they are used.
pub struct LaneEnds {
    senders: Vec<Option<(LaneSender<ShardMessage>, LaneSender<ShardReply>)>>,
    receivers: Vec<Option<(LaneEnd<ShardMessage>, LaneEnd<ShardReply>)>>,
}

/// Makes the lanes of a node; the shards' ends in order.
pub fn lanes(shards: u16) -> Vec<LaneEnds> {
    let count = usize::from(shards);
    let mut ends: Vec<LaneEnds> = (0..shards)
        .map(|_| LaneEnds {
            senders: (0..count).map(|_| None).collect(),
            receivers: (0..count).map(|_| None).collect(),
        })
        .collect();
    for from in 0..count {
        for to in (0..count).filter(|&to| to != from) {
            let messages = lane(MESSAGES_MAX);
            let replies = lane(WAITING_MAX);
            ends[from].senders[to] = Some((messages.0, replies.0));
            ends[to].receivers[from] = Some((messages.1, replies.1));
        }
    }
    ends
}

impl LaneEnds {
    /// Puts them to use, on the thread of their shard.
    pub fn open(self) -> (Mesh, Vec<Inbox>) {
        let peer = |(messages, replies)| Peer {
            messages,
            replies,
            waiting: RefCell::new(Slab::new()),
            waiting_len: Cell::new(0),
        };
        let senders = self.senders.into_iter();
        let peers = senders.map(|pair| pair.map(peer)).collect();
        let inboxes = (0u16..).zip(self.receivers).filter_map(|(from, pair)| {
            let (messages, replies) = pair?;
            Some(Inbox {
                from: ShardId(from),
                messages: messages.open(),
                replies: replies.open(),
            })
        });
        (Mesh { peers }, inboxes.collect())
    }
}

/// What comes from one other shard.
pub struct Inbox {
    /// Which.
    pub from: ShardId,
    /// What it asks and says.
    pub messages: LaneReceiver<ShardMessage>,
    /// Its replies.
    pub replies: LaneReceiver<ShardReply>,
}

/// A shard's way to the others of its node.
pub struct Mesh {
    peers: Vec<Option<Peer>>,
}

struct Peer {
    messages: LaneSender<ShardMessage>,
    replies: LaneSender<ShardReply>,
    waiting: RefCell<Slab<Waiting>>,
    waiting_len: Cell<usize>,
}

/// Who waits for a reply of another shard.
pub enum Waiting {
    /// A client.
    Client {
        /// Its connection.
        connection: Rc<Connection>,
        /// The connection's number for the request.
        token: u64,
        /// Size of the request in bytes.
        len: usize,
    },
    /// A question of this shard's replicas or management.
    Question(oneshot::Sender<Bytes>),
    /// A request for the node's status.
    Status(oneshot::Sender<ShardState>),
}

impl Mesh {
    /// All other shards of the node.
    pub fn others(&self) -> impl Iterator<Item = ShardId> + '_ {
        (0u16..)
            .map(ShardId)
            .zip(&self.peers)
            .filter_map(|(id, peer)| peer.as_ref().map(|_| id))
    }

    fn peer(&self, shard: ShardId) -> Result<&Peer, Error> {
        let peer = self
            .peers
            .get(usize::from(shard.0))
            .and_then(Option::as_ref);
        // A route to a shard that this node does not have comes from elsewhere.
        peer.ok_or(Error::Moved(None))
    }

    /// Passes a client's request to the shard that holds its key. The reply finds its way back to
    /// the connection by itself.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too much is on its way already.
    pub fn forward(
        &self,
        to: ShardId,
        call: &Call<'_>,
        from: (Rc<Connection>, u64),
    ) -> Result<(), Error> {
        let peer = self.peer(to)?;
        let len = call.frame.len();
        if peer.waiting_len.get() + len > WAITING_BYTES_MAX {
            return Err(full());
        }
        let (connection, token) = from;
        let id = peer.wait(Waiting::Client {
            connection,
            token,
            len,
        })?;
        let sent = peer.messages.send(ShardMessage::Request {
            id,
            frame: Bytes::copy_from_slice(call.frame),
            received: call.asked.received,
            deadline: call.deadline,
        });
        sent.map_err(|_| {
            peer.take(id);
            full()
        })
    }

    /// Passes a connection to the shard it asked for. Given back if the lane is full.
    ///
    /// # Errors
    /// The connection.
    pub fn hand_over(&self, to: ShardId, connection: HandedOver) -> Result<(), HandedOver> {
        let Ok(peer) = self.peer(to) else {
            return Err(connection);
        };
        match peer.messages.send(ShardMessage::Connection(connection)) {
            Ok(()) => Ok(()),
            Err(ShardMessage::Connection(connection)) => Err(connection),
            Err(_) => unreachable!("the lane gives back what it was given"),
        }
    }

    /// Tells every other shard the ranges of this one. Waits for room: this is not the data path.
    pub async fn tell_routes(&self, routes: &[Route]) {
        for peer in self.peers.iter().flatten() {
            let routes = ShardMessage::Routes(routes.to_vec());
            peer.messages.send_in_time(routes).await;
        }
    }

    /// Tells every other shard that this one has answered everything and asks for no more.
    pub async fn tell_drained(&self) {
        for peer in self.peers.iter().flatten() {
            peer.messages.send_in_time(ShardMessage::Drained).await;
        }
    }

    /// Asks another shard a question of a replica or of the cluster's management.
    ///
    /// # Errors
    /// The lane is full, or the shard is gone.
    pub async fn ask(&self, to: ShardId, question: Bytes) -> io::Result<Bytes> {
        let full = |error: Error| io::Error::other(error);
        let (sender, receiver) = oneshot::channel();
        let peer = self.peer(to).map_err(full)?;
        let id = peer.wait(Waiting::Question(sender)).map_err(full)?;
        let message = ShardMessage::Question { id, question };
        if peer.messages.send(message).is_err() {
            peer.take(id);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let answer = receiver.await;
        answer.map_err(|_| io::ErrorKind::ConnectionReset.into())
    }

    /// Asks another shard how it is. `None`: it is too busy or gone.
    pub async fn status(&self, of: ShardId) -> Option<ShardState> {
        let (sender, receiver) = oneshot::channel();
        let peer = self.peer(of).ok()?;
        let id = peer.wait(Waiting::Status(sender)).ok()?;
        if peer.messages.send(ShardMessage::Status { id }).is_err() {
            peer.take(id);
        }
        receiver.await.ok()
    }

    /// Answers a question of another shard.
    pub fn reply(&self, to: ShardId, reply: ShardReply) {
        let Ok(peer) = self.peer(to) else { return };
        let has_room = peer.replies.send(reply).is_ok();
        // A shard that is gone takes the node with it.
        let told = has_room || peer.replies.is_gone();
        assert!(told, "a shard asked for more than the lane holds");
    }

    /// Who waits for this reply.
    pub fn take(&self, from: ShardId, id: ForwardId) -> Option<Waiting> {
        self.peer(from).ok()?.take(id)
    }
}

impl Peer {
    fn wait(&self, who: Waiting) -> Result<ForwardId, Error> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WAITING_MAX {
            return Err(full());
        }
        if let Waiting::Client { len, .. } = &who {
            self.waiting_len.set(self.waiting_len.get() + len);
        }
        Ok(ForwardId(waiting.insert(who)))
    }

    fn take(&self, id: ForwardId) -> Option<Waiting> {
        let who = self.waiting.borrow_mut().try_remove(id.0)?;
        if let Waiting::Client { len, .. } = &who {
            self.waiting_len.set(self.waiting_len.get() - len);
        }
        Some(who)
    }
}

fn full() -> Error {
    Error::Overloaded {
        reason: "the lane to the key's shard is full",
        retry_after_ms: RETRY_AFTER_MS,
    }
}
