//! The state that all tasks of a shard's thread share: the engine, the ways to other shards and
//! nodes, the directory, and counters.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_engine::cluster::View;
use rangedb_engine::env::Instant as _;
use rangedb_engine::error::Error;
use rangedb_engine::range::{Keyspace, Route};
use rangedb_engine::shard::Shard;
use rangedb_engine::types::{Location, NodeId, RangeId, ShardId, Timestamp};
use rangedb_protocol::{ErrorCode, FlatBufferBuilder, ShardState};
use slab::Slab;

use crate::descriptors::Seats;
use crate::env::{Now, reactor};
use crate::handler::refusal::Refusal;
use crate::handler::{Asked, Call, status};
use crate::net::buffers::Buffers;
use crate::net::connection::Connection;
use crate::net::greetings::Greetings;
use crate::peers::carry::Carriers;
use crate::peers::link::Links;
use crate::peers::{Addresses, Peers};
use crate::probe::{ShardProbe, ShardReport};
use crate::shard::directory::Directory;
use crate::shard::mesh::Mesh;
use crate::shard::router::{self, Place};
use crate::world::GlommioEnv;

/// Most scans of one shard that run at the same time.
const SCANS_MAX: usize = 64;
/// When a client should try again after an overload of this kind, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;

/// What a shard knows of its node.
#[derive(Clone, Debug)]
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
    /// The seats (places under the limit) of client connections.
    pub clients: Arc<Seats>,
    /// The seats of other nodes' connections.
    pub peers: Arc<Seats>,
}

/// The limits for clients of a node.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Most connections of one shard whose preamble is awaited, or that are being refused.
    pub greetings_max: usize,
    /// A client with a higher file descriptor is refused.
    pub descriptor_max: usize,
    /// Most bytes of incomplete frames of one shard.
    pub frames_len_max: usize,
    /// Most bytes of replies of one shard that clients have not read; beyond it reads are refused.
    pub unsent_len_max: usize,
    /// Time limit for a client's preamble, and for taking the answer to it.
    pub greeting_timeout: Duration,
    /// A client that reads none of its replies for this long is disconnected.
    pub write_timeout: Duration,
    /// A client whose incomplete frame makes no progress for this long is disconnected.
    pub frame_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            greetings_max: 256,
            descriptor_max: usize::MAX,
            frames_len_max: 64 << 20,
            unsent_len_max: 256 << 20,
            greeting_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(30),
        }
    }
}

/// Whether a shard accepts requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
}

/// See the module's chapter.
pub struct Context {
    /// The engine's shard.
    pub shard: Shard<GlommioEnv>,
    /// The other shards of the node.
    pub mesh: Rc<Mesh>,
    /// Its node.
    pub node: NodeInfo,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// Forwards plain clients' requests to other nodes.
    pub carriers: Carriers,
    /// The memory of busy connections.
    pub buffers: Buffers,
    /// A reusable buffer in which replies are built.
    pub builder: RefCell<FlatBufferBuilder<'static>>,
    /// The client connections that this shard serves.
    pub connections: RefCell<Slab<Rc<Connection>>>,
    /// How many connections of clients and other nodes this shard serves.
    pub connected: Rc<Cell<usize>>,
    /// The connections before that: their preamble is awaited, or they are being refused.
    pub greetings: Rc<Greetings>,
    /// How many clients were disconnected because their frame made no progress.
    pub stalled: Cell<u64>,
    /// How many other shards have sent [`crate::shard::message::ShardMessage::Drained`].
    pub drained: Cell<usize>,
    here: Location,
    /// The routes of each shard of this node.
    routes: RefCell<Vec<Vec<Route>>>,
    /// The routes of all ranges in the last view of the cluster's manager.
    view: RefCell<Vec<Route>>,
    directory: RefCell<Rc<Directory>>,
    phase: Cell<Phase>,
    in_flight: Cell<usize>,
    scans: Rc<Cell<usize>>,
    probe: RefCell<ShardProbe>,
    /// The newest timestamp in a client's token that was accepted.
    seen: Cell<Timestamp>,
}

