//! The state that all tasks of a shard's thread share: the gateway of the engine's shard, the ways to
//! other shards and nodes, connections, and counters.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_engine::boot_time::BootTime;
use rangedb_engine::cluster::View;
use rangedb_engine::error::Error;
use rangedb_engine::gateway::Gateway;
use rangedb_engine::line_limit::LineLimit;
use rangedb_engine::notify::Count;
use rangedb_engine::shard::ShardStatus;
use rangedb_engine::types::Timestamp;
use rangedb_engine::types::{NodeId, ShardId};
use rangedb_protocol::{ErrorCode, FlatBufferBuilder};
use slab::Slab;

use crate::descriptors::ConnectionLimit;
use crate::env;
use crate::env::reactor::{self, Traffic};
use crate::glommio_env::GlommioEnv;
use crate::history::History;
use crate::mesh::Mesh;
use crate::net::buffers::Buffers;
use crate::net::pending_handshakes::PendingHandshakes;
use crate::node_settings::Settings;
use crate::operation::PendingRequest;
use crate::peers::link::Links;
use crate::peers::{Addresses, Peers};
use crate::probe::{Bytes, ShardProbe, ShardReport};

/// When a client should try again because replies wait to be read, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;

/// What a shard knows of its node.
#[derive(Clone)]
pub struct NodeInfo {
    /// The cluster's id.
    pub cluster: u128,
    /// The node's id.
    pub id: NodeId,
    /// Its number of shards.
    pub shards: u16,
    /// When it started.
    pub started: Instant,
    /// The limits for clients.
    pub limits: ClientLimits,
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// The limit on client connections.
    pub clients: Arc<ConnectionLimit>,
    /// The limit on connections of other nodes.
    pub peers: Arc<ConnectionLimit>,
    /// The history that the node keeps of itself.
    pub history: History,
}

/// The limits for clients of a node.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Most connections of one shard whose handshake is awaited, or that are being refused.
    pub handshakes_max: usize,
    /// A client with a higher file descriptor is refused.
    pub descriptor_max: usize,
    /// Most bytes of incomplete frames of one shard.
    pub frames_len_max: usize,
    /// Most bytes of replies of one shard that clients have not read; beyond it reads are refused.
    pub unsent_len_max: usize,
    /// Time limit for a client's handshake, and for taking the answer to it.
    pub handshake_timeout: Duration,
    /// A client that reads none of its replies for this long is disconnected.
    pub write_timeout: Duration,
    /// A client whose incomplete frame makes no progress for this long is disconnected.
    pub frame_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            handshakes_max: 256,
            descriptor_max: usize::MAX,
            frames_len_max: 64 << 20,
            unsent_len_max: 256 << 20,
            handshake_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(30),
        }
    }
}

/// The shard that has answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The one that has received it.
    ThisShard,
    /// Another shard of the node or of another node, to which it was forwarded.
    OtherShard,
}

impl AnsweredBy {
    /// `now` is the time of the other shard, if another one has answered.
    pub fn of(now: Option<Timestamp>) -> AnsweredBy {
        match now {
            Some(_) => AnsweredBy::OtherShard,
            None => AnsweredBy::ThisShard,
        }
    }
}

/// The connection of a client, as far as its shard looks after it.
pub trait ClientConnection {
    /// Whether an incomplete frame has made no progress for too long, through no fault of this side.
    fn is_stalled(&self, now: BootTime) -> bool;
    /// Ends the connection once the written replies are sent.
    fn close(&self);
}

/// See the module's chapter.
pub struct Context {
    /// The requests of clients, and the engine's shard.
    pub gateway: Gateway<GlommioEnv>,
    /// The other shards of the node.
    pub mesh: Rc<Mesh>,
    /// What this shard knows of its node.
    pub node: NodeInfo,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// The links to their shards.
    pub links: Links,
    /// The memory of busy connections.
    pub buffers: Buffers,
    /// A reusable buffer in which replies are built.
    pub builder: RefCell<FlatBufferBuilder<'static>>,
    /// The client connections that this shard serves.
    pub connections: RefCell<Slab<Rc<dyn ClientConnection>>>,
    /// The bytes of the connections of clients.
    pub traffic: Rc<Traffic>,
    /// How many connections of clients and other nodes this shard serves.
    pub connected: Rc<Count>,
    /// The connections before that: their handshake is awaited, or they are being refused.
    pub handshakes: Rc<PendingHandshakes>,
    /// How many clients were disconnected because their frame made no progress.
    pub stalled: Cell<u64>,
    /// How many other shards have sent [`crate::mesh::message::ShardMessage::Finished`].
    pub finished: Count,
    probe: RefCell<ShardProbe>,
    slow_lines: LineLimit,
}

impl Context {
    /// The context of a shard without connections.
    pub fn new(
        gateway: Gateway<GlommioEnv>,
        mesh: Rc<Mesh>,
        node: NodeInfo,
        peers: Arc<Peers>,
        links: Links,
    ) -> Context {
        Context {
            gateway,
            mesh,
            links,
            peers,
            buffers: Buffers::new(node.limits.frames_len_max, node.limits.unsent_len_max),
            builder: RefCell::default(),
            connections: RefCell::default(),
            traffic: Rc::default(),
            connected: Rc::default(),
            handshakes: PendingHandshakes::new(node.limits.handshakes_max),
            stalled: Cell::new(0),
            finished: Count::default(),
            node,
            probe: RefCell::default(),
            slow_lines: LineLimit::default(),
        }
    }

    /// The number of this shard.
    pub fn here(&self) -> ShardId {
        self.gateway.shard().location().shard
    }

