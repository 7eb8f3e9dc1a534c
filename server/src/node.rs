//! The node: starts the shards, each on a thread of its own, gives orders and waits for the end.
//!
//! The thread that calls [`run`] becomes the control thread: a tokio runtime for signals and the
//! admin pages. The data path never waits for it. The node ends when told to by a signal, after
//! everything is durable; at a second signal it ends at once; at a fatal error of any shard the
//! whole process aborts, since nothing continues on bad state.

use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use rangedb_engine::cluster::NodeRecord;
use rangedb_engine::env::{Clock, Instant, World};
use rangedb_engine::error::Fatal;
use rangedb_engine::hlc::Hlc;
use rangedb_engine::limits::{ENTRIES_KEPT, SEGMENT_LEN, SMALL_APPEND_LEN_MAX};
use rangedb_engine::lsm::{LsmTables, TableOptions};
use rangedb_engine::range::Keyspace;
use rangedb_engine::shard::{InitialRange, ShardOptions};
use rangedb_engine::types::{
    KeyRange, Location, NodeId, RangeId, ReplicaId, SYSTEM_RANGE, ShardId,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::api::Api;
use crate::admin::{self, Pages, Phase, Serving};
use crate::config::{Config, ShardMemory};
use crate::env::data_dir::{BadFolder, Birth, DataDir, FOUNDER};
use crate::env::{GlommioEnv, Now, RingDisk, SystemClock, kernel, push_out, reactor, threads};
use crate::net::port::{HELD_PATIENCE, Port, PortError};
use crate::peers::link::Links;
use crate::peers::{Peers, enroll};
use crate::shard::context::{ClientLimits, NodeInfo};
use crate::shard::mesh::lanes;
use crate::shard::{self, Order, ShardError, ShardSetup};

/// What is in flight when the node is told to stop gets so long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Memory that each executor registers for I/O by glommio, of which there is none: the least.
const IO_MEMORY: usize = 64 << 10;
/// Questions of the admin pages that wait for a shard.
const REPORTS_MAX: usize = 4;
/// Exit code of a second signal, as of a process that SIGINT ended.
const EXIT_AT_ONCE: i32 = 130;

/// Why a node does not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The machine lacks something.
    #[error(transparent)]
    Kernel(#[from] kernel::Missing),
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] BadFolder),
    /// The port cannot be used.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The admin address cannot be used.
    #[error("cannot serve the admin pages on {0}: {1}; choose another address with --http")]
    Http(std::net::SocketAddr, io::Error),
    /// A thread or executor cannot be made.
    #[error("cannot start {0}: {1}")]
    Start(&'static str, String),
    /// A shard failed.
    #[error("shard {0}: {1}")]
    Shard(u16, ShardError),
}

