//! What everything on a shard's thread shares: the engine, the ways to other shards, and counts.

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
use crate::env::{GlommioEnv, Now, reactor};
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

/// Scans of one shard that run at the same time.
const SCANS_MAX: usize = 64;
/// When to try again after one of these.
const RETRY_AFTER_MS: u32 = 20;

/// The node, as its clients are told.
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
    /// What it allows its clients.
    pub limits: ClientLimits,
    /// Seats of clients' connections.
    pub clients: Arc<Seats>,
    /// Seats of other nodes' connections.
    pub peers: Arc<Seats>,
}

/// What a node allows its clients.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Connections of one shard that have not said yet who they are, or are being refused.
    pub greetings_max: usize,
    /// A connection with a higher file descriptor is refused.
    pub descriptor_max: usize,
    /// Memory of one shard for frames in the making.
    pub frames_len_max: usize,
    /// Replies of one shard that clients have not taken; beyond it reads are refused.
    pub unsent_len_max: usize,
    /// How long a client may take for its preamble, and for taking the answer.
    pub greeting_timeout: Duration,
    /// A client that takes nothing of its replies for so long is cut off.
    pub write_timeout: Duration,
    /// So is one whose frame does not go on for so long.
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

/// How far a shard's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
}

/// What everything on a shard's thread shares.
pub struct Context {
    /// The engine's shard.
    pub shard: Shard<GlommioEnv>,
    /// The other shards of the node.
    pub mesh: Rc<Mesh>,
    /// The node.
    pub node: NodeInfo,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// The ways of plain clients' requests to other nodes.
    pub carriers: Carriers,
    /// Memory of connections at work.
    pub buffers: Buffers,
    /// Scratch in which replies are built.
    pub builder: RefCell<FlatBufferBuilder<'static>>,
    /// The connections of this shard.
    pub connections: RefCell<Slab<Rc<Connection>>>,
    /// How many connections are served.
    pub connected: Rc<Cell<usize>>,
    /// The connections before that: their preamble is awaited, or they are refused.
    pub greetings: Rc<Greetings>,
    /// How many connections were cut off because their frame did not go on.
    pub stalled: Cell<u64>,
    /// Other shards that have said [`crate::shard::message::ShardMessage::Drained`].
    pub drained: Cell<usize>,
    here: Location,
    /// Of each shard of this node.
    routes: RefCell<Vec<Vec<Route>>>,
    /// Of all ranges, as the cluster's manager last told.
    view: RefCell<Vec<Route>>,
    directory: RefCell<Rc<Directory>>,
    phase: Cell<Phase>,
    in_flight: Cell<usize>,
    scans: Rc<Cell<usize>>,
    probe: RefCell<ShardProbe>,
    /// The newest timestamp that a client is known to have seen.
    seen: Cell<Timestamp>,
}

impl Context {
    /// A context that knows its own ranges only.
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

    /// This shard.
    pub fn here(&self) -> ShardId {
        self.here.shard
    }

    /// The directory as it is known now.
    pub fn directory(&self) -> Rc<Directory> {
        self.directory.borrow().clone()
    }

    /// Where nodes listen, as far as is known.
    pub fn addresses(&self) -> Arc<Addresses> {
        self.peers.addresses()
    }

    /// Takes over the ranges of a shard of this node. A replica there that knows of no leader is asked
    /// itself: it tells why there is none.
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

    /// Takes over the cluster's view from now on, whenever there is a new one.
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
        // One shard writes for all.
        if self.here.shard == ShardId(0) && !view.system.is_empty() {
            let (peers, system) = (self.peers.clone(), view.system.clone());
            let remember = move || {
                peers.remember(&system);
                Ok(())
            };
            // At the next start, an older list serves as well.
            let written = async { drop(reactor::blocking(remember).await) };
            reactor::spawn_local(written).detach();
        }
    }

    /// A replica here knows best who leads; the manager knows of the ranges that are not here.
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

    /// Where a user's key is.
    pub fn place(&self, key: &[u8]) -> Place {
        router::place(&self.directory.borrow(), self.here, key)
    }

    /// What holds for every request: the node serves, the deadline has not passed, and the
    /// client's timestamp is possible.
    ///
    /// # Errors
    /// One of these does not hold.
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

    /// Whether there is memory for another reply that may be long.
    ///
    /// # Errors
    /// There is not: clients do not take their replies.
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

    /// A request is in flight.
    pub fn begin(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// A request was answered.
    pub fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// A scan runs as long as what is returned lives.
    ///
    /// # Errors
    /// Too many run.
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

    /// A request got what it asked for.
    pub fn answered(&self, asked: &Asked) {
        self.probe.borrow_mut().answered(asked, Now::now());
    }

    /// A request was refused.
    pub fn refused(&self, code: ErrorCode) {
        self.probe.borrow_mut().refused(code);
    }

    /// Everything that is counted here.
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

    /// Refuses requests from here on.
    pub fn drain(&self) {
        self.phase.set(Phase::Draining);
    }

    /// Whether the shard refuses requests.
    pub fn is_draining(&self) -> bool {
        self.phase.get() == Phase::Draining
    }

    /// Whether everything that was asked is answered, and every answer sent.
    pub fn is_idle(&self) -> bool {
        self.in_flight.get() == 0 && self.buffers.unsent_len() == 0
    }

    /// Ends all connections, each when what is written for it is sent.
    pub fn close_connections(&self) {
        for (_, connection) in self.connections.borrow().iter() {
            connection.close();
        }
    }

    /// Cuts off clients whose frames do not go on.
    pub fn end_stalled(&self, now: Now) {
        for (_, connection) in self.connections.borrow().iter() {
            if connection.is_stalled(now) {
                self.stalled.set(self.stalled.get() + 1);
                connection.close();
            }
        }
    }

    /// This shard's part of the node's state.
    pub fn state(&self) -> ShardState {
        status::shard_state(self, self.here.shard)
    }
}

/// One more is counted as long as this lives.
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
