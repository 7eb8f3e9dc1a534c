//! The first bytes of a connection: its role, its protocol versions, and the shard that it wants.
//!
//! Exactly the handshake is read here, so that the connection can move to another shard with
//! everything after it unread. The shard that serves the connection answers. If the client wants TLS, it
//! begins behind that answer, and the answer comes once more, encrypted: only the second one proves what
//! node it is. Lives on the shard's thread.

use std::future::poll_fn;
use std::io;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::gateway::Held;
use rangedb_engine::types::ShardId;
use rangedb_protocol::handshake::{
    ANY_SHARD, BadHandshake, HANDSHAKE_LEN, Handshake, HandshakeReply, Role, VERSION, VERSION_MIN,
    Verdict,
};

use crate::config::Tls;
use crate::context::Context;
use crate::env::GlommioRuntime;
use crate::env::reactor::TcpStream;
use crate::mesh::message::PassedConnection;
use crate::net::connection::{self, Handle};
use crate::net::pending_handshakes::PendingHandshake;
use crate::net::tls::{Stream, TlsStream};
use crate::peers::{self, serve};

/// Reads a new connection's handshake, then serves it here or passes it to the shard that it wants.
pub async fn accept(context: Rc<Context>, mut stream: TcpStream, handle: Handle) {
    let pending = context.handshakes.begin();
    let read = pending.unless_evicted(read(&context, &mut stream)).await;
    let handshake = match read {
        Some(Ok(Ok(handshake))) => handshake,
        Some(Ok(Err(BadHandshake::UnknownRole(_)))) => {
            return refuse(
                &context,
                stream,
                Role::Client,
                Verdict::RoleRefused,
                pending,
            )
            .await;
        }
        // A client of another protocol would not understand an answer.
        Some(Ok(Err(BadHandshake::NotOurs)) | Err(_)) => return,
        // The connection must go now: it gets the reason only if the socket takes it at once.
        None => {
            let word = answer(&context, &mut stream, Verdict::TooManyConnections, VERSION);
            drop(futures_util::FutureExt::now_or_never(word));
            return;
        }
    };
    if let Some(verdict) = objection(&context, &handshake, &stream) {
        return refuse(&context, stream, handshake.role, verdict, pending).await;
    }
    let wanted = ShardId(handshake.shard);
    if handshake.shard == ANY_SHARD || wanted == context.here() {
        return welcome(context, (stream, handshake), pending, handle).await;
    }
    let socket = stream.detach();
    let passed = context
        .mesh
        .pass_connection(wanted, PassedConnection { socket, handshake });
    if let Err(back) = passed
        && let Ok(stream) = TcpStream::attach(back.socket)
    {
        let verdict = Verdict::TooManyConnections;
        refuse(&context, stream, handshake.role, verdict, pending).await;
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
pub async fn adopt(context: Rc<Context>, connection: PassedConnection, handle: Handle) {
    let pending = context.handshakes.begin();
    // If the kernel refuses the socket, the connection is closed.
    if let Ok(stream) = TcpStream::attach(connection.socket) {
        welcome(context, (stream, connection.handshake), pending, handle).await;
    }
}

async fn read(
    context: &Context,
    stream: &mut TcpStream,
) -> io::Result<Result<Handshake, BadHandshake>> {
    let mut bytes = [0; HANDSHAKE_LEN];
    within(
        context.node.limits.handshake_timeout,
        stream.read_exact(&mut bytes),
    )
    .await?;
    Ok(Handshake::decode(&bytes))
}

/// Why a connection is not accepted, if it is not.
fn objection(context: &Context, handshake: &Handshake, stream: &TcpStream) -> Option<Verdict> {
    let tls = context.node.settings.tls();
    let unknown = handshake.shard != ANY_SHARD && handshake.shard >= context.node.shards;
    match handshake {
        _ if context.gateway.is_shutting_down() => Some(Verdict::ShuttingDown),
        _ if handshake.version(spoken(handshake.role)).is_none() => Some(Verdict::NoCommonVersion),
        Handshake {
            tls: true,
            role: Role::Peer,
            ..
        } => Some(Verdict::NoTls),
        Handshake { tls: true, .. } if tls.is_none() => Some(Verdict::NoTls),
        Handshake {
            tls: false,
            role: Role::Client,
            ..
        } if tls.is_some_and(|tls| tls.required) => Some(Verdict::TlsRequired),
        _ if handshake.role == Role::Peer && context.peers.secret.is_empty() => {
            Some(Verdict::RoleRefused)
        }
        _ if unknown => Some(Verdict::UnknownShard),
        // Other nodes are few, and their connections have a limit of their own.
        _ if handshake.role == Role::Client
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
    (mut stream, handshake): (TcpStream, Handshake),
    pending: PendingHandshake,
    handle: Handle,
) {
    let permit = match handshake.role {
        Role::Client => context.node.clients.take(),
        // A peer gets a permit only after it has proved to be one.
        Role::Peer => None,
    };
    if handshake.role == Role::Client && permit.is_none() {
        let verdict = Verdict::TooManyConnections;
        return refuse(&context, stream, handshake.role, verdict, pending).await;
    }
    let spoken = spoken(handshake.role);
    let newest = *spoken.end();
    let version = handshake.version(spoken).unwrap_or(newest);
    let tls = match handshake.tls {
        false => None,
        true => match context.node.settings.tls() {
            Some(tls) => Some(tls),
            // The settings have changed since the connection was passed on.
            None => return refuse(&context, stream, handshake.role, Verdict::NoTls, pending).await,
        },
    };
    let answer = answer(&context, &mut stream, Verdict::Accepted, version);
    if !matches!(pending.unless_evicted(answer).await, Some(Ok(()))) {
        return;
    }
    if handshake.role == Role::Peer {
        return serve::serve(context.clone(), stream, pending).await;
    }
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let encrypted = encrypt(&context, stream, &tls, version);
            match pending.unless_evicted(encrypted).await {
                Some(Ok(stream)) => Stream::Tls(stream),
                Some(Err(error)) => {
                    return tracing::debug!(%error, "a client's TLS handshake failed");
                }
                None => return,
            }
        }
    };
    drop(pending);
    let _counted = Held::new(&context.connected);
    connection::serve(context.clone(), stream, handshake.smart, handle).await;
}

/// Exchanges the handshake of TLS, and answers that of the protocol once more, encrypted.
async fn encrypt(
    context: &Rc<Context>,
    stream: TcpStream,
    tls: &Tls,
    version: u16,
) -> io::Result<Box<TlsStream>> {
    let bytes = answer_of(context, Verdict::Accepted, version).encode();
    let mut stream = TlsStream::new(stream, tls, context.clone())?;
    let done = within(context.node.limits.handshake_timeout, async {
        stream.handshake().await?;
        poll_fn(|cx| stream.poll_send(cx, &bytes)).await
    });
    match done.await {
        Ok(_) => Ok(stream),
        Err(error) => {
            if error.kind() == io::ErrorKind::InvalidData {
                // So that the alert arrives.
                connection::linger(context, stream.socket()).await;
            }
            Err(error)
        }
    }
}

async fn refuse(
    context: &Context,
    mut stream: TcpStream,
    role: Role,
    verdict: Verdict,
    pending: PendingHandshake,
) {
    let newest = *spoken(role).end();
    let say = async {
        if answer(context, &mut stream, verdict, newest).await.is_ok() {
            connection::linger(context, &mut stream).await;
        }
    };
    pending.unless_evicted(say).await;
}

async fn answer(
    context: &Context,
    stream: &mut TcpStream,
    verdict: Verdict,
    version: u16,
) -> io::Result<()> {
    within(
        context.node.limits.handshake_timeout,
        stream.write_all(&answer_of(context, verdict, version).encode()),
    )
    .await
}

fn answer_of(context: &Context, verdict: Verdict, version: u16) -> HandshakeReply {
    HandshakeReply {
        verdict,
        version,
        shard: context.here().0,
        shards: context.node.shards,
        node: context.node.id.0,
        cluster: context.node.cluster,
    }
}

async fn within<T>(limit: Duration, io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limited = GlommioRuntime::timeout(limit, io).await;
    limited.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