impl Context {
    /// A context that knows its own shard's ranges only.
    pub fn new(
        shard: Shard<GlommioEnv>,
        mesh: Rc<Mesh>,
        node: NodeInfo,
        peers: Arc<Peers>,
        links: Links,
    ) -> Context {
        let here = shard.location();
        let own = shard.routes();
        let routes = vec![Vec::new(); usize::from(node.shards)];
        let context = Context {
            shard,
            mesh,
            carriers: Carriers::new(links),
            peers,
            buffers: Buffers::new(node.limits.frames_len_max, node.limits.unsent_len_max),
            builder: RefCell::default(),
            connections: RefCell::default(),
            connected: Rc::default(),
            greetings: Greetings::new(node.limits.greetings_max),
            stalled: Cell::new(0),
            drained: Cell::new(0),
            node,
            here,
            routes: RefCell::new(routes),
            view: RefCell::default(),
            directory: RefCell::default(),
            phase: Cell::new(Phase::Serving),
            in_flight: Cell::new(0),
            scans: Rc::default(),
            probe: RefCell::default(),
            seen: Cell::new(Timestamp::ZERO),
        };
        context.learn_routes(here.shard, own);
        context
    }

    /// The number of this shard.
    pub fn here(&self) -> ShardId {
        self.here.shard
    }

    /// The directory as it is now.
    pub fn directory(&self) -> Rc<Directory> {
        self.directory.borrow().clone()
    }

    /// The addresses of the nodes, as far as known.
    pub fn addresses(&self) -> Arc<Addresses> {
        self.peers.addresses()
    }

    /// Takes the routes of a shard of this node. If a replica there knows no leader, requests go to
    /// that shard anyway: it can tell why there is none.
    pub fn learn_routes(&self, of: ShardId, mut routes: Vec<Route>) {
        for route in &mut routes {
            route.leader.get_or_insert(Location {
                node: self.here.node,
                shard: of,
            });
        }
        if let Some(known) = self.routes.borrow_mut().get_mut(usize::from(of.0)) {
            *known = routes;
        }
        self.rebuild_directory();
    }

    /// Takes every new view of the cluster from now on.
    pub fn follow_view(self: &Rc<Self>) {
        let context = Rc::downgrade(self);
        self.shard.on_view(move |view| {
            if let Some(context) = context.upgrade() {
                context.learn_view(view);
            }
        });
    }

    fn learn_view(&self, view: &View) {
        for (node, address) in self.peers.take_view(view) {
            self.peers.claim_by_view(node, &address);
        }
        let users = view.ranges.iter();
        let users = users.filter(|range| range.descriptor.keyspace == Keyspace::User);
        let routes = users.map(|range| Route {
            leader: range.leader,
            ..range.descriptor.route(None)
        });
        *self.view.borrow_mut() = routes.collect();
        self.rebuild_directory();
        // Shard 0 writes for all shards.
        if self.here.shard == ShardId(0) && !view.system.is_empty() {
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

    /// Builds the directory. For one epoch a replica on this node counts before the manager, which
    /// is the source for ranges that are not here.
    fn rebuild_directory(&self) {
        let mut routes: BTreeMap<RangeId, Route> = BTreeMap::new();
        let (here, view) = (self.routes.borrow(), self.view.borrow());
        for route in here.iter().flatten().chain(view.iter()) {
            let epoch = |route: &Route| (route.epoch.version, route.epoch.conf);
            let known = routes.get(&route.range);
            let newer = known.is_none_or(|known| {
                let unled = known.leader.is_none() && route.leader.is_some();
                epoch(route) > epoch(known) || (epoch(route) == epoch(known) && unled)
            });
            if newer {
                routes.insert(route.range, route.clone());
            }
        }
        let directory = Directory::new(routes.into_values().collect());
        *self.directory.borrow_mut() = Rc::new(directory);
    }

    /// Where the range of a user's key is led.
    pub fn place(&self, key: &[u8]) -> Place {
        router::place(&self.directory.borrow(), self.here, key)
    }

    /// Checks what holds for every request: the node serves, the deadline has not passed, and the
    /// timestamp of the client's token is possible.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`], [`Error::DeadlineExceeded`], or a refused timestamp.
    pub fn check(&self, call: &Call<'_>, token: u64, now: Now) -> Result<(), Refusal> {
        if self.phase.get() != Phase::Serving {
            return Err(Error::ShuttingDown.into());
        }
        if call.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::DeadlineExceeded.into());
        }
        let token = Timestamp(token);
        if token > self.seen.get() {
            self.shard.take_token(token)?;
            self.seen.set(token);
        }
        Ok(())
    }

