//! The node: starts the shards, each on a thread of its own, waits for a signal, and stops them.
//!
//! The thread that calls [`run`] becomes the control thread: a tokio runtime for signals, the admin
//! pages and the service manager ([`service`]). The data path never waits for it. At a first signal
//! to stop the node goes on serving for `--drain-wait`, and stops after everything is durable; at a
//! second one it ends at once. At SIGHUP it reads its settings again. A fatal error of any shard aborts
//! the whole process, since nothing may continue on bad state.

mod banner;
mod clock;
mod engine;
mod first;
mod service;
mod stop;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use rangedb_engine::cluster::NodeRecord;
use rangedb_engine::env::Clock;
use rangedb_engine::hlc::Hlc;
use rangedb_engine::types::NodeId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::api::Api;
use crate::admin::collect;
use crate::admin::{self, Pages, Phase, Serving};
use crate::check;
use crate::config::Config;
use crate::context::{ClientLimits, NodeInfo};
use crate::data_dir::{BadFolder, Birth, DataDir, FolderOptions};
use crate::descriptors::{ConnectionLimit, Needs, Shares, TooFew};
use crate::env::{SystemClock, huge_pages, kernel, reactor};
use crate::fatal::{die, refuse};
use crate::history::History;
use crate::logging;
use crate::mesh::channels;
use crate::net::port::{HELD_TIMEOUT, Port, PortError};
use crate::node_settings::Settings;
use crate::peers::{Peers, enroll};
use crate::shard::{self, Order, ShardError, ShardSetup};
use engine::Engine;
use service::Service;

/// Memory that glommio registers for I/O in each executor: the minimum, as no I/O goes through
/// glommio.
const IO_MEMORY: usize = 64 << 10;
/// Requests for a report that may wait in front of a shard.
const REPORTS_MAX: usize = 4;
/// The same for requests for a beat, of which one is made at a time.
const BEATS_MAX: usize = 1;
/// How long the error of a shard is waited for that others already miss.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a node did not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The machine lacks a feature that the node needs.
    #[error(transparent)]
    Kernel(#[from] kernel::Missing),
    /// The memory is too small for the folder's shards.
    #[error(
        "{0}; give more with --memory, or fewer --shards. Shards that the node gives up count until they hold nothing"
    )]
    Memory(String),
    /// The limit on open files is too low.
    #[error(transparent)]
    Descriptors(#[from] TooFew),
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] BadFolder),
    /// The port for clients and other nodes cannot be used.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The address of the admin pages cannot be used.
    #[error("cannot serve the admin pages on {0}: {1}; choose another address with --http")]
    Http(SocketAddr, io::Error),
    /// A thread or an executor cannot be made.
    #[error("cannot start {0}: {1}")]
    Start(&'static str, String),
    /// A shard failed.
    #[error("shard {0}: {1}")]
    Shard(u16, ShardError),
}

/// Runs a node until a signal stops it. `settings` are the same as in `config`, and can change. The
/// history begins once the node has a folder.
///
/// # Errors
/// The node could not start, or a shard failed.
pub fn run(config: &Config, settings: &Arc<Settings>, history: &History) -> Result<(), NodeError> {
    check::log_at_start(config);
    kernel::check()?;
    // Check memory and descriptors before the folder is touched: for one shard, if only the folder
    // knows how many there are.
    let is_known = config.shards_given || !DataDir::was_made(&config.data_dir);
    let shards = if is_known { config.shards } else { 1 };
    drop(
        config
            .clone()
            .with_shards(shards, 0)
            .map_err(NodeError::Memory)?,
    );
    let shares = divide_descriptors(config, shards, 0)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| NodeError::Start("the control thread", e.to_string()))?;
    let ended = runtime.block_on(control(config, shares.http, settings, history));
    // Do not wait for a name server that does not answer.
    runtime.shutdown_background();
    if ended.is_ok() {
        history.stop();
    }
    ended
}

fn divide_descriptors(config: &Config, shards: u16, tables: usize) -> Result<Shares, TooFew> {
    let needs = Needs {
        shards: usize::from(shards),
        tables,
        has_peers: !config.cluster_secret.is_empty(),
    };
    Shares::new(kernel::open_files(), needs)
}

