//! One client's connection: frames in, replies out, in any order.
//!
//! Hot path: a get is answered while its frame is still in the receive buffer, straight into the
//! output; nothing is allocated for it. The replies of one turn go out in one send. Results that
//! come later wake the connection's task once, which then sends them together.
//!
//! Limits: requests in flight (further ones get a typed error); replies that the client does not
//! read (nothing more is read from it, and after a time it is disconnected); scans (one at a time);
//! and the memory of incomplete frames ([`super::input`]). A pass of the shard over its connections is
//! cut short when it has become long, so that clients who send much keep others waiting for little
//! longer: what they have sent waits in their own connections. A client whose frame makes no progress
//! is disconnected, too. One that sends nothing costs nothing but its memory. The task is a single
//! poll function that never waits inside a turn, so no borrow is held across a wait. Lives on its
//! shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use futures_util::io::{AsyncRead, AsyncWrite};
use rangedb_engine::boot_time::BootTime;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::Error;
use rangedb_engine::gateway::responder::{Responder, Response, Scanning};
use rangedb_engine::notify::Notify;
use rangedb_engine::types::Timestamp;
use rangedb_protocol::frame::{self, BadFrame, Frame};
use rangedb_protocol::limits::IN_FLIGHT_MAX;
use slab::Slab;

use crate::context::{AnsweredBy, ClientConnection, Context};
use crate::env::reactor::{self, TcpStream, spawn_local, yield_now};
use crate::env::{self, GlommioRuntime};
use crate::net::buffers::Output;
use crate::net::frames::{self, Decoded, FRAMES_TOGETHER, Malformed, SHORT_FRAME_LEN, Times};
use crate::net::input::{Added, Input, OwnBuffer, Taken};
use crate::net::refusal::Refusal;
use crate::net::reply::{self, Head};
use crate::net::tls::{Received, Stream};
use crate::operation::PendingRequest;

/// With this many bytes of unsent replies, nothing more is read from the client.
pub const UNSENT_LEN_PAUSE: usize = 1 << 20;
/// Most frames that are handled before other connections get a turn.
const FRAMES_PER_TURN: usize = 256;
/// A pass over all connections that is longer than this is cut short: each handles [`FRAMES_LATE`] short
/// frames, and the rest in the next pass. So many frames of many connections keep a short one that arrives
/// meanwhile waiting for little longer.
const PASS_MAX: Duration = Duration::from_micros(250);
/// How many frames a connection handles in a pass that is cut short.
const FRAMES_LATE: usize = 4;
/// How long after its arrival a frame that is not short waits for a later pass, if this one is cut short.
const LONG_FRAME_WAIT_MAX: Duration = Duration::from_millis(50);
/// How long, and how much, is read and discarded after a last reply, so that it arrives.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_LEN_MAX: usize = 1 << 20;
/// Most weight of the requests of one client that are forwarded to other shards or nodes. Its next
/// frame waits for room.
const FORWARDED_WEIGHT_MAX: usize = 64;

/// When a client should send a frame again that was refused for lack of memory, in milliseconds.
const RETRY_AFTER_MS: u32 = 100;

/// Why a connection's task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// All replies are sent, and the client has ended its side or the node is stopping.
    Done,
    /// The client broke the protocol, and its last reply is sent.
    LastWord,
    /// The connection broke, or the client takes no bytes.
    Broken,
}

/// The states of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    /// Frames are handled.
    Open,
    /// The client has ended its side; requests in flight are still answered.
    Ending,
    /// The client broke the protocol. No more frames are handled; the requests before the bad frame
    /// are still answered.
    Refused,
    /// The node is stopping: replies that are written are sent, and no others.
    Closing,
    /// The connection is over; no reply goes anywhere.
    Gone,
}

/// Handles one request of a client, whose frame may lie in the connection's own buffer. The reply goes to the
/// connection, at once or later. This module knows no requests: the accepting side passes the function that
/// handles frames.
pub type Handle = fn(
    &Rc<Context>,
    &Rc<Connection>,
    (Decoded<'_>, Option<OwnBuffer<'_>>),
    Times,
) -> Result<(), Malformed>;

