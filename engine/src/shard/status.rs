//! The status of a shard, for status requests and metrics.

use crate::cluster::{NodeHealth, RangeView};
use crate::distribution::Distribution;
use crate::env::Env;
use crate::lsm::LsmStats;
use crate::memory::MemoryUse;
use crate::raft::RaftStats;
use crate::range::Route;
use crate::range::usage::RangeLoad;
use crate::shard::liveness::PeerStatus;
use crate::shard::liveness::availability::{Availability, availability};
use crate::shard::liveness::slow_disk::SlowDiskStatus;
use crate::shard::{BoundsChangeStats, DigestStats, MoveStats, RangeHandle, ShardInner};
use crate::tree::cold_reads::ColdReadStats;
use crate::types::{DataId, KeyRange, MergeId, ReplicaId, Timestamp};
use crate::wal::WalStats;

/// The status of a range on this shard.
#[derive(Clone, Debug)]
pub struct RangeStatus {
    /// Its interval, epoch and leader.
    pub route: Route,
    /// Whether it is a range of the system's key space.
    pub system: bool,
    /// The id of the replica here.
    pub replica: ReplicaId,
    /// Whether the replica here leads.
    pub leads: bool,
    /// The keys that the replica here may read alone now; `None` if it does not lead or has no lease.
    pub leased: Option<KeyRange>,
    /// The merge for which the range is frozen here, if it is.
    pub frozen: Option<MergeId>,
    /// The data id of the first part of its rows in the tree, and how many parts there are.
    pub parts: (DataId, usize),
    /// Its term if it leads, otherwise 0.
    pub term: u64,
    /// The index of the last applied entry.
    pub applied: u64,
    /// The index of the last entry that is durable in tables.
    pub durable: u64,
    /// The timestamp of the last applied command.
    pub last_ts: Timestamp,
    /// Old versions at or below this may be gone.
    pub gc_threshold: Timestamp,
    /// How busy the replica here is.
    pub load: RangeLoad,
    /// How many clients the session table has.
    pub session_clients: usize,
    /// Whether it can be served, as far as this shard knows.
    pub availability: Availability,
}

/// The status of a shard.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// Its ranges, users' first.
    pub ranges: Vec<RangeStatus>,
    /// Whether operators have had its node drain, or leave, as far as this shard knows.
    pub leaves: bool,
    /// The state of the cluster, if this shard hosts its manager.
    pub cluster: Option<ClusterStatus>,
    /// Bytes of log that a start would apply again.
    pub replay_bytes: u64,
    /// Bytes of log that are kept for replicas that receive a snapshot.
    pub pinned_bytes: u64,
    /// How far the tree is behind its writers, from 0 to 1.
    pub pressure: f32,
    /// Whether writes are refused because the disk is full.
    pub disk_full: bool,
    /// Whether files wait because the process lacks descriptors or memory.
    pub starved: bool,
    /// What the shard does because its disk is slow.
    pub slow_disk: SlowDiskStatus,
    /// Counters of the log.
    pub wal: WalStats,
    /// Counters of the tree.
    pub lsm: LsmStats,
    /// Counters of reads that needed the disk.
    pub cold_reads: ColdReadStats,
    /// The memory of each use that has a budget.
    pub memory: Vec<MemoryUse>,
    /// The results of comparing replicas.
    pub digests: DigestStats,
    /// The replication of its ranges.
    pub replication: ReplicationStatus,
}

/// The replication of a shard's ranges.
#[derive(Clone, Debug)]
pub struct ReplicationStatus {
    /// How many entries the replica lacks that is furthest behind, of the ranges that are led here. One
    /// of which nothing is known counts as one that lacks nothing.
    pub lag: u64,
    /// How many leaders here are carrying out a change of members.
    pub changing: usize,
    /// How many snapshots are being received.
    pub receiving: usize,
    /// The changes of bounds that leaders here have made.
    pub bounds_changes: BoundsChangeStats,
    /// The moves that the manager has begun while it was here.
    pub moves: MoveStats,
    /// Counters of the Raft groups.
    pub stats: RaftStats,
    /// The shards with which this one exchanges heartbeats.
    pub peers: Vec<PeerStatus>,
    /// How long those shards took to answer heartbeats, in microseconds.
    pub round_trip_micros: Distribution,
}

