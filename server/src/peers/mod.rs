//! The other nodes of the cluster: their addresses, the links to their shards, and how an empty
//! node joins.
//!
//! A link is one connection from a shard of this node to a shard of another, in the role of a peer
//! ([`link`] on the requesting side, [`serve`] on the answering side). There are up to three
//! between two shards: two for requests of replicas ([`rangedb_engine::raft`]), so that bulk delays
//! nothing else, and one for forwarded requests of clients ([`rangedb_engine::gateway`]).
//!
//! A link begins with the handshake of the client protocol, but with the versions of the protocol
//! between nodes ([`VERSION`]). Then both sides send frames of [`rangedb_engine::frame`]; [`kind`]
//! lists their kinds. A checksum covers every byte of a frame. A frame that does not match its
//! checksum ends the link and is counted. For a task that waits for a response this is a broken link like
//! any other: the request is sent again over a new one.
//!
//! The first frame proves that the sender knows the cluster's secret, names the cluster and the
//! node that it means, and says where the sender itself listens. So a node that comes back at a new
//! address is found again by the nodes to which it speaks, once they have met it there (`reach`).
//! How a node joins is in [`enroll`].

pub mod enroll;
#[cfg(test)]
mod fuzz;
mod incarnations;
pub mod input;
pub mod link;
mod reach;
pub mod serve;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rangedb_engine::cluster::{HighestIds, View};
use rangedb_engine::error::Fatal;
use rangedb_engine::types::{Location, NodeId, ReplicaId, ShardId};

use rangedb_protocol::handshake::{Handshake, HandshakeReply, Role, Verdict};

use crate::data_dir::{self, Identity};
use crate::env::reactor;
pub use incarnations::{Incarnations, Met, Welcome};

// An append has at most the bytes of one read of the log, or a single longer entry, and headers.
const _: () = {
    use rangedb_engine::limits::{ENTRY_LEN_MAX, LOG_READ_LEN_MAX};
    let heads = 1 << 20;
    assert!(ENTRY_LEN_MAX * 3 / 2 + heads < rangedb_engine::frame::BODY_LEN_MAX);
    assert!(LOG_READ_LEN_MAX + heads < rangedb_engine::frame::BODY_LEN_MAX);
};

/// The version of the protocol between nodes. All nodes of a cluster must speak the same one; a
/// node that speaks another is refused with
/// [`rangedb_protocol::handshake::Verdict::NoCommonVersion`]. Version 1 had the frames of the client
/// protocol, without checksums. Version 3 had log entries of the first format
/// ([`rangedb_engine::range::command`]) and carried frames of version 1 of the client protocol.
/// Version 4 carried frames of version 2. Version 5 had an encoding of its own for the messages of
/// replicas. Version 6 carried each row of a scan in buffers of its own. Version 7 knew nothing of slow
/// disks and of nodes that leave. Before version 9 apply refused a write when the members of its range
/// had changed since it was proposed. Version 10 splits
/// ranges, version 11 merges them, version 12 sends the manager's reports and
/// views as changes, version 13 reports replicas that cannot read all their rows, version 14 tells the time
/// of the cluster in heartbeats, and version 15 reports latencies, room on disks and clocks of nodes.
pub const VERSION: u16 = 15;

/// The handshake of a connection to a shard of another node.
pub fn handshake(shard: u16) -> Handshake {
    Handshake {
        version_min: VERSION,
        version_max: VERSION,
        role: Role::Peer,
        smart: false,
        tls: false,
        shard,
    }
}

/// Why a node refuses this one as a peer.
pub fn refused(answer: &HandshakeReply) -> String {
    match answer.verdict {
        Verdict::NoCommonVersion => format!(
            "it speaks version {} of the protocol between nodes, this node version {VERSION}: run the \
             same release on all nodes of the cluster",
            answer.version
        ),
        Verdict::RoleRefused => {
            "it was started without --cluster-secret and takes no other nodes".to_owned()
        }
        verdict => verdict.to_string(),
    }
}

