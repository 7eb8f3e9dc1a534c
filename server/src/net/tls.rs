//! Encrypted connections: TLS 1.3 over the sockets of the reactor.
//!
//! TLS begins after the handshake of the protocol and its answer ([`super::handshake`]), so that a
//! connection can move to another shard before. A [`Stream`] is a client's connection with or without it;
//! the rest of the node sees plain bytes either way.
//!
//! What arrives is read into one buffer that all connections of the shard share. Whole records are
//! decrypted from there into the buffer that the frame reader reads; only the part of a record that has
//! not come whole is kept with the connection, within the budget of incomplete frames. What is sent is
//! encrypted once, into a buffer of its own that is sent whole before the next bytes are encrypted. An idle
//! connection owns no buffer.
//!
//! Certificates and keys are read by [`crate::config`]. Lives on the shard's thread.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker, ready};

use futures_util::io::{AsyncRead, AsyncWrite};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};

use crate::config::Tls;
use crate::context::Context;
use crate::env;
use crate::env::reactor::TcpStream;
use crate::net::buffers::{Output, READ_LEN};
use rangedb_engine::boot_time::BootTime;

/// Most bytes that are encrypted at a time: four records.
const SEALED_LEN_MAX: usize = 64 << 10;
/// Most bytes of one record, and what its header and its cipher add, with some room.
const RECORD_LEN_MAX: usize = 16 << 10;
const RECORD_OVERHEAD: usize = 64;
/// From a client whose records are shorter than this, so much is read at a time: each costs a decryption,
/// and other connections wait meanwhile.
const SHORT_RECORD_LEN: usize = 256;
const SHORT_RECORDS_READ_LEN: usize = 8 << 10;
/// Most reads without a byte for the frame reader before other connections get a turn.
const READS_PER_TURN: usize = 4;

/// What was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// How many bytes for the frame reader; 0 if the client sends nothing more.
    pub len: usize,
    /// Whether there may be more at once.
    pub more: bool,
}

/// A client's connection, encrypted or not.
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Receives bytes for the frame reader.
    #[inline]
    pub fn poll_receive(
        &mut self,
        cx: &mut TaskContext<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<Received>> {
        match self {
            Stream::Plain(socket) => {
                let len = ready!(Pin::new(socket).poll_read(cx, to))?;
                // If the buffer is full, the kernel may have more bytes.
                let more = len == to.len();
                Poll::Ready(Ok(Received { len, more }))
            }
            Stream::Tls(tls) => tls.poll_receive(cx, to),
        }
    }

    /// Sends bytes; gives how many were taken. After [`Poll::Pending`] the next call must begin with the
    /// same bytes.
    #[inline]
    pub fn poll_send(&mut self, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Stream::Tls(tls) => tls.poll_send(cx, bytes),
        }
    }

    /// Its socket.
    pub fn socket(&mut self) -> &mut TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.socket(),
        }
    }

    /// Since when a record has been incomplete.
    pub fn unfinished_since(&self) -> Option<BootTime> {
        match self {
            Stream::Plain(_) => None,
            Stream::Tls(tls) => tls.held.partial_since,
        }
    }

    /// The time of an incomplete record begins anew, as this side has read nothing.
    pub fn excuse(&mut self, now: BootTime) {
        if let Stream::Tls(tls) = self
            && let Some(since) = &mut tls.held.partial_since
        {
            *since = now;
        }
    }

    /// Says that nothing more is sent, if the socket takes that at once; gives the socket.
    pub fn end(self) -> TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.end(),
        }
    }
}

/// An encrypted connection.
pub struct TlsStream {
    socket: TcpStream,
    session: Session,
    held: Held,
    /// Decrypted bytes that came with the end of the handshake.
    early: Vec<u8>,
    /// How many of the bytes to send are those that were encrypted last.
    sealed_len: usize,
    has_short_records: bool,
}

