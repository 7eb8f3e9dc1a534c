//! The first bytes of a connection: who comes, in which version, and to which shard.
//!
//! Exactly the preamble is read here, so that the connection can still go to another shard, with
//! everything after it unread. The shard that serves the connection answers. Lives on the shard's
//! thread.

use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::ShardId;
use rangedb_protocol::preamble::{
    ANY_SHARD, Answer, BadPreamble, PREAMBLE_LEN, Preamble, Role, VERSION, VERSION_MIN, Verdict,
};

use crate::env::GlommioRuntime;
use crate::env::reactor::TcpStream;
use crate::net::connection;
use crate::peers::{self, serve};
use crate::shard::context::{Context, Held};
use crate::shard::message::HandedOver;

/// Connections of one shard whose preamble is awaited or that are being refused.
pub const GREETINGS_MAX: usize = 1024;

/// Greets a connection and serves it here, or passes it on.
pub async fn greet(context: Rc<Context>, mut stream: TcpStream) {
    let greeting = Held::new(&context.greetings);
    let preamble = match read(&context, &mut stream).await {
        Ok(Ok(preamble)) => preamble,
        Ok(Err(BadPreamble::UnknownRole(_))) => {
            return refuse(&context, stream, Role::Client, Verdict::RoleRefused).await;
        }
        // Whoever speaks another protocol would not understand an answer.
        Ok(Err(BadPreamble::NotOurs)) | Err(_) => return,
    };
    if let Some(verdict) = objection(&context, &preamble) {
        return refuse(&context, stream, preamble.role, verdict).await;
    }
    let wanted = ShardId(preamble.shard);
    if preamble.shard == ANY_SHARD || wanted == context.here() {
        drop(greeting);
        return welcome(context, stream, preamble).await;
    }
    let Ok(socket) = stream.detach() else {
        return;
    };
    let handed_over = context
        .mesh
        .hand_over(wanted, HandedOver { socket, preamble });
    if let Err(back) = handed_over
        && let Ok(stream) = TcpStream::attach(back.socket)
    {
        refuse(&context, stream, preamble.role, Verdict::TooManyConnections).await;
    }
}

/// The versions that are spoken with clients, or with other nodes.
fn spoken(role: Role) -> RangeInclusive<u16> {
    match role {
        Role::Client => VERSION_MIN..=VERSION,
        Role::Peer => peers::VERSION..=peers::VERSION,
    }
}

/// Serves a connection that another shard passed on.
pub async fn take_over(context: Rc<Context>, connection: HandedOver) {
    // One that the kernel does not give is closed.
    if let Ok(stream) = TcpStream::attach(connection.socket) {
        welcome(context, stream, connection.preamble).await;
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

/// Why a connection is not taken.
fn objection(context: &Context, preamble: &Preamble) -> Option<Verdict> {
    let unknown = preamble.shard != ANY_SHARD && preamble.shard >= context.node.shards;
    match preamble {
        _ if context.is_draining() => Some(Verdict::ShuttingDown),
        _ if preamble.version(spoken(preamble.role)).is_none() => Some(Verdict::NoCommonVersion),
        _ if preamble.tls => Some(Verdict::NoTls),
        _ if preamble.role == Role::Peer && context.peers.secret.is_empty() => {
            Some(Verdict::RoleRefused)
        }
        _ if unknown => Some(Verdict::UnknownShard),
        _ => None,
    }
}

async fn welcome(context: Rc<Context>, mut stream: TcpStream, preamble: Preamble) {
    if context.connected.get() >= context.node.limits.connections_max {
        return refuse(&context, stream, preamble.role, Verdict::TooManyConnections).await;
    }
    let _seat = Held::new(&context.connected);
    let spoken = spoken(preamble.role);
    let newest = *spoken.end();
    let version = preamble.version(spoken).unwrap_or(newest);
    if answer(&context, &mut stream, Verdict::Accepted, version)
        .await
        .is_err()
    {
        return;
    }
    match preamble.role {
        Role::Client => connection::serve(context.clone(), stream, preamble.smart).await,
        Role::Peer => serve::serve(context.clone(), stream).await,
    }
}

async fn refuse(context: &Context, mut stream: TcpStream, role: Role, verdict: Verdict) {
    let newest = *spoken(role).end();
    if answer(context, &mut stream, verdict, newest).await.is_ok() {
        connection::linger(context, &mut stream).await;
    }
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
