//! The addresses that a client was given: which node it connects to first, and how it asks for routes.
//!
//! After a short wait for one node the next is asked beside it, so that a silent node does not use up the
//! time of the others. A client that does not know its cluster yet connects to the nodes in the given
//! order. So a list that has a node of another cluster means the same to every client. All later requests
//! start at a random node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_protocol::{Reply, Request, RequestBody};

use crate::client::Client;
use crate::core::Endpoint;
use crate::error::Reason;
use crate::stagger;

/// Time limit of one node for sending the directory.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

impl Client {
    /// Asks the given nodes for the directory. If several callers want it at the same time, one of
    /// them asks. The first node that answers binds the client to its cluster.
    pub(crate) async fn refresh(&self, deadline: Instant) -> Result<(), Reason> {
        let core = &self.inner.core;
        let received = core.directories();
        let asking = tokio::time::timeout_at(deadline.into(), self.inner.asking.lock()).await;
        let Ok(_asking) = asking else {
            return Err(Reason::timed_out("no node sent the directory in time"));
        };
        if core.directories() != received {
            return Ok(());
        }
        if self.cluster().is_none() && core.addresses().len() > 1 {
            self.meet(deadline).await?;
        }
        let (addresses, delay) = core.order(deadline, Instant::now());
        let ask = |client: Client, endpoint: Endpoint| async move {
            client.ask_directory(&endpoint, soon(deadline)).await
        };
        self.ask_in_turn(addresses, delay, ask).await
    }

    /// Meets a node, which binds the client to that node's cluster.
    async fn meet(&self, deadline: Instant) -> Result<(), Reason> {
        let core = &self.inner.core;
        let delay = core.attempt_delay(deadline, Instant::now());
        let meet = |client: Client, endpoint: Endpoint| async move {
            let opened = client.inner.pool.get(&endpoint, soon(deadline)).await;
            opened.map(drop)
        };
        self.ask_in_turn(core.addresses().to_vec(), delay, meet)
            .await
    }

    /// Asks the nodes one after the other until one has answered.
    async fn ask_in_turn<F>(
        &self,
        addresses: Vec<Arc<str>>,
        delay: Duration,
        ask: impl Fn(Client, Endpoint) -> F,
    ) -> Result<(), Reason>
    where
        F: Future<Output = Result<(), Reason>> + Send + 'static,
    {
        let mut ways = Vec::with_capacity(addresses.len());
        for address in &addresses {
            let endpoint = Endpoint {
                address: address.clone(),
                shard: None,
            };
            ways.push(ask(self.clone(), endpoint));
        }
        let overtaken = |number: usize| {
            if let Some(address) = addresses.get(number) {
                self.inner.core.leave_out(address, Instant::now());
            }
        };
        let asked = stagger::first_of(ways, delay, overtaken).await;
        asked.map_err(|failures| Reason::all("no node answers: ", failures, "; "))
    }

    async fn ask_directory(&self, endpoint: &Endpoint, deadline: Instant) -> Result<(), Reason> {
        let connection = self.inner.pool.get(endpoint, deadline).await?;
        // Routes do not depend on what this client has seen: no timestamp is sent.
        let request = Request {
            body: RequestBody::Directory,
            target: None,
            deadline_ms: 0,
            token: 0,
        };
        let failed = |reason: Reason| reason.at(&endpoint.address);
        let reply = connection.call(&request, deadline).await;
        let reply = reply.map_err(|lost| failed(lost.into()))?;
        match Reply::decode(reply.kind, &reply.body) {
            Ok((Reply::Routes(routes), timestamp)) => {
                let from = (connection.node(), &endpoint.address);
                let core = &self.inner.core;
                core.take_directory(routes, timestamp, from, Instant::now());
                Ok(())
            }
            Ok((Reply::Error(error), _)) => Err(failed(error.message.into())),
            Ok(_) => Err(failed("a reply of the wrong kind".into())),
            Err(bad) => Err(failed(bad.to_string().into())),
        }
    }
}

/// The deadline of one node that is asked now.
fn soon(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + ASK_TIMEOUT)
}
