//! Questions of a shard to other shards and to itself about the cluster, and its search for the manager.
//!
//! Every question has a time limit, also one of the shard to itself. After that the sender goes on without an
//! answer, while the shard that was asked finishes its work. [`crate::shard::cluster_agent`] handles the
//! requests. Lives on the shard's thread.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::cluster::message;
use crate::cluster::{ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env, MessageClass, Transport, is_unsent};
use crate::error::OrderError;
use crate::raft::{self, Message};
use crate::shard::ShardInner;
use crate::shard::manager_orders::orders::ORDER_TIMEOUT;
use crate::shard::manager_orders::{merge_orders, split_orders};
use crate::types::Location;

/// Time limit of one request.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Most shards that are asked in one search for the manager.
const HOPS_MAX: usize = 8;

impl<E: Env> ShardInner<E> {
    /// Asks all shards that may have the manager, one after the other; `None` if it was not found.
    pub(in crate::shard) async fn ask_manager(
        self: &Rc<Self>,
        request: &ClusterRequest,
    ) -> Option<ClusterResponse> {
        let agent = &self.agent;
        let mut candidates: Vec<Location> = agent.leader.get().into_iter().collect();
        candidates.push(self.location);
        candidates.extend(self.known_system());
        let mut asked: Vec<Location> = Vec::new();
        let mut has_more = true;
        let timeout = match request {
            ClusterRequest::SplitRange { .. } | ClusterRequest::SplitInto { .. } => {
                split_orders::ORDER_TIMEOUT + ASK_TIMEOUT
            }
            ClusterRequest::MergeRange { .. } => merge_orders::ORDER_TIMEOUT + ASK_TIMEOUT,
            _ if request.is_order() => ORDER_TIMEOUT + ASK_TIMEOUT,
            _ => ASK_TIMEOUT,
        };
        while asked.len() < HOPS_MAX {
            let next = candidates.iter().find(|at| !asked.contains(at)).copied();
            let Some(at) = next else {
                // These are seldom needed, and finding them goes through all replicas.
                if !std::mem::take(&mut has_more) {
                    return None;
                }
                candidates.extend(self.acquaintances());
                continue;
            };
            asked.push(at);
            match self.try_ask(at, request, timeout).await {
                Ok(ClusterResponse::NotHere { leader, system }) => {
                    candidates.splice(0..0, leader);
                    candidates.extend(system);
                }
                Ok(response) => {
                    agent.leader.set(Some(at));
                    return Some(response);
                }
                // It may have been carried out: another try might do it twice.
                Err(error) if request.is_order() && !is_unsent(&error) => {
                    let why = format!("shard {at} did not answer: {error}");
                    return Some(ClusterResponse::Refused(OrderError::Unknown(why)));
                }
                Err(_) => {}
            }
        }
        None
    }

    /// Sends a request to a shard; `None` if it does not answer.
    pub(in crate::shard) async fn ask(
        self: &Rc<Self>,
        at: Location,
        request: &ClusterRequest,
        timeout: Duration,
    ) -> Option<ClusterResponse> {
        self.try_ask(at, request, timeout).await.ok()
    }

    /// Asks a shard.
    ///
    /// # Errors
    /// It does not answer; [`is_unsent`] tells whether it may have been asked.
    pub(in crate::shard) async fn try_ask(
        self: &Rc<Self>,
        at: Location,
        request: &ClusterRequest,
        timeout: Duration,
    ) -> io::Result<ClusterResponse> {
        if at == self.location {
            return self.ask_itself(request.clone(), timeout).await;
        }
        let request = Message::Cluster(message::encode_request(request).into());
        let request = raft::encode(&request);
        let call = self
            .around
            .transport
            .call(at, MessageClass::Control, request);
        let response = E::Runtime::timeout(timeout, call).await;
        let response = response.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        // A node that speaks another version of the messages has not understood the question either.
        message::decode_response(&response).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Asks this shard, as another one would: the time limit holds here, too, and the shard goes on with what
    /// it was asked after that.
    async fn ask_itself(
        self: &Rc<Self>,
        request: ClusterRequest,
        timeout: Duration,
    ) -> io::Result<ClusterResponse> {
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            drop(sender.send(inner.take(request).await));
        }));
        match E::Runtime::timeout(timeout, receiver).await {
            Ok(response) => response.map_err(|_| io::ErrorKind::ConnectionAborted.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
