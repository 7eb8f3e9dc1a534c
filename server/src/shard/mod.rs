//! A shard of the node: the engine's shard with its clients and the other shards, on one executor.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::Task;
use rangedb_engine::boot_time::BootTime;
use rangedb_engine::env::{AsyncRuntime, World};
use rangedb_engine::error::Fatal;
use rangedb_engine::gateway::Gateway;
use rangedb_engine::hlc::Hlc;
use rangedb_engine::range::apply::observer::ApplyObservers;
use rangedb_engine::shard::{Shard, ShardOptions};
use rangedb_engine::types::ShardId;
use rangedb_engine::wal::WalError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::context::{Context, NodeInfo};
use crate::data_dir;
use crate::env::reactor::{self, TcpListener, Unsupported, cross_thread};
use crate::env::{self, GlommioRuntime};
use crate::glommio_env::GlommioEnv;
use crate::handler::{self, status};
use crate::mesh::message::{ShardMessage, ShardReply};
use crate::mesh::{Inbox, ShardChannels, Waiting};
use crate::net::port::BoundSocket;
use crate::net::{handshake, listener};
use crate::peers::Peers;
use crate::probe::{BeatRequest, ReportRequest};

/// Most messages handled before other tasks get a turn.
const MESSAGES_PER_TURN: usize = 64;
/// Time limit for connections to end once everything is answered.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often a shard that is given up looks whether it holds nothing.
const EMPTIED_INTERVAL: Duration = Duration::from_millis(500);
/// How often incomplete frames are checked within the time limit for their progress.
const FRAME_LOOKS: u32 = 8;
/// Shortest time between two messages about a shard's routes. Leaders often change in many ranges at
/// a time, and those changes go together.
const ROUTES_INTERVAL: Duration = Duration::from_millis(25);

/// What the node orders its shards to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Serve requests.
    Serve,
    /// Refuse new requests, finish those in flight, and stop.
    Stop {
        /// What is not finished by then is dropped.
        until: BootTime,
    },
}

/// The parts of a shard. It is built on its own executor.
pub struct ShardSetup {
    /// Options of the engine's shard.
    pub options: ShardOptions,
    /// The environment of the engine's shard.
    pub world: World<GlommioEnv>,
    /// The node's hybrid logical clock.
    pub hlc: Hlc,
    /// What the shard is to know of its node.
    pub node: NodeInfo,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// The ends of the channels to the other shards.
    pub channels: ShardChannels,
    /// The shard's socket of the node's port.
    pub socket: BoundSocket,
    /// The current order of the node.
    pub orders: watch::Receiver<Order>,
    /// Requests of the admin pages for a report.
    pub reports: mpsc::Receiver<ReportRequest>,
    /// Requests for a beat; they are answered also while ranges are being recovered.
    pub beats: mpsc::Receiver<BeatRequest>,
    /// Signals that all ranges of the shard are recovered and clients are accepted.
    pub ready: oneshot::Sender<()>,
}