/// A client's connection, after its handshake.
pub struct Connection {
    context: Rc<Context>,
    handle: Handle,
    smart: bool,
    stream: RefCell<Option<Stream>>,
    output: RefCell<Output>,
    pending: RefCell<Slab<PendingRequest>>,
    forwarded: Cell<usize>,
    /// Scans that wait for their turn, with the tokens of their requests.
    scans: RefCell<VecDeque<(u64, Scanning)>>,
    scanning: Cell<bool>,
    /// The client has taken enough for another reply, or is gone.
    room: Notify,
    state: Cell<ConnectionState>,
    /// Since when an incomplete frame has made no progress.
    unfinished_since: Cell<Option<BootTime>>,
    task: RefCell<Option<Waker>>,
    woken: Cell<bool>,
}

/// Serves a connection until it ends.
pub async fn serve(context: Rc<Context>, mut stream: Stream, smart: bool, handle: Handle) {
    let socket = stream.socket();
    socket.set_write_timeout(context.node.limits.write_timeout);
    socket.count_in(context.traffic.clone());
    let connection = Rc::new(Connection {
        context: context.clone(),
        handle,
        smart,
        stream: RefCell::new(Some(stream)),
        output: RefCell::default(),
        pending: RefCell::default(),
        forwarded: Cell::new(0),
        scans: RefCell::default(),
        scanning: Cell::new(false),
        room: Notify::default(),
        state: Cell::new(ConnectionState::Open),
        unfinished_since: Cell::new(None),
        task: RefCell::default(),
        woken: Cell::new(false),
    });
    let place = context.connections.borrow_mut().insert(connection.clone());
    let mut input = Input::default();
    let end = poll_fn(|cx| connection.turn(cx, &mut input)).await;
    context.connections.borrow_mut().remove(place);
    input.clear(&context.buffers);
    connection.follow(&mut Input::default());
    let socket = connection.leave().map(Stream::end);
    if let (Some(mut socket), End::LastWord) = (socket, end) {
        linger(&context, &mut socket).await;
    }
}

/// Lets a last reply arrive: closing a socket with unread bytes would reset the connection and drop
/// it.
pub async fn linger(context: &Context, stream: &mut TcpStream) {
    let discard = async {
        poll_fn(|cx| Pin::new(&mut *stream).poll_close(cx)).await?;
        let mut len = 0;
        while len < LINGER_LEN_MAX {
            let read = poll_fn(|cx| {
                let mut received = context.buffers.received.borrow_mut();
                Pin::new(&mut *stream).poll_read(cx, &mut received)
            });
            match read.await? {
                0 => break,
                more => len += more,
            }
        }
        Ok::<_, io::Error>(())
    };
    // It makes no difference whether the client stayed to read it.
    let _ = GlommioRuntime::timeout(LINGER_TIMEOUT, discard).await;
}

/// The result of one step of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing to do until the task is woken.
    Idle,
    /// Something was done.
    Worked,
    /// Something was done, and more is ready; other tasks get a turn first.
    Busy,
}

