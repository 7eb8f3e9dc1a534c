//! The links of other nodes to a shard of this one: the answering side.
//!
//! Each request is a task, begun in the order of arrival; finished answers are sent together. When
//! too many requests are being answered, the link is not read for a while. Forwarded requests of
//! clients come over links of their own, so that they hold up no replica. Lives on its shard's
//! thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_util::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use rangedb_engine::env::{AsyncRuntime, MessageClass};
use rangedb_engine::frame;
use rangedb_engine::gateway::{FORWARDED_MAX, Held};
use rangedb_engine::notify::Count;
use tokio::sync::Notify;

use super::input::{self, HELLO_LEN_MAX, Input, RECEIVE_LEN, Received};
use super::{Hello, Met, OLDER_FOLDER, enroll, kind, same_secret};
use crate::context::Context;
use crate::descriptors::ConnectionPermit;
use crate::env::GlommioRuntime;
use crate::env::reactor::{self, TcpStream};
use crate::net::pending_handshakes::PendingHandshake;

/// Most requests of replicas that are answered at a time on one link; of forwarded requests it is
/// [`FORWARDED_MAX`].
const REQUESTS_MAX: usize = 256;
/// Time limit of the first frame.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// One link of another node.
#[derive(Default)]
struct Served {
    output: RefCell<Vec<u8>>,
    changed: Notify,
    /// How many requests of replicas, and how many forwarded requests, are being answered.
    answering: Rc<Count>,
    forwarded: Rc<Count>,
    ended: Cell<bool>,
}

/// Serves a link whose handshake was answered.
pub async fn serve(context: Rc<Context>, mut stream: TcpStream, pending: PendingHandshake) {
    stream.count_in(context.links.traffic());
    let (mut reader, mut writer) = stream.split();
    let mut input = Input::new(HELLO_LEN_MAX);
    let first = GlommioRuntime::timeout(HELLO_TIMEOUT, input.receive(&mut reader));
    let first = match pending.unless_evicted(first).await {
        Some(Ok(Ok(first))) => first,
        Some(Ok(Err(error))) => return ended(&context, &error),
        Some(Err(_)) | None => return,
    };
    match first.kind {
        kind::ENROLL => {
            let answer = enroll::grant(&context, &first.body).await;
            let mut bytes = Vec::new();
            frame::encode(first.id, kind::ENROLLED, &answer, &mut bytes);
            // The other side may have gone; then it asks again.
            let _ = writer.write_all(&bytes).await;
        }
        kind::HELLO => {
            let checked = check(&context, &first.body);
            let permitted = checked.and_then(|hello| Ok((hello, take_permit(&context)?)));
            let (hello, _permit) = match permitted {
                Ok(permitted) => permitted,
                Err(reason) => {
                    let mut bytes = Vec::new();
                    frame::encode(first.id, kind::REFUSED, reason.as_bytes(), &mut bytes);
                    // The other side may have gone; then it asks again.
                    let _ = writer.write_all(&bytes).await;
                    return;
                }
            };
            let incarnations = &context.peers.incarnations;
            let met = incarnations.meet(hello.from, hello.welcome);
            let mut bytes = Vec::new();
            let welcome = incarnations.welcome(hello.from).encode();
            frame::encode(first.id, kind::WELCOME, &welcome, &mut bytes);
            match met {
                Met::Known => {}
                Met::New => super::remember(&context.peers).await,
                Met::Older => {
                    let address = hello.address;
                    if context.peers.is_news(&format!("{address}: {OLDER_FOLDER}")) {
                        tracing::warn!(
                            event = "node_refused",
                            "node {} at {address:?} was refused: {OLDER_FOLDER}",
                            hello.from
                        );
                    }
                    // The other side learns it from the welcome, unless it has gone.
                    let _ = writer.write_all(&bytes).await;
                    return;
                }
            }
            context.peers.claim(hello.from, &hello.address);
            drop(pending);
            let _counted = Held::new(&context.connected);
            input.accept_long();
            let served = Rc::new(Served::default());
            served.output.replace(bytes);
            let sending = reactor::spawn_local(send(served.clone(), writer));
            let received = receive(&context, &served, &mut reader, input).await;
            if let Err(error) = received {
                ended(&context, &error);
            }
            served.ended.set(true);
            served.changed.notify_waiters();
            sending.cancel().await;
        }
        other => tracing::debug!(kind = other, "a peer began with a frame of this kind"),
    }
}