/// Prints a fatal error and ends the process: other replicas take over.
fn die(what: &str, fatal: &dyn std::fmt::Display) -> ! {
    tracing::error!(what, error = %fatal, "fatal");
    // Standard error may be gone; there is nobody left to tell.
    let _ = writeln!(io::stderr(), "rangedb: fatal: {what}: {fatal}");
    threads::abort()
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// It could not start, or a shard could not be closed.
pub fn run(config: &Config) -> Result<(), NodeError> {
    kernel::check()?;
    threads::stay_on(&config.cpus).map_err(|e| NodeError::Start("on --cpus", e.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| NodeError::Start("the control thread", e.to_string()))?;
    runtime.block_on(control(config))
}

/// Opens the folder, or makes it: as a part of the cluster of --join, or for a new one. The folder
/// is opened on a thread of its own, since that blocks; the cluster is asked here.
async fn open_folder(config: &Config, pages: &admin::Node) -> Result<DataDir, NodeError> {
    let (ask, asked) = oneshot::channel::<String>();
    let (tell, told) = std::sync::mpsc::channel();
    let (path, shards, split_at) = (
        config.data_dir.clone(),
        config.shards,
        config.split_at.clone(),
    );
    let mut opening = tokio::task::spawn_blocking(move || {
        DataDir::open(&path, shards, &split_at, |token| {
            // Both ends are gone if the node is stopped meanwhile.
            let _ = ask.send(token.to_owned());
            let stopped = || Err("the node was told to stop".to_owned());
            told.recv().unwrap_or_else(|_| stopped())
        })
    });
    let opened = tokio::select! {
        opened = &mut opening => opened,
        Ok(token) = asked => {
            let _ = tell.send(be_born(config, &token, pages).await);
            opening.await
        }
    };
    let opened = opened.map_err(|e| NodeError::Start("opening the folder", e.to_string()))?;
    Ok(opened?)
}

/// What an empty folder becomes.
async fn be_born(config: &Config, token: &str, pages: &admin::Node) -> Result<Birth, String> {
    let joining = &config.joining;
    if let Some(objection) = &joining.objection {
        return Err(objection.clone());
    }
    if joining.others.is_empty() {
        return Ok(Birth::Founder);
    }
    let list = enroll::List {
        others: joining.others.clone(),
        founds_with: joining.founds.then_some(joining.others.len()),
        listen: config.listen.clone(),
    };
    let request = enroll::Request {
        secret: config.cluster_secret.clone(),
        token: token.to_owned(),
    };
    let waits = |reason: String| {
        tracing::info!(reason, "waiting for a place in the cluster");
        pages.wait_for(reason);
    };
    let place = enroll::enroll(&list, &request, waits).await?;
    Ok(place.map_or(Birth::Founder, Birth::Member))
}

/// Asks the addresses of --join who is there, and takes what they say for where those nodes are;
/// gives the addresses that have not answered.
///
/// # Errors
/// One of them belongs to another cluster than the folder.
async fn look_around(config: &Config, folder: &DataDir) -> Result<enroll::Around, BadFolder> {
    let own = &folder.identity.cluster;
    let mut around = enroll::Around {
        found: enroll::look(&config.joining.others).await,
        silent: config.joining.others.clone(),
    };
    for found in &around.found {
        let other = format!("{:032x}", found.cluster);
        if other != *own {
            return Err(BadFolder::OtherCluster {
                path: folder.path().display().to_string(),
                cluster: own.clone(),
                address: found.address.clone(),
                other,
            });
        }
        around.silent.retain(|silent| *silent != found.address);
    }
    Ok(around)
}

/// What the control thread holds of the shards.
struct Shards {
    orders: watch::Sender<Order>,
    ready: Vec<oneshot::Receiver<()>>,
    ended: mpsc::UnboundedReceiver<(u16, Result<(), ShardError>)>,
    running: u16,
}

/// The signals that end the node. They are taken before anything waits, since the first process of
/// a container dies of none that it has no handler for.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn take() -> Result<Signals, NodeError> {
        let take = |kind, name| signal(kind).map_err(|e| NodeError::Start(name, e.to_string()));
        Ok(Signals {
            terminate: take(SignalKind::terminate(), "the handler of SIGTERM")?,
            interrupt: take(SignalKind::interrupt(), "the handler of SIGINT")?,
        })
    }

    /// Waits for the next one.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn control(config: &Config) -> Result<(), NodeError> {
    let mut signals = Signals::take()?;
    let pages = Pages::bind(config.http)
        .await
        .map_err(|e| NodeError::Http(config.http, e))?;
    let http = pages.address;
    let node = Arc::new(admin::Node::default());
    tokio::spawn(pages.serve(node.clone()));

    let prepare = async {
        let folder = open_folder(config, &node).await?;
        kernel::check_direct_io(&config.data_dir)?;
        let around = look_around(config, &folder).await?;
        let port = Port::bind(&config.listen, usize::from(config.shards), HELD_PATIENCE)?;
        Ok::<_, NodeError>((folder, around, port))
    };
    let (folder, around, port) = tokio::select! {
        prepared = prepare => prepared?,
        () = signals.stop() => {
            tracing::info!("stopped before it had a place in a cluster");
            return Ok(());
        }
    };
    let listen = port.address;
    let (mut shards, peers) = start(config, &folder, port, &node, http)?;
    let cluster = u128::from_str_radix(&folder.identity.cluster, 16).unwrap_or_default();
    for found in around.found {
        peers.learn(found.node, &found.address);
    }
    tokio::spawn(enroll::seek(peers, cluster, around.silent));

    let stopped_early = tokio::select! {
        started = started(&mut shards) => { started?; false }
        () = signals.stop() => true,
    };
    if !stopped_early {
        node.enter(Phase::Ready);
        let process = std::process::id();
        let count = config.shards;
        println!("ready listen={listen} http={http} shards={count} pid={process}");
        tracing::info!(%listen, %http, shards = count, "ready");
        tokio::select! {
            () = signals.stop() => {}
            ended = shards.ended.recv() => died(ended),
        }
    }
    node.enter(Phase::Draining);
    drain(&mut shards, &mut signals).await
}

