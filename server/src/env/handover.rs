//! Sockets that change hands: a listening socket goes from the thread that bound it to the shard
//! that accepts on it, a connection from the shard that accepted it to the one it asked for.
//!
//! glommio binds a socket to the executor that wraps it, so a socket travels as a file descriptor
//! that owns itself ([`OwnedFd`] closes when it is dropped) and is wrapped anew on arrival. Options
//! that glommio does not know are set on the descriptor, too.

#![expect(
    unsafe_code,
    reason = "glommio wraps sockets by raw file descriptors only"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use glommio::net::{TcpListener, TcpStream};
use socket2::SockRef;

/// Takes a connection off this executor. What was not read yet stays in the socket.
///
/// # Errors
/// No file descriptor is left.
pub fn detach(stream: TcpStream) -> io::Result<OwnedFd> {
    // SAFETY: `stream` owns the descriptor and lives until the end of this function; the
    // duplicate has an owner of its own.
    let borrowed = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    borrowed.try_clone_to_owned()
}

/// Ends a connection if what it sends is not acknowledged for so long. Otherwise the kernel sends
/// it again after ever longer pauses, and goes on with them when the network is whole again.
///
/// # Errors
/// The kernel refuses.
pub fn end_if_unacknowledged(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    // SAFETY: the caller holds the stream, which owns the descriptor, through the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    SockRef::from(&borrowed).set_tcp_user_timeout(Some(limit))
}

/// Puts a connection on the executor that calls this.
pub fn attach(connection: OwnedFd) -> TcpStream {
    // SAFETY: ownership of the open descriptor passes to the stream.
    unsafe { TcpStream::from_raw_fd(connection.into_raw_fd()) }
}

/// Puts a listening socket on the executor that calls this.
pub fn attach_listener(socket: OwnedFd) -> TcpListener {
    // SAFETY: ownership of the open descriptor passes to the listener.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}
