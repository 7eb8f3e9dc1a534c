//! The addresses that a client was given: which node it meets first, and which it asks for routes.
//!
//! No silent node may use up the time of the others: the next is asked, too, after a short wait. A
//! client that was not told its cluster meets the nodes in the given order, so that a list with a
//! node of another cluster means the same to every client. All later requests start at a random
//! node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rangedb_protocol::{Reply, Request, RequestBody};

use crate::client::Client;
use crate::directory::Place;
use crate::error::{Error, ErrorCode, Fate};
use crate::stagger;

/// Time limit of one node for sending the directory.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// After this long without an answer the next node is asked, too; sooner if time is short.
const NEXT_AFTER: Duration = Duration::from_millis(100);

fn unreachable(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::Unreachable, Fate::NotApplied, message)
}

impl Client {
    /// Meets a node, which binds the client to that node's cluster.
    pub(crate) async fn meet(&self, deadline: Instant) -> Result<(), Error> {
        let addresses = self.inner.addresses.clone();
        let meet = |client: Client, place: Place| async move {
            let opened = client.inner.pool.get(&place, soon(deadline)).await;
            opened.map(drop)
        };
        self.ask_in_turn(addresses, deadline, meet).await
    }

    /// Asks the given nodes for the directory, starting with a random one. If several callers want
    /// it at the same time, one of them asks.
    pub(crate) async fn refresh(&self, deadline: Instant) -> Result<(), Error> {
        let inner = &self.inner;
        let told = inner.told.load(Ordering::Acquire);
        let asking = tokio::time::timeout_at(deadline.into(), inner.asking.lock()).await;
        let Ok(_asking) = asking else {
            return Err(unreachable("no node told the directory in time"));
        };
        if inner.told.load(Ordering::Acquire) != told {
            return Ok(());
        }
        let mut addresses = inner.addresses.clone();
        addresses.rotate_left(rand::random_range(0..inner.addresses.len()));
        // Nodes that failed a short time ago come last.
        addresses.sort_by_key(|address| inner.pool.is_left_out(address));
        let ask = |client: Client, place: Place| async move {
            client.ask_directory(&place, soon(deadline)).await
        };
        self.ask_in_turn(addresses, deadline, ask).await?;
        inner.told.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Asks the nodes one after the other until one has answered.
    async fn ask_in_turn<F>(
        &self,
        addresses: Vec<Arc<str>>,
        deadline: Instant,
        ask: impl Fn(Client, Place) -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let left = deadline.saturating_duration_since(Instant::now());
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let fair = left / count.saturating_mul(2).max(1);
        let mut ways = Vec::with_capacity(addresses.len());
        for address in &addresses {
            let place = Place {
                address: address.clone(),
                shard: None,
            };
            ways.push(ask(self.clone(), place));
        }
        let overtaken = |number: usize| {
            if let Some(address) = addresses.get(number) {
                self.inner.pool.leave_out(address);
            }
        };
        let asked = stagger::first_of(ways, fair.min(NEXT_AFTER), overtaken).await;
        asked.map_err(|failures| unreachable(format!("no node answers: {}", failures.join("; "))))
    }

    async fn ask_directory(&self, place: &Place, deadline: Instant) -> Result<(), String> {
        let connection = self.inner.pool.get(place, deadline).await?;
        // Routes do not depend on what this client has seen: no timestamp is sent.
        let request = Request {
            body: RequestBody::Directory,
            target: None,
            deadline_ms: 0,
            token: 0,
        };
        let reply = connection.call(&request, deadline).await;
        let reply = reply.map_err(|lost| format!("{}: {lost}", place.address))?;
        match Reply::decode(reply.kind, &reply.body) {
            Ok((Reply::Routes(routes), now)) => {
                self.inner.session.observe(now);
                let from = (connection.node(), &place.address);
                for route in routes {
                    self.inner.directory.learn(route, from);
                }
                Ok(())
            }
            Ok((Reply::Error(error), _)) => Err(format!("{}: {}", place.address, error.message)),
            Ok(_) => Err(format!("{}: a reply of the wrong kind", place.address)),
            Err(bad) => Err(format!("{}: {bad}", place.address)),
        }
    }

    /// A random node, if possible one that has not failed a short time ago.
    pub(crate) fn any_place(&self) -> Place {
        let addresses = &self.inner.addresses;
        let first = rand::random_range(0..addresses.len());
        let mut all = addresses.iter().cycle().skip(first).take(addresses.len());
        let fit = all.find(|address| !self.inner.pool.is_left_out(address));
        let address = fit.or(addresses.get(first)).cloned();
        Place {
            address: address.unwrap_or_default(),
            shard: None,
        }
    }
}

/// The deadline of one node that is asked now.
fn soon(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + ASK_TIMEOUT)
}