/// The kinds of frames between nodes.
pub mod kind {
    /// The first frame of a link: a [`super::Hello`].
    pub const HELLO: u16 = 100;
    /// A request of a replica.
    pub const REQUEST: u16 = 101;
    /// The response to that or to a [`FORWARD`], with the same number.
    pub const RESPONSE: u16 = 102;
    /// An empty node asks to join.
    pub const ENROLL: u16 = 103;
    /// The response to that.
    pub const ENROLLED: u16 = 104;
    /// A client's request, forwarded to the leader's shard: see [`rangedb_engine::gateway`].
    pub const FORWARD: u16 = 109;
    /// The response to a [`HELLO`] that is refused: the reason as text, after which the connection
    /// ends.
    pub const REFUSED: u16 = 107;
    /// The response to a [`HELLO`] that is accepted: a [`super::Welcome`], before all other frames.
    pub const WELCOME: u16 = 108;
}

/// A repeated refusal is logged at this interval.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_mins(1);
/// Most refusals that are remembered, so as not to log them again; beyond these, none are logged.
const REFUSALS_MAX: usize = 64;

fn held<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The addresses of nodes, by node id.
pub type Addresses = BTreeMap<NodeId, String>;

/// What this node knows of its cluster. The shards share it, but not on the data path.
#[derive(Debug)]
pub struct Peers {
    /// Proves that a peer belongs to the cluster; if it is empty, there are no peers.
    pub secret: String,
    /// The address under which other nodes reach this one.
    pub advertise: String,
    /// This process and the latest ones of the other nodes.
    pub incarnations: Incarnations,
    cluster: u128,
    addresses: RwLock<Arc<Addresses>>,
    /// Addresses that nodes claim, until they were met there: see [`reach`].
    claims: Mutex<Addresses>,
    /// The addresses in the last view, which may be older than what a node has said itself since.
    viewed: Mutex<Addresses>,
    /// The data folder, and its `node.json` as last written.
    folder: Mutex<(PathBuf, Identity)>,
    /// The nodes that refuse this one, and why.
    refused_by: Mutex<BTreeMap<NodeId, String>>,
    /// The refusals of other nodes that were logged, and when.
    refusals: Mutex<BTreeMap<String, Instant>>,
}

impl Peers {
    /// The nodes that a folder remembers.
    pub fn new(
        secret: String,
        advertise: String,
        folder: PathBuf,
        (identity, incarnation): (Identity, u128),
    ) -> Peers {
        let incarnations = Incarnations::new(NodeId(identity.node), incarnation, &identity.lives);
        let addresses = identity.addresses.iter();
        let mut addresses: Addresses = addresses
            .map(|(id, at)| (NodeId(*id), at.clone()))
            .collect();
        addresses.insert(NodeId(identity.node), advertise.clone());
        Peers {
            secret,
            advertise,
            incarnations,
            cluster: u128::from_str_radix(&identity.cluster, 16).unwrap_or_default(),
            addresses: RwLock::new(Arc::new(addresses)),
            claims: Mutex::default(),
            viewed: Mutex::default(),
            folder: Mutex::new((folder, identity)),
            refused_by: Mutex::default(),
            refusals: Mutex::default(),
        }
    }

    /// No peers: for a node that is alone.
    pub fn none() -> Peers {
        Peers::new(
            String::new(),
            String::new(),
            PathBuf::new(),
            (Identity::default(), 0),
        )
    }

