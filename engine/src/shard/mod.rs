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

mod auto_splits;
mod availability;
mod background;
mod balancing;
mod bounds_changes;
mod bounds_requests;
mod cluster_agent;
mod cluster_requests;
mod cluster_time;
pub mod contents;
mod digests;
mod folder;
mod freeze;
mod hot_ranges;
mod leadership_transfer;
mod leaving_shard;
mod liveness;
mod load;
mod manager_orders;
mod members;
mod merge;
mod merge_orders;
mod multi_get;
mod open;
mod peers;
mod pinned;
mod range_map;
mod read;
mod report;
mod rewrites;
mod scan;
mod slow_disk;
mod snapshot_receiver;
mod split;
mod split_orders;
mod status;
mod system_places;
mod unreadable;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use rangedb_limits::BrokenLimit;

use crate::boot_time::BootTime;
pub use crate::cluster::SplitReason;
use crate::cluster::{HighestIds, NodeRecord};
use crate::env::Env;
use crate::error::{Error, Fatal, Fate};
use crate::hlc::Hlc;
use crate::mutant::{self, Mutant};
use crate::raft::GroupDeps;
pub use crate::range::proposer::sink::WriteSink;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::{Home, Replica};
use crate::range::usage::hot_keys::Sample;
use crate::range::{Keyspace, RaftGroup, ReplicaPlace, Route};
use crate::request::{Batch, Change, Expected, Read, RequestId, Target};
use crate::tree::{OnFatal, Store};
use crate::types::{Blob, KeyRange, Location, NodeId, RangeId, ReplicaId, Timestamp};
use crate::wal::Wal;
pub use availability::Availability;
pub use balancing::MoveStats;
pub use bounds_changes::{BoundsChangeStats, BoundsChanges};
pub use digests::{DigestOptions, DigestStats};
pub use folder::{FolderMark, Opened};
pub use multi_get::{KeyFound, KeyTurn, Moment};
use range_map::{RangeHandle, RangeMap};
pub use slow_disk::SlowDiskStatus;
pub use status::{ClusterStatus, PeerStatus, RangeStatus, ReplicationStatus, ShardStatus};

/// Why a shard whose tables take no more writes refuses them, and when to try again.
const STUCK: &str = "compactions fail on the node that leads the range, and its tables take no more writes until \
     another node leads: the node's log names the damaged file (event compaction_failed)";
const STUCK_RETRY_AFTER_MS: u32 = 1_000;

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

