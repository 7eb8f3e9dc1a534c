//! Sockets whose readiness the ring reports.
//!
//! A multishot poll is armed once in a socket's life and completes at each change, so a request
//! needs no submission: when its data arrives, the completion wakes the task, which reads and
//! writes with plain system calls. The poll is edge-triggered: it does not report data that is
//! left. So a read that fills its buffer must be tried again; a shorter one has taken all there
//! was.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::io::{AsyncRead, AsyncWrite};
use socket2::{Domain, SockRef, Socket, Type};

use super::ring::Readiness;

use super::{Reactor, Sleep, resolving};
use crate::env::clock;

/// Time limit of trying the addresses of a name, except for the last one.
const NAME_TIMEOUT: Duration = Duration::from_millis(600);

/// A socket's registration in the ring.
struct Watched {
    reactor: Rc<Reactor>,
    number: usize,
    readiness: Rc<Readiness>,
}

impl Watched {
    fn new(fd: RawFd) -> Watched {
        let reactor = Reactor::here();
        let readiness = Rc::new(Readiness::default());
        let number = reactor.ring.borrow_mut().watch(fd, readiness.clone());
        Watched {
            reactor,
            number,
            readiness,
        }
    }

    /// Tries `attempt`, which reads, while the socket may be readable.
    fn poll_read<T>(
        &self,
        cx: &mut Context<'_>,
        attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let Readiness {
            readable, reader, ..
        } = &*self.readiness;
        poll_ready(readable, reader, cx, attempt)
    }

    /// Tries `attempt`, which writes, while the socket may be writable.
    fn poll_write<T>(
        &self,
        cx: &mut Context<'_>,
        attempt: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let Readiness {
            writable, writer, ..
        } = &*self.readiness;
        poll_ready(writable, writer, cx, attempt)
    }
}

/// Tries `attempt` while `may_go` is set; otherwise registers the task to be woken once it is.
fn poll_ready<T>(
    may_go: &Cell<bool>,
    waiter: &RefCell<Option<Waker>>,
    cx: &mut Context<'_>,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    while may_go.get() {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => may_go.set(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Poll::Ready(result),
        }
    }
    keep(waiter, cx.waker());
    Poll::Pending
}

fn keep(place: &RefCell<Option<Waker>>, waker: &Waker) {
    let mut place = place.borrow_mut();
    if !place.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
        *place = Some(waker.clone());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.reactor.ring.borrow_mut().unwatch(self.number);
    }
}

/// The bytes that connections of one kind have received and sent.
#[derive(Debug, Default)]
pub struct Traffic {
    received: Cell<u64>,
    sent: Cell<u64>,
}

impl Traffic {
    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }
}

/// A TCP connection.
pub struct TcpStream {
    /// Counts its bytes, once it is known what kind of connection it is.
    traffic: Option<Rc<Traffic>>,
    socket: std::net::TcpStream,
    watched: Watched,
    write_timeout: Option<Duration>,
    /// Set while the other side takes nothing although there is something to send: until when it
    /// may.
    stalled: Option<Sleep>,
}

