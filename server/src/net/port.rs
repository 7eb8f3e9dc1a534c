//! The node's one TCP port: a socket for each shard, all bound to the same address.
//!
//! The kernel spreads new connections over the listening sockets (SO_REUSEPORT). The first socket
//! is bound without that option, so that it fails if another process holds the port, whether that
//! process shares it or not. Linux checks the option when *another* socket is bound, so the first
//! socket may get it afterwards and the others join. Runs once, on the thread that starts the node.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// Most connections of one shard that wait to be accepted.
pub const BACKLOG_LEN: i32 = 1024;
/// After this long without a byte the kernel checks whether the other end is alive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Pause between two of these checks.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a start waits for its port. The kernel closes the sockets of a killed process that used
/// io_uring a moment after the process is gone. After this, the port counts as held.
pub const HELD_TIMEOUT: Duration = Duration::from_secs(2);
const HELD_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Why the node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The setting is not an address, or its name is unknown.
    #[error("cannot listen on `{listen}`: {source}; --listen takes HOST:PORT")]
    Name {
        /// The setting as typed.
        listen: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// Another socket holds the port.
    #[error(
        "cannot listen on {address}: the port is held by another process; \
         stop that process or choose another port with --listen"
    )]
    Held {
        /// The address of the setting.
        address: SocketAddr,
    },
    /// The system refuses the address.
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Refused {
        /// The address of the setting.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// A socket that is bound but does not listen yet.
#[derive(Debug)]
pub struct BoundSocket(Socket);

impl BoundSocket {
    /// Starts to accept connections.
    ///
    /// # Errors
    /// Another process has begun to listen on the port since it was bound.
    pub fn listen(self) -> io::Result<Socket> {
        self.0.listen(BACKLOG_LEN)?;
        Ok(self.0)
    }
}

/// The port, bound. It accepts no connection until the shards listen.
#[derive(Debug)]
pub struct Port {
    /// The address, with the actual port.
    pub address: SocketAddr,
    /// A socket for each shard.
    pub sockets: Vec<BoundSocket>,
}

impl Port {
    /// Binds `shards` sockets to `listen`, a `HOST:PORT`. Port 0 takes a free port. Of several
    /// addresses of a name, the first that this machine has is taken. If the port is held, the
    /// thread sleeps and tries again until `timeout` is over.
    ///
    /// # Errors
    /// The name is unknown, the port is held, or this machine does not have the address.
    pub fn bind(listen: &str, shards: usize, timeout: Duration) -> Result<Port, PortError> {
        let begun = Instant::now();
        loop {
            match Port::try_bind(listen, shards) {
                Err(PortError::Held { .. }) if begun.elapsed() < timeout => {
                    std::thread::sleep(HELD_RETRY_INTERVAL);
                }
                result => return result,
            }
        }
    }

    fn try_bind(listen: &str, shards: usize) -> Result<Port, PortError> {
        let name_error = |source| PortError::Name {
            listen: listen.to_owned(),
            source,
        };
        let mut failed = None;
        for address in listen.to_socket_addrs().map_err(name_error)? {
            match bind_all(address, shards) {
                Ok(port) => return Ok(port),
                Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                    return Err(PortError::Held { address });
                }
                Err(source) => failed = Some(PortError::Refused { address, source }),
            }
        }
        let nothing = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        Err(failed.unwrap_or_else(|| name_error(nothing())))
    }
}

fn bind_all(asked: SocketAddr, shards: usize) -> io::Result<Port> {
    let first = new_socket(asked)?;
    first.bind(&asked.into())?;
    first.set_reuse_port(true)?;
    let address = first
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("the socket has no internet address"))?;
    let mut sockets = vec![BoundSocket(first)];
    while sockets.len() < shards {
        let socket = new_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        sockets.push(BoundSocket(socket));
    }
    Ok(Port { address, sockets })
}

/// Makes a socket with the options that its accepted connections inherit.
fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Otherwise connections of an earlier run that still linger would hold the port.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn listening(port: Port) -> (SocketAddr, Vec<Socket>) {
        let sockets = port
            .sockets
            .into_iter()
            .map(|s| s.listen().expect("it listens"))
            .collect();
        (port.address, sockets)
    }

    fn assert_held(address: SocketAddr) {
        let error =
            Port::bind(&address.to_string(), 2, Duration::ZERO).expect_err("the port is held");
        assert!(matches!(error, PortError::Held { .. }), "{error}");
        assert!(error.to_string().contains("held by another process"));
    }

    #[test]
    fn all_shards_share_the_port_that_was_chosen() {
        let (address, sockets) =
            listening(Port::bind("127.0.0.1:0", 3, Duration::ZERO).expect("a port"));
        assert_ne!(address.port(), 0);
        assert_eq!(sockets.len(), 3);
        for socket in &sockets {
            assert_eq!(
                socket.local_addr().expect("bound").as_socket(),
                Some(address)
            );
            socket.set_nonblocking(true).expect("set");
        }
        let clients: Vec<_> = (0..64)
            .map(|_| TcpStream::connect(address).expect("it listens"))
            .collect();
        let mut accepted = vec![0; 3];
        for (count, socket) in accepted.iter_mut().zip(&sockets) {
            while socket.accept().is_ok() {
                *count += 1;
            }
        }
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(accepted.iter().all(|&count| count > 0), "{accepted:?}");
    }

    #[test]
    fn a_holder_that_does_not_share_is_met() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        assert_held(holder.local_addr().expect("bound"));
    }

    #[test]
    fn a_holder_that_shares_is_met() {
        let holder = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        holder.set_reuse_port(true).expect("set");
        holder.set_reuse_address(true).expect("set");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        holder.bind(&any.into()).expect("a port");
        holder.listen(1).expect("it listens");
        assert_held(
            holder
                .local_addr()
                .expect("bound")
                .as_socket()
                .expect("an address"),
        );
    }

    #[test]
    fn another_node_on_the_port_is_met() {
        let (address, _sockets) =
            listening(Port::bind("127.0.0.1:0", 2, Duration::ZERO).expect("a port"));
        assert_held(address);
    }

    #[test]
    fn lingering_connections_of_an_earlier_run_do_not_hold_the_port() {
        let (address, sockets) =
            listening(Port::bind("127.0.0.1:0", 1, Duration::ZERO).expect("a port"));
        let client = TcpStream::connect(address).expect("it listens");
        let (served, _) = sockets[0].accept().expect("a connection");
        // The side that closes first keeps the address for a while.
        drop(served);
        drop(sockets);
        drop(client);
        Port::bind(&address.to_string(), 1, Duration::ZERO).expect("the port is free");
    }

    #[test]
    fn names_and_both_families_work() {
        assert_ne!(
            Port::bind("localhost:0", 1, Duration::ZERO)
                .expect("a port")
                .address
                .port(),
            0
        );
        let mut parts = "[::1]:0".to_socket_addrs().expect("an address");
        if std::net::TcpListener::bind(parts.next().expect("an address")).is_ok() {
            assert!(
                Port::bind("[::1]:0", 2, Duration::ZERO)
                    .expect("a port")
                    .address
                    .is_ipv6()
            );
        }
        assert!(matches!(
            Port::bind("7400", 1, Duration::ZERO),
            Err(PortError::Name { .. })
        ));
        let elsewhere =
            Port::bind("192.0.2.1:0", 1, Duration::ZERO).expect_err("the address is elsewhere");
        assert!(
            matches!(elsewhere, PortError::Refused { .. }),
            "{elsewhere}"
        );
    }
}
