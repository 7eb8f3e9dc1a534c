//! The client of a cluster, and how it connects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::{Binding, ClusterId};
use crate::core::ClientCore;
use crate::error::{Error, ErrorCode, Fate};
use crate::opening::Opener;
use crate::options::ClientOptions;
use crate::pool::Pool;
use crate::tls::Tls;

/// Longest timeout of a call; a longer one counts as this.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What the clones of a [`Client`] share.
pub(crate) struct ClientInner {
    pub core: Arc<ClientCore>,
    pub pool: Pool,
    /// Held by the caller that asks for the directory.
    pub asking: tokio::sync::Mutex<()>,
}

/// A client of a RangeDB cluster. Clones share its session, directory and connections. It must be
/// used within a tokio runtime.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
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
    /// Connects to one of the addresses that answers, and fetches the directory. While no node
    /// answers, it tries again until the time for connecting is over, so a service may start before
    /// the database does. From then on the client uses nodes of one cluster alone; see
    /// [`ClientOptions::cluster`].
    ///
    /// ```no_run
    /// # use rangedb_client::{Client, Error};
    /// # async fn example() -> Result<(), Error> {
    /// let client = Client::connect(["10.0.0.1:7400", "10.0.0.2:7400"]).await?;
    /// client.put("greeting", "hello").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] if no node answers in time or all belong to another cluster,
    /// [`ErrorCode::Invalid`] without an address, or if a file of the [options for
    /// TLS](ClientOptions::tls) cannot be read or is not what it should be.
    pub async fn connect(options: impl Into<ClientOptions>) -> Result<Client, Error> {
        let options = options.into();
        let timeout = options.connect_timeout.unwrap_or(options.timeout);
        let client = Client::connect_lazy(options)?;
        let until = Instant::now() + timeout.min(TIMEOUT_MAX);
        let mut tries = 0;
        loop {
            let deadline = until.max(client.deadline());
            let Err(reason) = client.refresh(deadline).await else {
                return Ok(client);
            };
            let pause = client.inner.core.pause(tries, None);
            if Instant::now() + pause >= until {
                return Err(Error::unreachable(reason));
            }
            tracing::debug!(%reason, "no node answers yet");
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }

    /// A client that connects when the first call needs it, within that call's time.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] without an address, or if a file of the [options for
    /// TLS](ClientOptions::tls) cannot be read or is not what it should be.
    pub fn connect_lazy(options: impl Into<ClientOptions>) -> Result<Client, Error> {
        let options = options.into();
        if options.addresses.is_empty() {
            let message = "no address of a node was given";
            return Err(Error::new(ErrorCode::Invalid, Fate::NotApplied, message));
        }
        let addresses = (options.addresses.iter()).map(|address| Arc::from(&**address));
        let core = ClientCore::new(addresses.collect(), rand::random(), Instant::now());
        let core = Arc::new(core);
        let tls = options.tls.as_ref().map(Tls::new).transpose();
        let opener = Opener {
            binding: Binding::new(options.cluster),
            tls: tls.map_err(|why| Error::new(ErrorCode::Invalid, Fate::NotApplied, why))?,
            forwarded: options.forwarded,
        };
        let inner = ClientInner {
            pool: Pool::new(opener, core.clone()),
            core,
            asking: tokio::sync::Mutex::default(),
        };
        Ok(Client {
            inner: Arc::new(inner),
            timeout: options.timeout,
        })
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
}