    /// All addresses, as known now.
    pub fn addresses(&self) -> Arc<Addresses> {
        let addresses = self.addresses.read();
        addresses.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the address of a node, unless it is empty.
    pub fn learn(&self, node: NodeId, address: &str) {
        let known = self.addresses();
        if address.is_empty() || known.get(&node).is_some_and(|at| at == address) {
            return;
        }
        let mut held = self
            .addresses
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut addresses = Addresses::clone(&held);
        addresses.insert(node, address.to_owned());
        *held = Arc::new(addresses);
    }

    /// The nodes whose address differs from the view before, with the new address. Only these: a
    /// node that has moved may have said so here before it reached the manager.
    pub fn take_view(&self, view: &View) -> Vec<(NodeId, String)> {
        for node in &view.nodes {
            self.incarnations
                .learn(node.record.id, node.record.incarnation);
        }
        let nodes = view.nodes.iter();
        let addresses: Addresses = nodes
            .map(|node| (node.record.id, node.record.address.clone()))
            .collect();
        let mut viewed = held(&self.viewed);
        let is_new = |(node, at): &(&NodeId, &String)| viewed.get(node) != Some(at);
        let new = addresses.iter().filter(is_new);
        let new = new.map(|(node, at)| (*node, at.clone())).collect();
        *viewed = addresses;
        new
    }

    /// Notes that a node refuses this one. `true`: it did not before, or for another reason.
    pub fn note_refusal(&self, by: NodeId, reason: &str) -> bool {
        let mut refused = held(&self.refused_by);
        let before = refused.insert(by, reason.to_owned());
        before.as_deref() != Some(reason)
    }

    /// Notes that a node accepts this one.
    pub fn note_accepted(&self, by: NodeId) {
        held(&self.refused_by).remove(&by);
    }

    /// The nodes that refuse this one, and why.
    pub fn refused_by(&self) -> BTreeMap<NodeId, String> {
        held(&self.refused_by).clone()
    }

    /// Whether a refusal of another node must be logged: the same one is logged once in a while.
    fn is_news(&self, refusal: &str) -> bool {
        let mut refusals = held(&self.refusals);
        let now = Instant::now();
        refusals.retain(|_, at| now < *at + REFUSAL_LOG_INTERVAL);
        if refusals.contains_key(refusal) || refusals.len() >= REFUSALS_MAX {
            return false;
        }
        refusals.insert(refusal.to_owned(), now);
        true
    }

    /// The replicas of the system range, as last written to `node.json`.
    pub fn system(&self) -> Vec<Location> {
        let folder = held(&self.folder);
        let system = folder.1.system.iter();
        let location = |(node, shard): &(u64, u16)| Location {
            node: NodeId(*node),
            shard: ShardId(*shard),
        };
        system.map(location).collect()
    }

    /// The highest id of a node that this one has ever heard of, and of a replica that a shard had which
    /// this node has given up.
    pub fn highest_ids(&self) -> HighestIds {
        let addresses = self.addresses();
        HighestIds {
            node: addresses.keys().next_back().copied().unwrap_or_default(),
            replica: ReplicaId(held(&self.folder).1.gone_replica),
            ..HighestIds::default()
        }
    }

    /// Whether the cluster has other nodes, as far as the folder knows.
    pub fn is_of_cluster(&self) -> bool {
        held(&self.folder).1.is_of_cluster() || self.addresses().len() > 1
    }

    /// Makes the folder remember that a shard has opened its log and tables. Blocks.
    ///
    /// # Errors
    /// `node.json` cannot be written, and does not yet say so of this shard.
    pub fn note_opened(&self, shard: ShardId) -> io::Result<()> {
        let mut remembered = held(&self.folder);
        let (folder, identity) = &mut *remembered;
        let mut new = identity.clone();
        let Some(log) = new.logs.get_mut(usize::from(shard.0)) else {
            return Ok(());
        };
        let is_first = matches!(log.opened, None | Some(0));
        log.opened = Some(new.starts);
        match data_dir::write_identity(folder, &new) {
            Ok(()) => *identity = new,
            Err(error) if is_first => return Err(error),
            // The folder names an earlier start, which is enough to notice that a log is missing.
            Err(error) => {
                tracing::warn!(%error, "node.json was not written: it names an earlier start")
            }
        }
        Ok(())
    }

    /// Makes the folder remember that a shard which this node gives up holds nothing: the next start
    /// does without it. `highest` is the highest id of a replica that it had. Gives whether it is noted:
    /// shards go from the last one on. Blocks.
    ///
    /// # Errors
    /// `node.json` cannot be written.
    pub fn note_emptied(&self, shard: ShardId, highest: ReplicaId) -> io::Result<bool> {
        let mut remembered = held(&self.folder);
        let (folder, identity) = &mut *remembered;
        let mut new = identity.clone();
        if !new.lose_last_shard(shard.0, highest.0) {
            return Ok(false);
        }
        data_dir::write_identity(folder, &new)?;
        *identity = new;
        Ok(true)
    }

    /// Calls `listener` when another process runs as this node; this process is the `start`th on its
    /// folder. The folder records that it was given up.
    pub fn on_older(
        self: &Arc<Self>,
        start: u64,
        listener: impl Fn(&Fatal) + Send + Sync + 'static,
    ) {
        let peers = Arc::downgrade(self);
        self.incarnations.on_older(move |seen, was_accepted| {
            let Some(peers) = peers.upgrade() else { return };
            let node = peers.incarnations.node();
            let fatal = match was_accepted {
                true => Fatal::Superseded(node),
                false => Fatal::OldFolder { node, start, seen },
            };
            peers.give_up_folder_after(&fatal);
            listener(&fatal);
        });
    }

    /// Records in the folder that no node may run on it any more, if that is why the process ends.
    /// Blocks.
    pub fn give_up_folder_after(&self, fatal: &Fatal) {
        if !fatal.gives_up_folder() {
            return;
        }
        let mut remembered = held(&self.folder);
        let (folder, identity) = &mut *remembered;
        if let Err(error) = data_dir::give_up(folder, identity, &fatal.to_string()) {
            tracing::warn!(%error, "node.json was not written: the folder does not say that it was refused");
        }
    }

    /// Writes what the next start must know, if `node.json` differs: the addresses of the nodes and
    /// the replicas of the system range. Blocks.
    pub fn remember(&self, system: &[Location]) {
        self.write_down(|identity| {
            identity.system = system.iter().map(|at| (at.node.0, at.shard.0)).collect();
        });
    }

    /// Writes what was learnt of other nodes. Blocks.
    pub fn remember_nodes(&self) {
        self.write_down(|_| ());
    }

    fn write_down(&self, change: impl FnOnce(&mut Identity)) {
        let mut remembered = held(&self.folder);
        let (folder, identity) = &mut *remembered;
        let addresses = self.addresses();
        let mut new = identity.clone();
        change(&mut new);
        new.lives = self.incarnations.to_write();
        new.addresses = addresses
            .iter()
            .map(|(id, at)| (id.0, at.clone()))
            .collect();
        if new == *identity {
            return;
        }
        match data_dir::write_identity(folder, &new) {
            Ok(()) => *identity = new,
            Err(error) => tracing::warn!(%error, "node.json was not written; it is tried again"),
        }
    }
}

/// Why a node is not accepted as a peer.
const OLDER_FOLDER: &str = "the node runs on a folder that is older than one it has run on, or on \
     another copy of it: it was restored from a backup, or copied; it must start with an empty folder";

/// Writes what was learnt of other nodes, on a helper thread.
async fn remember(peers: &Arc<Peers>) {
    let peers = peers.clone();
    let written = reactor::blocking(move || {
        peers.remember_nodes();
        Ok(())
    });
    if let Err(error) = written.await {
        tracing::warn!(%error, "what was learnt of other nodes was not written to node.json");
    }
}

/// The first frame of a link, from the side that connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster's id.
    pub cluster: u128,
    /// The shard to which it connects.
    pub to: Location,
    /// The node that sends it.
    pub from: NodeId,
    /// The process that sends it, and the latest process that it knows of the other node.
    pub welcome: Welcome,
    /// The address on which the sender's node listens.
    pub address: String,
    /// The cluster's secret.
    pub secret: String,
}

