//! The messages between shards and the cluster's manager.
//!
//! This file has the requests and responses. The larger parts have files of their own: reports, the view,
//! decisions, and the types about splits. A node cannot read messages of another version ([`crate::codec`]).
//! Pure.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

mod decision;
mod report;
mod split;
mod view;

pub use decision::{Decision, DecisionKind, Outcome};
pub use report::{
    BoundsPhase, CAUGHT_UP, Follower, HeldReplica, HighestIds, LedRange, Peer, RangeRates,
    RangeStats, Report, ShardStats,
};
pub use split::{BlockReason, SplitBlocked, SplitPart, SplitReason};
pub use view::{NodeHealth, NodeView, RangeView, ReplicaFault, View, ViewNews};

use crate::cluster::record::{MembershipStatus, Setting};
use crate::codec;
use crate::error::OrderError;
use crate::range::digest::Digest;
use crate::range::usage::hot_keys::HotKey;
use crate::range::{Descriptor, ReplicaPlace};
use crate::types::{Epoch, KeyRange, Location, MergeId, NodeId, RangeId, ReplicaId, ShardId};

/// The version of all messages.
const VERSION: u8 = 9;

/// The bytes of a request.
pub fn encode_request(request: &ClusterRequest) -> Vec<u8> {
    codec::encode(VERSION, request, 0)
}

/// Reads what [`encode_request`] wrote; `None` if the bytes are not a request of this version.
pub fn decode_request(bytes: &[u8]) -> Option<ClusterRequest> {
    codec::decode(VERSION, bytes)
}

/// The bytes of a response.
pub fn encode_response(response: &ClusterResponse) -> Vec<u8> {
    codec::encode(VERSION, response, 0)
}

