//! The service manager: the messages of `sd_notify(3)`, by which a node tells systemd its state.
//!
//! A message is one datagram to the socket that the variable `NOTIFY_SOCKET` names; without the
//! variable nobody listens. Messages are sent without waiting, as a manager that stands still must
//! not stop the control thread: one that does not fit is lost, and a later one says the same. (The
//! crate `sd-notify` waits.) Lives on the control thread.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The start is complete, or a reload.
    Ready,
    /// A reload has begun.
    Reloading,
    /// The end has begun.
    Stopping,
    /// The state in words.
    Status(String),
    /// The process is well: the watchdog counts from here.
    Watchdog,
    /// The start or the stop may take this much longer, from now on.
    ExtendTimeout(Duration),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Ready => f.write_str("READY=1"),
            State::Reloading => {
                let now = clock_gettime(ClockId::Monotonic);
                let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
                write!(f, "RELOADING=1\nMONOTONIC_USEC={micros}")
            }
            State::Stopping => f.write_str("STOPPING=1"),
            // A newline would begin another assignment.
            State::Status(words) => write!(f, "STATUS={}", words.trim().replace('\n', " ")),
            State::Watchdog => f.write_str("WATCHDOG=1"),
            State::ExtendTimeout(time) => write!(f, "EXTEND_TIMEOUT_USEC={}", time.as_micros()),
        }
    }
}

/// The manager that has started this process.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The manager that the environment names; `None` if it names none.
    ///
    /// # Errors
    /// It names an address that is no Unix socket, or no socket can be made.
    pub fn from_environment() -> io::Result<Option<ServiceManager>> {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(None);
        };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        // A watchdog of another process, for instance of the shell that has started this one.
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 0);
        ServiceManager::at(&address, watchdog.map(Duration::from_micros)).map(Some)
    }

    fn at(address: &OsStr, watchdog: Option<Duration>) -> io::Result<ServiceManager> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => {
                let message = format!("NOTIFY_SOCKET is {address:?}, which is no Unix socket");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(ServiceManager {
            socket,
            address,
            watchdog,
        })
    }

    /// The longest time between two messages of the watchdog, if the manager waits for them.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Sends these states in one message.
    pub fn tell(&self, states: &[State]) {
        let lines: Vec<String> = states.iter().map(State::to_string).collect();
        let message = lines.join("\n");
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            tracing::debug!(%error, "the service manager took no message");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let len = socket.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    #[test]
    fn a_message_arrives_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("rangedb-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("it is short");
        for (socket, address) in [
            (UnixDatagram::bind(&path), path.as_os_str()),
            (
                UnixDatagram::bind_addr(&abstract_address),
                OsStr::new(&format!("@{name}")),
            ),
        ] {
            let socket = socket.expect("it is free");
            let manager = ServiceManager::at(address, None).expect("a socket");
            manager.tell(&[State::Ready, State::Status("two\nlines\n".to_owned())]);
            assert_eq!(received(&socket), "READY=1\nSTATUS=two lines");
            manager.tell(&[
                State::Watchdog,
                State::ExtendTimeout(Duration::from_secs(3)),
            ]);
            let both = "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=3000000";
            assert_eq!(received(&socket), both);
            manager.tell(&[State::Reloading]);
            assert!(received(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
        }
    }

    #[test]
    fn a_manager_that_does_not_read_stops_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("it is free");
        let manager = ServiceManager::at(path.as_os_str(), None).expect("a socket");
        let long = State::Status("x".repeat(1000));
        // More than any queue holds.
        for _ in 0..10_000 {
            manager.tell(std::slice::from_ref(&long));
        }
        drop(socket);
        manager.tell(&[State::Stopping]);
        ServiceManager::at(OsStr::new("vsock:2:1"), None).expect_err("no Unix socket");
    }
}
