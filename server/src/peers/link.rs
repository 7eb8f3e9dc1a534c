//! The links of one shard to the shards of other nodes: the asking side.
//!
//! A link is connected when something is first asked. Questions are sent in the order in which they
//! were asked, answers come in any order. When a connection breaks, all that wait are told; after
//! that nothing is tried for a time that doubles with each failure, and questions fail at once
//! meanwhile. Lives on its shard's thread.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use glommio::net::TcpStream;
use rangedb_engine::env::{AsyncRuntime, Instant, Transport};
use rangedb_engine::types::{Location, NodeId};
use rangedb_protocol::frame;
use rangedb_protocol::preamble::{
    ANSWER_LEN, Answer, Preamble, Role, VERSION, VERSION_MIN, Verdict,
};
use slab::Slab;
use tokio::sync::{Notify, oneshot};

use super::{Hello, Peers, kind};
use crate::env::{GlommioRuntime, Now, handover};
use crate::shard::mesh::Mesh;

/// Connecting and greeting may take so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A link whose questions do not arrive for so long is broken: a new one is sooner of use than the
/// old one, whose pauses between two tries have grown by the time the network works again.
const UNACKNOWLEDGED: Duration = Duration::from_secs(1);
/// How long nothing is tried after a failure, the first time and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_millis(250);
/// Bytes that wait to be sent; further questions fail, and replication asks again later.
const OUTPUT_LEN_MAX: usize = 32 << 20;
/// Bytes are received in pieces of this size.
const RECEIVE_LEN: usize = 64 << 10;

/// The links of one shard. Clones are the same links.
#[derive(Clone)]
pub struct Links {
    inner: Rc<Inner>,
}

struct Inner {
    cluster: u128,
    me: NodeId,
    peers: Arc<Peers>,
    /// The way to the other shards of this node.
    mesh: OnceCell<Rc<Mesh>>,
    links: RefCell<BTreeMap<Location, Rc<Link>>>,
}

/// Who waits for answers, by the number of the question.
type Waiting = Slab<oneshot::Sender<io::Result<Bytes>>>;

#[derive(Default)]
struct Link {
    output: RefCell<Vec<u8>>,
    waiting: RefCell<Waiting>,
    to_send: Notify,
    /// Whether its task runs.
    runs: Cell<bool>,
    failures: Cell<u32>,
    not_before: Cell<Option<Now>>,
}

impl Links {
    /// The links of a shard of this node.
    pub fn new(cluster: u128, me: NodeId, peers: Arc<Peers>) -> Links {
        let inner = Inner {
            cluster,
            me,
            peers,
            mesh: OnceCell::new(),
            links: RefCell::default(),
        };
        Links {
            inner: Rc::new(inner),
        }
    }

    /// Other shards of this node are asked by these lanes from now on.
    pub fn join_mesh(&self, mesh: Rc<Mesh>) {
        let joined = self.inner.mesh.set(mesh);
        assert!(joined.is_ok(), "a shard joins one mesh");
    }
}

impl Transport for Links {
    async fn call(&self, to: Location, question: Bytes) -> io::Result<Bytes> {
        if to.node == self.inner.me {
            return match self.inner.mesh.get() {
                Some(mesh) => mesh.ask(to.shard, question).await,
                None => Err(io::ErrorKind::NotConnected.into()),
            };
        }
        self.ask(to, kind::QUESTION, &question).await
    }
}

impl Links {
    /// Sends a frame of a kind that is answered. [`io::ErrorKind::NotConnected`] and
    /// [`io::ErrorKind::WouldBlock`]: it was not sent.
    ///
    /// # Errors
    /// The link is broken, or broke before the answer.
    pub async fn ask(&self, to: Location, frame_kind: u16, body: &[u8]) -> io::Result<Bytes> {
        let link = self.inner.links.borrow_mut().entry(to).or_default().clone();
        if link.not_before.get().is_some_and(|at| Now::now() < at) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if link.output.borrow().len() > OUTPUT_LEN_MAX {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the link is full",
            ));
        }
        let (sender, receiver) = oneshot::channel();
        let id = link.waiting.borrow_mut().insert(sender);
        frame::encode(id as u64, frame_kind, body, &mut link.output.borrow_mut());
        if !link.runs.replace(true) {
            let (inner, link) = (self.inner.clone(), link.clone());
            glommio::spawn_local(async move { run(&inner, &link, to).await }).detach();
        }
        link.to_send.notify_one();
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// Connects a link and serves it until it breaks.
async fn run(inner: &Inner, link: &Link, to: Location) {
    let error = match GlommioRuntime::timeout(CONNECT_TIMEOUT, connect(inner, to)).await {
        Ok(Ok(stream)) => {
            if link.failures.replace(0) > 0 {
                tracing::info!(%to, "the link works again");
            }
            serve(link, stream).await
        }
        // Nothing was sent.
        Ok(Err(error)) => io::Error::new(io::ErrorKind::NotConnected, error.to_string()),
        Err(_) => io::Error::new(io::ErrorKind::NotConnected, "no answer in time"),
    };
    let failures = link.failures.get();
    if failures == 0 {
        tracing::warn!(%to, %error, "the link is broken");
    }
    link.failures.set(failures + 1);
    let pause = PAUSE_FIRST
        .saturating_mul(1 << failures.min(10))
        .min(PAUSE_LONGEST);
    link.not_before.set(Some(Now::now() + pause));
    link.runs.set(false);
    link.output.borrow_mut().clear();
    let waiting = link.waiting.take();
    for (_, waiting) in waiting {
        // Whoever asked may have given up.
        let _ = waiting.send(Err(io::Error::new(error.kind(), error.to_string())));
    }
}

