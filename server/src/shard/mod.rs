//! A shard of the node: the engine's shard with its clients and its neighbours, on one executor.

pub mod context;
pub mod directory;
mod forwarded;
pub mod lane;
pub mod mesh;
pub mod message;
pub mod router;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::Task;
use rangedb_engine::env::{AsyncRuntime, Instant, World};
use rangedb_engine::error::Fatal;
use rangedb_engine::hlc::Hlc;
use rangedb_engine::shard::{Shard, ShardOptions};
use rangedb_engine::types::ShardId;
use rangedb_engine::wal::WalError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::ReportRequest;

use crate::env::data_dir;
use crate::env::reactor::{self, TcpListener, Unsupported, foreign};
use crate::env::{GlommioEnv, GlommioRuntime, Now};
use crate::handler::{self, Times};
use crate::net::port::BoundSocket;
use crate::net::{listener, preamble};
use crate::peers::Peers;
use context::{Context, NodeInfo};
use forwarded::Forwarded;
use mesh::{Inbox, LaneEnds, Waiting};
use message::{ShardMessage, ShardReply};

/// Messages handled before other tasks have their turn.
const MESSAGES_PER_TURN: usize = 64;
/// How often a shard that stops looks whether it may.
const DRAIN_CHECK: Duration = Duration::from_millis(2);
/// How long connections may take to end once all is said.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Looks within the time that a frame may stand still.
const FRAME_LOOKS: u32 = 8;
/// How often a shard looks whether its ranges are others, or are led elsewhere.
const TELL_ROUTES_EVERY: Duration = Duration::from_millis(25);

/// What the node wants of its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Serve.
    Serve,
    /// Refuse what is new, finish what is in flight until then, and stop.
    Stop {
        /// What is not finished then is left.
        until: Now,
    },
}

/// What a shard is made of. Built on the shard's own executor.
pub struct ShardSetup {
    /// How the engine's shard is opened.
    pub options: ShardOptions,
    /// The engine's world.
    pub world: World<GlommioEnv>,
    /// The node's clock.
    pub hlc: Hlc,
    /// The node.
    pub node: NodeInfo,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// The ends of the lanes to the other shards.
    pub lanes: LaneEnds,
    /// The shard's socket of the node's port.
    pub socket: BoundSocket,
    /// What the node wants.
    pub orders: watch::Receiver<Order>,
    /// Questions of the admin pages.
    pub reports: mpsc::Receiver<ReportRequest>,
    /// Told when all ranges of the shard are recovered and clients are taken.
    pub ready: oneshot::Sender<()>,
}

