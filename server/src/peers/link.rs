//! The links of one shard to the shards of other nodes: the requesting side.
//!
//! For each [`MessageClass`] to a shard there is one link with its own connection, so that none waits behind
//! another. A link connects when it gets its first request. Requests are sent in
//! order; responses come in any order. Of bulk requests, only so many bytes may be unanswered; the
//! rest waits.
//!
//! When a connection breaks, all requests on it fail. After that the link does not try again for a
//! pause that doubles with each failure, and requests fail at once meanwhile. A node that refuses
//! this one (another secret, another cluster, another node at its address) is tried far less often,
//! until its address changes. A link counts as working once the other node has welcomed it. Lives
//! on its shard's thread.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rangedb_engine::boot_time::BootTime;
use rangedb_engine::env::{AsyncRuntime, MessageClass, Transport};
use rangedb_engine::frame;
use rangedb_engine::types::{Location, NodeId};
use rangedb_protocol::handshake::{HANDSHAKE_REPLY_LEN, HandshakeReply, Verdict};
use slab::Slab;
use tokio::sync::{Notify, oneshot};

use super::input::{Input, RECEIVE_LEN, Received, is_damage};
use super::{Hello, Met, OLDER_FOLDER, Peers, Welcome, kind};
use crate::env::reactor::{self, TcpStream, Traffic};
use crate::env::{self, GlommioRuntime};
use crate::mesh::Mesh;

/// Time limit of connecting and the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A link whose sent bytes are not acknowledged for this long is broken. A new connection is of use
/// sooner than the old one, whose retransmission pauses have grown by the time the network works
/// again.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failure: the first one and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// The same after a refusal, which seldom passes by itself.
const PAUSE_REFUSED_FIRST: Duration = Duration::from_millis(250);
const PAUSE_REFUSED_MAX: Duration = Duration::from_secs(5);
/// Most bytes that wait to be sent. Further requests fail, and replication sends them again later.
const QUEUE_LEN_MAX: usize = 32 << 20;
/// A longer request is sent from where it lies: to copy it costs more than to send once more.
const GATHERED_LEN_MAX: usize = 16 << 10;
/// Most bytes of bulk requests sent and not answered; a longer request is sent alone.
const BULK_LEN_MAX: usize = 8 << 20;

/// The links of one shard. Clones are the same links.
#[derive(Clone)]
pub struct Links {
    inner: Rc<LinksInner>,
}

/// What the clones of [`Links`] share.
struct LinksInner {
    cluster: u128,
    me: NodeId,
    peers: Arc<Peers>,
    /// Reaches the other shards of this node.
    mesh: OnceCell<Rc<Mesh>>,
    links: RefCell<BTreeMap<(Location, MessageClass), Rc<Link>>>,
    /// How many frames were damaged on their way to this shard.
    damaged: Cell<u64>,
    /// How many connections of links have broken.
    broken: Cell<u64>,
    /// The bytes of this shard's connections to and from other nodes.
    traffic: Rc<Traffic>,
}

/// A request that is not answered yet.
struct PendingCall {
    /// Receives the answer.
    response: oneshot::Sender<io::Result<Bytes>>,
    /// Its length once it is sent.
    sent: Option<usize>,
}

struct Link {
    to: Location,
    class: MessageClass,
    /// Requests without an answer, by number.
    pending: RefCell<Slab<PendingCall>>,
    /// Requests that wait to be sent, with their numbers.
    queue: RefCell<VecDeque<(usize, Bytes)>>,
    /// Bytes in `queue`.
    queue_len: Cell<usize>,
    /// Bytes of requests that were sent and not answered.
    sent_len: Cell<usize>,
    to_send: Notify,
    /// Whether its task is running.
    runs: Cell<bool>,
    /// Failures since the link last worked.
    failures: Cell<u32>,
    /// Whether the log says that the link is broken.
    is_told: Cell<bool>,
    /// The end of the pause; the link tries earlier if the node has moved.
    not_before: Cell<Option<BootTime>>,
    /// The address that was last tried.
    tried: RefCell<String>,
}