impl Hello {
    /// The frame's body.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.cluster.to_le_bytes());
        bytes.extend_from_slice(&self.to.node.0.to_le_bytes());
        bytes.extend_from_slice(&self.to.shard.0.to_le_bytes());
        bytes.extend_from_slice(&self.from.0.to_le_bytes());
        bytes.extend_from_slice(&self.welcome.encode());
        bytes.extend_from_slice(&(self.address.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.address.as_bytes());
        bytes.extend_from_slice(self.secret.as_bytes());
        bytes
    }

    /// Reads a body; `None` if it is not one.
    pub fn decode(bytes: &[u8]) -> Option<Hello> {
        let (cluster, rest) = bytes.split_first_chunk()?;
        let (node, rest) = rest.split_first_chunk()?;
        let (shard, rest) = rest.split_first_chunk()?;
        let (from, rest) = rest.split_first_chunk()?;
        let (welcome, rest) = rest.split_at_checked(Welcome::LEN)?;
        let (address_len, rest) = rest.split_first_chunk()?;
        let (address, secret) = rest.split_at_checked(u32::from_le_bytes(*address_len) as usize)?;
        Some(Hello {
            cluster: u128::from_le_bytes(*cluster),
            to: Location {
                node: NodeId(u64::from_le_bytes(*node)),
                shard: ShardId(u16::from_le_bytes(*shard)),
            },
            from: NodeId(u64::from_le_bytes(*from)),
            welcome: Welcome::decode(welcome)?,
            address: std::str::from_utf8(address).ok()?.to_owned(),
            secret: std::str::from_utf8(secret).ok()?.to_owned(),
        })
    }
}

