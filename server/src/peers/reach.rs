//! Checks that a node is where it says: connects to the address and compares what answers there.
//!
//! A node says in the first frame of each link, and to the cluster's manager, where it listens.
//! That may be wrong: an address from before a change of the network, one that only the node itself
//! knows, or another node's. So an address that differs from the known one is a claim at first.
//! [`Peers::claim`] connects to it, and only if that very node of this cluster answers is the
//! address believed, passed on and written down. Until then the node is reached at its old address,
//! and a new node is no part of the cluster yet. A claim is tried again until it holds or the node
//! claims something else.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::NodeId;
use rangedb_protocol::handshake::{ANY_SHARD, HANDSHAKE_REPLY_LEN, HandshakeReply};

use super::Peers;
use crate::env::GlommioRuntime;
use crate::env::reactor::{self, TcpStream};

/// Time limit of connecting and the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a claim that does not hold is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A claim that has failed this often is logged. A node sends its claim a moment before it listens.
const TRIES_BEFORE_COMPLAINT: u32 = 3;

impl Peers {
    /// A node says that it is at this address. Returns whether that is known to be true; if not,
    /// starts to check it. Must be called on a shard's thread.
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
        // The lock must be free: a spawned task may run at once, and takes it itself.
        drop(claims);
        let (peers, address) = (self.clone(), address.to_owned());
        reactor::spawn_local(async move { peers.look_into(node, &address).await }).detach();
        false
    }

    /// The cluster's view says that a node is at this address. The node's own claim, if there is
    /// one, may be newer, and wins.
    pub fn claim_by_view(self: &Arc<Self>, node: NodeId, address: &str) {
        let is_claimed = {
            let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.contains_key(&node)
        };
        if !is_claimed && node != self.incarnations.node() {
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
                    GlommioRuntime::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Checks that a node of this cluster answers at an address.
    async fn meet(&self, node: NodeId, address: &str) -> Result<(), String> {
        let answer = GlommioRuntime::timeout(HANDSHAKE_TIMEOUT, connect(address)).await;
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

/// The node, of any cluster, that answers at an address; `None` if there is none or it is not
/// known.
pub(super) async fn who_is_at(address: &str) -> Option<HandshakeReply> {
    if address.is_empty() {
        return None;
    }
    let answer = GlommioRuntime::timeout(HANDSHAKE_TIMEOUT, connect(address)).await;
    // A node that waits to join has no id.
    answer.ok()?.ok().filter(|answer| answer.node != 0)
}

async fn connect(address: &str) -> io::Result<HandshakeReply> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(&super::handshake(ANY_SHARD).encode())
        .await?;
    let mut answer = [0; HANDSHAKE_REPLY_LEN];
    stream.read_exact(&mut answer).await?;
    HandshakeReply::decode(&answer).ok_or_else(|| io::Error::other("it is not a RangeDB node"))
}