/// The state of TLS: what it makes of bytes, without a socket.
struct Session {
    tls: UnbufferedServerConnection,
    /// Messages of TLS itself, to be sent.
    messages: Vec<u8>,
    /// Whether the client has said that it sends nothing more.
    ended: bool,
    /// Whether the client broke the rules of TLS: nothing can be received or sent any more.
    failed: bool,
}

/// The bytes that a connection keeps: they count as memory of the shard.
struct Held {
    context: Rc<Context>,
    /// The received part of a record that has not come whole.
    partial: Vec<u8>,
    partial_since: Option<BootTime>,
    /// Encrypted bytes to send.
    sealed: Output,
}

/// What became of received records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Opened {
    /// How many bytes were whole records.
    used: usize,
    /// How many records.
    records: usize,
    /// How many bytes came out.
    len: usize,
    /// Whether the socket may have more.
    more: bool,
}

impl Session {
    /// Decrypts the whole records at the start of `received` into `to`, which must be as long, and does
    /// what the messages of TLS among them demand.
    fn open(&mut self, received: &mut [u8], to: &mut [u8]) -> io::Result<Opened> {
        let mut opened = Opened::default();
        loop {
            let rest = received.get_mut(opened.used..).unwrap_or_default();
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(rest);
            opened.used += discard;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(broken)?;
                        opened.used += record.discard;
                        opened.records += 1;
                        let end = opened.len + record.payload.len();
                        let place = to.get_mut(opened.len..end);
                        let no_room =
                            || io::Error::other("a record is longer than its cipher text");
                        place.ok_or_else(no_room)?.copy_from_slice(record.payload);
                        opened.len = end;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.messages, 0, |to| data.encode(to))?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) if !self.ended => {
                    self.ended = true;
                }
                Ok(ConnectionState::ReadEarlyData(_)) => {
                    return Err(io::Error::other("early data was not offered"));
                }
                Ok(_) => return Ok(opened),
                Err(error) => {
                    self.fail(received.get_mut(opened.used..).unwrap_or_default());
                    return Err(broken(error));
                }
            }
        }
    }

    /// Takes the message that tells the client of an error, if there is one. `rest` is what was received
    /// and not used.
    fn fail(&mut self, rest: &mut [u8]) {
        self.failed = true;
        // One call gives the message that is queued. Another would look at the same records again.
        let UnbufferedStatus { state, .. } = self.tls.process_tls_records(rest);
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = state {
            // Without room for the message the client learns nothing but the end.
            let _ = append(&mut self.messages, 0, |to| data.encode(to));
        }
    }

    /// Encrypts bytes, and appends them to `sealed`; without bytes, says that there are no more.
    /// `partial` is what was received and not used.
    fn seal(
        &mut self,
        partial: &mut Vec<u8>,
        bytes: Option<&[u8]>,
        sealed: &mut Vec<u8>,
    ) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("TLS has failed"));
        }
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(partial);
            match state.map_err(broken)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let len = bytes.unwrap_or_default().len();
                    let need = len + (len / RECORD_LEN_MAX + 1) * RECORD_OVERHEAD;
                    return append(sealed, need, |to| match bytes {
                        Some(bytes) => traffic.encrypt(bytes, to),
                        None => traffic.queue_close_notify(to),
                    });
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(sealed, 0, |to| data.encode(to))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.ended = true,
                _ => return Err(io::Error::other("nothing can be sent in this state of TLS")),
            }
            partial.drain(..discard.min(partial.len()));
        }
    }
}