async fn connect(inner: &Inner, to: Location) -> io::Result<TcpStream> {
    let address = inner.peers.addresses().get(&to.node).cloned();
    let unknown = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("node {} is unknown", to.node),
        )
    };
    let address = address.ok_or_else(unknown)?;
    let mut stream = TcpStream::connect(address).await.map_err(io::Error::from)?;
    stream.set_nodelay(true).map_err(io::Error::from)?;
    handover::end_if_unacknowledged(&stream, UNACKNOWLEDGED)?;
    let preamble = Preamble {
        version_min: VERSION_MIN,
        version_max: VERSION,
        role: Role::Peer,
        smart: false,
        tls: false,
        shard: to.shard.0,
    };
    let hello = Hello {
        secret: inner.peers.secret.clone(),
        cluster: inner.cluster,
        to: to.node,
        from: inner.me,
        address: inner.peers.advertise.clone(),
    };
    let mut bytes = preamble.encode().to_vec();
    frame::encode(0, kind::HELLO, &hello.encode(), &mut bytes);
    stream.write_all(&bytes).await?;
    let mut answer = [0; ANSWER_LEN];
    stream.read_exact(&mut answer).await?;
    let answer =
        Answer::decode(&answer).ok_or_else(|| io::Error::other("it is no RangeDB node"))?;
    if answer.verdict != Verdict::Accepted {
        return Err(io::Error::other(format!("refused: {:?}", answer.verdict)));
    }
    if answer.cluster != inner.cluster || answer.node != to.node.0 {
        let message = format!(
            "it is node {} of cluster {:032x}, not node {} of {:032x}",
            answer.node, answer.cluster, to.node, inner.cluster
        );
        return Err(io::Error::other(message));
    }
    Ok(stream)
}

/// Sends and receives until the connection breaks; says why it did.
async fn serve(link: &Link, stream: TcpStream) -> io::Error {
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        let mut sent = Vec::new();
        loop {
            std::mem::swap(&mut *link.output.borrow_mut(), &mut sent);
            if sent.is_empty() {
                link.to_send.notified().await;
                continue;
            }
            if let Err(error) = writer.write_all(&sent).await {
                return error;
            }
            sent.clear();
            sent.shrink_to(RECEIVE_LEN * 4);
        }
    };
    let receiving = async {
        let mut received = Vec::new();
        let mut piece = vec![0; RECEIVE_LEN];
        loop {
            match reader.read(&mut piece).await {
                Ok(0) => return io::ErrorKind::ConnectionReset.into(),
                Ok(len) => received.extend_from_slice(piece.get(..len).unwrap_or_default()),
                Err(error) => return error,
            }
            if let Err(error) = take_answers(link, &mut received) {
                return error;
            }
        }
    };
    futures_util::pin_mut!(sending, receiving);
    match futures_util::future::select(sending, receiving).await {
        futures_util::future::Either::Left((error, _))
        | futures_util::future::Either::Right((error, _)) => error,
    }
}

/// Hands out the answers that were received whole.
fn take_answers(link: &Link, received: &mut Vec<u8>) -> io::Result<()> {
    let mut taken = 0;
    loop {
        let rest = received.get(taken..).unwrap_or_default();
        let Some(found) = frame::decode(rest).map_err(io::Error::other)? else {
            break;
        };
        if !matches!(found.kind, kind::ANSWER | kind::CARRIED) {
            return Err(io::Error::other("a frame that is no answer"));
        }
        let waiting = link.waiting.borrow_mut().try_remove(found.id as usize);
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _ = waiting.send(Ok(Bytes::copy_from_slice(found.body)));
        }
        taken += found.len;
    }
    received.drain(..taken);
    Ok(())
}
