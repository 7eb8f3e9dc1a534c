//! The latest process (incarnation) of each node that was seen, so that a node on an older folder is
//! refused.
//!
//! A folder that was restored from an older copy lacks what its node has voted and acknowledged
//! since; so no other node may rely on it. The folder counts the starts of its node, so an older folder has a
//! lower count ([`NodeRecord::is_older`]). Both sides of a link name their own process and the
//! latest one that they have seen of the other, before any answer counts. A process that learns
//! that it is the older one ends, whether or not the manager can be reached. `node.json` keeps what
//! was seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rangedb_engine::cluster::NodeRecord;
use rangedb_engine::types::NodeId;

/// Called when another process runs as this node: with the number of its start, and whether this
/// process was once accepted as the node's latest.
type OnOlder = Box<dyn Fn(u64, bool) + Send + Sync>;

/// The processes that are known; see the module's chapter.
pub struct Incarnations {
    node: NodeId,
    /// This process; 0 in a node without a folder.
    own: u128,
    others: Mutex<BTreeMap<NodeId, u128>>,
    on_older: OnceLock<OnOlder>,
    /// Whether some node has named this process as the latest one of its node.
    was_accepted: AtomicBool,
}

impl std::fmt::Debug for Incarnations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Incarnations({}: {:032x})", self.node, self.own)
    }
}

/// What each side of a link says of the processes of both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The process that says it.
    pub incarnation: u128,
    /// The latest process of the other side's node that it has seen; 0 if none.
    pub yours: u128,
}

impl Welcome {
    /// Length of the encoded form in bytes.
    pub const LEN: usize = 32;

    /// The encoded form.
    pub fn encode(&self) -> [u8; Welcome::LEN] {
        let mut bytes = [0; Welcome::LEN];
        let (incarnation, yours) = bytes.split_at_mut(Welcome::LEN / 2);
        incarnation.copy_from_slice(&self.incarnation.to_le_bytes());
        yours.copy_from_slice(&self.yours.to_le_bytes());
        bytes
    }

    /// Reads the encoded form; `None` if the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Option<Welcome> {
        let (incarnation, yours) = bytes.split_first_chunk()?;
        Some(Welcome {
            incarnation: u128::from_le_bytes(*incarnation),
            yours: u128::from_le_bytes(yours.try_into().ok()?),
        })
    }
}

/// Whether the other side of a link is accepted as its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Accepted; nothing new was learnt.
    Known,
    /// Accepted; `node.json` must remember its process first.
    New,
    /// Refused: it runs on an older folder than a process that was seen.
    Older,
}

impl Incarnations {
    /// Starts with this process and what the folder remembers of the others.
    pub fn new(node: NodeId, own: u128, remembered: &BTreeMap<u64, String>) -> Incarnations {
        let read = |(id, incarnation): (&u64, &String)| {
            let incarnation = u128::from_str_radix(incarnation, 16).ok()?;
            Some((NodeId(*id), incarnation))
        };
        Incarnations {
            node,
            own,
            others: Mutex::new(remembered.iter().filter_map(read).collect()),
            on_older: OnceLock::new(),
            was_accepted: AtomicBool::new(false),
        }
    }

    /// The id of this node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Sets the function that is called when another process runs as this node. It gets the number
    /// of that process's start, and whether this process was once accepted as the node's latest.
    pub fn on_older(&self, told: impl Fn(u64, bool) + Send + Sync + 'static) {
        // The start calls this once.
        let _ = self.on_older.set(Box::new(told));
    }

    /// What this side says to a node.
    pub fn welcome(&self, to: NodeId) -> Welcome {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        Welcome {
            incarnation: self.own,
            yours: others.get(&to).copied().unwrap_or(0),
        }
    }

    /// Takes what a node says; returns whether it is accepted.
    pub fn meet(&self, node: NodeId, said: Welcome) -> Met {
        self.learn(self.node, said.yours);
        self.learn(node, said.incarnation)
    }

    /// Notes a process of a node that was seen, here or by another node.
    pub fn learn(&self, node: NodeId, incarnation: u128) -> Met {
        if node == self.node {
            if incarnation == self.own {
                self.was_accepted.store(true, Ordering::Relaxed);
            } else if NodeRecord::is_older(self.own, incarnation)
                && let Some(told) = self.on_older.get()
            {
                let was_accepted = self.was_accepted.load(Ordering::Relaxed);
                told((incarnation >> 64) as u64, was_accepted);
            }
            return Met::Known;
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = others.get(&node).copied().unwrap_or(0);
        if NodeRecord::is_older(incarnation, seen) {
            return Met::Older;
        }
        if incarnation == seen {
            return Met::Known;
        }
        others.insert(node, incarnation);
        Met::New
    }

    /// What `node.json` must remember.
    pub fn to_write(&self) -> BTreeMap<u64, String> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let others = others.iter();
        others
            .map(|(node, incarnation)| (node.0, format!("{incarnation:032x}")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn said(starts: u64, random: u64) -> Welcome {
        Welcome {
            incarnation: NodeRecord::incarnation(starts, random),
            yours: 0,
        }
    }

    #[test]
    fn a_node_on_an_older_folder_is_refused_also_after_a_restart() {
        let incarnations =
            Incarnations::new(NodeId(1), NodeRecord::incarnation(3, 1), &BTreeMap::new());
        assert_eq!(incarnations.meet(NodeId(2), said(7, 5)), Met::New);
        assert_eq!(incarnations.meet(NodeId(2), said(7, 5)), Met::Known);
        for incarnations in [
            &incarnations,
            &Incarnations::new(NodeId(1), 9, &incarnations.to_write()),
        ] {
            assert_eq!(incarnations.meet(NodeId(2), said(6, 5)), Met::Older);
            assert_eq!(
                incarnations.meet(NodeId(2), said(7, 6)),
                Met::Older,
                "a copy"
            );
            assert_eq!(incarnations.meet(NodeId(2), said(7, 5)), Met::Known);
        }
        assert_eq!(incarnations.meet(NodeId(2), said(8, 1)), Met::New);
    }

    #[test]
    fn a_process_hears_that_it_is_the_older_one() {
        let incarnations =
            Incarnations::new(NodeId(1), NodeRecord::incarnation(3, 1), &BTreeMap::new());
        let heard = Arc::new(AtomicU64::new(0));
        let hears = heard.clone();
        incarnations.on_older(move |start, was_accepted| {
            assert!(was_accepted, "it was the newest at its second meeting");
            hears.store(start, Ordering::SeqCst);
        });
        for (starts, expected) in [(2, 0), (3, 0), (5, 5)] {
            let said = Welcome {
                incarnation: NodeRecord::incarnation(1, 1),
                yours: NodeRecord::incarnation(starts, 1),
            };
            incarnations.meet(NodeId(2), said);
            assert_eq!(heard.load(Ordering::SeqCst), expected, "{starts}");
        }
    }

    #[test]
    fn a_welcome_is_read_back_and_a_part_of_it_is_not() {
        let welcome = said(3, 4);
        let bytes = welcome.encode();
        assert_eq!(Welcome::decode(&bytes), Some(welcome));
        assert_eq!(Welcome::decode(&bytes[..31]), None);
    }
}
