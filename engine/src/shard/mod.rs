//! A shard: one core's share of the database.
//!
//! It owns a set of range replicas, one write-ahead log and one LSM tree, and shares no mutable
//! memory with other shards. [`Shard`] is an ordinary single-threaded value that lives on its
//! executor's thread. Requests of clients come to it through the [gateway](crate::gateway).
//!
//! The path of a write: [`Shard::write`] finds the range and checks its version -> the range's proposer
//! ([`crate::range::proposer`]) -> Raft ([`crate::raft`]) -> the log ([`crate::wal`]), durably -> apply
//! ([`crate::range::apply`]) into the tree ([`crate::lsm`]) -> the caller's [`WriteSink`]. The path of a
//! read: [`Shard::get`] checks the lease and reads the tree, in one turn.
//!
//! This file has what all parts of a shard share, `ShardInner`. Each part is in a module of its own that adds
//! methods to it:
//!
//! | module | what it holds |
//! |---|---|
//! | `range_map` | the ranges here, by key and by id |
//! | `cluster_time` | the cluster's time |
//! | `gc` | which rows of the tree are live, and which old versions go |
//! | `reads` | gets, multi-gets, scans |
//! | `writes` | the checks of a write before its range queues it |
//! | `liveness` | heartbeats between shards, slow disks, whether ranges can be served |
//! | `split_merge` | splits and merges, as leaders carry them out |
//! | `replicas` | replicas that are made, moved, compared and removed; transfers of leaderships |
//! | `snapshots` | snapshots that are received, and the logs that are kept for receivers |
//! | `manager_orders` | orders, on the shard that hosts the cluster's manager |
//! | `cluster_agent` | reports to the manager, the view of the cluster, and requests about it |
//! | `peer_requests` | requests of other shards |
//! | `status`, [`contents`] | what status requests, metrics and tests see |
//! | `lifecycle` | opening, background tasks, closing |
//!
//! A module names only modules in the rows above its own, and this file; `xtask layers` checks that.

mod cluster_agent;
mod cluster_time;
pub mod contents;
mod gc;
mod lifecycle;
mod liveness;
mod manager_orders;
mod peer_requests;
mod range_map;
mod reads;
mod replicas;
mod snapshots;
mod split_merge;
mod status;
mod writes;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

pub use crate::cluster::SplitReason;
use crate::cluster::{HighestIds, NodeRecord};
use crate::env::Env;
use crate::error::{Error, Fatal};
use crate::hlc::Hlc;
use crate::raft::GroupDeps;
pub use crate::range::proposer::sink::WriteSink;
use crate::range::replica::{Home, Replica};
use crate::range::{Keyspace, RaftGroup, ReplicaPlace, Route};
use crate::request::Target;
use crate::tree::{OnFatal, Store};
use crate::types::{KeyRange, Location, NodeId, RangeId, ReplicaId};
use crate::wal::Wal;
pub use lifecycle::folder::{FolderMark, Opened};
pub use liveness::PeerStatus;
pub use liveness::availability::Availability;
pub use liveness::slow_disk::SlowDiskStatus;
pub use manager_orders::given_orders::MoveStats;
use range_map::{RangeHandle, RangeMap};
pub use reads::multi_get::{KeyFound, KeyTurn, Moment};
pub use replicas::digests::{DigestOptions, DigestStats};
pub use split_merge::changes::{BoundsChangeStats, BoundsChanges};
pub use status::{ClusterStatus, RangeStatus, ReplicationStatus, ShardStatus};
pub use writes::WriteRequest;

/// A range with which a new shard starts.
#[derive(Clone, Debug)]
pub struct InitialRange {
    /// Its id.
    pub range: RangeId,
    /// The id of the replica on this shard.
    pub replica: ReplicaId,
    /// The other voters.
    pub others: Vec<ReplicaPlace>,
    /// Whether this replica campaigns first; matters only if there are other voters.
    pub leads: bool,
    /// The key space of its keys.
    pub keyspace: Keyspace,
    /// Its interval of keys.
    pub keys: KeyRange,
}