/// Has all shards end, and waits for them.
async fn drain(shards: &mut Shards, signals: &mut Signals) -> Result<(), NodeError> {
    tracing::info!("stopping: what is in flight gets 10 s; a second signal ends it at once");
    // A shard that has ended reads no orders.
    let _ = shards.orders.send(Order::Stop {
        until: Now::now() + DRAIN_TIMEOUT,
    });
    while shards.running > 0 {
        tokio::select! {
            ended = shards.ended.recv() => match ended {
                Some((_, Ok(()))) => shards.running -= 1,
                Some((shard, Err(error))) => return Err(NodeError::Shard(shard, error)),
                None => break,
            },
            () = signals.stop() => {
                tracing::warn!("told to stop a second time: ending at once");
                std::process::exit(EXIT_AT_ONCE);
            }
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Waits until every shard is ready, or one has failed.
async fn started(shards: &mut Shards) -> Result<(), NodeError> {
    for ready in &mut shards.ready {
        tokio::select! {
            Ok(()) = ready => {}
            Some((shard, Err(error))) = shards.ended.recv() => {
                return Err(NodeError::Shard(shard, error));
            }
        }
    }
    Ok(())
}

/// A shard ended without being told to.
fn died(ended: Option<(u16, Result<(), ShardError>)>) -> ! {
    match ended {
        Some((shard, Err(error))) => die(&format!("shard {shard}"), &error),
        Some((shard, Ok(()))) => die(&format!("shard {shard}"), &"it ended untold"),
        None => die("shards", &"all ended untold"),
    }
}

fn start(
    config: &Config,
    folder: &DataDir,
    port: Port,
    pages: &admin::Node,
    http: std::net::SocketAddr,
) -> Result<(Shards, Arc<Peers>), NodeError> {
    let count = config.shards;
    let (orders, ordered) = watch::channel(Order::Serve);
    let (end, ended) = mpsc::unbounded_channel();
    let cluster = u128::from_str_radix(&folder.identity.cluster, 16).unwrap_or_default();
    let node = NodeInfo {
        cluster,
        id: NodeId(folder.identity.node),
        shards: count,
        started: StdInstant::now(),
        limits: ClientLimits::default(),
    };
    // Port 0 is one that the system gives.
    let advertise = match config.advertise.rsplit_once(':') {
        Some((host, "0")) => format!("{host}:{}", port.address.port()),
        _ => config.advertise.clone(),
    };
    let identity = folder.identity.clone();
    let peers = Peers::new(
        config.cluster_secret.clone(),
        advertise.clone(),
        folder.path().to_owned(),
        identity,
    );
    let peers = Arc::new(peers);
    let record = NodeRecord {
        id: node.id,
        address: advertise,
        http: http.to_string(),
        shards: count,
        life: NodeRecord::life(folder.identity.starts, rand::random()),
        started_ms: SystemClock.wall_ms(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let hlc = Hlc::new();
    let mut ready = Vec::new();
    let mut reports = Vec::new();
    let parts = lanes(count).into_iter().zip(port.sockets);
    for (shard, (lanes, socket)) in (0..count).zip(parts) {
        let (told, hears) = oneshot::channel();
        let (ask, asked) = mpsc::channel(REPORTS_MAX);
        ready.push(hears);
        reports.push(ask);
        let engine = Engine::new(config, folder, &record, shard, peers.clone());
        let peers = peers.clone();
        let (hlc, orders) = (hlc.clone(), ordered.clone());
        let cpus = config.cpus.clone();
        let serve = move || async move {
            let (options, world) = engine.build(&cpus)?;
            shard::run(ShardSetup {
                options,
                world,
                hlc,
                node,
                peers,
                lanes,
                socket,
                orders,
                reports: asked,
                ready: told,
            })
            .await
        };
        spawn(config, shard, end.clone(), serve)?;
    }
    pages.serve_from(Serving {
        shards: reports,
        cluster: folder.identity.cluster.clone(),
        api: Api::new(port.address),
        peers: peers.clone(),
    });
    let shards = Shards {
        orders,
        ready,
        ended,
        running: count,
    };
    Ok((shards, peers))
}

/// Runs a shard on an executor of its own, on a thread of its own; tells how it ended.
fn spawn<F, T>(
    config: &Config,
    shard: u16,
    end: mpsc::UnboundedSender<(u16, Result<(), ShardError>)>,
    serve: F,
) -> Result<(), NodeError>
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = Result<(), ShardError>> + 'static,
{
    let executor = LocalExecutorBuilder::new(placement(config, shard))
        .preempt_timer(reactor::PREEMPT_TIMER)
        .io_memory(IO_MEMORY)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1));
    let run = move || {
        let ended = match executor.make() {
            Ok(executor) => executor
                .run(reactor::drive(serve()))
                .unwrap_or_else(|error| Err(ShardError::Reactor(error))),
            Err(error) => Err(ShardError::Executor(error.to_string())),
        };
        // The control thread outlives the shards.
        let _ = end.send((shard, ended));
    };
    std::thread::Builder::new()
        .name(format!("shard-{shard}"))
        .spawn(run)
        .map_err(|e| NodeError::Start("a shard's thread", e.to_string()))?;
    Ok(())
}

/// Where a shard runs: on a processor of its own. With fewer shards than processors the kernel places
/// them, since another node on this machine would choose the same ones.
fn placement(config: &Config, shard: u16) -> Placement {
    let cpus = &config.cpus;
    if usize::from(config.shards) < cpus.len() {
        return Placement::Unbound;
    }
    let own = cpus.get(usize::from(shard) % cpus.len());
    own.map_or(Placement::Unbound, |cpu| Placement::Fixed(*cpu))
}

/// What a shard's engine is built from, on the shard's thread.
struct Engine {
    location: Location,
    memory: ShardMemory,
    gc_retention: Duration,
    wal: std::path::PathBuf,
    tables: std::path::PathBuf,
    initial: Vec<InitialRange>,
    record: NodeRecord,
    cluster: u128,
    peers: Arc<Peers>,
}

impl Engine {
    fn new(
        config: &Config,
        folder: &DataDir,
        record: &NodeRecord,
        shard: u16,
        peers: Arc<Peers>,
    ) -> Engine {
        // Other nodes begin without ranges, and are given replicas.
        let initial = match folder.identity.node {
            FOUNDER => initial_ranges(&config.split_at, config.shards, shard),
            _ => Vec::new(),
        };
        Engine {
            cluster: u128::from_str_radix(&folder.identity.cluster, 16).unwrap_or_default(),
            record: record.clone(),
            peers,
            location: Location {
                node: NodeId(folder.identity.node),
                shard: ShardId(shard),
            },
            memory: config.shard_memory(),
            gc_retention: config.gc_retention,
            wal: folder.wal(shard),
            tables: folder.tables(shard),
            initial,
        }
    }

    fn build(self, cpus: &[usize]) -> Result<(ShardOptions, World<GlommioEnv>), Fatal> {
        let shard = self.location.shard.0;
        let cpus = cpus.to_vec();
        let tables = LsmTables::open(TableOptions {
            folder: self.tables,
            memtable_bytes: self.memory.memtable,
            cache_bytes: self.memory.block_cache,
            on_start: Arc::new(move |work| {
                threads::name_this_thread(&format!("{work}-{shard}"));
                // It inherited the shard's processor, and any of the node's will do.
                if let Err(error) = threads::stay_on(&cpus) {
                    tracing::warn!(%error, work, "a background thread stays where it is");
                }
                threads::be_nice();
            }),
            push_out,
        })?;
        let system = self.peers.system();
        let world = World {
            clock: SystemClock,
            disk: RingDisk::new(self.wal),
            tables,
            transport: Links::new(self.cluster, self.location.node, self.peers),
        };
        let options = ShardOptions {
            location: self.location,
            memtable_bytes: self.memory.memtable,
            entry_cache_bytes: self.memory.entry_cache,
            segment_bytes: SEGMENT_LEN,
            entries_kept: ENTRIES_KEPT,
            small_append_bytes: SMALL_APPEND_LEN_MAX,
            gc_retention_ms: self.gc_retention.as_millis() as u64,
            initial: self.initial,
            node: self.record,
            system,
            on_fatal: Rc::new(move |fatal| die(&format!("shard {shard}"), &fatal)),
        };
        Ok((options, world))
    }
}

/// A range of a new cluster: its only replica is here.
fn initial_range(id: u64, keyspace: Keyspace, keys: KeyRange) -> InitialRange {
    InitialRange {
        range: RangeId(id),
        replica: ReplicaId(id),
        others: Vec::new(),
        leads: true,
        keyspace,
        keys,
    }
}

/// The ranges that a new shard starts with: ranges of users go to the shards in turn, evenly, in
/// key order; the system range is on the first shard.
fn initial_ranges(split_at: &[Vec<u8>], shards: u16, shard: u16) -> Vec<InitialRange> {
    let count = split_at.len() + 1;
    let border = |at: usize| split_at.get(at).cloned();
    let mut ranges = Vec::new();
    if shard == 0 {
        ranges.push(initial_range(
            SYSTEM_RANGE.0,
            Keyspace::System,
            KeyRange::all(),
        ));
    }
    for at in 0..count {
        if at * usize::from(shards) / count.max(usize::from(shards)) != usize::from(shard) {
            continue;
        }
        let id = SYSTEM_RANGE.0 + 1 + at as u64;
        let start = at.checked_sub(1).and_then(border).unwrap_or_default();
        let keys = KeyRange {
            start,
            end: border(at),
        };
        ranges.push(initial_range(id, Keyspace::User, keys));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_ranges_tile_the_key_space_over_all_shards() {
        for (borders, shards) in [(0, 1), (0, 4), (1, 2), (3, 4), (7, 3), (2, 5)] {
            let split_at: Vec<Vec<u8>> = (1..=borders).map(|i| vec![i as u8]).collect();
            let mut ranges = Vec::new();
            let mut used = 0;
            for shard in 0..shards {
                let of_shard = initial_ranges(&split_at, shards, shard);
                used += usize::from(of_shard.iter().any(|r| r.keyspace == Keyspace::User));
                ranges.extend(
                    of_shard
                        .into_iter()
                        .filter(|r| r.keyspace == Keyspace::User),
                );
            }
            assert_eq!(used, usize::from(shards).min(borders + 1));
            ranges.sort_by_key(|r| r.keys.start.clone());
            let mut next = Some(Vec::new());
            for range in ranges {
                assert_eq!(Some(range.keys.start), next);
                next = range.keys.end;
            }
            assert_eq!(next, None);
        }
    }
}
