//! The client through which the HTTP pages ask their own node, and those by which they ask others.
//!
//! Requests without a key share one connection, to a shard that the kernel chose. If that shard stands still,
//! none of them gets an answer, though the other shards could give one. So when the answer to a read is late, and
//! before all else than reads, the shard is asked for something that it always knows. If it is silent, a new
//! client is connected, which a shard that works accepts, and a read is asked again there. That client serves
//! the next requests, too.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use rangedb_client::{Client, ClientOptions, Error, ErrorCode, TlsOptions};
use tokio::time::{Instant, timeout};

use crate::config::Tls;
use crate::node_settings::Settings;

/// An answer that takes longer is late.
const LATE_AFTER: Duration = Duration::from_millis(300);
/// A shard that does not say within this time what it always knows stands still.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// After this long without news of it, a shard is asked again whether it answers.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a new connection may take. The client tries several times within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The client of this node.
pub(super) struct OwnClient {
    listen: SocketAddr,
    settings: Arc<Settings>,
    open: Mutex<Option<Open>>,
    /// Held while a client is opened, so that only one is.
    opening: tokio::sync::Mutex<()>,
}

/// A client that was opened, and what it was opened with.
#[derive(Clone)]
struct Open {
    client: Client,
    tls: Option<Arc<Tls>>,
    /// Clients are numbered in the order in which they were opened.
    number: u64,
    /// When its shard last answered.
    heard: Instant,
}

impl OwnClient {
    /// The client of the node that listens at `listen` and has these settings. It connects at the first
    /// request.
    pub(super) fn new(mut listen: SocketAddr, settings: Arc<Settings>) -> OwnClient {
        if listen.ip().is_unspecified() {
            match listen {
                SocketAddr::V4(_) => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
                SocketAddr::V6(_) => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
            }
        }
        OwnClient {
            listen,
            settings,
            open: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// The client for one request, which must not be sent twice.
    ///
    /// # Errors
    /// The node does not answer.
    pub(super) async fn get(&self) -> Result<Client, Error> {
        let open = self.opened().await?;
        if open.heard.elapsed() < PROBE_INTERVAL {
            return Ok(open.client);
        }
        let other = self.replaced(&open).await;
        Ok(other.unwrap_or(open.client))
    }

    /// A client of the node at another address. If connections are encrypted, that node must show the certificate
    /// of this one, or one that was signed by those that sign the certificates of clients: what else there is to
    /// trust is not known here.
    ///
    /// # Errors
    /// The node does not answer, or its certificate is not trusted.
    pub(super) async fn of_other(&self, address: &str) -> Result<Client, Error> {
        let mut options = ClientOptions::from(address).connect_timeout(Duration::ZERO);
        if let Some(tls) = self.tls() {
            let (certificate, key) = tls.own_pem();
            let trusted = match tls.ca_pem() {
                [] => TlsOptions::pinned_pem(certificate),
                signed_by => TlsOptions::ca_pem(signed_by),
            };
            options = options.tls(trusted.certificate_pem(certificate, key));
        }
        Client::connect(options).await
    }

    /// Reads with `ask`. If the shard at the other end stands still, `ask` is called a second time, with a client
    /// of another shard, and the first answer counts.
    ///
    /// # Errors
    /// Those of `ask`, or the node does not answer.
    pub(super) async fn read<T, A>(&self, ask: impl Fn(Client) -> A) -> Result<T, Error>
    where
        A: Future<Output = Result<T, Error>>,
    {
        let open = self.opened().await?;
        let mut first = pin!(ask(open.client.clone()));
        if let Ok(answer) = timeout(LATE_AFTER, first.as_mut()).await {
            return answer;
        }
        let replaced = pin!(self.replaced(&open));
        let other = match select(first.as_mut(), replaced).await {
            Either::Left((answer, _)) => return answer,
            Either::Right((other, _)) => other,
        };
        let Some(other) = other else {
            return first.await;
        };
        let second = pin!(ask(other));
        match select(first, second).await {
            Either::Left((Err(error), second)) if is_silence(&error) => second.await,
            Either::Left((answer, _)) | Either::Right((answer, _)) => answer,
        }
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tls(&self) -> Option<Arc<Tls>> {
        self.settings.tls().filter(|tls| tls.required)
    }

    /// The client that is open; another one after the node's certificate has changed.
    async fn opened(&self) -> Result<Open, Error> {
        let usable = || self.open().clone().filter(|open| open.tls == self.tls());
        if let Some(open) = usable() {
            return Ok(open);
        }
        let _opening = self.opening.lock().await;
        match usable() {
            Some(open) => Ok(open),
            None => self.connect().await,
        }
    }

    /// A client in the place of one whose shard may stand still: `None` if that shard answers, or no other one
    /// does.
    async fn replaced(&self, late: &Open) -> Option<Client> {
        let _opening = self.opening.lock().await;
        let newer = self.open().clone().filter(|open| open.number > late.number);
        if let Some(newer) = newer {
            return Some(newer.client);
        }
        let admin = late.client.with_timeout(PROBE_TIMEOUT).admin();
        // The settings of a node are known to each of its shards.
        let probed = admin.node_config().await;
        if !probed.is_err_and(|error| is_silence(&error)) {
            if let Some(open) = &mut *self.open() {
                open.heard = Instant::now();
            }
            return None;
        }
        let connected = self.connect().await;
        connected.ok().map(|open| open.client)
    }

    /// Opens a client, which is used from then on.
    async fn connect(&self) -> Result<Open, Error> {
        let tls = self.tls();
        let mut options =
            ClientOptions::from(self.listen.to_string()).connect_timeout(CONNECT_TIMEOUT);
        if let Some(tls) = &tls {
            // What other nodes show, and what they want to see, is not known here: this node forwards
            // what they serve.
            let (certificate, key) = tls.own_pem();
            let tls = TlsOptions::pinned_pem(certificate).certificate_pem(certificate, key);
            options = options.tls(tls).forwarded(true);
        }
        let client = Client::connect(options).await?;
        let mut open = self.open();
        let number = open.as_ref().map_or(0, |open| open.number) + 1;
        let new = Open {
            client,
            tls,
            number,
            heard: Instant::now(),
        };
        *open = Some(new.clone());
        Ok(new)
    }
}

/// Whether the shard that was asked has not answered, so that another one may.
fn is_silence(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::DeadlineExceeded | ErrorCode::Unreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_reached_at_home() {
        let at = |listen: &str| {
            let listen = listen.parse().expect("an address");
            OwnClient::new(listen, Settings::of_test())
                .listen
                .to_string()
        };
        assert_eq!(at("0.0.0.0:7400"), "127.0.0.1:7400");
        assert_eq!(at("[::]:7400"), "[::1]:7400");
        assert_eq!(at("10.0.0.1:7400"), "10.0.0.1:7400");
    }
}