impl InitialRange {
    /// All voters, in the order of their ids; `here` is this shard.
    fn voters(&self, here: Location) -> Vec<ReplicaPlace> {
        let mut voters = self.others.clone();
        voters.push(ReplicaPlace {
            replica: self.replica,
            location: here,
        });
        voters.sort_by_key(|voter| voter.replica);
        voters
    }
}

/// Options for opening a shard.
pub struct ShardOptions {
    /// The node and number of the shard.
    pub location: Location,
    /// How many bytes of entries the log may keep in memory.
    pub entry_cache_bytes: usize,
    /// How many bytes the row cache takes; with 0 there is none.
    pub row_cache_bytes: usize,
    /// Size of a log segment in bytes; [`crate::limits::SEGMENT_LEN`] except in tests.
    pub segment_bytes: usize,
    /// How long old versions are kept, in milliseconds.
    pub gc_retention_ms: u64,
    /// How many entries the log of a group of several replicas keeps, though the tree has made them
    /// durable, for replicas that are a little behind.
    pub entries_kept: u64,
    /// Appends up to this many bytes belong to the control class; [`crate::limits::SMALL_APPEND_LEN_MAX`]
    /// except in tests.
    pub small_append_bytes: usize,
    /// What the node knows of the shard's folder.
    pub folder: FolderMark,
    /// The ranges with which a shard begins; they are made only in a new folder.
    pub initial: Vec<InitialRange>,
    /// The record of the node, for the cluster.
    pub node: NodeRecord,
    /// Shards that may have replicas of the system range.
    pub system: Vec<Location>,
    /// The highest id of a node that this one has ever heard of, and of a replica that a shard had which
    /// it has given up.
    pub seen: HighestIds,
    /// Tells the cluster's manager whether a node was reached at an address.
    pub is_at: IsAt,
    /// When, and how fast, replicas compare their digests.
    pub digests: DigestOptions,
    /// Called with an error that must end the process.
    pub on_fatal: OnFatal,
}

/// Whether a node was reached at an address; if not, that is tried from now on.
pub type IsAt = Rc<dyn Fn(NodeId, &str) -> bool>;

/// What the clones of a [`Shard`] share.
struct ShardInner<E: Env> {
    location: Location,
    gc_retention_ms: u64,
    hlc: Hlc,
    /// What the replicas share.
    home: Home<E>,
    /// What the shard's groups need from it, and it needs itself.
    around: GroupDeps<E>,
    wal: Wal<E>,
    store: Rc<Store<E>>,
    ranges: RangeMap<E>,
    background: RefCell<lifecycle::background::Tasks>,
    liveness: liveness::Liveness,
    agent: cluster_agent::ClusterAgent,
    /// Whether the shard is being closed: no replica is made or removed any more.
    closing: Cell<bool>,
    /// Snapshots that are being received.
    staging: snapshots::receiver::ReceivedSnapshots,
    /// The next data id, and the highest one that is reserved.
    data_ids: Cell<(u64, u64)>,
    digests: replicas::digests::Digests,
}

/// One core's share of the database. Clones are the same shard.
pub struct Shard<E: Env> {
    inner: Rc<ShardInner<E>>,
}

impl<E: Env> Clone for Shard<E> {
    fn clone(&self) -> Shard<E> {
        Shard {
            inner: self.inner.clone(),
        }
    }
}

/// A shard as tasks hold it that must not keep it: once it has been closed and let go, its folder may
/// be opened again.
pub struct WeakShard<E: Env> {
    inner: Weak<ShardInner<E>>,
}

impl<E: Env> WeakShard<E> {
    /// The shard, if it is still held elsewhere.
    pub fn upgrade(&self) -> Option<Shard<E>> {
        let inner = self.inner.upgrade()?;
        Some(Shard { inner })
    }
}

impl<E: Env> Shard<E> {
    /// The same shard, for a task that must not keep it.
    pub fn downgrade(&self) -> WeakShard<E> {
        WeakShard {
            inner: Rc::downgrade(&self.inner),
        }
    }