/// Compares two secrets of one length in a time that does not depend on where they differ.
pub fn same_secret(a: &str, b: &str) -> bool {
    let differ = a
        .bytes()
        .zip(b.bytes())
        .fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use rangedb_engine::cluster::{MembershipStatus, NodeHealth, NodeRecord, NodeView};

    use super::*;
    use crate::data_dir::{Birth, DataDir, FolderOptions};
    use crate::test_node;

    #[test]
    fn a_hello_is_read_back_and_a_part_of_it_is_not() {
        let hello = Hello {
            secret: "secret".to_owned(),
            cluster: u128::MAX - 3,
            to: Location {
                node: NodeId(2),
                shard: ShardId(3),
            },
            from: NodeId(1),
            welcome: Welcome {
                incarnation: u128::MAX - 9,
                yours: 4,
            },
            address: "here:7400".to_owned(),
        };
        let bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Some(hello));
        assert_eq!(Hello::decode(&bytes[..40]), None);
        assert_eq!(Hello::decode(&[0xff; 78]), None);
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(same_secret("a", "a") && same_secret("", ""));
        assert!(!same_secret("a", "b") && !same_secret("a", "aa") && !same_secret("aa", "a"));
    }

    #[test]
    fn addresses_change_and_empty_ones_are_passed_over() {
        let peers = Peers::none();
        peers.learn(NodeId(2), "a:1");
        peers.learn(NodeId(2), "");
        peers.learn(NodeId(3), "b:1");
        peers.learn(NodeId(3), "c:1");
        let addresses = peers.addresses();
        assert_eq!(addresses.get(&NodeId(2)).map(String::as_str), Some("a:1"));
        assert_eq!(addresses.get(&NodeId(3)).map(String::as_str), Some("c:1"));
    }

    /// Another thread may write `node.json` between the refusal and the end of the process.
    #[test]
    fn what_is_learnt_after_a_refusal_leaves_the_folder_refused() {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let path = temp.path().join("data");
        let options = FolderOptions {
            shards: Some(1),
            shards_if_new: 1,
            split_at: Vec::new(),
        };
        let open = || DataDir::open(&path, &options, |_| Ok(Birth::Founder));
        let folder = open().expect("made");
        let identity = folder.identity.clone();
        let (node, start) = (NodeId(identity.node), identity.starts);
        let seen = start + 1;
        let peers = Peers::new(String::new(), String::new(), path.clone(), (identity, 0));
        peers.give_up_folder_after(&Fatal::OldFolder { node, start, seen });
        peers.learn(NodeId(2), "a:1");
        peers.remember_nodes();
        drop(folder);
        let refused = open().expect_err("refused");
        assert!(refused.to_string().contains("refused before"), "{refused}");
    }

    #[test]
    fn a_view_does_not_undo_what_a_node_has_said_since() {
        let peers = Peers::none();
        let view = |address: &str| View {
            nodes: vec![NodeView {
                record: NodeRecord {
                    address: address.to_owned(),
                    ..test_node::record(2)
                },
                state: NodeHealth::Alive,
                membership: MembershipStatus::Active,
                slow_disk: false,
                shards: Vec::new(),
            }],
            ..View::default()
        };
        let at = |at: &str| vec![(NodeId(2), at.to_owned())];
        assert_eq!(peers.take_view(&view("a:1")), at("a:1"));
        peers.learn(NodeId(2), "b:1");
        assert_eq!(peers.take_view(&view("a:1")), []);
        assert_eq!(peers.take_view(&view("c:1")), at("c:1"));
    }
}
