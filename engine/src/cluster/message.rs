//! What shards say to each other about the cluster: to the manager, and from it to the shards.
//!
//! The bytes are rkyv's after a byte for the version of all messages, checked when they are read. A node
//! that speaks another version is not understood. Pure.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use super::record::{self, NodeRecord, Setting};
use crate::range::digest::Digest;
use crate::range::{Descriptor, ReplicaPlace};
use crate::types::{Location, NodeId, RangeId, ReplicaId};

/// Version of the messages.
const VERSION: u8 = 2;

/// The bytes of a question or an order.
pub fn encode_ask(ask: &Ask) -> Vec<u8> {
    record::encode_as(VERSION, ask)
}

/// Reads what [`encode_ask`] wrote; `None` if the bytes are none of this version.
pub fn decode_ask(bytes: &[u8]) -> Option<Ask> {
    record::decode_as(VERSION, bytes)
}

/// The bytes of an answer.
pub fn encode_told(told: &Told) -> Vec<u8> {
    record::encode_as(VERSION, told)
}

/// Reads what [`encode_told`] wrote; `None` if the bytes are none of this version.
pub fn decode_told(bytes: &[u8]) -> Option<Told> {
    record::decode_as(VERSION, bytes)
}

/// A question or an order.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Ask {
    /// To the manager: how a shard is. Answered with [`Told::Synced`].
    Report(Report),
    /// To the manager: everything, as of now. Answered with [`Told::View`].
    View,
    /// To the manager: a new node wants an id. The same token is given the same id.
    Join { token: u128 },
    /// To the manager: sets a setting of the cluster.
    Set { name: String, value: String },
    /// To the manager: all settings ever set. Answered with [`Told::Settings`].
    History,
    /// To the manager: another node, or any other, shall lead a range.
    TransferLeader { range: RangeId, to: Option<NodeId> },
    /// To the manager: a replica of a range shall move.
    MoveReplica {
        range: RangeId,
        from: NodeId,
        to: Location,
    },
    /// To a shard: makes an empty replica, which waits for a snapshot.
    Create {
        descriptor: Descriptor,
        replica: ReplicaId,
    },
    /// To a shard: removes a replica that is no member any more.
    Remove { range: RangeId, replica: ReplicaId },
    /// To the leader of a range: makes these its voters and learners; new ones among them are made.
    Change {
        range: RangeId,
        voters: Vec<ReplicaPlace>,
        learners: Vec<ReplicaPlace>,
    },
    /// To the leader of a range: another replica shall lead.
    HandOver { range: RangeId, to: ReplicaId },
    /// To a shard: whether a replica of it would lead now, if the leader asked it to.
    WouldLead { range: RangeId, replica: ReplicaId },
    /// To the manager: a shard did not take the replica that it was given.
    TargetFailed { at: Location },
    /// To any shard: passes a report on to the manager, which the reporter does not find. Answered as
    /// the report is.
    PassOn(Report),
    /// To a shard: the digest that a replica of it was asked for in the log. Answered with
    /// [`Told::Digest`].
    Digest {
        range: RangeId,
        replica: ReplicaId,
        number: u64,
    },
    /// To a shard: a replica of it shall serve nothing, since the range's replicas differ.
    Halt { range: RangeId, replica: ReplicaId },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Told {
    /// The manager is not here; where it may be.
    NotHere {
        leader: Option<Location>,
        system: Vec<Location>,
    },
    /// It was done, or is being done.
    Done,
    /// It was not done, for a reason.
    Refused(String),
    /// A report was taken.
    Synced {
        /// The view, if it is another than the one the reporter knows.
        view: Option<View>,
        /// Replicas of the reporter that are no members any more.
        remove: Vec<(RangeId, ReplicaId)>,
        /// How often the reporter's node was started at least, if another process has its id: one that
        /// was started later, or on a newer folder.
        superseded: Option<u64>,
        /// The reporter's node is not known to be where it says.
        unmet: bool,
    },
    /// The cluster as of now.
    View(View),
    /// The id of a new node.
    Joined(NodeId),
    /// Settings, oldest first.
    Settings(Vec<Setting>),
    /// The digest, if it is made.
    Digest(Option<Digest>),
}

