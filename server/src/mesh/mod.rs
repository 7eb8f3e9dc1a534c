//! The channels between the shards of a node: for each ordered pair one for messages and one for
//! replies, lock-free and bounded.
//!
//! If the channel for messages is full, a request fails; the data path never waits for room. Forwarded
//! requests of clients cannot fill it: the channel has room for others beside them. A reply always has
//! room, because a shard has no more requests open at another than the channel for replies holds. Lives
//! on its shard's thread; only [`ShardChannels`] moves between threads, before the shard runs.

pub mod channel;
pub mod message;

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use rangedb_engine::env::MessageClass;
use rangedb_engine::gateway::FORWARDED_MAX;
use rangedb_engine::range::Route;
use rangedb_engine::types::ShardId;
use rangedb_protocol::ShardState;
use slab::Slab;
use tokio::sync::oneshot;

use crate::mesh::channel::{ChannelEnd, ChannelReceiver, ChannelSender, channel};
use crate::mesh::message::{PassedConnection, ShardMessage, ShardReply, ShardRequestId};

/// Most messages on their way from one shard to another.
const MESSAGES_MAX: usize = FORWARDED_MAX + 1024;
/// Most requests of one shard to another without a reply; the channel for replies has room for them
/// all.
const WAITING_MAX: usize = FORWARDED_MAX + 1024;

/// The ends of all channels of one shard, not yet opened.
pub struct ShardChannels {
    senders: Vec<Option<(ChannelSender<ShardMessage>, ChannelSender<ShardReply>)>>,
    receivers: Vec<Option<(ChannelEnd<ShardMessage>, ChannelEnd<ShardReply>)>>,
}

/// Makes the channels of a node; returns the ends of each shard, in order.
pub fn channels(shards: u16) -> Vec<ShardChannels> {
    let count = usize::from(shards);
    let mut ends: Vec<ShardChannels> = (0..shards)
        .map(|_| ShardChannels {
            senders: (0..count).map(|_| None).collect(),
            receivers: (0..count).map(|_| None).collect(),
        })
        .collect();
    for from in 0..count {
        for to in (0..count).filter(|&to| to != from) {
            let messages = channel(MESSAGES_MAX);
            let replies = channel(WAITING_MAX);
            ends[from].senders[to] = Some((messages.0, replies.0));
            ends[to].receivers[from] = Some((messages.1, replies.1));
        }
    }
    ends
}

impl ShardChannels {
    /// Opens the ends, on the thread of their shard.
    pub fn open(self) -> (Mesh, Vec<Inbox>) {
        let peer = |(messages, replies)| Peer {
            messages,
            replies,
            waiting: RefCell::new(Slab::new()),
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

/// What one other shard sends.
pub struct Inbox {
    /// The shard that sends it.
    pub from: ShardId,
    /// Its messages and requests.
    pub messages: ChannelReceiver<ShardMessage>,
    /// Its replies to requests of this shard.
    pub replies: ChannelReceiver<ShardReply>,
}

/// Sends to the other shards of the node.
pub struct Mesh {
    peers: Vec<Option<Peer>>,
}

struct Peer {
    messages: ChannelSender<ShardMessage>,
    replies: ChannelSender<ShardReply>,
    waiting: RefCell<Slab<Waiting>>,
}

/// Receives the reply of another shard.
pub enum Waiting {
    /// A replica, the cluster's manager or the gateway of this shard.
    Request(oneshot::Sender<Bytes>),
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

    /// `None`: this node has no such shard.
    fn peer(&self, shard: ShardId) -> Option<&Peer> {
        self.peers.get(usize::from(shard.0))?.as_ref()
    }

    /// Passes a connection to the shard that it wants; gives it back if the channel is full.
    ///
    /// # Errors
    /// The connection.
    pub fn pass_connection(
        &self,
        to: ShardId,
        connection: PassedConnection,
    ) -> Result<(), PassedConnection> {
        let Some(peer) = self.peer(to) else {
            return Err(connection);
        };
        match peer.messages.send(ShardMessage::Connection(connection)) {
            Ok(()) => Ok(()),
            Err(ShardMessage::Connection(connection)) => Err(connection),
            Err(_) => unreachable!("the channel gives back what it was given"),
        }
    }

    /// Sends the routes of this shard to all others. Waits for room: this is not the data path.
    pub async fn tell_routes(&self, routes: &[Route]) {
        for peer in self.peers.iter().flatten() {
            let routes = ShardMessage::Routes(routes.to_vec());
            peer.messages.send_in_time(routes).await;
        }
    }

    /// Tells all other shards that this one has answered everything and sends no more requests.
    pub async fn tell_finished(&self) {
        for peer in self.peers.iter().flatten() {
            peer.messages.send_in_time(ShardMessage::Finished).await;
        }
    }

    /// Sends another shard a request. With [`io::ErrorKind::NotConnected`] and
    /// [`io::ErrorKind::WouldBlock`] it was certainly not sent.
    ///
    /// # Errors
    /// The channel is full, or the shard is gone.
    pub async fn ask(&self, to: ShardId, class: MessageClass, request: Bytes) -> io::Result<Bytes> {
        let (sender, receiver) = oneshot::channel();
        let peer = self.peer(to).ok_or(io::ErrorKind::NotConnected)?;
        let waiting = peer.wait(Waiting::Request(sender));
        let id = waiting.ok_or(io::ErrorKind::WouldBlock)?;
        let message = ShardMessage::Request { id, class, request };
        if peer.messages.send(message).is_err() {
            peer.take(id);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let response = receiver.await;
        response.map_err(|_| io::ErrorKind::ConnectionReset.into())
    }

    /// Asks another shard for its status. `None`: it is too busy, or gone.
    pub async fn status(&self, of: ShardId) -> Option<ShardState> {
        let (sender, receiver) = oneshot::channel();
        let peer = self.peer(of)?;
        let id = peer.wait(Waiting::Status(sender))?;
        if peer.messages.send(ShardMessage::Status { id }).is_err() {
            peer.take(id);
        }
        receiver.await.ok()
    }

    /// Sends the reply to a request of another shard.
    pub fn reply(&self, to: ShardId, reply: ShardReply) {
        let Some(peer) = self.peer(to) else { return };
        let has_room = peer.replies.send(reply).is_ok();
        // If the other shard is gone, the process is about to end.
        let told = has_room || peer.replies.is_gone();
        assert!(told, "a shard asked for more than the channel holds");
    }

    /// Takes the receiver of this reply off the list.
    pub fn take(&self, from: ShardId, id: ShardRequestId) -> Option<Waiting> {
        self.peer(from)?.take(id)
    }
}

impl Peer {
    /// Registers the receiver of a reply; `None` if too many wait already.
    fn wait(&self, who: Waiting) -> Option<ShardRequestId> {
        let mut waiting = self.waiting.borrow_mut();
        (waiting.len() < WAITING_MAX).then(|| ShardRequestId(waiting.insert(who)))
    }

    fn take(&self, id: ShardRequestId) -> Option<Waiting> {
        self.waiting.borrow_mut().try_remove(id.0)
    }
}