/// Logs the end of a link, and counts a damaged frame if it was the reason.
fn ended(context: &Context, error: &io::Error) {
    context.links.ended(error);
    match input::is_damage(error) {
        true => tracing::warn!(%error, "a link from another node ended"),
        false => tracing::debug!(%error, "a link ended"),
    }
}

/// Reserves a connection for a peer that has proved itself.
fn take_permit(context: &Context) -> Result<ConnectionPermit, String> {
    let full = "this node has too many connections of other nodes; see its limit of open files";
    context.node.peers.take().ok_or_else(|| full.to_owned())
}

/// The handshake of a peer that knows the cluster's secret and means this shard. Otherwise the
/// reason for refusing it, for the other side's log; this side logs it, too, once in a while.
fn check(context: &Context, body: &[u8]) -> Result<Hello, String> {
    let (peers, node) = (&context.peers, &context.node);
    let Some(hello) = Hello::decode(body) else {
        return Err("its handshake cannot be read: it runs another version".to_owned());
    };
    let reason = if hello.cluster != node.cluster {
        format!(
            "this node belongs to another cluster, {:032x}",
            node.cluster
        )
    } else if !same_secret(&hello.secret, &peers.secret) {
        "the cluster's secret is another one; see --cluster-secret".to_owned()
    } else if hello.to != context.gateway.shard().location() {
        let here = context.gateway.shard().location();
        format!(
            "this is shard {here}, not shard {}: another node is at its address, or its folder was lost \
             and it has a new number",
            hello.to
        )
    } else {
        return Ok(hello);
    };
    let (from, address) = (hello.from, &hello.address);
    if peers.is_news(&format!("{from} {address} {reason}")) {
        tracing::warn!(
            event = "node_refused",
            "node {from} at {address:?} was refused: {reason}"
        );
    }
    Err(reason)
}

async fn receive(
    context: &Rc<Context>,
    served: &Rc<Served>,
    reader: &mut (impl AsyncRead + Unpin),
    mut input: Input,
) -> io::Result<()> {
    loop {
        while served.answering.get() >= REQUESTS_MAX || served.forwarded.get() >= FORWARDED_MAX {
            served.changed.notified().await;
        }
        let Received {
            id,
            kind: frame_kind,
            body,
        } = input.receive(reader).await?;
        let (class, count) = match frame_kind {
            // Bulk requests are answered in the same way.
            kind::REQUEST => (MessageClass::Control, &served.answering),
            kind::FORWARD => (MessageClass::Clients, &served.forwarded),
            _ => return Err(io::Error::other("a frame that is no request")),
        };
        let counted = Held::new(count);
        let (gateway, served) = (context.gateway.clone(), served.clone());
        reactor::spawn_local(async move {
            let answer = gateway.answer(class, body).await;
            drop(counted);
            if !served.ended.get() {
                frame::encode(id, kind::RESPONSE, &answer, &mut served.output.borrow_mut());
            }
            served.changed.notify_waiters();
        })
        .detach();
    }
}

async fn send(served: Rc<Served>, mut writer: impl AsyncWriteExt + Unpin) {
    let mut sent = Vec::new();
    while !served.ended.get() {
        std::mem::swap(&mut *served.output.borrow_mut(), &mut sent);
        if sent.is_empty() {
            served.changed.notified().await;
            continue;
        }
        if writer.write_all(&sent).await.is_err() {
            // The receiving half notices the end, too.
            return;
        }
        sent.clear();
        sent.shrink_to(RECEIVE_LEN * 4);
    }
}