/// How a shard is.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Report {
    /// Which shard.
    pub from: Location,
    /// What its node says of itself.
    pub node: NodeRecord,
    /// The version of the view that it knows; 0: none.
    pub known: u64,
    /// Ranges that it leads.
    pub led: Vec<LedRange>,
    /// Replicas that it holds and does not lead.
    pub held: Vec<HeldReplica>,
    /// The highest ids of which it knows.
    pub highest: HighestIds,
    /// The shards of other nodes with which it speaks.
    pub peers: Vec<Peer>,
}

/// Another shard, as the reporter sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Peer {
    /// Which.
    pub at: Location,
    /// Whether it answers.
    pub answers: bool,
}

/// The highest ids that were ever seen somewhere. Ids are given in rising order and never twice, also
/// by a manager whose rows came back from less than was written.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct HighestIds {
    /// Of a node.
    pub node: NodeId,
    /// Of a replica.
    pub replica: ReplicaId,
}

impl HighestIds {
    /// Raises them to those that a descriptor names.
    pub fn see(&mut self, descriptor: &Descriptor) {
        for place in &descriptor.replicas {
            self.node = self.node.max(place.location.node);
            self.replica = self.replica.max(place.replica);
        }
    }
}

/// A range as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct LedRange {
    /// Bounds, epoch, replicas.
    pub descriptor: Descriptor,
    /// Those that vote.
    pub voters: Vec<ReplicaId>,
    /// Whether a change of members is under way.
    pub changing: bool,
    /// Whether a change was left half done: the voters are those before and after it.
    pub is_joint: bool,
    /// Whether a majority answers.
    pub has_quorum: bool,
    /// The leader.
    pub leader: ReplicaId,
    /// Its term.
    pub term: u64,
    /// The last entry it has applied.
    pub applied: u64,
    /// The other replicas.
    pub followers: Vec<Follower>,
}

/// A replica as the leader of its range sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Follower {
    /// The replica.
    pub replica: ReplicaId,
    /// The last entry that it is known to have.
    pub matched: Option<u64>,
    /// Entries that it lacks; `u64::MAX`: it is not known.
    pub lag: u64,
    /// Whether its shard answers.
    pub answers: bool,
    /// Whether it has lost entries that it had acknowledged.
    pub lost: bool,
    /// Whether a replica of the range takes over a snapshot at this time.
    pub takes_snapshot: bool,
}

/// A replica that does not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HeldReplica {
    /// Its range.
    pub range: RangeId,
    /// The replica.
    pub replica: ReplicaId,
    /// The range's `conf` as it knows it.
    pub conf: u32,
    /// Whether it knows itself to be no member, and no leader keeps it up to date.
    pub left: bool,
    /// Whether it has nothing yet.
    pub is_empty: bool,
}

/// All that is known of the cluster.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct View {
    /// Differs from every other view's.
    pub version: u64,
    /// Where the system range is led.
    pub leader: Location,
    /// Where its replicas are.
    pub system: Vec<Location>,
    /// By id.
    pub nodes: Vec<NodeView>,
    /// By id.
    pub ranges: Vec<RangeView>,
    /// The settings in force.
    pub settings: Vec<Setting>,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum NodeState {
    /// It reports, and others reach it.
    Alive,
    /// It has said nothing for a while.
    Silent,
    /// It has said nothing, or nobody has reached it, for so long that its replicas are replaced.
    Dead,
    /// It reports, but none of the other nodes reaches it.
    Unreachable,
}

/// What is wrong with a replica that is a member of its range by name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Trouble {
    /// It has lost entries that it had acknowledged.
    Lost,
    /// Its shard does not have it.
    Missing,
    /// It has not answered its leader, or taken any entry, for as long as a node may be silent.
    Behind,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct NodeView {
    /// What it says of itself.
    pub record: NodeRecord,
    /// How it is.
    pub state: NodeState,
}

/// A range of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct RangeView {
    /// Bounds, epoch, replicas.
    pub descriptor: Descriptor,
    /// Those that vote.
    pub voters: Vec<ReplicaId>,
    /// Where it is led, if it is.
    pub leader: Option<Location>,
    /// The leader's term.
    pub term: u64,
    /// The last entry that the leader has applied.
    pub applied: u64,
    /// Of each other replica: entries that it lacks; `u64::MAX`: it is not known.
    pub lag: Vec<(ReplicaId, u64)>,
    /// Replicas that are members by name only.
    pub troubles: Vec<(ReplicaId, Trouble)>,
    /// Whether it has fewer voters than it should that live and are up to date.
    pub under_replicated: bool,
    /// Whether nobody leads it, or its leader reaches no majority.
    pub unavailable: bool,
}