impl Links {
    /// The links of a shard of this node.
    pub fn new(cluster: u128, me: NodeId, peers: Arc<Peers>) -> Links {
        let inner = LinksInner {
            cluster,
            me,
            peers,
            mesh: OnceCell::new(),
            links: RefCell::default(),
            damaged: Cell::new(0),
            broken: Cell::new(0),
            traffic: Rc::default(),
        };
        Links {
            inner: Rc::new(inner),
        }
    }

    /// Counts a damaged frame, if a connection from another node ended because of one.
    pub fn ended(&self, error: &io::Error) {
        self.inner.ended(error);
    }

    /// How many frames were damaged on their way to this shard.
    pub fn damaged_frames(&self) -> u64 {
        self.inner.damaged.get()
    }

    /// How many connections of this shard's links have broken.
    pub fn broken(&self) -> u64 {
        self.inner.broken.get()
    }

    /// The bytes of this shard's connections to and from other nodes.
    pub fn traffic(&self) -> Rc<Traffic> {
        self.inner.traffic.clone()
    }

    /// Sets the mesh by which requests reach other shards of this node.
    pub fn join_mesh(&self, mesh: Rc<Mesh>) {
        let joined = self.inner.mesh.set(mesh);
        assert!(joined.is_ok(), "a shard joins one mesh");
    }
}

impl Transport for Links {
    async fn call(&self, to: Location, class: MessageClass, request: Bytes) -> io::Result<Bytes> {
        if to.node == self.inner.me {
            return match self.inner.mesh.get() {
                Some(mesh) => mesh.ask(to.shard, class, request).await,
                None => Err(io::ErrorKind::NotConnected.into()),
            };
        }
        self.ask(to, class, request).await
    }
}