impl TcpStream {
    /// Puts an open connection on this thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(connection: OwnedFd) -> io::Result<TcpStream> {
        let socket = std::net::TcpStream::from(connection);
        socket.set_nonblocking(true)?;
        let stream = TcpStream::new(socket);
        stream.watched.readiness.writable.set(true);
        Ok(stream)
    }

    fn new(socket: std::net::TcpStream) -> TcpStream {
        TcpStream {
            traffic: None,
            watched: Watched::new(socket.as_raw_fd()),
            socket,
            write_timeout: None,
            stalled: None,
        }
    }

    /// Takes the connection off this thread. Unread bytes stay in the socket.
    pub fn detach(self) -> OwnedFd {
        // The ring unregisters the socket by its number, so the descriptor stays open.
        drop(self.watched);
        self.socket.into()
    }

    /// Its file descriptor.
    pub fn descriptor(&self) -> usize {
        usize::try_from(self.socket.as_raw_fd()).unwrap_or(usize::MAX)
    }

    /// Connects to `host:port`. The addresses of a name are tried in turn; each but the last gets
    /// only its share of [`NAME_TIMEOUT`].
    ///
    /// # Errors
    /// The name is unknown, or nothing listens at any of its addresses: then the last one's error.
    pub async fn connect(address: &str) -> io::Result<TcpStream> {
        let addresses = resolve(address).await?;
        let share = NAME_TIMEOUT / addresses.len().max(1) as u32;
        let mut failure = io::Error::other("the name has no address");
        for (at, address) in addresses.iter().enumerate() {
            let connecting = pin!(TcpStream::connect_to(*address));
            let connected = if at + 1 < addresses.len() {
                let until = Sleep::until(clock::now() + share);
                match select(connecting, pin!(until)).await {
                    Either::Left((connected, _)) => connected,
                    Either::Right(_) => Err(io::ErrorKind::TimedOut.into()),
                }
            } else {
                connecting.await
            };
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            None,
        )?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::new(socket.into());
        // The socket becomes writable when it is connected or has failed.
        poll_fn(|cx| stream.watched.poll_write(cx, || Ok(()))).await?;
        match stream.socket.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// Sends small pieces at once (TCP_NODELAY).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.socket.set_nodelay(true)
    }

    /// Ends the connection if sent bytes are not acknowledged within this limit. Without it the
    /// kernel sends them again after longer and longer pauses, and keeps those pauses when the
    /// network works again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn end_if_unacknowledged(&self, limit: Duration) -> io::Result<()> {
        SockRef::from(&self.socket).set_tcp_user_timeout(Some(limit))
    }

    /// Counts the bytes from now on.
    pub fn count_in(&mut self, traffic: Rc<Traffic>) {
        self.traffic = Some(traffic);
    }

    /// Makes a write fail if the other side takes nothing for this long.
    pub fn set_write_timeout(&mut self, limit: Duration) {
        self.write_timeout = Some(limit);
    }
}

/// All addresses of `host:port`.
async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let name = address.to_owned();
    resolving(move || Ok(name.to_socket_addrs()?.collect())).await
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let wanted = to.len();
        let read = self.watched.poll_read(cx, || (&self.socket).read(to));
        if let Poll::Ready(Ok(len)) = read {
            let readiness = &self.watched.readiness;
            if len < wanted && !readiness.lasting.get() {
                readiness.readable.set(false);
            }
            if let Some(Traffic { received, .. }) = self.traffic.as_deref() {
                received.set(received.get() + len as u64);
            }
        }
        read
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = this.watched.poll_write(cx, || (&this.socket).write(bytes));
        if written.is_ready() {
            this.stalled = None;
            if let (Poll::Ready(Ok(len)), Some(traffic)) = (&written, &this.traffic) {
                traffic.sent.set(traffic.sent.get() + *len as u64);
            }
            return written;
        }
        let Some(limit) = this.write_timeout else {
            return Poll::Pending;
        };
        let until = || Sleep::until(clock::now() + limit);
        let stalled = this.stalled.get_or_insert_with(until);
        Pin::new(stalled)
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}

/// A listening socket.
pub struct TcpListener {
    socket: std::net::TcpListener,
    watched: Watched,
}

impl TcpListener {
    /// Puts a listening socket on this thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(socket: OwnedFd) -> io::Result<TcpListener> {
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(TcpListener {
            watched: Watched::new(socket.as_raw_fd()),
            socket,
        })
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system lacks descriptors or memory, or the connection broke meanwhile.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let accept = || self.socket.accept();
        let (connection, _) = poll_fn(|cx| self.watched.poll_read(cx, accept)).await?;
        TcpStream::attach(connection.into())
    }
}
