//! One pipelined connection to one shard.
//!
//! A request that is alone is sent by its caller. Those of several callers are encoded into one
//! buffer and sent together by a task; replies are cut from what another task receives, without
//! copying. A third looks for requests whose time is up. A request's number is used again only after
//! its reply has come. A caller may ask to hear when its request goes unanswered for a while: it waits
//! on, and can look elsewhere meanwhile. When one of the tasks ends, for whatever reason, the
//! connection is broken, and every waiting caller gets an error.
//!
//! A peer that has vanished without a word is noticed when a request is overdue by [`SILENT`] and
//! nothing at all was received for as long, and by the kernel's own questions while nothing is asked.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rangedb_protocol::limits::{FRAME_LEN_MAX, IN_FLIGHT_MAX};
use rangedb_protocol::{FlatBufferBuilder, Request, frame};
use slab::Slab;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, oneshot};

/// Received bytes are taken in pieces of up to this size.
const RECEIVE_LEN: usize = 64 << 10;
/// Encoded requests that wait to be sent are held to this many bytes; further callers wait.
const OUTPUT_LEN_MAX: usize = 2 * FRAME_LEN_MAX;
/// An empty output keeps room for this many bytes.
const OUTPUT_LEN_KEPT: usize = 4 * RECEIVE_LEN;
/// A connection that leaves a request unanswered and is silent for so long is broken.
const SILENT: Duration = Duration::from_secs(2);
/// How often requests are looked through for those whose time is up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A reply's frame.
pub struct ReplyFrame {
    /// Which table it is.
    pub kind: u16,
    /// The table.
    pub body: Bytes,
}

/// Why a request has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Its time was up.
    #[error("no reply came within the time given")]
    Late,
    /// The connection broke after it may have been sent.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// It was not sent.
    #[error("{0}")]
    NotSent(String),
}

/// How long a caller waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// When it gives up.
    pub deadline: Instant,
    /// After how long it wants to hear that there is no reply yet, again and again.
    pub told_every: Option<Duration>,
}

/// What a caller hears of its request.
enum Heard {
    Reply(ReplyFrame),
    Lost(Lost),
    /// No reply yet; it is heard of here.
    Silence(oneshot::Receiver<Heard>),
}

struct Waiting {
    /// `None`: nobody waits any more.
    caller: Option<oneshot::Sender<Heard>>,
    patience: Patience,
    /// The time at which the caller learns that there is no reply yet.
    tell_at: Option<Instant>,
}

impl Waiting {
    /// What the caller is to hear now.
    fn look(&mut self, now: Instant) -> Option<(oneshot::Sender<Heard>, Heard)> {
        if self.patience.deadline <= now {
            return Some((self.caller.take()?, Heard::Lost(Lost::Late)));
        }
        if self.tell_at? > now {
            return None;
        }
        self.tell_at = self.patience.told_every.map(|every| now + every);
        let (caller, later) = oneshot::channel();
        let told = self.caller.replace(caller)?;
        Some((told, Heard::Silence(later)))
    }
}

/// What became of a request.
pub enum News {
    /// It is over.
    Ended(Result<ReplyFrame, Lost>),
    /// There is no reply yet; there may be one.
    Silence,
}

/// A request that was sent.
pub struct Sent(oneshot::Receiver<Heard>);

impl Sent {
    /// Waits for news. Nothing is lost when this future is dropped.
    pub async fn news(&mut self) -> News {
        match (&mut self.0).await {
            Ok(Heard::Reply(frame)) => News::Ended(Ok(frame)),
            Ok(Heard::Lost(lost)) => News::Ended(Err(lost)),
            Ok(Heard::Silence(later)) => {
                self.0 = later;
                News::Silence
            }
            Err(_) => News::Ended(Err(Lost::Broken("the connection ended".to_owned()))),
        }
    }
}

struct State {
    output: Vec<u8>,
    /// Whether the sending task has bytes that go before `output`.
    sending: bool,
    builder: FlatBufferBuilder<'static>,
    waiting: Slab<Waiting>,
    /// When something was received last.
    received: Instant,
    /// Why it broke.
    broken: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    writer: OwnedWriteHalf,
    to_send: Notify,
    /// Callers that wait for room in the output look again.
    sent: Notify,
    room: Semaphore,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: every waiting caller gets an error.
    fn break_off(&self, reason: &str) {
        let waiting = {
            let mut state = self.lock();
            if state.broken.is_some() {
                return;
            }
            state.broken = Some(reason.to_owned());
            std::mem::take(&mut state.waiting)
        };
        self.room.close();
        // Ends the receiving task, too. A socket that is ended already is just that.
        let _ = SockRef::from(self.writer.as_ref()).shutdown(Shutdown::Both);
        self.sent.notify_waiters();
        self.to_send.notify_one();
        for (_, waiting) in waiting {
            if let Some(caller) = waiting.caller {
                // A caller that has gone needs no answer.
                let _ = caller.send(Heard::Lost(Lost::Broken(reason.to_owned())));
            }
        }
    }
}