impl Links {
    /// Sends a request to a shard of another node. With [`io::ErrorKind::NotConnected`] and
    /// [`io::ErrorKind::WouldBlock`] it was certainly not sent.
    ///
    /// # Errors
    /// The link is broken, or broke before the answer came.
    async fn ask(&self, to: Location, class: MessageClass, request: Bytes) -> io::Result<Bytes> {
        let link = self.inner.link(to, class);
        let (sender, receiver) = oneshot::channel();
        if link.pauses() && !self.inner.has_moved(&link) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        link.push(request, sender)?;
        if !link.runs.replace(true) {
            let (inner, link) = (self.inner.clone(), link.clone());
            reactor::spawn_local(async move { run(&inner, &link).await }).detach();
        }
        link.to_send.notify_one();
        match receiver.await {
            Ok(response) => response,
            Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

impl LinksInner {
    fn ended(&self, error: &io::Error) {
        if is_damage(error) {
            self.damaged.set(self.damaged.get() + 1);
        }
    }

    fn link(&self, to: Location, class: MessageClass) -> Rc<Link> {
        let mut links = self.links.borrow_mut();
        let new = || Rc::new(Link::new(to, class));
        links.entry((to, class)).or_insert_with(new).clone()
    }

    /// Whether the link's node is now known at another address than the one last tried.
    fn has_moved(&self, link: &Link) -> bool {
        let addresses = self.peers.addresses();
        let known = addresses.get(&link.to.node);
        known.is_some_and(|known| *known != *link.tried.borrow())
    }
}

impl Link {
    fn new(to: Location, class: MessageClass) -> Link {
        Link {
            to,
            class,
            pending: RefCell::default(),
            queue: RefCell::default(),
            queue_len: Cell::new(0),
            sent_len: Cell::new(0),
            to_send: Notify::new(),
            runs: Cell::new(false),
            failures: Cell::new(0),
            is_told: Cell::new(false),
            not_before: Cell::new(None),
            tried: RefCell::default(),
        }
    }

    /// Whether the link is in its pause after a failure.
    fn pauses(&self) -> bool {
        self.not_before.get().is_some_and(|at| env::now() < at)
    }

    /// Queues a request; fails if the queue is full.
    fn push(&self, request: Bytes, response: oneshot::Sender<io::Result<Bytes>>) -> io::Result<()> {
        if self.queue_len.get() > QUEUE_LEN_MAX {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the link is full",
            ));
        }
        self.queue_len.set(self.queue_len.get() + request.len());
        let pending = PendingCall {
            response,
            sent: None,
        };
        let id = self.pending.borrow_mut().insert(pending);
        self.queue.borrow_mut().push_back((id, request));
        Ok(())
    }

    /// Moves what may be sent now from the queue to a buffer, in order. If that ends with the header
    /// of a long request, returns the request, which must be sent after the buffer.
    fn take_queued(&self, to: &mut Vec<u8>) -> Option<Bytes> {
        let (frame_kind, sent_max) = match self.class {
            MessageClass::Control => (kind::REQUEST, usize::MAX),
            MessageClass::Bulk => (kind::REQUEST, BULK_LEN_MAX),
            MessageClass::Clients => (kind::FORWARD, usize::MAX),
        };
        let (mut queue, mut pending) = (self.queue.borrow_mut(), self.pending.borrow_mut());
        while let Some((id, request)) = queue.front() {
            let sent_len = self.sent_len.get();
            let len = request.len();
            let has_room = sent_len == 0 || sent_len.saturating_add(len) <= sent_max;
            if !has_room {
                break;
            }
            self.queue_len.set(self.queue_len.get() - len);
            match pending.get_mut(*id) {
                Some(pending) if !pending.response.is_closed() => {
                    pending.sent = Some(len);
                    self.sent_len.set(sent_len + len);
                    if len > GATHERED_LEN_MAX {
                        frame::encode_header(*id as u64, frame_kind, request, to);
                        return queue.pop_front().map(|(_, request)| request);
                    }
                    frame::encode(*id as u64, frame_kind, request, to);
                }
                // The sender has given up: the request is not sent.
                _ => drop(pending.try_remove(*id)),
            }
            queue.pop_front();
        }
        None
    }

    /// Gives an answer to the request that waits for it.
    fn take_answer(&self, received: Received) -> io::Result<()> {
        let mut all = self.pending.borrow_mut();
        let id = received.id as usize;
        let sent = all.get(id).and_then(|pending| pending.sent);
        let (Some(len), kind::RESPONSE) = (sent, received.kind) else {
            return Err(io::Error::other("a response to no request"));
        };
        let PendingCall { response, .. } = all.remove(id);
        drop(all);
        self.sent_len.set(self.sent_len.get() - len);
        self.to_send.notify_one();
        // The sender may have given up.
        let _ = response.send(Ok(received.body));
        Ok(())
    }

    /// Fails all requests with this error.
    fn give_up(&self, error: &io::Error) {
        self.queue.borrow_mut().clear();
        self.queue_len.set(0);
        self.sent_len.set(0);
        let pending = self.pending.take();
        for (_, PendingCall { response, .. }) in pending {
            // The sender may have given up.
            let _ = response.send(Err(io::Error::new(error.kind(), error.to_string())));
        }
    }
}

/// The other node answers, but refuses this one for this reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, refused)
    }
}

