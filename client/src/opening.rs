//! Opening a connection: from an address to an accepted handshake with a shard of the right cluster,
//! with TLS if the client has [`TlsOptions`](crate::TlsOptions).
//!
//! A name may have several addresses, and some of them may be silent. After a short wait the next address
//! is tried beside the one before. And a node has several shards: the kernel gives a connection to one of them,
//! and if that one stands still, another connection may reach another shard, which hands it on to the right one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rangedb_protocol::handshake::{
    ANY_SHARD, HANDSHAKE_REPLY_LEN, Handshake, HandshakeReply, Verdict,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::{Binding, ClusterId};
use crate::connection::Connection;
use crate::core::Endpoint;
use crate::error::Reason;
use crate::stagger;
use crate::tls::{self, Reader, Stream, Tls};

/// How long one address of a name may be silent before the next is tried, too.
const ATTEMPT_DELAY: Duration = Duration::from_millis(100);
/// If a node has not answered the handshake for this long, one more connection is made.
const REPEATED_AFTER: Duration = Duration::from_millis(300);
/// So many connections are made to an address at most.
const CONNECTIONS_MAX: usize = 3;
/// After this long without a byte the kernel checks whether the other end is alive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Pause between two of these checks.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Sent bytes that are not acknowledged for this long break the connection.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(20);

/// What all connections of a client have in common.
pub struct Opener {
    /// The cluster of their nodes.
    pub binding: Binding,
    /// How they are encrypted, if they are.
    pub tls: Option<Tls>,
    /// Whether nodes forward what others serve, instead of naming the others.
    pub forwarded: bool,
}

impl Opener {
    /// Opens a connection to an endpoint.
    ///
    /// # Errors
    /// The server cannot be reached, is not RangeDB, refuses, or belongs to another cluster.
    pub async fn open(self: &Arc<Self>, endpoint: &Endpoint) -> Result<Connection, Reason> {
        let connected = self.connect_any(endpoint).await;
        let (stream, node) = connected.map_err(|reason| reason.at(&endpoint.address))?;
        Ok(Connection::start(stream, node))
    }

    /// Connects to one of the addresses of a name.
    async fn connect_any(self: &Arc<Self>, endpoint: &Endpoint) -> Result<(Stream, u64), Reason> {
        let addresses = tokio::net::lookup_host(&*endpoint.address).await?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        if addresses.is_empty() {
            return Err("the name has no address".into());
        }
        let mut ways = Vec::with_capacity(addresses.len());
        for address in addresses {
            let (opener, endpoint) = (self.clone(), endpoint.clone());
            ways.push(async move { opener.connect_some(address, &endpoint).await });
        }
        let connected = stagger::first_of(ways, ATTEMPT_DELAY, |_| ()).await;
        connected.map_err(|failures| Reason::all("", failures, ", "))
    }

    /// Connects to an address, more than once if there is no answer. The first answer counts, whatever it is.
    async fn connect_some(
        self: &Arc<Self>,
        address: SocketAddr,
        endpoint: &Endpoint,
    ) -> Result<(Stream, u64), Reason> {
        let mut connecting = JoinSet::new();
        loop {
            if connecting.len() < CONNECTIONS_MAX {
                let (opener, endpoint) = (self.clone(), endpoint.clone());
                connecting.spawn(async move { opener.connect(address, &endpoint).await });
            }
            match timeout(REPEATED_AFTER, connecting.join_next()).await {
                Ok(Some(Ok(connected))) => return connected,
                Ok(Some(Err(ended))) => return Err(ended.to_string().into()),
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Connects and exchanges handshakes; returns the node's id, too.
    async fn connect(
        &self,
        address: SocketAddr,
        endpoint: &Endpoint,
    ) -> Result<(Stream, u64), Reason> {
        let mut socket = TcpStream::connect(address).await?;
        tune(&socket)?;
        let handshake = Handshake {
            smart: !self.forwarded,
            tls: self.tls.is_some(),
            ..Handshake::client(endpoint.shard.unwrap_or(ANY_SHARD))
        };
        socket.write_all(&handshake.encode()).await?;
        let mut answer = accepted(&mut socket).await?;
        let stream = match &self.tls {
            None => Stream::plain(socket),
            Some(tls) => {
                let host = endpoint.address.rsplit_once(':').map(|(host, _)| host);
                let mut stream = tls.connect(socket, host.unwrap_or_default()).await?;
                // The first answer was not encrypted, so anybody may have written it.
                if let Reader::Tls(encrypted) = &mut stream.reader {
                    answer = accepted(encrypted).await?;
                }
                stream
            }
        };
        self.binding.admit(ClusterId(answer.cluster))?;
        Ok((stream, answer.node))
    }
}

/// Receives the answer to a handshake, which must not be a refusal.
async fn accepted(stream: &mut (impl AsyncRead + Unpin)) -> Result<HandshakeReply, Reason> {
    let mut bytes = [0; HANDSHAKE_REPLY_LEN];
    stream.read_exact(&mut bytes).await.map_err(tls::worded)?;
    let answer = HandshakeReply::decode(&bytes)
        .ok_or("something answers, but not as a RangeDB node does; is it the address of --http?")?;
    match answer.verdict {
        Verdict::Accepted => Ok(answer),
        Verdict::NoTls => {
            let why = "the node speaks no TLS: start it with --tls-cert and --tls-key, or connect without";
            Err(why.into())
        }
        Verdict::TlsRequired => {
            let why =
                "the node takes only encrypted connections: give --tls-ca, or ClientOptions::tls";
            Err(why.into())
        }
        verdict => Err(verdict.to_string().into()),
    }
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