impl Held {
    /// Keeps the received bytes that are no whole record, in place of the earlier ones.
    fn keep(&mut self, rest: &[u8], has_progressed: bool) -> io::Result<()> {
        let buffers = &self.context.buffers;
        let before = self.partial.capacity();
        self.partial.clear();
        if rest.len() > before {
            if !buffers.has_room(rest.len() - before, false) {
                let why = "there is no memory for an incomplete record";
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
            }
            self.partial.reserve_exact(rest.len());
            buffers.hold(self.partial.capacity() - before);
        } else if rest.is_empty() && before > 0 {
            self.partial = Vec::new();
            buffers.release(before);
        }
        self.partial.extend_from_slice(rest);
        let since = match self.partial_since {
            _ if rest.is_empty() => None,
            Some(since) if !has_progressed => Some(since),
            _ => Some(env::now()),
        };
        let before = std::mem::replace(&mut self.partial_since, since);
        match (before.is_some(), since.is_some()) {
            (false, true) => buffers.count_unfinished(1),
            (true, false) => buffers.count_unfinished(-1),
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let buffers = &self.context.buffers;
        buffers.release(self.partial.capacity());
        if self.partial_since.is_some() {
            buffers.count_unfinished(-1);
        }
        self.sealed.clear(buffers);
    }
}

impl TlsStream {
    /// Makes TLS of a connection; its handshake is next.
    ///
    /// # Errors
    /// The settings of TLS are not usable.
    pub fn new(socket: TcpStream, tls: &Tls, context: Rc<Context>) -> io::Result<Box<TlsStream>> {
        Ok(Box::new(TlsStream {
            socket,
            session: Session {
                tls: UnbufferedServerConnection::new(tls.server.clone()).map_err(broken)?,
                messages: Vec::new(),
                ended: false,
                failed: false,
            },
            held: Held {
                context,
                partial: Vec::new(),
                partial_since: None,
                sealed: Output::default(),
            },
            early: Vec::new(),
            sealed_len: 0,
            has_short_records: false,
        }))
    }

    /// Exchanges the handshake of TLS.
    ///
    /// # Errors
    /// The connection ends, or, of the kind [`io::ErrorKind::InvalidData`], the client does not speak
    /// TLS 1.3 or shows no certificate that is accepted. It is told so.
    pub async fn handshake(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_handshake(cx)).await
    }

