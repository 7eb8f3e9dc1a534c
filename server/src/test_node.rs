//! A node for tests: real shards with an executor each, real files, real sockets on a free port,
//! and a blocking client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use rangedb_engine::cluster::{HighestIds, NodeRecord};
use rangedb_engine::env::{Clock, World};
use rangedb_engine::gateway::Gateway;
use rangedb_engine::hlc::Hlc;
use rangedb_engine::limits::SMALL_APPEND_LEN_MAX;
use rangedb_engine::lsm::{LsmTables, TableOptions, no_read_fault, unbounded};
use rangedb_engine::range::Keyspace;
use rangedb_engine::range::apply::observer::ApplyObservers;
use rangedb_engine::shard::{DigestOptions, FolderMark, InitialRange, Opened, Shard, ShardOptions};
use rangedb_engine::types::{KeyRange, Location, NodeId, RangeId, ReplicaId, ShardId, Timestamp};
use rangedb_protocol::handshake::{HANDSHAKE_REPLY_LEN, Handshake, HandshakeReply};
use rangedb_protocol::{FlatBufferBuilder, Reply, Request, RequestBody, Session, frame};
use tokio::sync::{mpsc, oneshot, watch};

use crate::context::{ClientLimits, Context, NodeInfo};
use crate::descriptors::ConnectionLimit;
use crate::env::{self, RingDisk, SystemClock, reactor};
use crate::glommio_env::GlommioEnv;
use crate::history::History;
use crate::mesh::channels;
use crate::net::port::Port;
use crate::node_settings::Settings;
use crate::peers::Peers;
use crate::peers::link::Links;
use crate::shard::{Order, ShardError, ShardSetup, run};

const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);
const ROW_CACHE_BYTES: usize = 1 << 20;

/// A running node.
pub struct TestNode {
    pub address: SocketAddr,
    orders: watch::Sender<Order>,
    shards: Vec<ExecutorJoinHandle<Result<(), ShardError>>>,
    _folder: Option<tempfile::TempDir>,
}

impl TestNode {
    /// Starts a node in a temporary folder, with ranges split at these keys.
    pub fn start(split_at: &[&str], limits: ClientLimits) -> TestNode {
        let folder = tempfile::tempdir().expect("a folder");
        let mut node = TestNode::start_in(folder.path(), split_at, limits);
        node._folder = Some(folder);
        node
    }

    pub fn start_in(folder: &Path, split_at: &[&str], limits: ClientLimits) -> TestNode {
        TestNode::start_with(folder, split_at, limits, 1000)
    }

    /// Starts a node that accepts at most this number of connections.
    pub fn start_with(
        folder: &Path,
        split_at: &[&str],
        limits: ClientLimits,
        connections_max: usize,
    ) -> TestNode {
        let node = node_info(split_at.len() as u16 + 1, limits, connections_max);
        TestNode::run(folder, split_at, node)
    }

    /// Starts a node in a temporary folder, with these settings.
    pub fn start_secure(
        split_at: &[&str],
        limits: ClientLimits,
        settings: Arc<Settings>,
    ) -> TestNode {
        let folder = tempfile::tempdir().expect("a folder");
        let node = NodeInfo {
            settings,
            ..node_info(split_at.len() as u16 + 1, limits, 1000)
        };
        let mut node = TestNode::run(folder.path(), split_at, node);
        node._folder = Some(folder);
        node
    }

    fn run(folder: &Path, split_at: &[&str], node: NodeInfo) -> TestNode {
        let shards = node.shards;
        let port = Port::bind(
            "127.0.0.1:0",
            usize::from(shards),
            std::time::Duration::ZERO,
        )
        .expect("a port");
        let address = port.address;
        let (orders, ordered) = watch::channel(Order::Serve);
        let hlc = Hlc::new();
        let mut running = Vec::new();
        let mut ready = Vec::new();
        let parts = channels(shards).into_iter().zip(port.sockets);
        for (shard, (channels, socket)) in (0..shards).zip(parts) {
            let folder = folder.join(shard.to_string());
            std::fs::create_dir_all(folder.join("wal")).expect("a folder");
            let (told, hears) = oneshot::channel();
            ready.push(hears);
            let keys = keys_of(split_at, usize::from(shard));
            let (hlc, orders) = (hlc.clone(), ordered.clone());
            let node = node.clone();
            let serve = move || async move {
                let (options, world) = engine(&folder, ShardId(shard), keys, ROW_CACHE_BYTES);
                run(ShardSetup {
                    options,
                    world,
                    hlc,
                    node,
                    peers: Arc::new(Peers::none()),
                    channels,
                    socket,
                    orders,
                    reports: mpsc::channel(1).1,
                    beats: mpsc::channel(1).1,
                    ready: told,
                })
                .await
            };
            let executor = LocalExecutorBuilder::new(Placement::Unbound)
                .preempt_timer(reactor::PREEMPT_TIMER)
                .spawn(move || async move { reactor::drive(serve()).await? });
            running.push(executor.expect("an executor"));
        }
        for hears in ready {
            hears.blocking_recv().expect("the shard starts");
        }
        TestNode {
            address,
            orders,
            shards: running,
            _folder: None,
        }
    }

