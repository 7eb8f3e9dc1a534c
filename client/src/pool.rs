//! The client's connections, one for each endpoint, opened on first use.
//!
//! A task opens a connection within [`OPEN_TIMEOUT`]; each caller waits for it no longer than its
//! own deadline. It reports to the core which addresses answer, and which do not in time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cluster::ClusterId;
use crate::connection::Connection;
use crate::core::{ClientCore, Endpoint};
use crate::error::Reason;
use crate::opening::Opener;

/// Time limit for opening a connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

type Opened = Result<Arc<Connection>, Reason>;

/// `None` while the task is opening the connection.
type Slot = watch::Receiver<Option<Opened>>;

/// All connections of a client.
pub struct Pool {
    opener: Arc<Opener>,
    slots: Mutex<HashMap<Endpoint, Slot>>,
    core: Arc<ClientCore>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// An empty pool. All its connections will go to nodes of one cluster.
    pub fn new(opener: Opener, core: Arc<ClientCore>) -> Pool {
        Pool {
            opener: Arc::new(opener),
            slots: Mutex::default(),
            core,
        }
    }

    /// The cluster of all connections, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.opener.binding.cluster()
    }

    /// The connection to an endpoint; opens one if there is none.
    ///
    /// # Errors
    /// It cannot be opened, or not before the deadline.
    pub async fn get(&self, endpoint: &Endpoint, deadline: Instant) -> Opened {
        let only = self.opener.forwarded.then(|| self.core.first_endpoint());
        let endpoint = only.as_ref().unwrap_or(endpoint);
        if let Some(connection) = self.open(endpoint) {
            return Ok(connection);
        }
        let mut slot = self.slot(endpoint);
        let opened = slot.wait_for(Option::is_some);
        match tokio::time::timeout_at(deadline.into(), opened).await {
            Ok(Ok(opened)) => opened.clone().unwrap_or_else(|| Err(ended(endpoint))),
            // The runtime of the task that opened it has ended.
            Ok(Err(_)) => Err(ended(endpoint)),
            Err(_) => {
                self.core.leave_out(&endpoint.address, Instant::now());
                Err(Reason::timed_out("not connected in time").at(&endpoint.address))
            }
        }
    }

    /// The connection to an endpoint, if it is open.
    fn open(&self, endpoint: &Endpoint) -> Option<Arc<Connection>> {
        match &*lock(&self.slots).get(endpoint)?.borrow() {
            Some(Ok(connection)) if !connection.is_broken() => Some(connection.clone()),
            _ => None,
        }
    }

    fn slot(&self, endpoint: &Endpoint) -> Slot {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get(endpoint) {
            let usable = match &*slot.borrow() {
                Some(Ok(connection)) => !connection.is_broken(),
                Some(Err(_)) => false,
                None => slot.has_changed().is_ok(),
            };
            if usable {
                return slot.clone();
            }
        }
        let (sender, slot) = watch::channel(None);
        slots.insert(endpoint.clone(), slot.clone());
        let (endpoint, core, opener) = (endpoint.clone(), self.core.clone(), self.opener.clone());
        tokio::spawn(async move {
            let opening = opener.open(&endpoint);
            let opened = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
                Ok(opened) => opened.map(Arc::new),
                Err(_) => Err(Reason::timed_out("no answer in time").at(&endpoint.address)),
            };
            match &opened {
                Ok(connection) => {
                    let (address, node) = (&endpoint.address, connection.node());
                    tracing::debug!(%address, shard = endpoint.shard, node, "a connection is open");
                    core.reached(address);
                }
                Err(reason) => {
                    tracing::debug!(%reason, "a connection cannot be opened");
                    core.leave_out(&endpoint.address, Instant::now());
                }
            }
            // All callers may have gone.
            let _ = sender.send(Some(opened));
        });
        slot
    }
}

fn ended(endpoint: &Endpoint) -> Reason {
    Reason::from("the runtime that opened the connection ended").at(&endpoint.address)
}