impl Connection {
    /// Handles frames, sends replies and receives bytes until nothing is left to do. Whatever
    /// becomes ready during the turn is handled in it.
    fn turn(self: &Rc<Self>, cx: &mut TaskContext<'_>, input: &mut Input) -> Poll<End> {
        self.keep_waker(cx.waker());
        self.woken.set(true);
        loop {
            let step = match self.take_in(cx, input) {
                Ok(step) => step,
                Err(_) => return Poll::Ready(End::Broken),
            };
            let paused = !self.may_take();
            if self.send_out(cx).is_err() {
                return Poll::Ready(End::Broken);
            }
            if let Some(end) = self.end(input) {
                return Poll::Ready(end);
            }
            match step {
                // Sending has made room, so the frames that were kept may go on.
                Step::Idle if paused && self.may_take() => {}
                Step::Idle => {
                    self.woken.set(false);
                    return Poll::Pending;
                }
                Step::Worked => {}
                Step::Busy => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    }

    fn keep_waker(&self, waker: &Waker) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    /// Wakes the task, once between two turns.
    fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(task) = self.task.borrow().as_ref()
        {
            task.wake_by_ref();
        }
    }

    /// Whether the client follows routes.
    pub fn is_smart(&self) -> bool {
        self.smart
    }

    /// Appends a reply's frame to the output.
    #[inline]
    pub fn send(&self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.state.get() == ConnectionState::Gone {
            return;
        }
        self.output
            .borrow_mut()
            .append(&self.context.buffers, write);
        self.wake();
    }

    /// Whether another frame may be handled now.
    fn may_take(&self) -> bool {
        matches!(
            self.state.get(),
            ConnectionState::Open | ConnectionState::Ending
        ) && self.output.borrow().unsent().len() < UNSENT_LEN_PAUSE
            && self.forwarded.get() < FORWARDED_WEIGHT_MAX
    }

    fn end(&self, input: &Input) -> Option<End> {
        let all_sent = self.output.borrow().unsent().is_empty();
        match self.state.get() {
            ConnectionState::Open => None,
            ConnectionState::Ending => {
                let all_said = all_sent && !input.more && self.pending.borrow().is_empty();
                all_said.then_some(End::Done)
            }
            ConnectionState::Refused => {
                let all_said = all_sent && self.pending.borrow().is_empty();
                all_said.then_some(End::LastWord)
            }
            ConnectionState::Closing => all_sent.then_some(End::Done),
            ConnectionState::Gone => Some(End::Broken),
        }
    }

    /// Handles frames that were kept; if there are none, receives.
    fn take_in(self: &Rc<Self>, cx: &mut TaskContext<'_>, input: &mut Input) -> io::Result<Step> {
        if !self.may_take() {
            return Ok(Step::Idle);
        }
        if input.more {
            self.take_kept(input);
            return Ok(if input.more { Step::Busy } else { Step::Worked });
        }
        if self.state.get() != ConnectionState::Open {
            return Ok(Step::Idle);
        }
        let mut received = self.context.buffers.received.borrow_mut();
        let Received { len, more } = match self.receive(cx, &mut received) {
            Poll::Pending => return Ok(Step::Idle),
            Poll::Ready(received) => received?,
        };
        // The client sends nothing more, but may wait for replies.
        if len == 0 {
            self.state.set(ConnectionState::Ending);
            return Ok(Step::Worked);
        }
        input.received = env::now();
        let mut bytes = input.skip(received.get(..len).unwrap_or_default());
        // Whole frames are handled where they lie in the shard's buffer; only the rest is copied.
        if input.is_empty() {
            let taken = self.take_frames(bytes, None, input.received);
            input.more = taken.more;
            bytes = bytes.get(taken.len..).unwrap_or_default();
        }
        if let Added::Refused(request) = input.add(&self.context.buffers, bytes) {
            let refusal = Refusal::from(no_room());
            self.send(|to| reply::refusal(&self.context, Head::of(request), &refusal, to));
        } else if !input.more && input.is_whole() {
            self.take_kept(input);
        }
        self.follow(input);
        Ok(if more || input.more {
            Step::Busy
        } else {
            Step::Worked
        })
    }

    /// Handles frames among the kept bytes.
    fn take_kept(self: &Rc<Self>, input: &mut Input) {
        let received = input.received;
        input.handle(&self.context.buffers, |bytes, own| {
            self.take_frames(bytes, own, received)
        });
        self.follow(input);
    }

    /// Tracks whether a frame is incomplete, and whether it makes progress.
    fn follow(&self, input: &mut Input) {
        if !input.is_unfinished() {
            if self.unfinished_since.take().is_some() {
                self.context.buffers.count_unfinished(-1);
            }
        } else if self.unfinished_since.get().is_none() || input.take_progress() {
            let before = self.unfinished_since.replace(Some(env::now()));
            if before.is_none() {
                self.context.buffers.count_unfinished(1);
            }
        }
    }

    fn receive(&self, cx: &mut TaskContext<'_>, to: &mut [u8]) -> Poll<io::Result<Received>> {
        match self.stream.borrow_mut().as_mut() {
            Some(stream) => stream.poll_receive(cx, to),
            None => Poll::Ready(Ok(Received::default())),
        }
    }

    /// Handles the whole frames at the start of `bytes`, which lie in the shard's buffer or in the
    /// connection's `own`.
    fn take_frames(
        self: &Rc<Self>,
        bytes: &[u8],
        own: Option<OwnBuffer<'_>>,
        received: BootTime,
    ) -> Taken {
        let times = Times {
            received,
            now: env::now(),
        };
        let mut rest = bytes;
        let may_wait = times.now - received < LONG_FRAME_WAIT_MAX;
        let mut handled = 0;
        while handled < FRAMES_PER_TURN && self.may_take() {
            let is_late = reactor::pass_has_taken(env::now()) > PASS_MAX;
            if is_late && handled > 0 {
                break;
            }
            let first = match frame::decode(rest) {
                Ok(Some(first)) => first,
                Ok(None) => {
                    return Taken {
                        len: bytes.len() - rest.len(),
                        more: false,
                    };
                }
                Err(bad) => {
                    self.refuse(request_of(&bad), Refusal::from(bad));
                    break;
                }
            };
            if first.len > SHORT_FRAME_LEN && may_wait && is_late {
                break;
            }
            let count_max = if is_late {
                FRAMES_LATE
            } else {
                FRAMES_TOGETHER
            };
            let together = frames::gather(first, rest, count_max);
            frames::prepare(&self.context, &together);
            for decoded in together {
                if !self.may_take() {
                    break;
                }
                let Frame { id, len, .. } = decoded.frame;
                rest = rest.get(len..).unwrap_or_default();
                handled += 1;
                if (self.handle)(&self.context, self, (decoded, own), times).is_err() {
                    self.refuse(Some(id), Refusal::malformed());
                }
            }
        }
        Taken {
            len: bytes.len() - rest.len(),
            more: !rest.is_empty(),
        }
    }

    /// Tells a client that it broke the protocol, if its request is known. The requests before are
    /// still answered, then the connection ends.
    fn refuse(&self, request: Option<u64>, refusal: Refusal) {
        if let Some(request) = request {
            self.send(|to| reply::refusal(&self.context, Head::of(request), &refusal, to));
        }
        self.state.set(ConnectionState::Refused);
    }

    /// Sends unsent bytes as far as the client takes them.
    fn send_out(&self, cx: &mut TaskContext<'_>) -> io::Result<()> {
        let mut output = self.output.borrow_mut();
        let mut stream = self.stream.borrow_mut();
        let Some(stream) = stream.as_mut() else {
            return Ok(());
        };
        while !output.unsent().is_empty() {
            match stream.poll_send(cx, output.unsent()) {
                Poll::Pending => break,
                Poll::Ready(sent) => output.advance(&self.context.buffers, sent?),
            }
        }
        if output.unsent().len() < UNSENT_LEN_PAUSE {
            self.room.notify();
        }
        Ok(())
    }

    /// Waits until the client has taken enough for another reply.
    async fn wait_for_room(&self) {
        let has_room = || {
            let unsent = self.output.borrow().unsent().len();
            unsent < UNSENT_LEN_PAUSE || self.state.get() == ConnectionState::Gone
        };
        self.room.until(has_room).await;
    }

    /// Runs scans one after the other, so that at most one reply waits in memory beyond what the
    /// client has not read.
    async fn run_scans(self: Rc<Self>) {
        loop {
            let Some((_, scanning)) = self.scans.borrow_mut().pop_front() else {
                break;
            };
            self.wait_for_room().await;
            // Other connections that have sent something get their turns first. So the scans of a pass run one
            // after the other, and their replies go out together: a client is woken once for all of them.
            yield_now().await;
            scanning.await;
        }
        self.scanning.set(false);
    }

    /// Ends the connection here: requests in flight get no reply. Returns the socket.
    fn leave(&self) -> Option<Stream> {
        self.state.set(ConnectionState::Gone);
        self.output.borrow_mut().clear(&self.context.buffers);
        self.task.borrow_mut().take();
        self.room.notify();
        for (token, _) in self.scans.borrow_mut().drain(..) {
            self.release(token);
        }
        self.stream.borrow_mut().take()
    }
}

/// The request id of a bad frame, if it can be read.
fn request_of(bad: &BadFrame) -> Option<u64> {
    match bad {
        BadFrame::TooLarge { id, .. } => *id,
        BadFrame::TooShort(_) => None,
    }
}

/// The error for a frame for which there is no memory.
fn no_room() -> Error {
    Error::overloaded("too many long requests are on their way", RETRY_AFTER_MS)
}

impl ClientConnection for Connection {
    /// An incomplete record of TLS counts as an incomplete frame.
    fn is_stalled(&self, now: BootTime) -> bool {
        let mut stream = self.stream.borrow_mut();
        let of_frame = self.unfinished_since.get();
        let of_record = stream.as_ref().and_then(Stream::unfinished_since);
        let Some(since) = of_frame.into_iter().chain(of_record).min() else {
            return false;
        };
        if !self.may_take() {
            self.unfinished_since.set(of_frame.map(|_| now));
            if let Some(stream) = stream.as_mut() {
                stream.excuse(now);
            }
            return false;
        }
        now > since + self.context.node.limits.frame_timeout
    }

