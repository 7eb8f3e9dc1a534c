//! A shard's report to the manager: its node, the ranges that it leads, its other replicas, and their loads
//! and sizes. A shard sends one twice a second, and soon after a change of bounds. Pure.
//!
//! The first report to a manager is complete. Each later one names only the ranges that have changed, so idle
//! ranges cost nothing. Reports are numbered. Each contains the number of the report that it continues, which
//! is the last one that the manager has answered. If the manager has not taken that one, it asks for a
//! complete report. The shard's side is in [`crate::cluster::reporter`], the manager's in
//! [`crate::cluster::manager::intake`].

use crate::cluster::record::NodeRecord;
use crate::range::Descriptor;
use crate::types::{Location, NodeId, NodeStats, RangeId, ReplicaId};

/// A replica that lacks at most this many entries has caught up.
pub const CAUGHT_UP: u64 = 100;

/// The state of a shard, sent to the manager.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Report {
    /// The shard that sends it.
    pub from: Location,
    /// The record of its node.
    pub node: NodeRecord,
    /// The version of the view that it has; 0 if it has none.
    pub known: u64,
    /// The number of the report, counted from 1 since the process was started.
    pub number: u64,
    /// The report names only what has changed after the one with this number; `None`: it is whole.
    pub since: Option<u64>,
    /// The ranges that it leads.
    pub led: Vec<LedRange>,
    /// Its replicas that do not lead.
    pub held: Vec<HeldReplica>,
    /// The ranges of which it has no replica any more. Only if the report is not whole.
    pub gone: Vec<RangeId>,
    /// The highest ids that it has seen.
    pub highest: HighestIds,
    /// The shards of other nodes with which it exchanges messages.
    pub peers: Vec<Peer>,
    /// Writes that its replicas have proposed and not answered yet.
    pub in_flight: u64,
    /// Whether it accepts no leadership, because its disk was slow a moment ago.
    pub slow_disk: bool,
    /// Its replicas of which a block cannot be read or is damaged.
    pub unreadable: Vec<ReplicaId>,
    /// Its load and its size.
    pub stats: ShardStats,
}

/// The load and the size of a shard.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct ShardStats {
    /// The CPU time of its thread over the last 10 s, in thousandths of a core.
    pub cpu: u32,
    /// About how many bytes the rows of its replicas have, before compression.
    pub bytes: u64,
    /// How its node is; all shards of a node tell the same.
    pub node: NodeStats,
}

/// The load and the size of a range at its leader.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct RangeStats {
    /// About how many bytes its rows have, in all versions, before compression.
    pub bytes: u64,
    /// About how many bytes the newest versions have, at most.
    pub live_bytes: u64,
    /// Keys that were read and pages of scans a second, over the last 10 s.
    pub reads_per_second: u32,
    /// Writes a second, likewise.
    pub writes_per_second: u32,
    /// CPU time in milliseconds a second, likewise.
    pub cpu_millis_per_second: u32,
    /// Bytes of keys and values that were read a second, likewise.
    pub read_bytes_per_second: u64,
    /// Bytes of keys and values that were written a second, likewise.
    pub written_bytes_per_second: u64,
    /// Writes that wait to be proposed.
    pub waiting: u32,
    /// The rates over the last 5 min.
    pub long: RangeRates,
}

/// The load of a range at its leader over a longer time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct RangeRates {
    /// Keys that were read and pages of scans a second.
    pub reads_per_second: u32,
    /// Batches that were written in one second, on average.
    pub writes_per_second: u32,
    /// CPU time in milliseconds a second.
    pub cpu_millis_per_second: u32,
    /// Bytes of keys and values that were read a second.
    pub read_bytes_per_second: u64,
    /// Bytes of keys and values that were written a second.
    pub written_bytes_per_second: u64,
}

/// Another shard, as the reporter sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Peer {
    /// The other shard.
    pub at: Location,
    /// Whether it answers.
    pub answers: bool,
}

