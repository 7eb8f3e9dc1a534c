//! The progress of a node that leaves the cluster.

use serde::{Deserialize, Serialize};

use super::Membership;

/// How far a node has left: the answer to [`Command::NodeLeaving`](super::Command::NodeLeaving).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Leaving {
    /// The node, if it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<u64>,
    /// The node, if it is or would be decommissioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decommissioning: Option<u64>,
    /// What operators have decided about it.
    pub membership: Membership,
    /// The ranges that it leads, or may lead, as their leader is not known.
    pub leaders_left: u64,
    /// The ranges of which it has a replica, if these are to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas_left: Option<u64>,
    /// The writes that it has not answered yet.
    pub requests_left: u64,
    /// The ranges that cannot leave it now.
    pub blocked: Vec<BlockedRange>,
    /// Where replicas would go, of a decommissioning that was only asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Departure>,
    /// Whether it has left: it leads and answers nothing any more, or holds nothing.
    pub done: bool,
    /// How many ranges leave it in a minute, by the last minute.
    #[serde(default)]
    pub ranges_per_minute: u64,
    /// How long no range has left it, in milliseconds. From ten seconds on `blocked` names every range that
    /// is left.
    #[serde(default)]
    pub stuck_ms: u64,
}

/// A range that cannot leave a node now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BlockedRange {
    /// The range that has a replica on the node.
    pub range: u64,
    /// What stands in the way.
    pub reason: String,
}

/// Where a replica would go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Departure {
    /// The range whose replica would move.
    pub range: u64,
    /// The node that gets it.
    pub node: u64,
    /// The shard of that node.
    pub shard: u16,
}