    /// Stops the node; requests in flight get this time to finish.
    pub fn stop(self, within: Duration) {
        self.orders
            .send(Order::Stop {
                until: env::now() + within,
            })
            .expect("a shard listens");
        for shard in self.shards {
            shard
                .join()
                .expect("the executor ends")
                .expect("the shard stops well");
        }
    }

    /// Connects to a shard and completes the handshake.
    pub fn connect(&self, shard: u16, smart: bool) -> TestClient {
        let mut client = TestClient::new(self.address);
        client.send(
            &Handshake {
                smart,
                ..Handshake::client(shard)
            }
            .encode(),
        );
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.shard, shard);
        client
    }
}

/// Opens the only shard of a node, with a row cache of so many bytes, and nothing that listens. The
/// node must be stopped.
pub async fn open_alone(folder: &Path, row_cache_bytes: usize) -> Rc<Context> {
    let node = node_info(1, ClientLimits::default(), 1);
    let (mesh, _) = channels(1).remove(0).open();
    let mesh = Rc::new(mesh);
    let folder = folder.join("0");
    let (options, world) = engine(&folder, ShardId(0), keys_of(&[], 0), row_cache_bytes);
    let links = world.transport.clone();
    links.join_mesh(mesh.clone());
    let shard = Shard::open(options, world, Hlc::new(), ApplyObservers::default()).await;
    let gateway = Gateway::new(shard.expect("the shard opens"));
    let context = Context::new(gateway, mesh, node, Arc::new(Peers::none()), links);
    let routes = context.gateway.shard().routes();
    context.gateway.learn_routes(context.here(), routes);
    Rc::new(context)
}

fn node_info(shards: u16, limits: ClientLimits, connections_max: usize) -> NodeInfo {
    NodeInfo {
        cluster: 7,
        id: NodeId(1),
        shards,
        started: StdInstant::now(),
        limits,
        settings: Settings::of_test(),
        clients: ConnectionLimit::new(connections_max),
        peers: ConnectionLimit::new(connections_max),
        history: History::new(),
    }
}

fn keys_of(split_at: &[&str], shard: usize) -> KeyRange {
    let border = |at: usize| split_at.get(at).map(|key| key.as_bytes().to_vec());
    let start = shard.checked_sub(1).and_then(border).unwrap_or_default();
    KeyRange {
        start,
        end: border(shard),
    }
}

/// The record of a node with one shard.
pub fn record(id: u64) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        shards: 1,
        incarnation: 1,
        started_ms: 1,
        ..NodeRecord::default()
    }
}

fn engine(
    folder: &Path,
    shard: ShardId,
    keys: KeyRange,
    row_cache_bytes: usize,
) -> (ShardOptions, World<GlommioEnv>) {
    let number = u64::from(shard.0) + 2;
    let options = ShardOptions {
        location: Location {
            node: NodeId(1),
            shard,
        },
        entry_cache_bytes: 4 << 20,
        row_cache_bytes,
        segment_bytes: 16 << 20,
        entries_kept: 0,
        small_append_bytes: SMALL_APPEND_LEN_MAX,
        gc_retention_ms: 600_000,
        folder: FolderMark {
            log: 1,
            opened: Opened::Never,
            start: 1,
        },
        initial: vec![InitialRange {
            range: RangeId(number),
            replica: ReplicaId(number),
            others: Vec::new(),
            leads: true,
            keyspace: Keyspace::User,
            keys,
        }],
        node: record(1),
        system: Vec::new(),
        seen: HighestIds::default(),
        is_at: Rc::new(|_, _| true),
        digests: DigestOptions::default(),
        on_fatal: Rc::new(|fatal| panic!("{fatal}")),
    };
    let tables = LsmTables::open(TableOptions {
        folder: folder.join("tables"),
        memtable_bytes: 4 << 20,
        cache_bytes: 8 << 20,
        on_start: Arc::new(|_| {}),
        push_out: |_| (),
        read_fault: no_read_fault,
        free_bytes: unbounded(),
    });
    let disk = RingDisk::new(folder.join("wal"));
    let world = World {
        clock: SystemClock,
        disk,
        tables: tables.expect("tables open"),
        transport: Links::new(7, NodeId(1), Arc::new(Peers::none())),
    };
    (options, world)
}