/// Opens the folder, or makes it: for a place in the cluster of --join, or for a new cluster. A
/// blocking thread opens the folder; this thread asks the cluster.
async fn open_folder(config: &Config, pages: &admin::Node) -> Result<DataDir, NodeError> {
    let (ask, asked) = oneshot::channel::<String>();
    let (tell, told) = std::sync::mpsc::channel();
    let path = config.data_dir.clone();
    let options = FolderOptions::of(config);
    let mut opening = tokio::task::spawn_blocking(move || {
        DataDir::open(&path, &options, |token| {
            // If the node is being stopped meanwhile, the receivers are gone.
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

/// Finds what an empty folder becomes: the founder of a cluster, or a member.
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
        listen: config.listen.address.clone(),
    };
    let request = enroll::Request {
        secret: config.cluster_secret.clone(),
        token: token.to_owned(),
        // A port 0 is chosen by the system later, so the address is not known yet.
        address: match config.advertise.rsplit_once(':') {
            Some((_, "0")) | None => String::new(),
            Some(_) => config.advertise.clone(),
        },
    };
    let waits = |reason: String| {
        tracing::info!("the node waits for a place in the cluster: {reason}");
        pages.wait_for(reason);
    };
    let membership = enroll::enroll(&list, &request, waits).await?;
    Ok(membership.map_or(Birth::Founder, Birth::Member))
}

/// Asks the addresses of --join for their nodes' identity. Returns the nodes that answered and the
/// addresses that did not.
///
/// # Errors
/// A node belongs to another cluster than the folder.
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

/// The control thread's channels to the shards.
struct Shards {
    orders: watch::Sender<Order>,
    ready: Vec<oneshot::Receiver<()>>,
    ended: mpsc::UnboundedReceiver<(u16, Result<(), ShardError>)>,
    running: u16,
}

/// What a signal tells the node to do.
enum Wish {
    Stop,
    Reload,
}

/// The signals that the node obeys. Their handlers are installed before the node waits for anything:
/// the first process of a container ignores a signal without a handler.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn take() -> Result<Signals, NodeError> {
        let take = |kind, name| signal(kind).map_err(|e| NodeError::Start(name, e.to_string()));
        Ok(Signals {
            terminate: take(SignalKind::terminate(), "the handler of SIGTERM")?,
            interrupt: take(SignalKind::interrupt(), "the handler of SIGINT")?,
            hangup: take(SignalKind::hangup(), "the handler of SIGHUP")?,
        })
    }

    /// Waits for the next signal to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for the next signal. A SIGHUP that came earlier counts, too.
    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

async fn control(
    config: &Config,
    pages_max: usize,
    settings: &Arc<Settings>,
    history: &History,
) -> Result<(), NodeError> {
    let mut signals = Signals::take()?;
    let address = config.http.address;
    let pages = Pages::bind(address)
        .await
        .map_err(|e| NodeError::Http(address, e))?;
    let http = pages.address;
    let node = Arc::new(admin::Node::new(settings.clone()));
    tokio::spawn(pages.serve(node.clone(), pages_max));
    tokio::spawn(clock::watch());
    tokio::spawn(huge_pages::allow_from(config.huge_pages_from()));
    let service = Arc::new(Service::new(node.clone()));
    tokio::spawn(service.clone().inform());

    let (folder, config, around, port) = tokio::select! {
        prepared = prepare(config, &node) => prepared?,
        () = signals.stop() => {
            service.enter(Phase::ShuttingDown);
            tracing::info!(event = "node_stopped", "the node has stopped before it had a place");
            return Ok(());
        }
    };
    let config = &config;
    settings.know_folder(folder.identity.node, config);
    history.start(folder.path(), folder.identity.node);
    tokio::spawn(collect::collect(node.clone(), history.clone()));
    tokio::spawn(collect::measure(node.clone()));
    banner::log(config, &folder, settings);
    let listen = port.address;
    let shares = divide_descriptors(config, config.shards, folder.count_tables())?;
    tracing::info!("the file descriptors are divided: {shares}");
    let info = info(
        config,
        &folder,
        &shares,
        (settings.clone(), history.clone()),
    );
    let parts = (port, info, shares);
    let (mut shards, peers) = start(config, &folder, parts, (&node, &service, http))?;
    let cluster = folder.identity.cluster_id();
    for found in around.found {
        peers.learn(found.node, &found.address);
    }
    tokio::spawn(enroll::seek(peers, cluster, around.silent));

    let stopped_early = tokio::select! {
        started = started(&mut shards) => { started?; false }
        () = signals.stop() => true,
    };
    if !stopped_early {
        service.enter(Phase::Ready);
        announce(listen, http, config.shards);
        serve(&service, &mut shards, &mut signals, settings).await;
        stop::linger(
            settings.http().drain_wait,
            &service,
            &mut shards,
            &mut signals,
        )
        .await;
    }
    service.enter(Phase::ShuttingDown);
    stop::shut_down(&mut shards, &mut signals).await
}

/// Opens the folder, and takes the port for clients and other nodes.
async fn prepare(
    config: &Config,
    node: &admin::Node,
) -> Result<(DataDir, Config, enroll::Around, Port), NodeError> {
    let folder = open_folder(config, node).await?;
    let identity = &folder.identity;
    let config = config
        .clone()
        .with_shards(identity.shards, identity.leaving_shards);
    let config = config.map_err(NodeError::Memory)?;
    kernel::check_direct_io(&config.data_dir)?;
    let around = look_around(&config, &folder).await?;
    let port = Port::bind(
        &config.listen.address,
        usize::from(config.shards),
        HELD_TIMEOUT,
    )?;
    Ok((folder, config, around, port))
}

/// Says that the node is ready.
fn announce(listen: SocketAddr, http: SocketAddr, shards: u16) {
    let process = std::process::id();
    logging::announce(format!(
        "ready listen={listen} http={http} shards={shards} pid={process}"
    ));
    tracing::info!(
        event = "node_started",
        "the node is ready: it listens on {listen}, and for HTTP on {http}"
    );
}

/// Serves until a signal stops the node.
async fn serve(
    service: &Arc<Service>,
    shards: &mut Shards,
    signals: &mut Signals,
    settings: &Arc<Settings>,
) {
    loop {
        tokio::select! {
            wish = signals.next() => match wish {
                Wish::Stop => return,
                Wish::Reload => drop(tokio::spawn(service.clone().reload(settings.clone()))),
            },
            ended = shards.ended.recv() => died(ended),
        }
    }
}

/// Waits until every shard is ready or one has failed.
async fn started(shards: &mut Shards) -> Result<(), NodeError> {
    for ready in &mut shards.ready {
        tokio::select! {
            Ok(()) = ready => {}
            Some((shard, Err(error))) = shards.ended.recv() => {
                return Err(cause(shards, shard, error).await);
            }
        }
    }
    Ok(())
}

/// Why the shards do not start: the error of the one that failed, also if another one first tells that it
/// misses it.
async fn cause(shards: &mut Shards, shard: u16, error: ShardError) -> NodeError {
    let mut first = (shard, error);
    while matches!(first.1, ShardError::NeighbourGone) {
        let next = tokio::time::timeout(CAUSE_TIMEOUT, shards.ended.recv()).await;
        match next {
            Ok(Some((shard, Err(error)))) => first = (shard, error),
            Ok(Some((_, Ok(())))) => {}
            Ok(None) | Err(_) => break,
        }
    }
    let (shard, error) = first;
    NodeError::Shard(shard, error)
}

/// Ends the process since a shard ended without an order to stop.
fn died(ended: Option<(u16, Result<(), ShardError>)>) -> ! {
    match ended {
        Some((shard, Err(error))) => die(&format!("shard {shard}"), &error),
        Some((shard, Ok(()))) => die(&format!("shard {shard}"), &"it ended without an order"),
        None => die("shards", &"all ended without an order"),
    }
}

fn start(
    config: &Config,
    folder: &DataDir,
    (port, node, shares): (Port, NodeInfo, Shares),
    (pages, service, http): (&admin::Node, &Service, SocketAddr),
) -> Result<(Shards, Arc<Peers>), NodeError> {
    let count = config.shards;
    let (orders, ordered) = watch::channel(Order::Serve);
    let (end, ended) = mpsc::unbounded_channel();
    let (peers, record) = introduce(config, folder, port.address, http);
    let hlc = Hlc::new();
    let mut ready = Vec::new();
    let (mut reports, mut beats) = (Vec::new(), Vec::new());
    let parts = channels(count).into_iter().zip(port.sockets);
    for (shard, (channels, socket)) in (0..count).zip(parts) {
        let (told, hears) = oneshot::channel();
        let (ask, asked) = mpsc::channel(REPORTS_MAX);
        ready.push(hears);
        reports.push(ask);
        let (ask_beat, asked_beat) = mpsc::channel(BEATS_MAX);
        beats.push(ask_beat);
        let engine = Engine::new(config, folder, &record, shard, peers.clone());
        let peers = peers.clone();
        let (hlc, orders) = (hlc.clone(), ordered.clone());
        let node = node.clone();
        let cpus = config.cpus.clone();
        let serve = move || async move {
            let (options, world) = engine.build(&cpus)?;
            shard::run(ShardSetup {
                options,
                world,
                hlc,
                node,
                peers,
                channels,
                socket,
                orders,
                reports: asked,
                beats: asked_beat,
                ready: told,
            })
            .await
        };
        spawn(config, shard, end.clone(), serve)?;
    }
    service.watch(beats);
    pages.serve_from(Serving {
        id: node.id.0,
        started: node.started,
        shards: reports,
        cluster: folder.identity.cluster.clone(),
        api: Api::new(port.address, node.history.clone(), node.settings.clone()),
        data_dir: folder.path().to_owned(),
        peers: peers.clone(),
        descriptors: shares,
        client_limit: node.clients.clone(),
        peer_limit: node.peers.clone(),
    });
    let shards = Shards {
        orders,
        ready,
        ended,
        running: count,
    };
    Ok((shards, peers))
}

/// What each shard knows of the node.
fn info(
    config: &Config,
    folder: &DataDir,
    shares: &Shares,
    (settings, history): (Arc<Settings>, History),
) -> NodeInfo {
    NodeInfo {
        cluster: folder.identity.cluster_id(),
        id: NodeId(folder.identity.node),
        shards: config.shards,
        started: StdInstant::now(),
        limits: limits(config, shares),
        settings,
        clients: ConnectionLimit::new(shares.clients),
        peers: ConnectionLimit::new(shares.peers),
        history,
    }
}

/// The addresses of the other nodes, and the record with which this node introduces itself.
fn introduce(
    config: &Config,
    folder: &DataDir,
    listen: SocketAddr,
    http: SocketAddr,
) -> (Arc<Peers>, NodeRecord) {
    // A port 0 was chosen by the system: advertise the real one.
    let advertise = match config.advertise.rsplit_once(':') {
        Some((host, "0")) => format!("{host}:{}", listen.port()),
        _ => config.advertise.clone(),
    };
    let identity = folder.identity.clone();
    let incarnation = NodeRecord::incarnation(identity.starts, folder.random);
    let record = NodeRecord {
        id: NodeId(identity.node),
        address: advertise.clone(),
        http: http.to_string(),
        shards: config.shards,
        leaving_shards: config.leaving_shards,
        incarnation,
        started_ms: SystemClock.wall_ms(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let peers = Arc::new(Peers::new(
        config.cluster_secret.clone(),
        advertise,
        folder.path().to_owned(),
        (identity, incarnation),
    ));
    peers.on_older(folder.identity.starts, |fatal| refuse(fatal));
    (peers, record)
}

/// The limits that each shard sets for its clients.
fn limits(config: &Config, shares: &Shares) -> ClientLimits {
    let memory = config.shard_memory();
    ClientLimits {
        handshakes_max: shares.handshakes / usize::from(config.shards),
        descriptor_max: shares.highest_of_connection(),
        frames_len_max: memory.frames,
        unsent_len_max: memory.unsent,
        ..ClientLimits::default()
    }
}

/// Starts a shard's thread, which runs an executor and reports how the shard ended.
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
        // The receiver exists: the control thread outlives the shards.
        let _ = end.send((shard, ended));
    };
    std::thread::Builder::new()
        .name(format!("shard-{shard}"))
        .spawn(run)
        .map_err(|e| NodeError::Start("a shard's thread", e.to_string()))?;
    Ok(())
}

/// The processor of a shard's thread. If there are fewer shards than processors, the kernel places
/// the threads: with fixed places, another node on this machine would choose the same processors.
fn placement(config: &Config, shard: u16) -> Placement {
    let cpus = &config.cpus;
    if usize::from(config.shards) < cpus.len() {
        return Placement::Unbound;
    }
    let own = cpus.get(usize::from(shard) % cpus.len());
    own.map_or(Placement::Unbound, |cpu| Placement::Fixed(*cpu))
}
