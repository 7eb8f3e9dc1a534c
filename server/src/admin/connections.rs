//! The limits on connections to the admin pages: how many there are, and how long each may be silent.
//!
//! When all slots are taken, a new connection replaces the one that has been idle for the longest time, but
//! waits until that one has had [`FIRST_BYTE_GRACE`] to send its first request. If none is idle, it gets one
//! of a few slots for probes: there it may ask only whether the node lives and is ready. So idle clients keep
//! nobody out, and slow users of the API keep no orchestrator from its answer.
//!
//! A connection without a request is closed after [`IDLE_TIMEOUT`]. One with a request under way, up
//! to the last byte of the response, never is, unless its client has stopped taking part: a head must
//! arrive within [`HEAD_TIMEOUT`], and a response must move within [`STALL_TIMEOUT`]. How long a body
//! may take, `body` says.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Slots that only probes use.
const PROBES_MAX: usize = 4;
/// A connection on which the rest of a head is awaited may be replaced if its last bytes came longer ago
/// than this. One without a request may be replaced at any time.
const REPLACED_AFTER: Duration = Duration::from_secs(1);
/// A connection on which nothing has come yet keeps its slot for this long. Otherwise a crowd of silent clients
/// would close it between the two system calls by which a busy client connects and sends a request.
const FIRST_BYTE_GRACE: Duration = Duration::from_millis(200);
/// A connection without a request is closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// The time from the first to the last byte of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A response of which the client takes nothing for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection is looked at while a request is being answered.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The value of `head_since` while no head is arriving.
const NO_HEAD: u64 = u64::MAX;

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No request came.
    Idle,
    /// A part of a request's head came, and the rest did not.
    Head,
    /// The client takes no more of the response.
    Stalled,
}

/// A connection's state, which its stream and its service write.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Progress>);

/// Times are milliseconds after `begun`.
#[derive(Debug)]
struct Progress {
    begun: Instant,
    /// When bytes last moved, or an answer was last ready.
    moved: AtomicU64,
    /// When the first byte of a head came, or [`NO_HEAD`].
    head_since: AtomicU64,
    /// Whether no byte has come yet.
    is_new: AtomicBool,
    /// Whether all bytes that came were read, and more are awaited.
    is_read: AtomicBool,
    /// Whether a request is being answered.
    is_busy: AtomicBool,
    /// Whether the answer is a stream that goes on.
    is_streaming: AtomicBool,
    /// Whether the network has not taken all of a response.
    is_unsent: AtomicBool,
}

impl Activity {
    /// The state of a new connection, which is not idle yet.
    pub fn new() -> Activity {
        Activity(Arc::new(Progress {
            begun: Instant::now(),
            moved: AtomicU64::new(0),
            head_since: AtomicU64::new(NO_HEAD),
            is_new: AtomicBool::new(true),
            is_read: AtomicBool::new(false),
            is_busy: AtomicBool::new(false),
            is_streaming: AtomicBool::new(false),
            is_unsent: AtomicBool::new(false),
        }))
    }

    fn millis(&self) -> u64 {
        self.0.begun.elapsed().as_millis() as u64
    }

    fn moved(&self) {
        self.0.moved.store(self.millis(), Ordering::Relaxed);
    }

    /// Notes that bytes of a request came.
    fn received(&self) {
        self.moved();
        self.0.is_new.store(false, Ordering::Relaxed);
        let no_head = self.0.head_since.load(Ordering::Relaxed) == NO_HEAD;
        if no_head && !self.0.is_busy.load(Ordering::Relaxed) {
            self.0.head_since.store(self.millis(), Ordering::Relaxed);
        }
    }