/// Why a shard cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The kernel does not give what an executor needs.
    #[error("cannot start a shard's executor: {0}")]
    Executor(String),
    /// Nor what a reactor needs.
    #[error(transparent)]
    Reactor(#[from] Unsupported),
    /// The engine gave up.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// A part of the folder is missing or damaged.
    #[error("{0}. {1}")]
    Lost(Fatal, &'static str),
    /// The folder cannot take note that the shard has run.
    #[error("node.json was not written: {0}; a new shard does not serve without it")]
    NotNoted(io::Error),
    /// The port was taken between binding and listening.
    #[error("cannot listen: {0}; another process may have taken the port meanwhile")]
    Listen(#[from] io::Error),
    /// Another shard ended before all were ready.
    #[error("another shard of this node could not start")]
    NeighbourGone,
}

impl ShardError {
    /// The engine's reason, with what helps if a part of the folder is lost.
    pub fn of(fatal: Fatal, peers: &Peers) -> ShardError {
        let is_lost = matches!(fatal, Fatal::Folder(_) | Fatal::Wal(WalError::Missing));
        match is_lost {
            true => ShardError::Lost(fatal, data_dir::advice(Some(peers.is_of_cluster()))),
            false => ShardError::Fatal(fatal),
        }
    }
}

/// Runs a shard until it is told to stop, and closes it.
///
/// # Errors
/// It could not start, or could not make everything durable at the end.
pub async fn run(setup: ShardSetup) -> Result<(), ShardError> {
    let (mesh, mut inboxes) = setup.lanes.open();
    let mesh = Rc::new(mesh);
    let links = setup.world.transport.clone();
    links.join_mesh(mesh.clone());
    let peers = setup.peers.clone();
    let number = setup.options.location.shard;
    let shard = Shard::open(setup.options, setup.world, setup.hlc).await;
    let shard = shard.map_err(|fatal| ShardError::of(fatal, &peers))?;
    // Before anything is acknowledged: from now on a log that is missing was lost.
    let noted = reactor::blocking(move || peers.note_opened(number)).await;
    noted.map_err(ShardError::NotNoted)?;
    let context = Context::new(shard, mesh, setup.node, setup.peers, links);
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
    let accepting = reactor::spawn_local(listener::accept(socket, context.clone()));
    // Nobody waits any more if the node gave up meanwhile; then the order to stop is there.
    let _ = setup.ready.send(());

    let reporting = reactor::spawn_local(report(context.clone(), setup.reports));
    let until = stop_order(setup.orders).await;
    // While clients are still answered: with the route to whoever leads now.
    context.shard.leave();
    context.shard.hand_over().await?;
    accepting.cancel().await;
    drain(&context, until).await;
    context.shard.clone().close().await?;
    for task in reading {
        task.cancel().await;
    }
    reporting.cancel().await;
    telling.cancel().await;
    watching.cancel().await;
    Ok(())
}

/// Cuts off clients whose frames do not go on, for all connections at once: an idle one costs nothing.
async fn end_stalled(context: Rc<Context>) {
    let timeout = context.node.limits.frame_timeout;
    loop {
        GlommioRuntime::sleep(timeout / FRAME_LOOKS).await;
        if context.buffers.has_unfinished() {
            context.end_stalled(Now::now());
        }
    }
}

/// Answers the admin pages' questions.
async fn report(context: Rc<Context>, mut asked: mpsc::Receiver<ReportRequest>) {
    while let Some(reply) = foreign(asked.recv()).await {
        // The page may have been given up.
        let _ = reply.send(context.report());
    }
}

/// Exchanges the ranges with all other shards.
async fn learn(context: &Rc<Context>, inboxes: &mut [Inbox]) -> Result<(), ShardError> {
    context.mesh.tell_routes(&context.shard.routes()).await;
    for inbox in inboxes {
        loop {
            match inbox.messages.receive().await {
                Some(ShardMessage::Routes(routes)) => {
                    context.learn_routes(inbox.from, routes);
                    break;
                }
                // The engine's shards may speak before the server's do.
                Some(other) => receive(context, inbox.from, other),
                None => return Err(ShardError::NeighbourGone),
            }
        }
    }
    Ok(())
}

/// Tells all other shards the ranges of this one whenever they have changed.
async fn tell_routes(context: Rc<Context>) {
    let mut told = 0;
    loop {
        let version = context.shard.routes_version();
        if std::mem::replace(&mut told, version) != version {
            let routes = context.shard.routes();
            context.mesh.tell_routes(&routes).await;
            context.learn_routes(context.here(), routes);
        }
        GlommioRuntime::sleep(TELL_ROUTES_EVERY).await;
    }
}

/// Starts to read what one other shard sends.
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
        ShardMessage::Request {
            id,
            frame,
            received,
            deadline,
        } => {
            let origin = Forwarded::new(context.clone(), from, id);
            let times = Times {
                received,
                now: Now::now(),
                deadline,
            };
            let found = rangedb_protocol::frame::decode(&frame);
            let Ok(Some(found)) = found else {
                unreachable!("only whole frames are forwarded");
            };
            let handled = handler::handle(context, &origin, found, &frame, times);
            assert!(
                handled.is_ok(),
                "only requests that can be read are forwarded"
            );
        }
        ShardMessage::Connection(connection) => {
            reactor::spawn_local(preamble::take_over(context.clone(), connection)).detach();
        }
        ShardMessage::Routes(routes) => context.learn_routes(from, routes),
        ShardMessage::Question { id, question } => {
            let context = context.clone();
            reactor::spawn_local(async move {
                let answer = context.shard.answer(question).await;
                context.mesh.reply(from, ShardReply::Answer { id, answer });
            })
            .detach();
        }
        ShardMessage::Drained => context.drained.set(context.drained.get() + 1),
        ShardMessage::Status { id } => {
            let status = Box::new(context.state());
            context.mesh.reply(from, ShardReply::Status { id, status });
        }
    }
}

/// Passes a reply of another shard to who waits for it.
fn conclude(context: &Context, from: ShardId, reply: ShardReply) {
    match reply {
        ShardReply::Frame { id, frame } => {
            if let Some(Waiting::Client {
                connection, token, ..
            }) = context.mesh.take(from, id)
            {
                connection.forwarded_reply(token, &frame);
            }
        }
        ShardReply::Answer { id, answer } => {
            if let Some(Waiting::Question(asker)) = context.mesh.take(from, id) {
                // It may have given up.
                let _ = asker.send(answer);
            }
        }
        ShardReply::Status { id, status } => {
            if let Some(Waiting::Status(asker)) = context.mesh.take(from, id) {
                // It may have given up.
                let _ = asker.send(*status);
            }
        }
    }
}

/// Waits for the order to stop; gives the time until which to finish.
async fn stop_order(mut orders: watch::Receiver<Order>) -> Now {
    loop {
        if let Order::Stop { until } = *orders.borrow_and_update() {
            return until;
        }
        if foreign(orders.changed()).await.is_err() {
            // Whoever gave orders is gone.
            return Now::now();
        }
    }
}

/// Finishes what is in flight here and for other shards, then ends all connections.
async fn drain(context: &Context, until: Now) {
    context.drain();
    while !context.is_idle() && Now::now() < until {
        GlommioRuntime::sleep(DRAIN_CHECK).await;
    }
    context.mesh.tell_drained().await;
    let others = context.mesh.others().count();
    while context.drained.get() < others && Now::now() < until {
        GlommioRuntime::sleep(DRAIN_CHECK).await;
    }
    context.close_connections();
    let closed = Now::now() + CLOSE_TIMEOUT;
    while context.connected.get() > 0 && Now::now() < closed {
        GlommioRuntime::sleep(DRAIN_CHECK).await;
    }
}