/// Why a shard cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The kernel does not provide what an executor needs.
    #[error("cannot start a shard's executor: {0}")]
    Executor(String),
    /// The kernel does not provide what a reactor needs.
    #[error(transparent)]
    Reactor(#[from] Unsupported),
    /// The engine has failed.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// A part of the folder is missing or damaged.
    #[error("{0}. {1}")]
    Lost(Fatal, &'static str),
    /// `node.json` cannot record that the shard has run.
    #[error("node.json was not written: {0}; a new shard does not serve without it")]
    NotNoted(io::Error),
    /// Another process took the port between binding and listening.
    #[error("cannot listen: {0}; another process may have taken the port meanwhile")]
    Listen(#[from] io::Error),
    /// Another shard ended before all were ready.
    #[error("another shard of this node could not start")]
    NeighbourGone,
}

impl ShardError {
    /// The engine's error, with advice if a part of the folder is lost.
    pub fn of(fatal: Fatal, peers: &Peers) -> ShardError {
        let is_lost = matches!(fatal, Fatal::Folder(_) | Fatal::Wal(WalError::Missing));
        match is_lost {
            true => ShardError::Lost(fatal, data_dir::advice(Some(peers.is_of_cluster()))),
            false => ShardError::Fatal(fatal),
        }
    }
}

/// Runs a shard until the node orders it to stop, then closes it.
///
/// # Errors
/// It could not start, or could not make everything durable at the end.
pub async fn run(setup: ShardSetup) -> Result<(), ShardError> {
    let beating = reactor::spawn_local(beat(setup.beats));
    let (mesh, mut inboxes) = setup.channels.open();
    let mesh = Rc::new(mesh);
    let links = setup.world.transport.clone();
    links.join_mesh(mesh.clone());
    let peers = setup.peers.clone();
    let number = setup.options.location.shard;
    let gives_up = setup.options.node.gives_up(number);
    let observers = ApplyObservers::default();
    let shard = Shard::open(setup.options, setup.world, setup.hlc, observers).await;
    let shard = shard.map_err(|fatal| ShardError::of(fatal, &peers))?;
    // Before the first acknowledgement: from now on a missing log counts as lost.
    let noted = reactor::blocking(move || peers.note_opened(number)).await;
    noted.map_err(ShardError::NotNoted)?;
    let gateway = Gateway::new(shard);
    let context = Context::new(gateway, mesh, setup.node, setup.peers, links);
    let context = Rc::new(context);
    learn(&context, &mut inboxes).await?;
    context.follow_view();
    let telling = reactor::spawn_local(tell_routes(context.clone()));
    let reading: Vec<_> = inboxes
        .into_iter()
        .flat_map(|inbox| read(&context, inbox))
        .collect();
    let socket = TcpListener::attach(setup.socket.listen()?.into())?;
    let watching = reactor::spawn_local(end_stalled(context.clone()));
    let emptying = gives_up.then(|| reactor::spawn_local(note_emptied(context.clone())));
    let accepting =
        reactor::spawn_local(listener::accept(socket, context.clone(), handler::handle));
    // If the node gave up meanwhile nobody receives this; the order to stop follows.
    let _ = setup.ready.send(());

    let reporting = reactor::spawn_local(report(context.clone(), setup.reports));
    let until = stop_order(setup.orders).await;
    // Leaderships move while clients are still answered: they get the route to the new leader.
    let shard = context.gateway.shard();
    shard.leave();
    shard.transfer_leaders().await?;
    accepting.cancel().await;
    shut_down(&context, until).await;
    shard.clone().close().await?;
    for task in reading {
        task.cancel().await;
    }
    reporting.cancel().await;
    beating.cancel().await;
    telling.cancel().await;
    watching.cancel().await;
    if let Some(emptying) = emptying {
        emptying.cancel().await;
    }
    Ok(())
}

/// Disconnects clients whose incomplete frame makes no progress. One task checks all connections,
/// so that an idle one costs nothing.
async fn end_stalled(context: Rc<Context>) {
    let timeout = context.node.limits.frame_timeout;
    loop {
        GlommioRuntime::sleep(timeout / FRAME_LOOKS).await;
        if context.buffers.has_unfinished() {
            context.end_stalled(env::now());
        }
    }
}

/// Has the folder remember that this shard, which the node gives up, holds nothing.
async fn note_emptied(context: Rc<Context>) {
    let shard = context.gateway.shard().clone();
    let ShardId(number) = context.here();
    loop {
        GlommioRuntime::sleep(EMPTIED_INTERVAL).await;
        let Some(highest) = shard.emptied() else {
            continue;
        };
        let peers = context.peers.clone();
        let noted = reactor::blocking(move || peers.note_emptied(ShardId(number), highest));
        match noted.await {
            // The shards above this one come first.
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(
                    event = "shard_emptied",
                    "shard {number}, which the node gives up, holds nothing any more: the next start does \
                     without it"
                );
                return;
            }
            Err(error) => {
                tracing::warn!(
                    %error, shard = number,
                    "node.json was not written: it does not say yet that this shard holds nothing"
                );
            }
        }
    }
}

/// Answers requests for figures of the shard.
async fn report(context: Rc<Context>, mut asked: mpsc::Receiver<ReportRequest>) {
    while let Some(request) = cross_thread(asked.recv()).await {
        // The asker may have stopped waiting.
        match request {
            ReportRequest::Probe(reply) => drop(reply.send(context.probe())),
            ReportRequest::Report(reply) => drop(reply.send(context.report())),
        }
    }
}

/// Answers requests for a beat.
async fn beat(mut asked: mpsc::Receiver<BeatRequest>) {
    while let Some(reply) = cross_thread(asked.recv()).await {
        // Nobody waits any more if the node ends.
        let _ = reply.send(());
    }
}

/// Exchanges routes with all other shards.
async fn learn(context: &Rc<Context>, inboxes: &mut [Inbox]) -> Result<(), ShardError> {
    let routes = context.gateway.shard().routes();
    context.mesh.tell_routes(&routes).await;
    for inbox in inboxes {
        loop {
            match inbox.messages.receive().await {
                Some(ShardMessage::Routes(routes)) => {
                    context.gateway.learn_routes(inbox.from, routes);
                    break;
                }
                // The replicas of another shard may send requests before its server part sends its
                // routes.
                Some(other) => receive(context, inbox.from, other),
                None => return Err(ShardError::NeighbourGone),
            }
        }
    }
    Ok(())
}

/// Sends the routes of this shard to all others whenever they have changed.
async fn tell_routes(context: Rc<Context>) {
    let (shard, mut told) = (context.gateway.shard(), 0);
    loop {
        shard.routes_changed(told).await;
        told = shard.routes_version();
        let routes = shard.routes();
        context.mesh.tell_routes(&routes).await;
        context.gateway.learn_routes(context.here(), routes);
        GlommioRuntime::sleep(ROUTES_INTERVAL).await;
    }
}

/// Starts to receive from another shard.
fn read(context: &Rc<Context>, inbox: Inbox) -> [Task<()>; 2] {
    let Inbox {
        from,
        mut messages,
        mut replies,
    } = inbox;
    let asked = context.clone();
    let requests = async move {
        let mut count = 0;
        while let Some(message) = messages.receive().await {
            receive(&asked, from, message);
            count += 1;
            if count % MESSAGES_PER_TURN == 0 {
                reactor::yield_now().await;
            }
        }
    };
    let context = context.clone();
    let answers = async move {
        while let Some(reply) = replies.receive().await {
            conclude(&context, from, reply);
        }
    };
    [
        reactor::spawn_local(requests),
        reactor::spawn_local(answers),
    ]
}

fn receive(context: &Rc<Context>, from: ShardId, message: ShardMessage) {
    match message {
        ShardMessage::Connection(connection) => {
            reactor::spawn_local(handshake::adopt(
                context.clone(),
                connection,
                handler::handle,
            ))
            .detach();
        }
        ShardMessage::Routes(routes) => context.gateway.learn_routes(from, routes),
        ShardMessage::Request { id, class, request } => {
            let context = context.clone();
            reactor::spawn_local(async move {
                let response = context.gateway.answer(class, request).await;
                context
                    .mesh
                    .reply(from, ShardReply::Response { id, response });
            })
            .detach();
        }
        ShardMessage::Finished => context.finished.add(1),
        ShardMessage::Status { id } => {
            let status = Box::new(status::shard_state(context));
            context.mesh.reply(from, ShardReply::Status { id, status });
        }
    }
}

/// Gives a reply of another shard to its receiver.
fn conclude(context: &Context, from: ShardId, reply: ShardReply) {
    match reply {
        ShardReply::Response { id, response } => {
            if let Some(Waiting::Request(asker)) = context.mesh.take(from, id) {
                // The receiver may no longer wait.
                let _ = asker.send(response);
            }
        }
        ShardReply::Status { id, status } => {
            if let Some(Waiting::Status(asker)) = context.mesh.take(from, id) {
                // The receiver may no longer wait.
                let _ = asker.send(*status);
            }
        }
    }
}

/// Waits for the order to stop; returns its time limit.
async fn stop_order(mut orders: watch::Receiver<Order>) -> BootTime {
    loop {
        if let Order::Stop { until } = *orders.borrow_and_update() {
            return until;
        }
        if cross_thread(orders.changed()).await.is_err() {
            // The node that gives orders is gone.
            return env::now();
        }
    }
}

/// Finishes the requests in flight, here and for other shards, then ends all connections.
async fn shut_down(context: &Context, until: BootTime) {
    context.gateway.shut_down();
    // What is not finished in time is dropped.
    let _ = GlommioRuntime::timeout_at(until.into(), context.idle()).await;
    context.mesh.tell_finished().await;
    let others = context.mesh.others().count();
    let have_finished = context.finished.until(|finished| finished >= others);
    let _ = GlommioRuntime::timeout_at(until.into(), have_finished).await;
    context.close_connections();
    let are_closed = context.connected.until(|connected| connected == 0);
    let _ = GlommioRuntime::timeout(CLOSE_TIMEOUT, are_closed).await;
}
