//! The first bytes of a connection: its role, its protocol versions, and the shard that it wants.
//!
//! Exactly the preamble is read here, so that the connection can move to another shard with
//! everything after it unread. The shard that serves the connection answers. Lives on the shard's
//! thread.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::gateway::Held;
use rangedb_engine::types::ShardId;
use rangedb_protocol::preamble::{
    ANY_SHARD, Answer, BadPreamble, PREAMBLE_LEN, Preamble, Role, VERSION, VERSION_MIN, Verdict,
};

use crate::env::GlommioRuntime;
use crate::env::reactor::TcpStream;
use crate::net::connection;
use crate::net::greetings::Greeting;
use crate::peers::{self, serve};
use crate::shard::context::Context;
use crate::shard::message::HandedOver;

/// Greets a connection, and serves it here or passes it to the shard that it wants.
pub async fn greet(context: Rc<Context>, mut stream: TcpStream) {
    let greeting = context.greetings.begin();
    let read = greeting.unless_evicted(read(&context, &mut stream)).await;
    let preamble = match read {
        Some(Ok(Ok(preamble))) => preamble,
        Some(Ok(Err(BadPreamble::UnknownRole(_)))) => {
            return refuse(
                &context,
                stream,
                Role::Client,
                Verdict::RoleRefused,
                greeting,
            )
            .await;
        }
        // A client of another protocol would not understand an answer.
        Some(Ok(Err(BadPreamble::NotOurs)) | Err(_)) => return,
        // The connection must go now: it gets the reason only if the socket takes it at once.
        None => {
            let word = answer(&context, &mut stream, Verdict::TooManyConnections, VERSION);
            drop(futures_util::FutureExt::now_or_never(word));
            return;
        }
    };
    if let Some(verdict) = objection(&context, &preamble, &stream) {
        return refuse(&context, stream, preamble.role, verdict, greeting).await;
    }
    let wanted = ShardId(preamble.shard);
    if preamble.shard == ANY_SHARD || wanted == context.here() {
        return welcome(context, stream, preamble, greeting).await;
    }
    let socket = stream.detach();
    let handed_over = context
        .mesh
        .hand_over(wanted, HandedOver { socket, preamble });
    if let Err(back) = handed_over
        && let Ok(stream) = TcpStream::attach(back.socket)
    {
        let verdict = Verdict::TooManyConnections;
        refuse(&context, stream, preamble.role, verdict, greeting).await;
    }
}

/// The protocol versions of this node, for clients or for other nodes.
fn spoken(role: Role) -> RangeInclusive<u16> {
    match role {
        Role::Client => VERSION_MIN..=VERSION,
        Role::Peer => peers::VERSION..=peers::VERSION,
    }
}

/// Serves a connection that another shard has passed on.
pub async fn take_over(context: Rc<Context>, connection: HandedOver) {
    let greeting = context.greetings.begin();
    // If the kernel refuses the socket, the connection is closed.
    if let Ok(stream) = TcpStream::attach(connection.socket) {
        welcome(context, stream, connection.preamble, greeting).await;
    }
}

async fn read(
    context: &Context,
    stream: &mut TcpStream,
) -> io::Result<Result<Preamble, BadPreamble>> {
    let mut bytes = [0; PREAMBLE_LEN];
    within(
        context.node.limits.greeting_timeout,
        stream.read_exact(&mut bytes),
    )
    .await?;
    Ok(Preamble::decode(&bytes))
}

/// Why a connection is not accepted, if it is not.
fn objection(context: &Context, preamble: &Preamble, stream: &TcpStream) -> Option<Verdict> {
    let unknown = preamble.shard != ANY_SHARD && preamble.shard >= context.node.shards;
    match preamble {
        _ if context.gateway.is_draining() => Some(Verdict::ShuttingDown),
        _ if preamble.version(spoken(preamble.role)).is_none() => Some(Verdict::NoCommonVersion),
        _ if preamble.tls => Some(Verdict::NoTls),
        _ if preamble.role == Role::Peer && context.peers.secret.is_empty() => {
            Some(Verdict::RoleRefused)
        }
        _ if unknown => Some(Verdict::UnknownShard),
        // Other nodes are few, and their connections have a limit of their own.
        _ if preamble.role == Role::Client
            && stream.descriptor() > context.node.limits.descriptor_max =>
        {
            context.node.clients.refuse();
            Some(Verdict::TooManyConnections)
        }
        _ => None,
    }
}

async fn welcome(
    context: Rc<Context>,
    mut stream: TcpStream,
    preamble: Preamble,
    greeting: Greeting,
) {
    let seat = match preamble.role {
        Role::Client => context.node.clients.take(),
        // A peer gets a seat only after it has proved to be one.
        Role::Peer => None,
    };
    if preamble.role == Role::Client && seat.is_none() {
        let verdict = Verdict::TooManyConnections;
        return refuse(&context, stream, preamble.role, verdict, greeting).await;
    }
    let spoken = spoken(preamble.role);
    let newest = *spoken.end();
    let version = preamble.version(spoken).unwrap_or(newest);
    let answer = answer(&context, &mut stream, Verdict::Accepted, version);
    if !matches!(greeting.unless_evicted(answer).await, Some(Ok(()))) {
        return;
    }
    match preamble.role {
        Role::Client => {
            drop(greeting);
            let _counted = Held::new(&context.connected);
            connection::serve(context.clone(), stream, preamble.smart).await;
        }
        Role::Peer => serve::serve(context.clone(), stream, greeting).await,
    }
}

async fn refuse(
    context: &Context,
    mut stream: TcpStream,
    role: Role,
    verdict: Verdict,
    greeting: Greeting,
) {
    let newest = *spoken(role).end();
    let say = async {
        if answer(context, &mut stream, verdict, newest).await.is_ok() {
            connection::linger(context, &mut stream).await;
        }
    };
    greeting.unless_evicted(say).await;
}

async fn answer(
    context: &Context,
    stream: &mut TcpStream,
    verdict: Verdict,
    version: u16,
) -> io::Result<()> {
    let answer = Answer {
        verdict,
        version,
        shard: context.here().0,
        shards: context.node.shards,
        node: context.node.id.0,
        cluster: context.node.cluster,
    };
    within(
        context.node.limits.greeting_timeout,
        stream.write_all(&answer.encode()),
    )
    .await
}

async fn within<T>(limit: Duration, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limited = GlommioRuntime::timeout(limit, io).await;
    limited.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