    /// Its socket.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    fn poll_handshake(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_sent(cx))?;
            if !self.session.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let context = self.held.context.clone();
            let mut to = context.buffers.received.borrow_mut();
            let Some(opened) = ready!(self.poll_open(cx, &mut to))? else {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            };
            let early = to.get(..opened.len).unwrap_or_default();
            self.early.extend_from_slice(early);
        }
    }

    /// Reads from the socket and decrypts into `to`. `None`: the other side has closed the socket.
    fn poll_open(
        &mut self,
        cx: &mut TaskContext<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<Option<Opened>>> {
        let (held, session) = (&mut self.held, &mut self.session);
        let context = held.context.clone();
        let mut encrypted = context.buffers.encrypted();
        let kept = held.partial.len();
        let at_most = if self.has_short_records {
            kept + SHORT_RECORDS_READ_LEN
        } else {
            READ_LEN
        };
        let place = encrypted.get_mut(kept..at_most.min(READ_LEN));
        let Some(place) = place.filter(|place| !place.is_empty()) else {
            return Poll::Ready(Err(io::Error::other("a message of TLS is too long")));
        };
        let len = ready!(Pin::new(&mut self.socket).poll_read(cx, place))?;
        if len == 0 {
            return Poll::Ready(Ok(None));
        }
        let more = len == place.len();
        let received = encrypted.get_mut(..kept + len).unwrap_or_default();
        let (before, _) = received.split_at_mut(kept);
        before.copy_from_slice(&held.partial);
        let opened = session.open(received, to);
        if !session.messages.is_empty() {
            let messages = std::mem::take(&mut session.messages);
            (held.sealed).append(&context.buffers, |to| to.extend_from_slice(&messages));
        }
        let opened = match opened {
            Ok(opened) => Opened { more, ..opened },
            Err(error) => {
                // The client may learn why; it makes no difference whether it does.
                let _ = self.poll_sent(cx);
                return Poll::Ready(Err(error));
            }
        };
        self.has_short_records = opened.records * SHORT_RECORD_LEN > opened.used;
        let rest = received.get(opened.used..).unwrap_or_default();
        held.keep(rest, opened.used > 0)?;
        Poll::Ready(Ok(Some(opened)))
    }

    fn poll_receive(
        &mut self,
        cx: &mut TaskContext<'_>,
        to: &mut [u8],
    ) -> Poll<io::Result<Received>> {
        if !self.early.is_empty() {
            let len = self.early.len().min(to.len());
            for (to, from) in to.iter_mut().zip(self.early.drain(..len)) {
                *to = from;
            }
            self.early.shrink_to_fit();
            return Poll::Ready(Ok(Received { len, more: true }));
        }
        for _ in 0..READS_PER_TURN {
            if self.session.ended {
                return Poll::Ready(Ok(Received::default()));
            }
            match ready!(self.poll_open(cx, to))? {
                None => return Poll::Ready(Ok(Received::default())),
                Some(Opened { len: 0, .. }) => {}
                Some(Opened { len, more, .. }) => {
                    return Poll::Ready(Ok(Received { len, more }));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Encrypts and sends bytes, as [`Stream::poll_send`] does.
    pub fn poll_send(&mut self, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_sent(cx))?;
            let sent = std::mem::take(&mut self.sealed_len);
            if sent > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(sent));
            }
            let part = bytes.get(..SEALED_LEN_MAX).unwrap_or(bytes);
            self.seal(Some(part))?;
            self.sealed_len = part.len();
        }
    }

    fn seal(&mut self, bytes: Option<&[u8]>) -> io::Result<()> {
        let Held {
            context,
            partial,
            sealed,
            ..
        } = &mut self.held;
        let session = &mut self.session;
        sealed.append(&context.buffers, |to| session.seal(partial, bytes, to))
    }

    /// Sends what is encrypted.
    fn poll_sent(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        let Held {
            context, sealed, ..
        } = &mut self.held;
        while !sealed.unsent().is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, sealed.unsent()))?;
            sealed.advance(&context.buffers, sent);
        }
        Poll::Ready(Ok(()))
    }

    fn end(mut self: Box<Self>) -> TcpStream {
        // Behind a record that was sent in part nothing else makes sense.
        if self.held.sealed.unsent().is_empty() && self.seal(None).is_ok() {
            // It makes no difference whether the client learns it so or from the socket.
            let _ = self.poll_sent(&mut TaskContext::from_waker(Waker::noop()));
        }
        self.socket
    }
}

/// Why nothing was written.
enum NotWritten {
    /// There must be room for so many bytes.
    NeedsRoom(usize),
    Failed(io::Error),
}

impl From<EncodeError> for NotWritten {
    fn from(error: EncodeError) -> NotWritten {
        match error {
            EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => {
                NotWritten::NeedsRoom(required_size)
            }
            error => NotWritten::Failed(io::Error::other(error)),
        }
    }
}

impl From<EncryptError> for NotWritten {
    fn from(error: EncryptError) -> NotWritten {
        match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => {
                NotWritten::NeedsRoom(required_size)
            }
            error => NotWritten::Failed(io::Error::other(error)),
        }
    }
}

/// Appends what `write` writes into a slice of so many bytes, or of as many as it turns out to need.
fn append<E: Into<NotWritten>>(
    to: &mut Vec<u8>,
    need: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> io::Result<()> {
    let before = to.len();
    let mut room = need;
    loop {
        to.resize(before + room, 0);
        let written = write(to.get_mut(before..).unwrap_or_default());
        to.truncate(before + *written.as_ref().unwrap_or(&0));
        match written.map_err(Into::into) {
            Ok(_) => return Ok(()),
            Err(NotWritten::NeedsRoom(more)) if more > room => room = more,
            Err(NotWritten::NeedsRoom(_)) => return Err(io::Error::other("TLS finds no room")),
            Err(NotWritten::Failed(error)) => return Err(error),
        }
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