/// Breaks the connection off when the task that holds it ends, also if its runtime does.
struct TaskOf(Arc<Shared>);

impl Drop for TaskOf {
    fn drop(&mut self) {
        self.0.break_off("the connection's task ended");
    }
}

/// A connection; it ends when this is dropped.
pub struct Connection {
    shared: Arc<Shared>,
    node: u64,
}

impl Connection {
    /// A connection over a stream on which the node of this id has accepted the preamble.
    pub fn start(stream: TcpStream, node: u64) -> Connection {
        let (reader, writer) = stream.into_split();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                output: Vec::new(),
                sending: false,
                builder: FlatBufferBuilder::new(),
                waiting: Slab::new(),
                received: Instant::now(),
                broken: None,
            }),
            writer,
            to_send: Notify::new(),
            sent: Notify::new(),
            room: Semaphore::new(IN_FLIGHT_MAX),
        });
        tokio::spawn(send_all(TaskOf(shared.clone())));
        tokio::spawn(receive_all(TaskOf(shared.clone()), reader));
        tokio::spawn(watch_deadlines(TaskOf(shared.clone())));
        Connection { shared, node }
    }

    /// The id of the node at the other end.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// Whether it has ended.
    pub fn is_broken(&self) -> bool {
        self.shared.lock().broken.is_some()
    }

    /// Sends a request and waits for its reply until the deadline.
    ///
    /// # Errors
    /// There is none; see [`Lost`].
    pub async fn call(&self, request: &Request<'_>, deadline: Instant) -> Result<ReplyFrame, Lost> {
        let patience = Patience {
            deadline,
            told_every: None,
        };
        let mut sent = self.send(request, patience).await?;
        loop {
            if let News::Ended(result) = sent.news().await {
                return result;
            }
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// It could not be sent in time; see [`Lost`].
    pub async fn send(&self, request: &Request<'_>, patience: Patience) -> Result<Sent, Lost> {
        let deadline = patience.deadline;
        let permit = match self.shared.room.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let room = self.shared.room.acquire();
                match tokio::time::timeout_at(deadline.into(), room).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(Lost::NotSent("the connection broke".to_owned())),
                    Err(_) => return Err(Lost::NotSent("no room in flight".to_owned())),
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
                        patience,
                        tell_at: patience.told_every.map(|every| Instant::now() + every),
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
                return Err(Lost::NotSent("the server takes no more".to_owned()));
            }
        }
        // The permit comes back with the reply.
        permit.forget();
        Ok(Sent(reply))
    }

    /// Sends a request, or leaves it to the sending task.
    fn put_out(&self, state: &mut State, id: u64, request: &Request<'_>) {
        let was_empty = state.output.is_empty();
        request.encode(id, &mut state.builder, &mut state.output);
        if !was_empty {
            return;
        }
        if state.waiting.len() == 1 && !state.sending {
            // What fails here fails in the task again, which breaks the connection off.
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

async fn send_all(task: TaskOf) {
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
            // Callers that are ready now go along.
            tokio::task::yield_now().await;
            continue;
        }
        if let Err(error) = write_all(&shared.writer, &sending).await {
            return shared.break_off(&error.to_string());
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

async fn receive_all(task: TaskOf, reader: OwnedReadHalf) {
    let reason = receive(&task.0, reader).await;
    task.0.break_off(&reason);
}

/// Receives until the connection breaks; says why it did.
async fn receive(shared: &Shared, mut reader: OwnedReadHalf) -> String {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(RECEIVE_LEN.max(frame::expected_len(&buffer).saturating_sub(buffer.len())));
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return "the server closed the connection".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
        shared.lock().received = Instant::now();
        loop {
            let (id, kind, len) = match frame::decode(&buffer) {
                Ok(Some(found)) => (found.id, found.kind, found.len),
                Ok(None) => break,
                Err(bad) => return bad.to_string(),
            };
            let mut bytes = buffer.split_to(len).freeze();
            let body = bytes.split_off(frame::HEADER_LEN);
            let waiting = shared.lock().waiting.try_remove(id as usize);
            let Some(waiting) = waiting else {
                return format!("the server answered a request {id} that was not asked");
            };
            shared.room.add_permits(1);
            if let Some(caller) = waiting.caller {
                // A caller that has gone needs no answer.
                let _ = caller.send(Heard::Reply(ReplyFrame { kind, body }));
            }
        }
    }
}

async fn watch_deadlines(task: TaskOf) {
    let shared = &task.0;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let mut told = Vec::new();
        let silent = {
            let mut state = shared.lock();
            if state.broken.is_some() {
                return;
            }
            let now = Instant::now();
            for (_, waiting) in &mut state.waiting {
                told.extend(waiting.look(now));
            }
            now.saturating_duration_since(state.received) > SILENT
                && (state.waiting.iter())
                    .any(|(_, waiting)| waiting.patience.deadline + SILENT <= now)
        };
        for (caller, heard) in told {
            // A caller that has gone needs no answer.
            let _ = caller.send(heard);
        }
        if silent {
            return shared.break_off("the server is silent");
        }
    }
}