    /// The addresses of the nodes, as far as known.
    pub fn addresses(&self) -> Arc<Addresses> {
        self.peers.addresses()
    }

    /// Takes the addresses and the replicas of the system range from every view from now on.
    pub fn follow_view(self: &Rc<Self>) {
        let context = Rc::downgrade(self);
        self.gateway.shard().on_view(move |view| {
            if let Some(context) = context.upgrade() {
                context.learn_view(view);
            }
        });
    }

    fn learn_view(&self, view: &View) {
        for (node, address) in self.peers.take_view(view) {
            self.peers.claim_by_view(node, &address);
        }
        // Shard 0 writes for all shards.
        if self.here() == ShardId(0) && !view.system.is_empty() {
            let (peers, system) = (self.peers.clone(), view.system.clone());
            let remember = move || {
                peers.remember(&system);
                Ok(())
            };
            // A failed write does no harm: an older list serves the next start as well.
            let written = async { drop(reactor::blocking(remember).await) };
            reactor::spawn_local(written).detach();
        }
    }

    /// Checks that there is memory for another reply that may be long.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: clients do not read their replies.
    pub fn check_unsent(&self) -> Result<(), Error> {
        if self.buffers.is_full() {
            let reason = "clients do not read their replies";
            return Err(Error::overloaded(reason, RETRY_AFTER_MS));
        }
        Ok(())
    }

    /// Counts a request that succeeded. `by` says which shard has answered it.
    pub fn answered(&self, pending: &PendingRequest, by: AnsweredBy) {
        let now = env::now();
        self.probe.borrow_mut().answered(pending, now);
        if self.node.settings.is_slow(now - pending.received) {
            self.log_slow(pending, by, now, "done");
        }
    }

    /// Logs a request that failed after a long time.
    pub fn failed(&self, pending: &PendingRequest, by: AnsweredBy, error: &Error) {
        let now = env::now();
        if self.node.settings.is_slow(now - pending.received) {
            self.log_slow(pending, by, now, &error.to_string());
        }
    }

    /// Logs a slow request with the time of each step, as far as this shard has taken part.
    fn log_slow(&self, pending: &PendingRequest, by: AnsweredBy, now: BootTime, outcome: &str) {
        let Some(unlogged) = self.slow_lines.pass(now) else {
            return;
        };
        let millis = |time: Duration| time.as_millis() as u64;
        let total_ms = millis(now - pending.received);
        let received_ms = millis(pending.handled - pending.received);
        let operation = pending.operation.name();
        // An entry of the log was on its way for this write only if it is no longer than the write.
        let flight = self.gateway.shard().last_flight();
        let log_ms = match (by, pending.operation.writes()) {
            (AnsweredBy::ThisShard, true) if outcome == "done" => {
                Some(millis(flight.min(now - pending.handled)))
            }
            _ => None,
        };
        let queue_ms = log_ms.map(|log_ms| total_ms.saturating_sub(received_ms + log_ms));
        let other_ms = match by {
            AnsweredBy::OtherShard => Some(total_ms.saturating_sub(received_ms)),
            AnsweredBy::ThisShard => None,
        };
        // Until a majority had confirmed the leader, where that was needed, and all blocks were read.
        let read_ms = match (by, pending.operation.writes()) {
            (AnsweredBy::ThisShard, false) => Some(total_ms.saturating_sub(received_ms)),
            _ => None,
        };
        tracing::warn!(
            event = "slow_request",
            operation,
            total_ms,
            received_ms,
            queue_ms,
            log_ms,
            read_ms,
            other_ms,
            outcome,
            unlogged,
            "a request of the kind {operation} took {total_ms} ms"
        );
    }

    /// Counts a request that was refused.
    pub fn refused(&self, code: ErrorCode) {
        self.probe.borrow_mut().refused(code);
    }

    /// The engine's status, with the memory of connections beside that of the engine.
    pub fn status(&self) -> ShardStatus {
        let mut status = self.gateway.shard().status();
        status.memory.extend(self.buffers.memory());
        status
    }

    /// The counters of this shard's requests.
    pub fn probe(&self) -> ShardProbe {
        self.probe.borrow().clone()
    }

    /// All counters of this shard, and its status.
    pub fn report(&self) -> ShardReport {
        ShardReport {
            probe: self.probe(),
            status: self.status(),
            connections: self.connected.get(),
            handshakes_evicted: self.handshakes.evicted(),
            stalled: self.stalled.get(),
            in_flight: self.gateway.in_flight(),
            overloaded: self.gateway.overloaded(),
            damaged_frames: self.links.damaged_frames(),
            links_broken: self.links.broken(),
            client_bytes: Bytes::of(&self.traffic),
            peer_bytes: Bytes::of(&self.links.traffic()),
            cpu: self.gateway.shard().cpu(),
            load: reactor::load(),
        }
    }

    /// Waits until every request is answered and every reply sent.
    pub async fn idle(&self) {
        loop {
            self.gateway.idle().await;
            self.buffers.all_sent().await;
            // Other tasks may have run before the last reply was sent.
            if self.gateway.in_flight() == 0 {
                return;
            }
        }
    }

    /// Ends all connections, each when its written replies are sent.
    pub fn close_connections(&self) {
        for (_, connection) in self.connections.borrow().iter() {
            connection.close();
        }
    }

    /// Disconnects clients whose incomplete frame has made no progress for too long.
    pub fn end_stalled(&self, now: BootTime) {
        for (_, connection) in self.connections.borrow().iter() {
            if connection.is_stalled(now) {
                self.stalled.set(self.stalled.get() + 1);
                connection.close();
            }
        }
    }
}