    /// The node and number of this shard.
    pub fn location(&self) -> Location {
        self.inner.location
    }

    /// The routes of all users' ranges with a replica here.
    pub fn routes(&self) -> Vec<Route> {
        self.inner.ranges.routes()
    }

    /// Changes whenever the result of [`Shard::routes`] does.
    pub fn routes_version(&self) -> usize {
        self.inner.ranges.version().get()
    }

    /// Waits until [`Shard::routes_version`] is another than the one that the caller knows.
    pub async fn routes_changed(&self, known: usize) {
        self.inner.ranges.version().until(|now| now != known).await;
    }

    /// The part of a core that this thread has used over the last 10 s; 0 where that is not known.
    pub fn cpu(&self) -> f64 {
        self.inner.agent.load.cpu()
    }

    /// How long the entry of the log that has arrived last was on its way: what a write that is
    /// answered at this moment has waited for its log.
    pub fn last_flight(&self) -> Duration {
        self.inner.store.departures.last_flight.get()
    }

    /// The replica of the range that holds a user's key, and its group.
    fn find_running(&self, key: &[u8]) -> Result<(Rc<Replica<E>>, RaftGroup<E>), Error> {
        self.with_running(key, |running| {
            (running.replica.clone(), running.raft.clone())
        })
    }

    /// The id of the range that serves a user's key here.
    pub fn range_of(&self, key: &[u8]) -> Option<RangeId> {
        self.with_running(key, |running| running.replica.group.range)
            .ok()
    }

    /// The replica of the range that holds a user's key.
    fn find(&self, key: &[u8]) -> Result<Rc<Replica<E>>, Error> {
        self.with_running(key, |running| running.replica.clone())
    }

    fn with_running<R>(
        &self,
        key: &[u8],
        with: impl FnOnce(&RangeHandle<E>) -> R,
    ) -> Result<R, Error> {
        let found = self.inner.ranges.with(key, |running| {
            running.replica.check_open(key)?;
            Ok(with(running))
        });
        found.unwrap_or_else(|| Err(self.not_here(key)))
    }

    /// Why no range here serves a key: none holds it, or one that was split off just now.
    fn not_here(&self, key: &[u8]) -> Error {
        match self.inner.home.newborns.holder_of(key) {
            Some(newborn) => Error::NotLeader(Some(Box::new(newborn.route()))),
            None => Error::Moved(Vec::new()),
        }
    }

    /// Refuses a request for a key as [`Replica::check`] does. If the range is another one than the
    /// caller believes, the error has the routes of all ranges here that hold keys of the caller's.
    fn check(&self, replica: &Replica<E>, key: &[u8], target: Option<Target>) -> Result<(), Error> {
        match (replica.check(target), target) {
            (Err(Error::Moved(_)), Some(target)) => {
                Err(Error::Moved(self.inner.ranges.routes_near(key, target)))
            }
            (checked, _) => checked,
        }
    }

    /// Ends the process because of an error of the tree; the caller gets this error meanwhile.
    fn lost(&self, fatal: Fatal) -> Error {
        self.inner.store.fail(fatal);
        Error::ShuttingDown
    }

    /// The results of comparing the replicas of ranges that are led here.
    pub fn digests(&self) -> DigestStats {
        self.inner.digests.stats()
    }

    /// How many writes, and reads that need the disk, were refused because their range fills the shard, or
    /// its own queue.
    pub fn overloaded(&self) -> u64 {
        self.inner.store.writes.refused() + self.inner.store.cold_reads_refused()
    }

    /// Counters, and the status of every range.
    pub fn status(&self) -> ShardStatus {
        status::of(&self.inner)
    }

    /// The status of every range, users' first.
    pub fn ranges(&self) -> Vec<RangeStatus> {
        status::ranges(&self.inner)
    }

    /// Stops the shard: refuses new requests, waits for those in flight, makes everything durable,
    /// and marks the log as stopped cleanly.
    ///
    /// # Errors
    /// Something could not be made durable.
    pub async fn close(self) -> Result<(), Fatal> {
        lifecycle::background::close(&self.inner).await
    }
}
