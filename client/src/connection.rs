//! A pipelined connection to one shard.
//!
//! A single request is sent by its caller, unless the connection is encrypted. Requests of several callers
//! are encoded into one buffer, and a task sends them together. A second task receives, and cuts replies
//! out of the received bytes without copying. A third checks for requests past their deadline. The number
//! of a request is used again only after its reply has come.
//!
//! A caller can ask to be notified while its request goes unanswered. It then keeps waiting, and may ask
//! another node meanwhile. When one of the tasks ends, for whatever reason, the connection is broken, and
//! every waiting caller gets an error.
//!
//! A peer that vanished without closing the connection is noticed in two ways: a request is overdue by
//! [`SILENCE_TIMEOUT`] and nothing was received for as long; or, on an idle connection, the kernel's
//! keepalive fails.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rangedb_protocol::limits::{FRAME_LEN_MAX, IN_FLIGHT_MAX};
use rangedb_protocol::{FlatBufferBuilder, Request, frame};
use slab::Slab;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_rustls::client::TlsStream;

use crate::core::Lost;
use crate::error::Reason;
use crate::tls::{self, Reader, Socket, Stream};

/// Most bytes of one read.
const RECEIVE_LEN: usize = 64 << 10;
/// Most bytes of encoded requests that wait to be sent; beyond that, callers wait.
const OUTPUT_LEN_MAX: usize = 2 * FRAME_LEN_MAX;
/// An empty output buffer keeps at most this capacity.
const OUTPUT_LEN_KEPT: usize = 4 * RECEIVE_LEN;
/// A connection that leaves a request unanswered and is silent for this long is broken.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often requests are checked for their deadlines.
const DEADLINE_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A reply's frame.
pub struct ReplyFrame {
    /// The kind of the reply, which names its table.
    pub kind: u16,
    /// The table's bytes.
    pub body: Bytes,
}

/// How long a caller waits for a reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyWait {
    /// When it gives up.
    pub deadline: Instant,
    /// How often it is notified that there is no reply yet.
    pub notify_every: Option<Duration>,
}

/// What a caller receives for its request.
enum Delivery {
    Reply(ReplyFrame),
    Lost(Lost),
    /// There is no reply yet; further news comes through this receiver.
    Silence(oneshot::Receiver<Delivery>),
}

struct Waiting {
    /// `None`: no caller waits any more.
    caller: Option<oneshot::Sender<Delivery>>,
    wait: ReplyWait,
    /// When the caller is next notified that there is no reply yet.
    notify_at: Option<Instant>,
}

impl Waiting {
    /// The message that is due for the caller, and its channel.
    fn look(&mut self, now: Instant) -> Option<(oneshot::Sender<Delivery>, Delivery)> {
        if self.wait.deadline <= now {
            return Some((self.caller.take()?, Delivery::Lost(Lost::Late)));
        }
        if self.notify_at? > now {
            return None;
        }
        self.notify_at = self.wait.notify_every.map(|every| now + every);
        let (caller, later) = oneshot::channel();
        let notified = self.caller.replace(caller)?;
        Some((notified, Delivery::Silence(later)))
    }
}

/// News of a request.
pub enum News {
    /// The reply, or why there is none.
    Ended(Result<ReplyFrame, Lost>),
    /// There is no reply yet; it may still come.
    Silence,
}

/// A request that was sent.
pub struct Sent(oneshot::Receiver<Delivery>);

impl Sent {
    /// Waits for news. Dropping this future loses nothing.
    pub async fn news(&mut self) -> News {
        match (&mut self.0).await {
            Ok(Delivery::Reply(frame)) => News::Ended(Ok(frame)),
            Ok(Delivery::Lost(lost)) => News::Ended(Err(lost)),
            Ok(Delivery::Silence(later)) => {
                self.0 = later;
                News::Silence
            }
            Err(_) => News::Ended(Err(Lost::Broken("the connection ended".into()))),
        }
    }
}

struct ConnectionState {
    output: Vec<u8>,
    /// Whether the sending task has bytes that go before `output`.
    sending: bool,
    builder: FlatBufferBuilder<'static>,
    waiting: Slab<Waiting>,
    /// When bytes were last received.
    received: Instant,
    /// Why the connection broke.
    broken: Option<Reason>,
}

