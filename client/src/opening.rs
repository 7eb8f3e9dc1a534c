//! Opens a connection: from an address to a shard of the right cluster that has accepted the
//! handshake.
//!
//! A name may have several addresses, of which some may be silent: the next address is tried, too,
//! after a short wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rangedb_protocol::handshake::{
    ANY_SHARD, HANDSHAKE_REPLY_LEN, Handshake, HandshakeReply, Verdict,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cluster::{Binding, ClusterId};
use crate::connection::Connection;
use crate::core::Endpoint;
use crate::error::Reason;
use crate::stagger;

/// How long one address of a name may be silent before the next is tried, too.
const ATTEMPT_DELAY: Duration = Duration::from_millis(100);
/// After this long without a byte the kernel checks whether the other end is alive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Pause between two of these checks.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Sent bytes that are not acknowledged for this long break the connection.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens a connection to an endpoint.
///
/// # Errors
/// The server cannot be reached, is not RangeDB, refuses, or belongs to another cluster.
pub async fn open(endpoint: &Endpoint, binding: &Arc<Binding>) -> Result<Connection, Reason> {
    let connected = connect_any(endpoint, binding).await;
    let (stream, node) = connected.map_err(|reason| reason.at(&endpoint.address))?;
    Ok(Connection::start(stream, node))
}

/// Connects to one of the addresses of a name.
async fn connect_any(
    endpoint: &Endpoint,
    binding: &Arc<Binding>,
) -> Result<(TcpStream, u64), Reason> {
    let addresses = tokio::net::lookup_host(&*endpoint.address).await?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    if addresses.is_empty() {
        return Err("the name has no address".into());
    }
    let shard = endpoint.shard.unwrap_or(ANY_SHARD);
    let mut ways = Vec::with_capacity(addresses.len());
    for address in addresses {
        let binding = binding.clone();
        ways.push(async move { connect(address, shard, &binding).await });
    }
    let connected = stagger::first_of(ways, ATTEMPT_DELAY, |_| ()).await;
    connected.map_err(|failures| Reason::all("", failures, ", "))
}

/// Connects and exchanges handshakes; returns the node's id, too.
async fn connect(
    address: SocketAddr,
    shard: u16,
    binding: &Binding,
) -> Result<(TcpStream, u64), Reason> {
    let mut stream = TcpStream::connect(address).await?;
    tune(&stream)?;
    let handshake = Handshake::client(shard);
    stream.write_all(&handshake.encode()).await?;
    let mut bytes = [0; HANDSHAKE_REPLY_LEN];
    stream.read_exact(&mut bytes).await?;
    let answer = HandshakeReply::decode(&bytes)
        .ok_or("something answers, but not as a RangeDB node does; is it the address of --http?")?;
    if answer.verdict != Verdict::Accepted {
        return Err(format!("refused: {:?}", answer.verdict).into());
    }
    binding.admit(ClusterId(answer.cluster))?;
    Ok((stream, answer.node))
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT))
}