/// The highest ids seen in some place. Ids are given in rising order and never twice, even by a
/// manager whose rows have come back incomplete.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct HighestIds {
    /// The highest id of a node.
    pub node: NodeId,
    /// The highest id of a range.
    pub range: RangeId,
    /// The highest id of a replica.
    pub replica: ReplicaId,
}

impl HighestIds {
    /// Raises them to those that a descriptor names.
    pub fn see(&mut self, descriptor: &Descriptor) {
        self.range = self.range.max(descriptor.range);
        for place in &descriptor.replicas {
            self.node = self.node.max(place.location.node);
            self.replica = self.replica.max(place.replica);
        }
    }
}

/// A range as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct LedRange {
    /// Its interval, epoch and replicas.
    pub descriptor: Descriptor,
    /// The voters among the replicas.
    pub voters: Vec<ReplicaId>,
    /// Whether a change of members is under way.
    pub changing: bool,
    /// Which change of its bounds is under way.
    pub phase: BoundsPhase,
    /// Whether a joint change was left half done: the voters are those before and after it.
    pub is_joint: bool,
    /// Whether a majority of the voters answers.
    pub has_quorum: bool,
    /// The replica that leads.
    pub leader: ReplicaId,
    /// The term in which it leads.
    pub term: u64,
    /// The index of the last entry that it has applied.
    pub applied: u64,
    /// The other replicas.
    pub followers: Vec<Follower>,
    /// Its load and its size.
    pub stats: RangeStats,
    /// Under how many data ids the leader's rows lie.
    pub parts: u16,
}

impl LedRange {
    /// Whether a change of its members or its bounds is under way.
    pub fn is_changing(&self) -> bool {
        self.changing || self.phase != BoundsPhase::None
    }

    /// Whether nothing is under way in it and all its replicas do their part.
    pub(in crate::cluster) fn is_calm(&self) -> bool {
        !self.is_changing()
            && !self.is_joint
            && self.has_quorum
            && self.followers.iter().all(Follower::is_well)
    }
}

/// Which change of a range's bounds is under way.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub enum BoundsPhase {
    /// None.
    #[default]
    None,
    /// It is being split.
    Splitting,
    /// It is being frozen, to become a part of its left neighbour.
    Freezing,
    /// It is frozen for that.
    Frozen,
    /// It takes over its right neighbour.
    Merging,
}

/// A replica as the leader of its range sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Follower {
    /// The id of the follower or learner.
    pub replica: ReplicaId,
    /// The index of the last entry that it is known to have.
    pub matched: Option<u64>,
    /// How many entries it lacks; `u64::MAX` if that is not known.
    pub lag: u64,
    /// Whether it lacks entries, and has got none since the report before that named it. A replica that gets
    /// new entries all the time is never quite up to date.
    pub stalls: bool,
    /// Whether its shard answers.
    pub answers: bool,
    /// Whether it has lost entries that it had acknowledged.
    pub lost: bool,
    /// Whether a replica of the range is receiving a snapshot now.
    pub takes_snapshot: bool,
}

impl Follower {
    /// Whether it does its part: it answers, and has or gets what it lacks.
    pub(in crate::cluster) fn is_well(&self) -> bool {
        self.answers && (!self.stalls || self.takes_snapshot)
    }

    /// Whether it may take the lead now.
    pub(in crate::cluster) fn has_caught_up(&self) -> bool {
        self.answers && !self.lost && self.lag <= CAUGHT_UP
    }
}

/// A replica that does not lead.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HeldReplica {
    /// The range that it is a replica of.
    pub range: RangeId,
    /// The id of this replica.
    pub replica: ReplicaId,
    /// The descriptor's `conf`, as far as it has applied it.
    pub conf: u32,
    /// Whether it is no member by its own state, and no leader sends it entries.
    pub left: bool,
    /// Whether it has no data yet.
    pub is_empty: bool,
    /// If it is frozen, knows no majority, or does not vote and hears no leader: its first key and the version of
    /// its bounds. Its range may be a part of another one by now.
    pub bounds: Option<(Vec<u8>, u32)>,
    /// Under how many data ids its rows lie.
    pub parts: u16,
}