struct Shared {
    /// The id of the node at the other end.
    node: u64,
    state: Mutex<ConnectionState>,
    writer: Arc<OwnedWriteHalf>,
    /// Whether all bytes go through TLS, which the sending task has.
    is_encrypted: bool,
    to_send: Notify,
    /// Wakes callers that wait for room in the output.
    sent: Notify,
    room: Semaphore,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: every waiting caller gets an error.
    fn break_off(&self, reason: impl Into<Reason>) {
        let reason = reason.into();
        let waiting = {
            let mut state = self.lock();
            if state.broken.is_some() {
                return;
            }
            state.broken = Some(reason.clone());
            std::mem::take(&mut state.waiting)
        };
        tracing::debug!(node = self.node, %reason, "a connection ended");
        self.room.close();
        // This ends the receiving task, too. It fails if the socket is closed already, which is
        // fine.
        let _ = SockRef::from((*self.writer).as_ref()).shutdown(Shutdown::Both);
        self.sent.notify_waiters();
        self.to_send.notify_one();
        for (_, waiting) in waiting {
            if let Some(caller) = waiting.caller {
                // The caller may have gone.
                let _ = caller.send(Delivery::Lost(Lost::Broken(reason.clone())));
            }
        }
    }
}

/// Breaks the connection when a task that holds this ends, even if that is because its runtime
/// ends.
struct TaskOf(Arc<Shared>);

impl Drop for TaskOf {
    fn drop(&mut self) {
        self.0.break_off("the connection's task ended");
    }
}

/// A connection to one shard; dropping it ends it.
pub struct Connection {
    shared: Arc<Shared>,
}

impl Connection {
    /// A connection over a stream on which node `node` has accepted the handshake.
    pub fn start(stream: Stream, node: u64) -> Connection {
        let Stream { writer, reader } = stream;
        let shared = Arc::new(Shared {
            node,
            state: Mutex::new(ConnectionState {
                output: Vec::new(),
                sending: false,
                builder: FlatBufferBuilder::new(),
                waiting: Slab::new(),
                received: Instant::now(),
                broken: None,
            }),
            writer,
            is_encrypted: matches!(reader, Reader::Tls(_)),
            to_send: Notify::new(),
            sent: Notify::new(),
            room: Semaphore::new(IN_FLIGHT_MAX),
        });
        let (sender, receiver) = (TaskOf(shared.clone()), TaskOf(shared.clone()));
        match reader {
            Reader::Plain(reader) => {
                tokio::spawn(send_all(sender, None));
                tokio::spawn(receive_all(receiver, reader));
            }
            Reader::Tls(encrypted) => {
                let (reader, writer) = tokio::io::split(*encrypted);
                tokio::spawn(send_all(sender, Some(writer)));
                tokio::spawn(receive_all(receiver, reader));
            }
        }
        tokio::spawn(watch_deadlines(TaskOf(shared.clone())));
        Connection { shared }
    }

    /// The id of the node at the other end.
    pub fn node(&self) -> u64 {
        self.shared.node
    }

    /// Whether the connection has ended.
    pub fn is_broken(&self) -> bool {
        self.shared.lock().broken.is_some()
    }

    /// Sends a request and waits for its reply until the deadline.
    ///
    /// # Errors
    /// There is no reply; see [`Lost`].
    pub async fn call(&self, request: &Request<'_>, deadline: Instant) -> Result<ReplyFrame, Lost> {
        let wait = ReplyWait {
            deadline,
            notify_every: None,
        };
        let mut sent = self.send(request, wait).await?;
        loop {
            if let News::Ended(result) = sent.news().await {
                return result;
            }
        }
    }