/// Connects a link and serves it until it breaks.
async fn run(inner: &LinksInner, link: &Link) {
    let (to, class) = (link.to, link.class);
    let error = match GlommioRuntime::timeout(CONNECT_TIMEOUT, connect(inner, link)).await {
        Ok(Ok(stream)) => {
            let error = serve(inner, link, stream).await;
            inner.ended(&error);
            inner.broken.set(inner.broken.get() + 1);
            error
        }
        // Nothing was sent in these cases.
        Ok(Err(error)) if is_refusal(&error) => error,
        Ok(Err(error)) => io::Error::new(io::ErrorKind::NotConnected, error.to_string()),
        Err(_) => io::Error::new(io::ErrorKind::NotConnected, "no answer in time"),
    };
    let failures = link.failures.get();
    let (first, longest) = if is_refusal(&error) {
        let reason = error.to_string();
        if inner.peers.note_refusal(to.node, &reason) {
            let address = link.tried.borrow();
            let node = to.node;
            tracing::warn!(
                event = "node_refused",
                "node {node} at {address} refuses this one: {reason}"
            );
        }
        (PAUSE_REFUSED_FIRST, PAUSE_REFUSED_MAX)
    } else {
        let address = link.tried.borrow();
        // A node of which no address is known yet is not there yet.
        if !address.is_empty() && !link.is_told.replace(true) {
            tracing::warn!(
                event = "link_broken",
                "the link to shard {to} at {address} for {class} is broken: {error}"
            );
        }
        (PAUSE_FIRST, PAUSE_MAX)
    };
    link.failures.set(failures + 1);
    let pause = first.saturating_mul(1 << failures.min(10)).min(longest);
    link.not_before.set(Some(env::now() + pause));
    link.runs.set(false);
    link.give_up(&error);
}

fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refused>())
}

async fn connect(inner: &LinksInner, link: &Link) -> io::Result<TcpStream> {
    let to = link.to;
    let address = inner.peers.addresses().get(&to.node).cloned();
    let unknown = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("node {} is unknown", to.node),
        )
    };
    let address = address.ok_or_else(unknown)?;
    link.tried.borrow_mut().clone_from(&address);
    let mut stream = TcpStream::connect(&address).await?;
    stream.count_in(inner.traffic.clone());
    stream.set_nodelay()?;
    stream.end_if_unacknowledged(UNACKNOWLEDGED_TIMEOUT)?;
    let hello = Hello {
        secret: inner.peers.secret.clone(),
        cluster: inner.cluster,
        to,
        from: inner.me,
        welcome: inner.peers.incarnations.welcome(to.node),
        address: inner.peers.advertise.clone(),
    };
    let mut bytes = super::handshake(to.shard.0).encode().to_vec();
    frame::encode(0, kind::HELLO, &hello.encode(), &mut bytes);
    stream.write_all(&bytes).await?;
    let mut response = [0; HANDSHAKE_REPLY_LEN];
    stream.read_exact(&mut response).await?;
    let response = HandshakeReply::decode(&response)
        .ok_or_else(|| io::Error::other("it is not a RangeDB node"))?;
    match response.verdict {
        Verdict::Accepted => {}
        Verdict::RoleRefused | Verdict::NoCommonVersion => {
            return Err(Refused(super::refused(&response)).into());
        }
        _ => return Err(io::Error::other(super::refused(&response))),
    }
    if response.cluster != inner.cluster {
        let other = response.cluster;
        return Err(Refused(format!("it belongs to another cluster, {other:032x}")).into());
    }
    if response.node != to.node.0 {
        // What the node says of itself counts more than what was known of its address.
        inner.peers.learn(NodeId(response.node), &address);
        let reason = format!(
            "node {} is at this address, not node {}",
            response.node, to.node
        );
        return Err(Refused(reason).into());
    }
    Ok(stream)
}

/// Checks the first frame of the other side. No answer counts before it is certain that the node
/// does not run on an older folder than before.
async fn welcome(inner: &LinksInner, node: NodeId, received: &Received) -> io::Result<()> {
    let said = match received.kind {
        kind::WELCOME => Welcome::decode(&received.body),
        kind::REFUSED => {
            let reason = String::from_utf8_lossy(&received.body).into_owned();
            return Err(Refused(reason).into());
        }
        _ => None,
    };
    let said = said.ok_or_else(|| io::Error::other("the first frame is not a welcome"))?;
    match inner.peers.incarnations.meet(node, said) {
        Met::Known => {}
        Met::New => super::remember(&inner.peers).await,
        Met::Older => return Err(io::Error::other(OLDER_FOLDER)),
    }
    Ok(())
}

