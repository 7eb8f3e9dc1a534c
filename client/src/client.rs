//! The client of a cluster: its options, how it connects, and its requests to nodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_protocol::{NodeState, Reply, RequestBody};

use crate::calls::{Request, Take};
use crate::cluster::ClusterId;
use crate::core::{Core, Kind};
use crate::error::{Error, ErrorCode, Fate};
use crate::pool::Pool;

/// Longest timeout of a call; a longer one counts as this.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Options of a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Nodes to ask first, as `HOST:PORT`; names and `[::1]:7400` work.
    pub addresses: Vec<String>,
    /// Time limit of a call, retries included; at most a day.
    pub timeout: Duration,
    /// The cluster to which the client belongs. `None`: the cluster of the first node that it
    /// meets, in the order of the addresses. Nodes of another cluster are not used.
    pub cluster: Option<ClusterId>,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            addresses: vec!["127.0.0.1:7400".to_owned()],
            timeout: Duration::from_secs(5),
            cluster: None,
        }
    }
}

pub(crate) struct Inner {
    pub core: Arc<Core>,
    pub pool: Pool,
    /// Held by the caller that asks for the directory.
    pub asking: tokio::sync::Mutex<()>,
}

/// A client of a RangeDB cluster. Clones share its session, directory and connections. It must be
/// used within a tokio runtime.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("addresses", &self.inner.core.addresses())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to one of the addresses that answers, and fetches the directory. From then on the
    /// client uses nodes of one cluster alone; see [`ClientOptions::cluster`].
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] if no node answers in time or all belong to another cluster,
    /// [`ErrorCode::Invalid`] without an address.
    pub async fn connect(options: ClientOptions) -> Result<Client, Error> {
        if options.addresses.is_empty() {
            let message = "no address of a node was given";
            return Err(Error::new(ErrorCode::Invalid, Fate::NotApplied, message));
        }
        let addresses = (options.addresses.iter()).map(|address| Arc::from(&**address));
        let core = Core::new(addresses.collect(), rand::random(), Instant::now());
        let core = Arc::new(core);
        let inner = Inner {
            pool: Pool::new(options.cluster, core.clone()),
            core,
            asking: tokio::sync::Mutex::default(),
        };
        let client = Client {
            inner: Arc::new(inner),
            timeout: options.timeout,
        };
        let met = client.refresh(client.deadline()).await;
        met.map_err(Error::unreachable)?;
        Ok(client)
    }

    /// The cluster to which this client belongs, once it has met a node.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.pool.cluster()
    }

    /// This client with another timeout for each call. Session and connections are shared.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client {
            inner: self.inner.clone(),
            timeout,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.min(TIMEOUT_MAX)
    }

    /// The status of a node.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<NodeState, Error> {
        let body = |_| RequestBody::Status;
        let take: Take<NodeState> = |reply, _| match reply {
            Reply::Node(node) => Some(*node),
            _ => None,
        };
        let deadline = self.deadline();
        self.call(Request {
            key: None,
            body: &body,
            kind: Kind::Read,
            take,
            deadline,
        })
        .await
    }

    /// Reads the state of the cluster. The command is JSON, as the protocol's documentation
    /// describes; any node answers, in JSON.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn admin(&self, command: &str) -> Result<String, Error> {
        self.admin_call(command, Kind::Read).await
    }

    /// Changes the cluster: like [`Client::admin`], for commands that change something. It is not
    /// tried again if it may have been received.
    ///
    /// # Errors
    /// See [`Error`]; its fate tells whether the command was carried out.
    pub async fn admin_order(&self, command: &str) -> Result<String, Error> {
        self.admin_call(command, Kind::Order).await
    }

    async fn admin_call(&self, command: &str, kind: Kind) -> Result<String, Error> {
        let body = |_| RequestBody::Admin { command };
        let take: Take<String> = |reply, _| match reply {
            Reply::Admin { json } => Some(json.to_owned()),
            _ => None,
        };
        let deadline = self.deadline();
        self.call(Request {
            key: None,
            body: &body,
            kind,
            take,
            deadline,
        })
        .await
    }
}
