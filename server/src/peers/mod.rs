//! The other nodes of the cluster: who they are, the links to their shards, and how a new cluster
//! is formed.
//!
//! A link is one connection from a shard of this node to a shard of another, in the role of a peer
//! ([`link`] on the asking side, [`serve`] on the answering one). It carries the questions of
//! replicas ([`rangedb_engine::raft`]) in the frames of the client protocol; kinds are [`kind`].
//! The first frame proves that the sender knows the cluster's secret, and says which cluster and
//! which node it means.
//!
//! **Forming.** N empty nodes are started with the same list of addresses and `--bootstrap-expect
//! N`. The list, sorted, numbers them from 1. The first, the founder, makes the cluster's id; the
//! others ask it to be enrolled ([`enroll`]), which it grants to each number once, durably: a node
//! whose folder was lost must not come back under its old number, where it would have forgotten
//! its votes.

pub mod carry;
pub mod enroll;
pub mod link;
pub mod serve;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use rangedb_engine::types::NodeId;

use crate::env::data_dir::Identity;

// An append is at most what is read at once, or one entry that is longer, with its heads.
const _: () = {
    use rangedb_engine::limits::{ENTRY_LEN_MAX, LOG_READ_LEN_MAX};
    let heads = 1 << 20;
    assert!(ENTRY_LEN_MAX * 3 / 2 + heads < rangedb_protocol::limits::FRAME_LEN_MAX);
    assert!(LOG_READ_LEN_MAX + heads < rangedb_protocol::limits::FRAME_LEN_MAX);
};

/// Kinds of frames between nodes.
pub mod kind {
    /// The first frame of a link: a [`super::Hello`].
    pub const HELLO: u16 = 100;
    /// A question of a replica.
    pub const QUESTION: u16 = 101;
    /// Its answer, under the same number.
    pub const ANSWER: u16 = 102;
    /// A node of a cluster that is being formed asks for its place.
    pub const ENROLL: u16 = 103;
    /// The answer to that.
    pub const ENROLLED: u16 = 104;
    /// A client's request that is carried to the leader's shard: see [`super::carry`].
    pub const CARRY: u16 = 105;
    /// Its reply, under the same number.
    pub const CARRIED: u16 = 106;
}

/// What this node knows of its cluster.
#[derive(Debug)]
pub struct Peers {
    /// Proves that a peer belongs to the cluster.
    pub secret: String,
    /// Where each node listens; a cluster of one has none but itself.
    pub addresses: BTreeMap<NodeId, String>,
    /// The folder, and what it says of the node; changed only while a cluster is being formed.
    pub identity: Mutex<(PathBuf, Identity)>,
}

impl Peers {
    /// Those of a node that is alone.
    pub fn none() -> Peers {
        Peers {
            secret: String::new(),
            addresses: BTreeMap::new(),
            identity: Mutex::default(),
        }
    }
}

/// The first frame of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster's secret.
    pub secret: String,
    /// The cluster's id.
    pub cluster: u128,
    /// The node that is meant.
    pub to: NodeId,
    /// The node that speaks.
    pub from: NodeId,
}

impl Hello {
    /// The frame's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.cluster.to_le_bytes());
        bytes.extend_from_slice(&self.to.0.to_le_bytes());
        bytes.extend_from_slice(&self.from.0.to_le_bytes());
        bytes.extend_from_slice(self.secret.as_bytes());
        bytes
    }

    /// Reads a body; `None` if it is none.
    pub fn decode(bytes: &[u8]) -> Option<Hello> {
        let (cluster, rest) = bytes.split_first_chunk()?;
        let (to, rest) = rest.split_first_chunk()?;
        let (from, secret) = rest.split_first_chunk()?;
        Some(Hello {
            cluster: u128::from_le_bytes(*cluster),
            to: NodeId(u64::from_le_bytes(*to)),
            from: NodeId(u64::from_le_bytes(*from)),
            secret: std::str::from_utf8(secret).ok()?.to_owned(),
        })
    }
}

/// Compares two secrets in a time that does not tell where they differ.
pub fn same_secret(a: &str, b: &str) -> bool {
    let differ = a
        .bytes()
        .zip(b.bytes())
        .fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_read_back_and_a_part_of_it_is_not() {
        let hello = Hello {
            secret: "secret".to_owned(),
            cluster: u128::MAX - 3,
            to: NodeId(2),
            from: NodeId(1),
        };
        let bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Some(hello));
        assert_eq!(Hello::decode(&bytes[..31]), None);
        assert_eq!(Hello::decode(&[0xff; 40]), None);
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same_secret("a", "a") && same_secret("", ""));
        assert!(!same_secret("a", "b") && !same_secret("a", "aa") && !same_secret("aa", "a"));
    }
}
