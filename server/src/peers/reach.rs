//! Whether a node is where it says: its address is dialled, and what answers there is compared.
//!
//! A node says in the first frame of each link and to the cluster's manager where it listens. That may
//! be wrong: an address from before a change of the network, one that only the node itself knows, one of
//! another node. So what differs from what is known is a claim at first: [`Peers::claim`] connects to
//! the address, and only if that very node of this cluster answers there it is believed, passed on and
//! written down. Until then the node is called at its old address; a new node is no part of the cluster
//! yet. A claim is tried again until it holds, or the node claims something else.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::NodeId;
use rangedb_protocol::preamble::{ANSWER_LEN, ANY_SHARD, Answer};

use super::Peers;
use crate::env::GlommioRuntime;
use crate::env::reactor::{self, TcpStream};

/// Connecting and greeting may take so long.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// A claim that does not hold is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// And is a reason to complain then. A node speaks a moment before it listens.
const TRIES_BEFORE_COMPLAINT: u32 = 3;

impl Peers {
    /// A node says that it is at this address: whether that is known to be so. If it is not, it is
    /// looked into. On a shard's thread.
    pub fn claim(self: &Arc<Self>, node: NodeId, address: &str) -> bool {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if self.addresses().get(&node).is_some_and(|at| at == address) {
            claims.remove(&node);
            return true;
        }
        if address.is_empty() || claims.get(&node).is_some_and(|claim| claim == address) {
            return false;
        }
        claims.insert(node, address.to_owned());
        // A spawned task may run at once, and takes the lock itself.
        drop(claims);
        let (peers, address) = (self.clone(), address.to_owned());
        reactor::spawn_local(async move { peers.look_into(node, &address).await }).detach();
        false
    }

    /// The cluster's view says that a node is at this address. It may be older than what the node has
    /// said here itself.
    pub fn claim_by_view(self: &Arc<Self>, node: NodeId, address: &str) {
        let is_claimed = {
            let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.contains_key(&node)
        };
        if !is_claimed && node != self.lives.node() {
            self.claim(node, address);
        }
    }

    fn is_claimed(&self, node: NodeId, address: &str) -> bool {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.get(&node).is_some_and(|claim| claim == address)
    }

    async fn look_into(self: &Arc<Self>, node: NodeId, address: &str) {
        let mut tries = 0;
        while self.is_claimed(node, address) {
            match self.meet(node, address).await {
                Ok(()) => {
                    self.learn(node, address);
                    super::remember(self).await;
                    tracing::info!(%node, address, "a node was met at its address");
                    let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
                    claims.remove(&node);
                    return;
                }
                Err(why) => {
                    tries += 1;
                    if tries == TRIES_BEFORE_COMPLAINT {
                        tracing::warn!(
                            %node,
                            address,
                            why,
                            "a node says that it is at an address where it is not met: check its \
                             --advertise"
                        );
                    }
                    GlommioRuntime::sleep(TRY_AGAIN).await;
                }
            }
        }
    }

    /// Whether a node answers at an address.
    async fn meet(&self, node: NodeId, address: &str) -> Result<(), String> {
        let answer = GlommioRuntime::timeout(GREETING_TIMEOUT, greet(address)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("nothing answers in time".to_owned()),
        };
        if (answer.cluster, answer.node) == (self.cluster, node.0) {
            return Ok(());
        }
        Err(format!(
            "node {} of cluster {:032x} answers there, not node {node} of {:032x}",
            answer.node, answer.cluster, self.cluster
        ))
    }
}

/// The node that answers at an address, of any cluster; `None`: there is none, or it cannot be told.
pub(super) async fn who_is_at(address: &str) -> Option<Answer> {
    if address.is_empty() {
        return None;
    }
    let answer = GlommioRuntime::timeout(GREETING_TIMEOUT, greet(address)).await;
    // One that waits for its own place has no id.
    answer.ok()?.ok().filter(|answer| answer.node != 0)
}

async fn greet(address: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(&super::preamble(ANY_SHARD).encode())
        .await?;
    let mut answer = [0; ANSWER_LEN];
    stream.read_exact(&mut answer).await?;
    Answer::decode(&answer).ok_or_else(|| io::Error::other("it is no RangeDB node"))
}