/// Sends and receives until the connection breaks; returns the reason.
async fn serve(inner: &LinksInner, link: &Link, stream: TcpStream) -> io::Error {
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        let mut sent = Vec::new();
        loop {
            let long = link.take_queued(&mut sent);
            if sent.is_empty() {
                link.to_send.notified().await;
                continue;
            }
            if let Err(error) = writer.write_all(&sent).await {
                return error;
            }
            if let Some(long) = long
                && let Err(error) = writer.write_all(&long).await
            {
                return error;
            }
            sent.clear();
            // One long batch must not keep its memory for good.
            sent.shrink_to(RECEIVE_LEN * 4);
        }
    };
    let receiving = async {
        let mut input = Input::default();
        let welcome = match input.receive(&mut reader).await {
            Ok(received) => welcome(inner, link.to.node, &received).await,
            Err(error) => Err(error),
        };
        if let Err(error) = welcome {
            return error;
        }
        inner.peers.note_accepted(link.to.node);
        link.failures.set(0);
        if link.is_told.replace(false) {
            let (to, class) = (link.to, link.class);
            let address = link.tried.borrow();
            tracing::info!(
                event = "link_works",
                "the link to shard {to} at {address} for {class} works again"
            );
        }
        loop {
            match input.receive(&mut reader).await {
                Ok(received) => {
                    if let Err(error) = link.take_answer(received) {
                        return error;
                    }
                }
                Err(error) => return error,
            }
        }
    };
    futures_util::pin_mut!(sending, receiving);
    match futures_util::future::select(sending, receiving).await {
        futures_util::future::Either::Left((error, _))
        | futures_util::future::Either::Right((error, _)) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;

    use rangedb_engine::types::ShardId;
    use rangedb_protocol::handshake::HANDSHAKE_LEN;

    use super::*;

    const CLUSTER: u128 = 7;
    const OTHER: Location = Location {
        node: NodeId(2),
        shard: ShardId(0),
    };
    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A request that arrived at the other node, and its connection.
    struct Arrived {
        request: Received,
        stream: std::net::TcpStream,
    }

    impl Arrived {
        /// Answers with the first byte of the request: a long answer would wait until the executor
        /// reads it.
        fn answer(&mut self) {
            let mut bytes = Vec::new();
            let Received { id, body, .. } = &self.request;
            frame::encode(*id, kind::RESPONSE, &body[..1], &mut bytes);
            self.stream.write_all(&bytes).expect("a link");
        }
    }

    /// The other node: it completes the handshake, and passes each request to the test. After a request that begins
    /// with 'x' it reads nothing more from that connection.
    fn other_node() -> (Links, mpsc::Receiver<Arrived>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peers = Peers::none();
        let address = listener.local_addr().expect("bound").to_string();
        peers.learn(OTHER.node, &address);
        let (sender, arrived) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, sender) = (stream.expect("a link"), sender.clone());
                std::thread::spawn(move || {
                    // The test may end before its links do.
                    let _ = receive_all(stream, &sender);
                });
            }
        });
        (Links::new(CLUSTER, NodeId(1), Arc::new(peers)), arrived)
    }

    fn receive_all(
        mut stream: std::net::TcpStream,
        arrived: &mpsc::Sender<Arrived>,
    ) -> io::Result<()> {
        stream.read_exact(&mut [0; HANDSHAKE_LEN])?;
        let response = HandshakeReply {
            verdict: Verdict::Accepted,
            version: crate::peers::VERSION,
            shard: 0,
            shards: 1,
            node: OTHER.node.0,
            cluster: CLUSTER,
        };
        stream.write_all(&response.encode())?;
        let mut input = Input::default();
        let hello = input.receive_blocking(&mut stream)?;
        assert_eq!(hello.kind, kind::HELLO);
        let welcome = Peers::none().incarnations.welcome(NodeId(1));
        let mut bytes = Vec::new();
        frame::encode(0, kind::WELCOME, &welcome.encode(), &mut bytes);
        stream.write_all(&bytes)?;
        loop {
            let request = input.receive_blocking(&mut stream)?;
            let is_stalled = request.body.first() == Some(&b'x');
            let stream = stream.try_clone()?;
            let arrived = arrived.send(Arrived { request, stream });
            if arrived.is_err() {
                return Ok(());
            }
            if is_stalled {
                loop {
                    std::thread::park();
                }
            }
        }
    }

    fn run(test: impl AsyncFnOnce() + Send + 'static) {
        let test = || GlommioRuntime::new(1).block_on(async move { test().await });
        std::thread::spawn(test).join().expect("the test");
    }

    /// Sends a request in a task of its own.
    fn ask(links: &Links, class: MessageClass, body: Bytes) -> glommio::Task<io::Result<Bytes>> {
        let links = links.clone();
        reactor::spawn_local(async move { links.call(OTHER, class, body).await })
    }

    /// The next request that arrives; the links' tasks run meanwhile.
    async fn next(arrived: &mpsc::Receiver<Arrived>) -> Arrived {
        let until = env::now() + TIMEOUT;
        loop {
            match arrived.try_recv() {
                Ok(arrived) => return arrived,
                Err(_) => assert!(env::now() < until, "nothing arrives"),
            }
            GlommioRuntime::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn bulk_that_stands_still_delays_no_beat() {
        run(async || {
            let (links, arrived) = other_node();
            // After the first request the other node reads nothing more: the second fills all
            // buffers.
            let first = ask(&links, MessageClass::Bulk, Bytes::from_static(b"x"));
            next(&arrived).await;
            let stuck = ask(
                &links,
                MessageClass::Bulk,
                vec![b'x'; BULK_LEN_MAX - 1].into(),
            );
            for beat in 0..100_u8 {
                let body = Bytes::copy_from_slice(&[beat]);
                let beat = ask(&links, MessageClass::Control, body.clone());
                let mut met = next(&arrived).await;
                assert_eq!(met.request.body, body);
                met.answer();
                assert_eq!(beat.await.expect("an answer"), body);
            }
            let bulk = links.inner.link(OTHER, MessageClass::Bulk);
            assert_eq!(bulk.sent_len.get(), BULK_LEN_MAX, "it is on its way");
            first.cancel().await;
            stuck.cancel().await;
        });
    }

    #[test]
    fn bulk_has_a_budget_and_goes_in_order() {
        run(async || {
            let (links, arrived) = other_node();
            let len = BULK_LEN_MAX / 2;
            let mut pending: Vec<_> = (0..5_u8)
                .map(|number| ask(&links, MessageClass::Bulk, vec![number; len].into()))
                .collect();
            let mut met = Vec::new();
            for number in [0_u8, 1] {
                let next = next(&arrived).await;
                assert_eq!(next.request.body.first(), Some(&number));
                met.push(next);
            }
            let bulk = links.inner.link(OTHER, MessageClass::Bulk);
            assert_eq!(bulk.sent_len.get(), BULK_LEN_MAX);
            assert_eq!(bulk.queue_len.get(), len * 3, "the others wait");
            pending.remove(3).cancel().await;
            for number in [2, 4_u8] {
                met.remove(0).answer();
                let next = next(&arrived).await;
                assert_eq!(next.request.body.first(), Some(&number));
                met.push(next);
            }
            assert_eq!(bulk.queue_len.get(), 0);
            for pending in pending {
                pending.cancel().await;
            }
        });
    }

    #[test]
    fn a_queue_that_is_full_takes_nothing_more() {
        run(async || {
            let (links, arrived) = other_node();
            let first = ask(&links, MessageClass::Bulk, Bytes::from_static(b"x"));
            next(&arrived).await;
            let len = BULK_LEN_MAX;
            let more = QUEUE_LEN_MAX / len + 1;
            let pending: Vec<_> = (0..more)
                .map(|_| ask(&links, MessageClass::Bulk, vec![b'x'; len].into()))
                .collect();
            GlommioRuntime::sleep(Duration::from_millis(1)).await;
            let refused = links
                .call(OTHER, MessageClass::Bulk, vec![b'x'].into())
                .await;
            let refused = refused.expect_err("the queue is full");
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
            for pending in pending {
                pending.cancel().await;
            }
            first.cancel().await;
        });
    }
}
