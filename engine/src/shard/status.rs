//! What a shard tells of itself.

use crate::cluster::RangeView;
use crate::env::{Env, Instant, Now};
use crate::lsm::LsmStats;
use crate::range::Route;
use crate::shard::{DigestStats, Inner};
use crate::types::{DataId, ReplicaId, Timestamp};
use crate::wal::WalStats;

/// A range on this shard.
#[derive(Clone, Debug)]
pub struct RangeStatus {
    /// Bounds, epoch and leader.
    pub route: Route,
    /// Whether it holds the cluster's own records.
    pub system: bool,
    /// The replica here.
    pub replica: ReplicaId,
    /// Where its rows lie in the tree.
    pub data_id: DataId,
    /// Whether the replica here leads.
    pub leads: bool,
    /// Whether it may read alone now, if it leads.
    pub has_lease: bool,
    /// Its term, if it leads.
    pub term: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// Index of the last entry that is durable in tables.
    pub durable: u64,
    /// Timestamp of the last command.
    pub last_ts: Timestamp,
    /// Old versions up to here may be gone.
    pub gc_threshold: Timestamp,
    /// Writes that wait to be proposed.
    pub waiting: usize,
    /// Entries in flight.
    pub in_flight: usize,
    /// Clients in the session table.
    pub session_clients: usize,
    /// Whether it serves nothing, since its replicas hold different rows and no majority agrees.
    pub halted: bool,
}

/// A shard.
#[derive(Clone, Debug)]
pub struct ShardStatus {
    /// Its ranges, users' first.
    pub ranges: Vec<RangeStatus>,
    /// The cluster, if this shard manages it.
    pub cluster: Option<ClusterStatus>,
    /// Log bytes that a start would apply again.
    pub replay_bytes: u64,
    /// Log bytes that are kept for replicas that take over a snapshot.
    pub pinned_bytes: u64,
    /// How far the tree is behind its writers, 0 to 1.
    pub pressure: f32,
    /// Whether writes are refused because the disk is full.
    pub disk_full: bool,
    /// Whether its files wait for descriptors or memory.
    pub starved: bool,
    /// Counters of the log.
    pub wal: WalStats,
    /// Counters of the tree.
    pub lsm: LsmStats,
    /// What came of comparing replicas.
    pub digests: DigestStats,
}

/// The cluster as its manager knows it.
#[derive(Clone, Copy, Debug)]
pub struct ClusterStatus {
    /// Ranges that have too few voters which live and are up to date.
    pub under_replicated: usize,
    /// Ranges without a leader or a majority.
    pub unavailable: usize,
    /// Replicas that are members by name only.
    pub in_trouble: usize,
}

fn cluster<E: Env>(inner: &Inner<E>) -> Option<ClusterStatus> {
    let manager = inner.management.manager.borrow();
    let view = manager.as_ref()?.view(Now::<E>::now());
    let count = |is: fn(&RangeView) -> bool| view.ranges.iter().filter(|range| is(range)).count();
    Some(ClusterStatus {
        under_replicated: count(|range| range.under_replicated),
        unavailable: count(|range| range.unavailable),
        in_trouble: view.ranges.iter().map(|range| range.troubles.len()).sum(),
    })
}

/// The state of every range, users' first.
pub(super) fn ranges<E: Env>(inner: &Inner<E>) -> Vec<RangeStatus> {
    let ranges = inner.groups().into_iter().map(|(replica, raft)| {
        let leading = replica.leading();
        let index = |id: Option<crate::wal::LogId>| id.map_or(0, |id| id.index);
        replica.with_state(|state| RangeStatus {
            route: state.descriptor.route(replica.leader()),
            system: state.descriptor.keyspace == crate::range::Keyspace::System,
            replica: replica.group.replica,
            data_id: replica.data_id(),
            leads: leading.is_some(),
            has_lease: leading.is_some() && raft.has_lease(),
            term: leading.map_or(0, |leading| leading.term),
            applied: index(state.applied),
            durable: index(replica.durable().applied),
            last_ts: state.last_ts,
            gc_threshold: state.gc_threshold,
            waiting: replica.proposer.waiting(),
            in_flight: replica.proposer.in_flight(),
            session_clients: state.sessions.len().0,
            halted: replica.is_halted(),
        })
    });
    ranges.collect()
}

pub(super) fn of<E: Env>(inner: &Inner<E>) -> ShardStatus {
    ShardStatus {
        ranges: ranges(inner),
        cluster: cluster(inner),
        replay_bytes: inner.store.replay_len(),
        pinned_bytes: inner.pinned_bytes(),
        pressure: inner.store.pressure(),
        disk_full: inner.store.disk_full(),
        starved: inner.store.is_starved(),
        wal: inner.wal.stats(),
        lsm: inner.store.stats(),
        digests: inner.digests.stats(),
    }
}