    fn close(&self) {
        if self.state.get() != ConnectionState::Gone {
            self.state.set(ConnectionState::Closing);
        }
        self.wake();
    }
}

impl Responder for Connection {
    type Ticket = PendingRequest;
    type Refusal = Refusal;

    #[inline]
    fn answer(
        &self,
        pending: &PendingRequest,
        now: Option<Timestamp>,
        response: Result<Response<'_>, Error>,
    ) {
        let (context, request) = (&self.context, pending.request);
        self.send(|to| match response {
            Ok(Response::Value(found)) => reply::value(context, (pending, now), found, to),
            Ok(Response::Written(outcome)) => reply::outcome(context, (pending, now), &outcome, to),
            Ok(Response::Rows(rows)) => reply::rows(context, (pending, now), rows, to),
            Ok(Response::Values(values)) => reply::values(context, (pending, now), values, to),
            Err(error) => {
                context.failed(pending, AnsweredBy::of(now), &error);
                reply::refusal(context, Head { request, now }, &error.into(), to);
            }
        });
    }

    fn hold(&self, pending: PendingRequest) -> Result<u64, Refusal> {
        let mut waiting = self.pending.borrow_mut();
        if waiting.len() >= IN_FLIGHT_MAX {
            return Err(Refusal::too_many_in_flight());
        }
        self.context.gateway.begin();
        Ok(waiting.insert(pending) as u64)
    }

    fn release(&self, token: u64) -> Option<PendingRequest> {
        let pending = self.pending.borrow_mut().try_remove(token as usize)?;
        self.context.gateway.end();
        self.wake();
        Some(pending)
    }

    fn scan(self: &Rc<Self>, token: u64, scanning: Scanning) {
        self.scans.borrow_mut().push_back((token, scanning));
        if !self.scanning.replace(true) {
            spawn_local(self.clone().run_scans()).detach();
        }
    }

    fn departed(&self, pending: &PendingRequest) {
        let weight = self.forwarded.get() + pending.operation.weight();
        self.forwarded.set(weight);
    }

    fn returned(&self, pending: &PendingRequest) {
        let weight = self.forwarded.get() - pending.operation.weight();
        self.forwarded.set(weight);
    }
}
