//! The view of the cluster: what the manager sends to shards and shows to people about nodes and ranges.
//! Pure. [`crate::cluster::view`] derives it.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use super::report::{BoundsPhase, RangeStats, ShardStats};
use super::split::SplitBlocked;
use crate::cluster::record::{MembershipStatus, NodeRecord, Setting};
use crate::range::Descriptor;
use crate::types::{Location, RangeId, ReplicaId};

/// The state of the whole cluster.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct View {
    /// The version, different for each view.
    pub version: u64,
    /// The shard that leads the system range.
    pub leader: Location,
    /// The shards with replicas of the system range.
    pub system: Vec<Location>,
    /// All nodes, by id.
    pub nodes: Vec<NodeView>,
    /// All ranges, by id.
    pub ranges: Vec<RangeView>,
    /// The settings in force.
    pub settings: Vec<Setting>,
}

/// The state of the cluster, as the manager sends it to the shards.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ViewNews {
    /// The version of the view that this goes on from; `None`: it is whole.
    pub since: Option<u64>,
    /// The new view. If it is not whole, it has only those ranges that are new or have changed.
    pub view: View,
    /// The ranges that are no more.
    pub gone: Vec<RangeId>,
}

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum NodeHealth {
    /// It reports, and other nodes reach it.
    Alive,
    /// It has not reported for a while.
    Silent,
    /// It has been silent or unreachable for `dead-after`: its replicas are replaced.
    Dead,
    /// It reports, but no other node reaches it.
    Unreachable,
}

impl NodeHealth {
    /// All states.
    pub const ALL: [NodeHealth; 4] = [
        NodeHealth::Alive,
        NodeHealth::Silent,
        NodeHealth::Dead,
        NodeHealth::Unreachable,
    ];

    /// The word for it, in metrics.
    pub fn name(self) -> &'static str {
        match self {
            NodeHealth::Alive => "alive",
            NodeHealth::Silent => "silent",
            NodeHealth::Dead => "dead",
            NodeHealth::Unreachable => "unreachable",
        }
    }
}

/// What is wrong with a member of a range that does not do its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ReplicaFault {
    /// It has lost entries that it had acknowledged.
    Lost,
    /// Its shard does not have it.
    Missing,
    /// It has not answered its leader, or accepted no entry, for as long as a node may be silent.
    Behind,
    /// A block of a table with its rows cannot be read or is damaged. It removes itself once the range can do
    /// without it.
    Unreadable,
}

impl ReplicaFault {
    /// The word for it, in logs and replies.
    pub fn name(self) -> &'static str {
        match self {
            ReplicaFault::Lost => "lost",
            ReplicaFault::Missing => "missing",
            ReplicaFault::Behind => "behind",
            ReplicaFault::Unreadable => "unreadable",
        }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct NodeView {
    /// What it says of itself.
    pub record: NodeRecord,
    /// Whether it is alive, as far as the manager knows.
    pub state: NodeHealth,
    /// What operators have decided about it.
    pub membership: MembershipStatus,
    /// Whether a shard of it accepts no leadership, because its disk was slow a moment ago.
    pub slow_disk: bool,
    /// The load and the size of its shards, by their numbers. Not in the views that shards get; see
    /// [`crate::cluster::manager::Manager::refresh`].
    pub shards: Vec<ShardStats>,
}

/// A range of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct RangeView {
    /// Its interval, epoch and replicas.
    pub descriptor: Descriptor,
    /// The voters among the replicas.
    pub voters: Vec<ReplicaId>,
    /// The shard that leads it, if one does.
    pub leader: Option<Location>,
    /// The leader's term.
    pub term: u64,
    /// The index of the last entry that the leader has applied.
    pub applied: u64,
    /// How many entries each other replica lacks; `u64::MAX` if that is not known.
    pub lag: Vec<(ReplicaId, u64)>,
    /// The replicas that do not do their part, and why.
    pub faults: Vec<(ReplicaId, ReplicaFault)>,
    /// Whether fewer voters are alive and up to date than there should be.
    pub under_replicated: bool,
    /// Whether it has no leader, or its leader reaches no majority.
    pub unavailable: bool,
    /// Which change of its bounds is under way.
    pub phase: BoundsPhase,
    /// When it was born; see [`RangeRecord::born_ms`](crate::cluster::record::RangeRecord).
    pub born_ms: u64,
    /// Under how many data ids the rows of each replica lie, as far as known. Not in the views that shards get;
    /// see [`crate::cluster::manager::Manager::refresh`].
    pub parts: Vec<(ReplicaId, u16)>,
    /// Until when it must not be merged; see [`HeldRecord::until_ms`](crate::cluster::record::HeldRecord).
    pub held_until_ms: u64,
    /// Why it was not split although it should be. Not in the views that shards get; see
    /// [`crate::cluster::manager::Manager::refresh`].
    pub split_blocked: Option<SplitBlocked>,
    /// Its load and its size, if its leader has reported. Not in the views that shards get; see
    /// [`crate::cluster::manager::Manager::refresh`].
    pub stats: RangeStats,
}