/// Reads what [`encode_response`] wrote; `None` if the bytes are not a response of this version.
pub fn decode_response(bytes: &[u8]) -> Option<ClusterResponse> {
    codec::decode(VERSION, bytes)
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ClusterRequest {
    /// To the manager: the report (heartbeat) of a shard. The response is [`ClusterResponse::Synced`].
    Report(Report),
    /// To the manager: asks for the state of the cluster now. The response is [`ClusterResponse::View`].
    View,
    /// To the manager: a new node asks for an id. The same token gets the same id.
    Join { token: u128 },
    /// To the manager: changes a setting of the cluster.
    Set { name: String, value: String },
    /// To the manager: asks for all changes of settings. The response is [`ClusterResponse::Settings`].
    History,
    /// To the manager: another node (a given one, or any) must lead a range.
    TransferLeader { range: RangeId, to: Option<NodeId> },
    /// To the manager: the replica of a range on a node must move to another place. Without a shard
    /// the manager chooses one of the new node.
    MoveReplica {
        range: RangeId,
        from: NodeId,
        to: NodeId,
        shard: Option<ShardId>,
    },
    /// To the manager: an operator decides that a node drains, is decommissioned, is active again or
    /// is removed.
    SetMembership {
        node: NodeId,
        status: MembershipStatus,
    },
    /// To the manager: a range must be split at keys, which may come in any order. The ranges on both
    /// sides of each new border are held against merging until then, in milliseconds since 1970;
    /// `u64::MAX` is for ever, and `None` not at all. The response is [`ClusterResponse::Split`].
    SplitRange {
        range: RangeId,
        keys: Vec<Vec<u8>>,
        held_until_ms: Option<u64>,
    },
    /// To the manager: a range that was held against merging may be merged again.
    ReleaseRange { range: RangeId },
    /// To the manager: asks what still keeps a node from leaving, or with `dry_run` what its
    /// decommissioning would do. The response is [`ClusterResponse::Leaving`].
    Leaving { node: NodeId, dry_run: bool },
    /// To a shard: makes an empty replica that waits for a snapshot.
    Create {
        descriptor: Descriptor,
        replica: ReplicaId,
    },
    /// To a shard: removes a replica that is no longer a member.
    Remove { range: RangeId, replica: ReplicaId },
    /// To the leader of a range: makes these the range's voters and learners, and makes the new
    /// ones.
    Change {
        range: RangeId,
        voters: Vec<ReplicaPlace>,
        learners: Vec<ReplicaPlace>,
    },
    /// To the leader of a range: transfers the leadership to another replica.
    TransferLeadership { range: RangeId, to: ReplicaId },
    /// To the leader of a range: splits it, if its version is this one. The keys from `key` on become
    /// the range `child`; `replicas` names each replica of the range and the one of the child that is
    /// made beside it. The response is [`ClusterResponse::Done`] once the split is applied at the
    /// leader; [`OrderError::Unknown`] if its end is not known; any other refusal if it was certainly
    /// not done.
    Split {
        range: RangeId,
        version: u32,
        key: Vec<u8>,
        child: RangeId,
        replicas: Vec<(ReplicaId, ReplicaId)>,
        reason: SplitReason,
    },
    /// To the leader of a range: asks for keys that cut it into so many parts of about the same size, if
    /// its version is this one. The response is [`ClusterResponse::SplitKeys`].
    SplitKeys {
        range: RangeId,
        version: u32,
        parts: u16,
    },
    /// To a shard: asks whether its replica would accept the leadership now.
    MayLead { range: RangeId, replica: ReplicaId },
    /// To a shard: asks whether its replica does its part and can read all its rows, as far as it knows.
    IsWell { range: RangeId, replica: ReplicaId },
    /// To the manager: a shard did not take a replica that it was ordered to make.
    TargetFailed { at: Location },
    /// To any shard: forwards a report to the manager, which the reporter cannot find. The response
    /// is that to the report.
    PassOn(Report),
    /// To a shard: asks for the digest that the log has asked of its replica. The response is
    /// [`ClusterResponse::Digest`].
    Digest {
        range: RangeId,
        replica: ReplicaId,
        number: u64,
    },
    /// To a shard: its replica must serve nothing, because the range's replicas differ.
    Halt { range: RangeId, replica: ReplicaId },
    /// To the manager: merges a range with its right neighbour. An operator's order.
    MergeRange { range: RangeId },
    /// To the leader of a range: it takes over its right neighbour, if both have these versions.
    Merge {
        range: RangeId,
        version: u32,
        right: RangeId,
        right_version: u32,
    },
    /// To the leader of a range: freezes it for a merge, if it has this epoch.
    Freeze {
        range: RangeId,
        epoch: Epoch,
        merge: MergeId,
    },
    /// To a shard: asks whether its replicas of two neighbours could be merged.
    PrepareMerge { left: RangeId, right: RangeId },
    /// To a shard: asks whether its replica of the range is frozen for this merge, and durably so. It
    /// waits a moment for that.
    Frozen { range: RangeId, merge: MergeId },
    /// To the leader of the left range: cancels the merge, if it can still be cancelled. `border` is the
    /// first key of the right range. The response is [`ClusterResponse::MergeEnded`].
    CancelMerge { merge: MergeId, border: Vec<u8> },
    /// To the leader of a range that is frozen for this merge, which is cancelled.
    Unfreeze { range: RangeId, merge: MergeId },
    /// To the manager: asks for its last decisions. The response is [`ClusterResponse::Decisions`].
    Decisions,
    /// To the manager: the users' ranges with keys in this interval must be spread evenly. The response is
    /// [`ClusterResponse::Scattered`].
    Scatter { keys: KeyRange },
    /// To the manager: a range must be split into parts of about the same size. For the rest as
    /// [`ClusterRequest::SplitRange`].
    SplitInto {
        range: RangeId,
        parts: u32,
        held_until_ms: Option<u64>,
    },
    /// To the manager: asks for the ranges with most CPU time, and their hottest keys. The response is
    /// [`ClusterResponse::HotRanges`].
    HotRanges { top: u32 },
    /// To the leader of a range: asks for its hottest keys, at most so many. The response is
    /// [`ClusterResponse::HotKeys`].
    HotKeys { range: RangeId, top: u32 },
    /// To the leader of a range: asks where its load is best split, if its version is this one. The
    /// response is [`ClusterResponse::LoadKeys`] or [`ClusterResponse::NoLoadKey`].
    LoadKeys { range: RangeId, version: u32 },
}

impl ClusterRequest {
    /// The range whose leader must change its members or its bounds, or transfer its leadership.
    pub fn range(&self) -> Option<RangeId> {
        match self {
            ClusterRequest::Change { range, .. }
            | ClusterRequest::Merge { range, .. }
            | ClusterRequest::Split { range, .. }
            | ClusterRequest::TransferLeadership { range, .. } => Some(*range),
            _ => None,
        }
    }

    /// Whether it is an operator's order: it must not be given twice.
    pub fn is_order(&self) -> bool {
        matches!(
            self,
            ClusterRequest::Set { .. }
                | ClusterRequest::TransferLeader { .. }
                | ClusterRequest::MoveReplica { .. }
                | ClusterRequest::SetMembership { .. }
                | ClusterRequest::SplitRange { .. }
                | ClusterRequest::SplitInto { .. }
                | ClusterRequest::ReleaseRange { .. }
                | ClusterRequest::MergeRange { .. }
                | ClusterRequest::Scatter { .. }
        )
    }
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ClusterResponse {
    /// The manager is not here; it may be at one of these places.
    NotHere {
        leader: Option<Location>,
        system: Vec<Location>,
    },
    /// The request was carried out, or is being carried out.
    Done,
    /// The request was refused, or its outcome is not known.
    Refused(OrderError),
    /// A report was taken.
    Synced {
        /// What is new in the view, if the reporter does not have the newest one.
        view: Option<ViewNews>,
        /// Replicas of the reporter that are no longer members.
        remove: Vec<(RangeId, ReplicaId)>,
        /// The number of starts of the process that has taken the reporter's node id: one that
        /// started later, or on a newer folder.
        superseded: Option<u64>,
        /// The reporter's node was not reached at the address that it claims.
        unmet: bool,
        /// The report was not taken: it goes on from one that the manager has not taken. The reporter must
        /// send a whole one.
        wants_whole: bool,
    },
    /// The node of the report was removed from the cluster.
    Removed,
    /// What still keeps a node from leaving.
    Leaving(Leaving),
    /// The state of the cluster.
    View(View),
    /// The id of a new node.
    Joined(NodeId),
    /// All changes of settings, oldest first.
    Settings(Vec<Setting>),
    /// A range was split.
    Split {
        /// The ranges into which it was split, in the order of their keys.
        ranges: Vec<SplitPart>,
        /// Why it was not split at all keys, and at which one; `None` if it was.
        failed: Option<OrderError>,
    },
    /// The keys that cut a range, in their order; none if there are no such keys.
    SplitKeys(Vec<Vec<u8>>),
    /// The digest, if it has been made.
    Digest(Option<Digest>),
    /// A merge can no longer take place.
    MergeEnded {
        /// Whether it has taken place.
        merged: bool,
    },
    /// The last decisions, oldest first.
    Decisions(Vec<Decision>),
    /// So many orders are given to spread ranges.
    Scattered(u64),
    /// The ranges with most CPU time, the hottest first.
    HotRanges(Vec<HotRange>),
    /// The hottest keys of a range, the hottest first; none if it has no load.
    HotKeys(Vec<HotKey>),
    /// The keys at which the load of a range is best split, in their order. If a key is so hot that it must
    /// be alone, it is named.
    LoadKeys {
        keys: Vec<Vec<u8>>,
        hot: Option<Vec<u8>>,
    },
    /// There is no key at which the load of a range can be split, and why; perhaps because of a key.
    NoLoadKey {
        reason: BlockReason,
        key: Option<Vec<u8>>,
    },
}

/// A range that takes much CPU time.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HotRange {
    /// The id of the hot range.
    pub range: RangeId,
    /// The CPU time, in milliseconds a second, over the last 10 s.
    pub cpu_millis_per_second: u32,
    /// Its hottest keys; none if its leader did not answer.
    pub keys: Vec<HotKey>,
}

/// How far a node has left.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Leaving {
    /// The node that leaves.
    pub node: NodeId,
    /// What operators have decided about it.
    pub membership: MembershipStatus,
    /// The ranges that it leads, or may lead, as their leader is not known.
    pub leaders_left: u64,
    /// The ranges of which it has a replica.
    pub replicas_left: u64,
    /// The writes that it has not answered yet.
    pub requests_left: u64,
    /// The ranges that cannot leave it now, and why.
    pub blocked: Vec<(RangeId, String)>,
    /// Where replicas would go, of a decommissioning that was only asked about.
    pub moves: Vec<(RangeId, Location)>,
    /// Whether a node that drains has drained, or one that is decommissioned holds nothing.
    pub is_done: bool,
    /// How many ranges leave it in a minute.
    pub per_minute: u64,
    /// How long none has left, in milliseconds.
    pub stuck_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_as_they_are_written_and_by_this_version_alone() {
        let why = || "why".to_owned();
        for refused in [
            OrderError::busy("why"),
            OrderError::Invalid(why()),
            OrderError::NotFound(why()),
            OrderError::Unknown(why()),
        ] {
            let response = ClusterResponse::Refused(refused);
            let mut bytes = encode_response(&response);
            assert_eq!(decode_response(&bytes), Some(response));
            bytes[0] = VERSION - 1;
            assert_eq!(decode_response(&bytes), None);
        }
    }
}
