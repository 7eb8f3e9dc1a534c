//! The options of a client.

use std::time::Duration;

use crate::cluster::ClusterId;
use crate::tls::TlsOptions;

/// Options of a client.
///
/// ```
/// use std::time::Duration;
/// use rangedb_client::ClientOptions;
///
/// let options = ClientOptions::new(["10.0.0.1:7400", "10.0.0.2:7400"])
///     .timeout(Duration::from_secs(2));
/// assert_eq!(options.addresses.len(), 2);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Nodes to ask first, as `HOST:PORT`; names and `[::1]:7400` work.
    pub addresses: Vec<String>,
    /// Time limit of a call, retries included; at most a day. 5 s by default.
    pub timeout: Duration,
    /// How long [`Client::connect`](crate::Client::connect) tries again while no node answers. By
    /// default as long as a call. With a time of zero each address is tried once.
    pub connect_timeout: Option<Duration>,
    /// The cluster to which the client belongs. `None`: the cluster of the first node that it
    /// meets, in the order of the addresses. Nodes of another cluster are not used.
    pub cluster: Option<ClusterId>,
    /// For encrypted connections. `None`, the default: connections are not encrypted, and nodes that want
    /// them to be refuse the client.
    pub tls: Option<TlsOptions>,
    /// Whether requests go to the first address alone, whose node forwards those that others serve: for a
    /// client that reaches no other node. False by default.
    pub forwarded: bool,
}

impl ClientOptions {
    /// Options with these addresses; give those of all nodes.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> ClientOptions {
        ClientOptions {
            addresses: addresses.into_iter().map(Into::into).collect(),
            timeout: Duration::from_secs(5),
            connect_timeout: None,
            cluster: None,
            tls: None,
            forwarded: false,
        }
    }

    /// Sets the time limit of a call.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> ClientOptions {
        ClientOptions { timeout, ..self }
    }

    /// Sets how long connecting is tried again while no node answers.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> ClientOptions {
        ClientOptions {
            connect_timeout: Some(timeout),
            ..self
        }
    }

    /// Names the cluster; `None` leaves it to the first node that the client meets.
    #[must_use]
    pub fn cluster(self, cluster: impl Into<Option<ClusterId>>) -> ClientOptions {
        ClientOptions {
            cluster: cluster.into(),
            ..self
        }
    }

    /// Encrypts all connections, or with `None` none.
    #[must_use]
    pub fn tls(self, tls: impl Into<Option<TlsOptions>>) -> ClientOptions {
        ClientOptions {
            tls: tls.into(),
            ..self
        }
    }

    /// Sends all requests to the first address, whose node forwards those that others serve.
    #[must_use]
    pub fn forwarded(self, forwarded: bool) -> ClientOptions {
        ClientOptions { forwarded, ..self }
    }
}

/// The default address of a node.
impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions::new(["127.0.0.1:7400"])
    }
}

impl From<&str> for ClientOptions {
    fn from(address: &str) -> ClientOptions {
        ClientOptions::new([address])
    }
}

impl From<String> for ClientOptions {
    fn from(address: String) -> ClientOptions {
        ClientOptions::new([address])
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for ClientOptions {
    fn from(addresses: [S; N]) -> ClientOptions {
        ClientOptions::new(addresses)
    }
}

impl<S: Into<String>> From<Vec<S>> for ClientOptions {
    fn from(addresses: Vec<S>) -> ClientOptions {
        ClientOptions::new(addresses)
    }
}

impl<S: AsRef<str>> From<&[S]> for ClientOptions {
    fn from(addresses: &[S]) -> ClientOptions {
        ClientOptions::new(addresses.iter().map(AsRef::as_ref))
    }
}