    /// Sends a request; its reply is awaited with [`Sent::news`].
    ///
    /// # Errors
    /// It could not be sent in time; see [`Lost`].
    pub async fn send(&self, request: &Request<'_>, wait: ReplyWait) -> Result<Sent, Lost> {
        let deadline = wait.deadline;
        let permit = match self.shared.room.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let room = self.shared.room.acquire();
                match tokio::time::timeout_at(deadline.into(), room).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(Lost::NotSent("the connection broke".into())),
                    Err(_) => return Err(Lost::NotSent("too many requests are in flight".into())),
                }
            }
        };
        let (caller, reply) = oneshot::channel();
        loop {
            let sent = {
                let mut state = self.shared.lock();
                if let Some(reason) = &state.broken {
                    return Err(Lost::NotSent(reason.clone()));
                }
                if state.output.len() < OUTPUT_LEN_MAX {
                    let id = state.waiting.insert(Waiting {
                        caller: Some(caller),
                        wait,
                        notify_at: wait.notify_every.map(|every| Instant::now() + every),
                    });
                    self.put_out(&mut state, id as u64, request);
                    break;
                }
                self.shared.sent.notified()
            };
            if tokio::time::timeout_at(deadline.into(), sent)
                .await
                .is_err()
            {
                return Err(Lost::NotSent("the server accepts no more bytes".into()));
            }
        }
        // The receiving task returns the permit with the reply.
        permit.forget();
        Ok(Sent(reply))
    }

    /// Sends a request at once if it is alone, otherwise leaves it to the sending task.
    fn put_out(&self, state: &mut ConnectionState, id: u64, request: &Request<'_>) {
        let was_empty = state.output.is_empty();
        request.encode(id, &mut state.builder, &mut state.output);
        if !was_empty {
            return;
        }
        if state.waiting.len() == 1 && !state.sending && !self.shared.is_encrypted {
            // If this fails, the task's write fails, too, and breaks the connection.
            let sent = self.shared.writer.try_write(&state.output).unwrap_or(0);
            state.output.drain(..sent);
            state.output.shrink_to(OUTPUT_LEN_KEPT);
        }
        if !state.output.is_empty() {
            self.shared.to_send.notify_one();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.break_off("the client was closed");
    }
}

async fn send_all(task: TaskOf, mut encrypted: Option<WriteHalf<TlsStream<Socket>>>) {
    let shared = &task.0;
    let mut sending = Vec::new();
    loop {
        {
            let mut state = shared.lock();
            if state.broken.is_some() {
                return;
            }
            std::mem::swap(&mut state.output, &mut sending);
            state.sending = !sending.is_empty();
        }
        if sending.len() >= OUTPUT_LEN_MAX {
            shared.sent.notify_waiters();
        }
        if sending.is_empty() {
            shared.to_send.notified().await;
            // Callers that are ready now can join this write.
            tokio::task::yield_now().await;
            continue;
        }
        let written = match &mut encrypted {
            None => write_all(&shared.writer, &sending).await,
            Some(writer) => write_encrypted(writer, &sending).await,
        };
        if let Err(error) = written {
            return shared.break_off(tls::worded(error));
        }
        sending.clear();
        sending.shrink_to(OUTPUT_LEN_KEPT);
    }
}

async fn write_all(writer: &OwnedWriteHalf, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match writer.try_write(bytes) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => writer.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn write_encrypted(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

async fn receive_all(task: TaskOf, reader: impl AsyncRead + Unpin) {
    let reason = receive(&task.0, reader).await;
    task.0.break_off(reason);
}

/// Receives until the connection breaks; returns the reason.
async fn receive(shared: &Shared, mut reader: impl AsyncRead + Unpin) -> Reason {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(RECEIVE_LEN.max(frame::expected_len(&buffer).saturating_sub(buffer.len())));
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return "the server closed the connection".into(),
            Ok(_) => {}
            Err(error) => return tls::worded(error),
        }
        shared.lock().received = Instant::now();
        loop {
            let (id, kind, len) = match frame::decode(&buffer) {
                Ok(Some(found)) => (found.id, found.kind, found.len),
                Ok(None) => break,
                Err(bad) => return bad.to_string().into(),
            };
            let mut bytes = buffer.split_to(len).freeze();
            let body = bytes.split_off(frame::HEADER_LEN);
            let waiting = shared.lock().waiting.try_remove(id as usize);
            let Some(waiting) = waiting else {
                return format!("the server answered request {id}, which was not sent").into();
            };
            shared.room.add_permits(1);
            if let Some(caller) = waiting.caller {
                // The caller may have gone.
                let _ = caller.send(Delivery::Reply(ReplyFrame { kind, body }));
            }
        }
    }
}

async fn watch_deadlines(task: TaskOf) {
    let shared = &task.0;
    let mut ticks = tokio::time::interval(DEADLINE_CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        let mut notified = Vec::new();
        let silent = {
            let mut state = shared.lock();
            if state.broken.is_some() {
                return;
            }
            let now = Instant::now();
            for (_, waiting) in &mut state.waiting {
                notified.extend(waiting.look(now));
            }
            now.saturating_duration_since(state.received) > SILENCE_TIMEOUT
                && (state.waiting.iter())
                    .any(|(_, waiting)| waiting.wait.deadline + SILENCE_TIMEOUT <= now)
        };
        for (caller, heard) in notified {
            // The caller may have gone.
            let _ = caller.send(heard);
        }
        if silent {
            return shared.break_off("the server is silent");
        }
    }
}