/// Counts of what is wrong in the cluster, as its manager knows it.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The number of nodes in each state.
    pub nodes: Vec<(NodeHealth, usize)>,
    /// All ranges.
    pub ranges: usize,
    /// Moves of replicas that were ordered and are not done.
    pub moves: usize,
    /// Ranges with too few voters that are alive and up to date.
    pub under_replicated: usize,
    /// Ranges without a leader or a majority.
    pub unavailable: usize,
    /// Replicas that do not do their part though they are members.
    pub in_trouble: usize,
}

fn cluster<E: Env>(inner: &ShardInner<E>) -> Option<ClusterStatus> {
    let manager = inner.agent.manager.borrow();
    let manager = manager.as_ref()?;
    let view = manager.view(E::now());
    let in_state = |state| view.nodes.iter().filter(|node| node.state == state).count();
    let count = |is: fn(&RangeView) -> bool| view.ranges.iter().filter(|range| is(range)).count();
    Some(ClusterStatus {
        nodes: NodeHealth::ALL
            .map(|state| (state, in_state(state)))
            .to_vec(),
        ranges: view.ranges.len(),
        moves: manager.moves.under_way(),
        under_replicated: count(|range| range.under_replicated),
        unavailable: count(|range| range.unavailable),
        in_trouble: view.ranges.iter().map(|range| range.faults.len()).sum(),
    })
}

/// The status of every range, users' first.
pub(super) fn ranges<E: Env>(inner: &ShardInner<E>) -> Vec<RangeStatus> {
    let now = E::now();
    let ranges = inner.ranges.groups().into_iter().map(|(replica, raft)| {
        let leading = replica.leading();
        let availability = availability(inner, &replica, &raft, now);
        let index = |id: Option<crate::wal::LogId>| id.map_or(0, |id| id.index);
        replica.with_state(|state| RangeStatus {
            route: state.descriptor.route(replica.leadership.leader()),
            system: state.descriptor.keyspace == crate::range::Keyspace::System,
            replica: replica.group.replica,
            leads: leading.is_some(),
            leased: (leading.is_some() && raft.has_lease() && state.frozen.is_none())
                .then(|| replica.open_keys()),
            frozen: state.frozen,
            parts: (replica.data_id(), replica.parts_count()),
            term: leading.map_or(0, |leading| leading.term),
            applied: index(state.applied),
            durable: index(replica.durable().applied),
            last_ts: state.last_ts,
            gc_threshold: state.gc_threshold,
            load: replica.load(),
            session_clients: state.sessions.len().0,
            availability,
        })
    });
    ranges.collect()
}

fn replication<E: Env>(inner: &ShardInner<E>) -> ReplicationStatus {
    let (mut lag, mut changing) = (0, 0);
    inner.ranges.for_each(|RangeHandle { replica, raft }| {
        if replica.leading().is_none() {
            return;
        }
        changing += usize::from(raft.is_changing());
        let lags = replica.with_state(|state| {
            let replicas = state.descriptor.replicas.iter();
            let lags = replicas.map(|place| raft.lag(place.replica));
            lags.filter(|lag| *lag != u64::MAX).max()
        });
        lag = lag.max(lags.unwrap_or(0));
    });
    ReplicationStatus {
        lag,
        changing,
        receiving: inner.receiving(),
        bounds_changes: inner.agent.bounds_changes.stats(),
        moves: inner.agent.given_orders.moves.stats(),
        stats: inner.around.counters.stats(),
        peers: inner.liveness.peer_status(E::now()),
        round_trip_micros: inner.liveness.round_trip_micros(),
    }
}

pub(super) fn of<E: Env>(inner: &ShardInner<E>) -> ShardStatus {
    let wal = inner.wal.stats();
    let mut memory = inner.store.memory();
    memory.push(wal.cache);
    ShardStatus {
        ranges: ranges(inner),
        leaves: !inner.is_active(),
        cluster: cluster(inner),
        replay_bytes: inner.store.replay_len(),
        pinned_bytes: inner.pinned_bytes(),
        pressure: inner.store.pressure(),
        disk_full: inner.store.disk_full(),
        starved: inner.store.is_starved(),
        slow_disk: inner.liveness.slow_disk.status(E::now()),
        wal,
        lsm: inner.store.stats(),
        cold_reads: inner.store.cold_reads(),
        memory,
        digests: inner.digests.stats(),
        replication: replication(inner),
    }
}