/// A blocking connection.
pub struct TestClient {
    pub stream: TcpStream,
    received: Vec<u8>,
    chunk: Vec<u8>,
    builder: FlatBufferBuilder<'static>,
    client: u128,
    sequence: u64,
    next: u64,
}

/// A reply, with the bytes that it is decoded from.
pub struct Received {
    pub id: u64,
    kind: u16,
    body: Vec<u8>,
}

impl Received {
    pub fn reply(&self) -> Reply<'_> {
        Reply::decode(self.kind, &self.body)
            .expect("a good reply")
            .0
    }

    /// The cluster's time that the reply carries.
    pub fn now(&self) -> Timestamp {
        Timestamp(
            Reply::decode(self.kind, &self.body)
                .expect("a good reply")
                .1,
        )
    }
}

impl TestClient {
    /// Connects without sending a handshake.
    pub fn new(address: SocketAddr) -> TestClient {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(RECEIVE_TIMEOUT)).expect("set");
        stream
            .set_write_timeout(Some(RECEIVE_TIMEOUT))
            .expect("set");
        stream.set_nodelay(true).expect("set");
        let builder = FlatBufferBuilder::new();
        TestClient {
            stream,
            received: Vec::new(),
            chunk: vec![0; 64 << 10],
            builder,
            client: rand::random(),
            sequence: 0,
            next: 0,
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    pub fn answer(&mut self) -> Option<HandshakeReply> {
        let mut bytes = [0; HANDSHAKE_REPLY_LEN];
        self.stream.read_exact(&mut bytes).ok()?;
        HandshakeReply::decode(&bytes)
    }

    /// The session of the next write.
    pub fn session(&mut self) -> Session {
        self.sequence += 1;
        let now = Timestamp::from_ms(SystemClock.wall_ms());
        Session {
            client: self.client,
            sequence: self.sequence,
            lowest_unanswered: 1,
            first_tried: now.0,
        }
    }

    /// Appends a request's frame and returns its id.
    pub fn encode(&mut self, body: RequestBody<'_>, to: &mut Vec<u8>) -> u64 {
        self.encode_with(body, 0, to)
    }

    /// Does the same for a client that has seen the timestamp `token`.
    pub fn encode_with(&mut self, body: RequestBody<'_>, token: u64, to: &mut Vec<u8>) -> u64 {
        self.next += 1;
        let request = Request {
            body,
            target: None,
            deadline_ms: 0,
            token,
        };
        request.encode(self.next, &mut self.builder, to);
        self.next
    }

    pub fn ask(&mut self, body: RequestBody<'_>) -> Received {
        self.ask_with(body, 0)
    }

    pub fn ask_with(&mut self, body: RequestBody<'_>, token: u64) -> Received {
        let mut bytes = Vec::new();
        let id = self.encode_with(body, token, &mut bytes);
        self.send(&bytes);
        let received = self.receive().expect("a reply");
        assert_eq!(received.id, id);
        received
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Received {
        let session = self.session();
        self.ask(RequestBody::put(key, value, session))
    }

    /// Receives the next reply; `None` if the connection has ended.
    pub fn receive(&mut self) -> Option<Received> {
        loop {
            if let Some(found) = frame::decode(&self.received).expect("good frames") {
                let received = Received {
                    id: found.id,
                    kind: found.kind,
                    body: found.body.to_vec(),
                };
                let len = found.len;
                self.received.drain(..len);
                return Some(received);
            }
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return None,
                Ok(len) => self.received.extend_from_slice(&self.chunk[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