/// The parts of a write besides its command.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest {
    /// The range that the sender believes to hold the first key.
    pub target: Option<Target>,
    /// The write's request id, by which a retry is known.
    pub session: RequestId,
    /// It is not proposed after this.
    pub deadline: Option<BootTime>,
}

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
    background: RefCell<background::Tasks>,
    liveness: liveness::Liveness,
    agent: cluster_agent::ClusterAgent,
    /// Whether the shard is being closed: no replica is made or removed any more.
    closing: Cell<bool>,
    /// Snapshots that are being received.
    staging: snapshot_receiver::ReceivedSnapshots,
    /// The next data id, and the highest one that is reserved.
    data_ids: Cell<(u64, u64)>,
    digests: digests::Digests,
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

    /// Proposes a write. `sink` receives the result exactly once, now or later, unless the process
    /// ends before.
    pub fn write(&self, write: Batch, request: WriteRequest, sink: Rc<dyn WriteSink>, token: u64) {
        let checked = check_write(&write).and_then(|first_key| {
            check_session(&request.session)?;
            let replica = self.with_running(&first_key, |running| {
                self.check(&running.replica, &first_key, request.target)?;
                let first_tried = request.session.first_tried;
                running
                    .replica
                    .timestamps
                    .check("first_tried", first_tried)?;
                if running.replica.leadership.lacks_quorum() {
                    // Heartbeats find out when a majority is back.
                    running.raft.stay_awake();
                    return Err(Error::NoQuorum(Fate::NotApplied));
                }
                Ok(running.replica.clone())
            })??;
            let store = &self.inner.store;
            if store.disk_full() && !(write.only_deletes() && store.has_reserve()) {
                return Err(Error::DiskFull);
            }
            if store.is_stuck() {
                return Err(Error::overloaded(STUCK, STUCK_RETRY_AFTER_MS));
            }
            Ok(replica)
        });
        let replica = match checked {
            Ok(replica) => replica,
            Err(error) => return sink.complete(token, Err(error)),
        };
        let began = replica.usage.begin();
        let version = replica.with_state(|state| state.descriptor.epoch.version);
        if !all_in_range(&replica, &write) {
            return self.refuse_several_ranges(&replica, &request, sink.as_ref(), token);
        }
        if let Err(error) = self.look_ahead(&replica, &write) {
            return sink.complete(token, Err(error));
        }
        let write = match mutant::is(Mutant::CasBeforeLog) {
            true => self.decide_now(&replica, write),
            false => write,
        };
        let bytes = write.len_in_bytes();
        let keys = began.and_then(|_| Sample::of_all(write.keys().map(|key| &**key)));
        let kind = ProposalKind::Write(write, request.session);
        let proposal = Proposal::new(kind, version, request.deadline, (sink, token));
        let proposal = proposal.named(request.target.is_some());
        if let Some(untold) = replica.proposer.push(proposal) {
            let (range, shard) = (replica.group.range, self.inner.location);
            tracing::warn!(
                event = "range_overloaded",
                untold,
                "range {range} is offered more writes than shard {shard} takes: the excess is refused as \
                 overloaded until what waits has become less; other ranges go on"
            );
        }
        replica.usage.has_written(keys, bytes, began);
    }

    /// Refuses a write that depends on a row which cannot be read: once it is in the log it must be applied,
    /// and whatever comes after it would have to wait.
    fn look_ahead(&self, replica: &Replica<E>, write: &Batch) -> Result<(), Error> {
        for key in write.keys_read() {
            let read = (self.inner.store).newest(replica.data_id_of(key), key, |_| ());
            read.map_err(|error| self.inner.unreadable(replica, error))?;
        }
        Ok(())
    }

    /// The batch without its conditions if they hold now.
    fn decide_now(&self, replica: &Replica<E>, mut write: Batch) -> Batch {
        let hold = write.conditions.iter().all(|condition| {
            let look = |found: Option<(&[u8], Timestamp)>| holds(&condition.expected, found);
            let read = self.look(replica, &condition.key, Timestamp::MAX, look);
            matches!(read, Ok(Read::Done(true)))
        });
        if hold {
            write.conditions.clear();
        }
        write
    }

    /// Refuses a write that spans ranges, unless it is a retry that was applied before a split: its
    /// pair tells.
    fn refuse_several_ranges(
        &self,
        replica: &Replica<E>,
        request: &WriteRequest,
        sink: &dyn WriteSink,
        token: u64,
    ) {
        use crate::range::sessions::Verdict;
        let now = replica.timestamps.now();
        let verdict = replica.with_state(|state| state.sessions.check(&request.session, now));
        let result = match verdict {
            Verdict::Seen(outcome) => Ok(outcome),
            Verdict::Expired => Err(Error::SessionExpired),
            Verdict::Fresh => Err(Error::SeveralRanges),
        };
        sink.complete(token, result);
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
        background::close(&self.inner).await
    }
}

/// Whether the key's present value, if it has one, is what is expected. Apply asks the same of the
/// entry in the log; this is for the deliberate bug that decides before.
fn holds(expected: &Expected, live: Option<(&[u8], Timestamp)>) -> bool {
    match expected {
        Expected::Absent => live.is_none(),
        Expected::Value(wanted) => live.is_some_and(|(value, _)| value == &**wanted),
        Expected::Version(wanted) => live.is_some_and(|(_, version)| version == *wanted),
        Expected::Exists => live.is_some(),
    }
}

/// Checks that a write does not say that it was answered itself.
fn check_session(session: &RequestId) -> Result<(), Error> {
    let (sequence, lowest) = (session.sequence, session.lowest_unanswered);
    if lowest > sequence {
        return Err(Error::Invalid(format!(
            "the session's lowest_unanswered is {lowest}, above the write's own sequence {sequence}"
        )));
    }
    Ok(())
}

/// Checks a write's limits; gives its first key.
fn check_write(write: &Batch) -> Result<Blob, Error> {
    write.check()?;
    let names_expiry = |change: &Change| match change {
        Change::Put { expires_at, .. } => expires_at.is_some(),
        Change::Delete | Change::Add { .. } => false,
    };
    if write.mutations.iter().any(|m| names_expiry(&m.change)) {
        let rule = "the write names an expiry; this release has none";
        return Err(Error::Invalid(rule.to_owned()));
    }
    write
        .first_key()
        .cloned()
        .ok_or_else(|| BrokenLimit::NoMutation.into())
}

fn all_in_range<E: Env>(replica: &Replica<E>, write: &Batch) -> bool {
    // The first key of a batch has found the replica.
    if write.operations() == 1 {
        return true;
    }
    replica.with_state(|state| write.keys().all(|key| state.descriptor.keys.contains(key)))
}