    /// Marks the connection as busy while `work` runs.
    pub async fn busy_with<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.head_since.store(NO_HEAD, Ordering::Relaxed);
        self.0.is_busy.store(true, Ordering::Relaxed);
        let done = work.await;
        self.moved();
        self.0.is_busy.store(false, Ordering::Relaxed);
        done
    }

    /// Marks the connection as one with a request under way until the stream is dropped.
    pub fn streaming(&self) -> Streaming {
        self.0.is_streaming.store(true, Ordering::Relaxed);
        Streaming(self.clone())
    }

    /// When the connection is to be closed if nothing moves until then, as a time after its begin, and
    /// why; `None` while a request is being answered.
    fn due(&self) -> Option<(Duration, End)> {
        if self.0.is_busy.load(Ordering::Relaxed) {
            return None;
        }
        let moved = Duration::from_millis(self.0.moved.load(Ordering::Relaxed));
        if self.0.is_unsent.load(Ordering::Relaxed) {
            return Some((moved + STALL_TIMEOUT, End::Stalled));
        }
        if self.0.is_streaming.load(Ordering::Relaxed) {
            return None;
        }
        Some(match self.0.head_since.load(Ordering::Relaxed) {
            NO_HEAD => (moved + IDLE_TIMEOUT, End::Idle),
            since => (Duration::from_millis(since) + HEAD_TIMEOUT, End::Head),
        })
    }

    /// Waits until the connection is to be closed.
    pub async fn over(&self) -> End {
        loop {
            let pause = match self.due() {
                None => LOOK_INTERVAL,
                Some((at, end)) => match at.checked_sub(self.0.begun.elapsed()) {
                    None | Some(Duration::ZERO) => return end,
                    Some(left) => left,
                },
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// How long nothing has moved, if the connection may be replaced. A connection of which it is not known
    /// whether a request has come already may not.
    fn idle_for(&self) -> Option<Duration> {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let is_at_work = is(&self.0.is_busy) || is(&self.0.is_unsent) || is(&self.0.is_streaming);
        let moved = Duration::from_millis(self.0.moved.load(Ordering::Relaxed));
        let idle_for = self.0.begun.elapsed().saturating_sub(moved);
        let is_in_a_head = self.0.head_since.load(Ordering::Relaxed) != NO_HEAD;
        let is_idle = is(&self.0.is_read) && !is_at_work;
        (is_idle && (!is_in_a_head || idle_for >= REPLACED_AFTER)).then_some(idle_for)
    }

    /// How much longer the connection keeps its slot if it has been idle for this long.
    fn grace_left(&self, idle_for: Duration) -> Duration {
        let is_new = self.0.is_new.load(Ordering::Relaxed);
        let grace = if is_new {
            FIRST_BYTE_GRACE
        } else {
            Duration::ZERO
        };
        grace.saturating_sub(idle_for)
    }
}

/// The answer of a connection goes on for as long as this lives.
#[derive(Debug)]
pub struct Streaming(Activity);

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.moved();
        self.0.0.is_streaming.store(false, Ordering::Relaxed);
    }
}

/// A connection's socket, which tells the [`Guest`] what moves.
pub struct Watched {
    stream: TcpStream,
    activity: Activity,
}

impl Watched {
    /// The socket of this guest.
    pub fn new(stream: TcpStream, activity: Activity) -> Watched {
        Watched { stream, activity }
    }

    /// Writes a last response, as far as the network takes it at once.
    pub fn say_last(&self, response: &[u8]) {
        // The client may have gone.
        let _ = self.stream.try_write(response);
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let watched = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut watched.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            watched.activity.received();
        }
        let is_read = &watched.activity.0.is_read;
        is_read.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }
}