    /// Checks that there is memory for another reply that may be long.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: clients do not read their replies.
    pub fn check_unsent(&self) -> Result<(), Refusal> {
        if self.buffers.is_full() {
            let reason = "clients do not read their replies";
            return Err(Error::Overloaded {
                reason,
                retry_after_ms: RETRY_AFTER_MS,
            }
            .into());
        }
        Ok(())
    }

    /// Counts a request in flight.
    pub fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// Counts a request as answered.
    pub fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// Counts a scan as running until the returned value is dropped.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many scans are running.
    pub fn begin_scan(&self) -> Result<Held, Error> {
        if self.scans.get() >= SCANS_MAX {
            let reason = "too many scans run";
            return Err(Error::Overloaded {
                reason,
                retry_after_ms: RETRY_AFTER_MS,
            });
        }
        Ok(Held::new(&self.scans))
    }

    /// Counts a request that succeeded.
    pub fn answered(&self, asked: &Asked) {
        self.probe.borrow_mut().answered(asked, Now::now());
    }

    /// Counts a request that was refused.
    pub fn refused(&self, code: ErrorCode) {
        self.probe.borrow_mut().refused(code);
    }

    /// All counters of this shard, and the engine's status.
    pub fn report(&self) -> ShardReport {
        ShardReport {
            probe: self.probe.borrow().clone(),
            status: self.shard.status(),
            connections: self.connected.get(),
            greetings_evicted: self.greetings.evicted(),
            frames_len: self.buffers.frames_len(),
            stalled: self.stalled.get(),
            in_flight: self.in_flight.get(),
            damaged_frames: self.carriers.links.damaged_frames(),
            load: reactor::load(),
        }
    }

    /// Refuses all requests from now on.
    pub fn drain(&self) {
        self.phase.set(Phase::Draining);
    }

    /// Whether the shard refuses all requests because the node is stopping.
    pub fn is_draining(&self) -> bool {
        self.phase.get() == Phase::Draining
    }

    /// Whether every request is answered and every reply sent.
    pub fn is_idle(&self) -> bool {
        self.in_flight.get() == 0 && self.buffers.unsent_len() == 0
    }

    /// Ends all connections, each when its written replies are sent.
    pub fn close_connections(&self) {
        for (_, connection) in self.connections.borrow().iter() {
            connection.close();
        }
    }

    /// Disconnects clients whose incomplete frame has made no progress for too long.
    pub fn end_stalled(&self, now: Now) {
        for (_, connection) in self.connections.borrow().iter() {
            if connection.is_stalled(now) {
                self.stalled.set(self.stalled.get() + 1);
                connection.close();
            }
        }
    }

    /// This shard's part of the node's status.
    pub fn state(&self) -> ShardState {
        status::shard_state(self, self.here.shard)
    }
}

/// Counts one more for as long as it lives.
pub struct Held(Rc<Cell<usize>>);

impl Held {
    /// Counts one more.
    pub fn new(count: &Rc<Cell<usize>>) -> Held {
        count.set(count.get() + 1);
        Held(count.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