impl Watched {
    /// Notes what a write came to.
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let is_unsent = polled.is_pending();
        self.activity
            .0
            .is_unsent
            .store(is_unsent, Ordering::Relaxed);
        if !is_unsent {
            self.activity.moved();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let watched = self.get_mut();
        let polled = Pin::new(&mut watched.stream).poll_write(cx, bytes);
        watched.wrote(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let watched = self.get_mut();
        let polled = Pin::new(&mut watched.stream).poll_write_vectored(cx, parts);
        watched.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// What a connection may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every page.
    Any,
    /// Only whether the node lives and is ready.
    Probe,
}

/// The open connections, oldest first.
pub struct Connections {
    max: usize,
    present: VecDeque<(Activity, AbortHandle)>,
    probes: VecDeque<AbortHandle>,
}

impl Connections {
    /// At most `max` connections, those of probes included; at least one for every page.
    pub fn new(max: usize) -> Connections {
        Connections {
            max: max.saturating_sub(PROBES_MAX).max(1),
            present: VecDeque::new(),
            probes: VecDeque::new(),
        }
    }

    /// Makes room for one more connection and returns the kind of its slot. May close another
    /// connection, for which it waits up to [`FIRST_BYTE_GRACE`].
    pub async fn make_room(&mut self) -> Access {
        loop {
            self.present.retain(|(_, task)| !task.is_finished());
            if self.present.len() < self.max {
                return Access::Any;
            }
            // Requests that have come by now are read first: their connections are not idle.
            tokio::task::yield_now().await;
            let Some((at, grace_left)) = self.longest_idle() else {
                return self.make_room_for_probe();
            };
            if grace_left > Duration::ZERO {
                tokio::time::sleep(grace_left).await;
                continue;
            }
            if let Some((_, task)) = self.present.remove(at) {
                task.abort();
            }
            return Access::Any;
        }
    }

    /// The place of the connection that has been idle for the longest time, and for how much longer it keeps
    /// its slot.
    fn longest_idle(&self) -> Option<(usize, Duration)> {
        let present = self.present.iter().enumerate();
        let idle = present.filter_map(|(at, (activity, _))| {
            let idle_for = activity.idle_for()?;
            Some((activity.grace_left(idle_for), Reverse(idle_for), at))
        });
        idle.min().map(|(grace_left, _, at)| (at, grace_left))
    }

    fn make_room_for_probe(&mut self) -> Access {
        self.probes.retain(|task| !task.is_finished());
        while self.probes.len() >= PROBES_MAX {
            if let Some(oldest) = self.probes.pop_front() {
                oldest.abort();
            }
        }
        Access::Probe
    }

    /// Adds a connection that `task` serves.
    pub fn add(&mut self, access: Access, activity: Activity, task: AbortHandle) {
        match access {
            Access::Any => self.present.push_back((activity, task)),
            Access::Probe => self.probes.push_back(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    async fn come(connections: &mut Connections, activity: &Activity) -> (Access, JoinHandle<()>) {
        let task = tokio::spawn(std::future::pending::<()>());
        let access = connections.make_room().await;
        connections.add(access, activity.clone(), task.abort_handle());
        (access, task)
    }

    /// A connection that has been read, and on which nothing came.
    fn silent() -> Activity {
        let activity = Activity::new();
        activity.0.is_read.store(true, Ordering::Relaxed);
        activity
    }

    /// A connection that awaits its next request.
    fn idle() -> Activity {
        let activity = silent();
        activity.0.is_new.store(false, Ordering::Relaxed);
        activity
    }

    #[tokio::test]
    async fn the_longest_idle_one_goes_and_no_other() {
        let mut connections = Connections::new(PROBES_MAX + 4);
        let new = Activity::new();
        let (busy, stream) = (idle(), idle());
        busy.0.is_busy.store(true, Ordering::Relaxed);
        let streaming = stream.streaming();
        let (moved, longest) = (idle(), idle());
        let mut tasks = Vec::new();
        for activity in [&busy, &stream, &moved, &longest] {
            tasks.push(come(&mut connections, activity).await.1);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        moved.moved();
        assert_eq!(come(&mut connections, &new).await.0, Access::Any);
        tokio::task::yield_now().await;
        let gone: Vec<bool> = tasks.iter().map(JoinHandle::is_finished).collect();
        assert_eq!(gone, [false, false, false, true]);
        assert_eq!(come(&mut connections, &new).await.0, Access::Any);
        tokio::task::yield_now().await;
        assert!(tasks[2].is_finished());
        // Nothing is known of the two new ones, and the others have requests under way.
        assert_eq!(come(&mut connections, &new).await.0, Access::Probe);
        drop(streaming);
        assert_eq!(come(&mut connections, &new).await.0, Access::Any);
        tokio::task::yield_now().await;
        assert!(tasks[1].is_finished() && !tasks[0].is_finished());
    }

    #[tokio::test]
    async fn a_new_connection_has_a_moment_to_send_its_request() {
        let mut connections = Connections::new(PROBES_MAX + 1);
        let (first, second) = (silent(), Activity::new());
        let (_, task) = come(&mut connections, &first).await;
        assert_eq!(come(&mut connections, &second).await.0, Access::Any);
        assert!(first.0.begun.elapsed() >= FIRST_BYTE_GRACE);
        tokio::task::yield_now().await;
        assert!(task.is_finished());
        // The request of a connection comes while another one waits for its slot.
        let mut connections = Connections::new(PROBES_MAX + 1);
        let late = silent();
        come(&mut connections, &late).await;
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_BYTE_GRACE / 4).await;
            late.received();
        });
        let (access, _) = come(&mut connections, &second).await;
        assert_eq!(access, Access::Probe);
    }

    #[tokio::test]
    async fn probes_have_slots_of_their_own() {
        let mut connections = Connections::new(PROBES_MAX + 1);
        let activity = Activity::new();
        let (first, task) = come(&mut connections, &activity).await;
        assert_eq!(first, Access::Any);
        let mut probes = Vec::new();
        for _ in 0..=PROBES_MAX {
            let (access, task) = come(&mut connections, &activity).await;
            assert_eq!(access, Access::Probe);
            probes.push(task);
        }
        tokio::task::yield_now().await;
        assert!(probes[0].is_finished() && !probes[1].is_finished() && !task.is_finished());
    }

    #[tokio::test]
    async fn the_rest_of_a_head_has_a_moment_to_come() {
        let activity = silent();
        assert!(activity.idle_for().is_some());
        activity.received();
        assert_eq!(activity.idle_for(), None);
        tokio::time::sleep(REPLACED_AFTER).await;
        assert!(activity.idle_for().is_some());
    }

    #[tokio::test]
    async fn a_request_under_way_keeps_its_connection() {
        let activity = Activity::new();
        assert_eq!(activity.due(), Some((IDLE_TIMEOUT, End::Idle)));
        // A head that comes in parts gets its time once.
        activity.received();
        let (first, end) = activity.due().expect("it is not busy");
        assert!(end == End::Head && first >= HEAD_TIMEOUT);
        activity.received();
        assert_eq!(activity.due(), Some((first, End::Head)));
        let due = activity.busy_with(async { activity.due() }).await;
        assert_eq!(due, None);
        assert!(matches!(activity.due(), Some((_, End::Idle))));
        // The network has not taken the whole response.
        let _ = Watched::wrote(&watched(&activity).await, Poll::Pending);
        assert!(matches!(activity.due(), Some((at, End::Stalled)) if at >= STALL_TIMEOUT));
        let streaming = activity.streaming();
        assert!(matches!(activity.due(), Some((_, End::Stalled))));
        let _ = Watched::wrote(&watched(&activity).await, Poll::Ready(Ok(1)));
        assert_eq!(activity.due(), None, "a stream may be silent");
        drop(streaming);
        assert!(matches!(activity.due(), Some((_, End::Idle))));
    }

    async fn watched(activity: &Activity) -> Watched {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let address = listener.as_ref().map(|listener| listener.local_addr());
        let address = address.expect("bound").expect("an address");
        let stream = TcpStream::connect(address).await.expect("connected");
        Watched::new(stream, activity.clone())
    }
}
