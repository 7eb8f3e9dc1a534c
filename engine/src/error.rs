//! Why a request or an order failed, and what became of it.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

mod order;

use std::borrow::Cow;
use std::time::Duration;

pub use order::OrderError;
use rangedb_limits::BrokenLimit;
use rkyv::with::AsOwned;

use crate::limits::MAX_CLOCK_OFFSET_MS;
use crate::lsm::LsmError;
use crate::types::{NodeId, RangeId, ReplicaId, Route, Timestamp};
use crate::wal::{Group, WalError};

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Fate {
    /// It has not happened and will not.
    NotApplied,
    /// It may have happened, or may yet.
    Unknown,
}

/// Why a request failed. The server maps each to a stable code of the wire protocol. It is part of
/// the messages between nodes ([`crate::gateway::message`]).
#[derive(
    Clone, Debug, PartialEq, Eq, thiserror::Error, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub enum Error {
    /// The request breaks a rule that does not depend on the database's state.
    #[error("{0}")]
    Invalid(String),
    /// The key lies in a range that this replica does not hold, or the epoch is an old one. With the
    /// routes that are known to hold the keys of the range that the caller believed in, at most
    /// [`MOVED_ROUTES_MAX`](crate::limits::MOVED_ROUTES_MAX); the first is that of the key.
    #[error("the key's range is elsewhere or has changed")]
    Moved(Vec<Route>),
    /// The keys of one multi-write or scan lie in more than one range.
    #[error(
        "the keys lie in several ranges, and a write over several ranges is not supported yet: write the keys of each range by themselves"
    )]
    SeveralRanges,
    /// This replica does not lead its range now. If the route names no leader, or this replica, the
    /// range has none yet, and will have one within moments.
    #[error("this replica does not lead the range")]
    NotLeader(Option<Box<Route>>),
    /// No majority of the range's replicas has been reached for a while.
    #[error("no quorum: no majority of the range's replicas can be reached")]
    NoQuorum(Fate),
    /// A queue is full or the disk lags behind.
    #[error("overloaded: {reason}; try again in {retry_after_ms} ms")]
    Overloaded {
        /// Which limit was met.
        #[rkyv(with = AsOwned)]
        reason: Cow<'static, str>,
        /// When to try again.
        retry_after_ms: u32,
    },
    /// The deadline passed before the request was proposed.
    #[error("the deadline passed before the request was proposed")]
    DeadlineExceeded,
    /// The request was proposed, but its result is not known.
    #[error("the request was proposed, but its result is not known: {0}")]
    Unknown(#[rkyv(with = AsOwned)] Cow<'static, str>),
    /// The write can no longer be distinguished from one that was applied.
    #[error("session expired: the write may have been applied long ago")]
    SessionExpired,
    /// The snapshot was collected.
    #[error("snapshot too old: timestamp {at} is not above the collected {threshold}")]
    SnapshotTooOld {
        /// The timestamp asked for.
        at: Timestamp,
        /// Up to which old versions are gone.
        threshold: Timestamp,
    },
    /// A timestamp of the client lies further ahead than clocks may differ.
    #[error(
        "clock out of bounds: the request's {what} lies {ahead_ms} ms ahead of this node's wall \
         clock, and at most {} ms are taken; no reply of a node whose clock is right holds such a \
         time, so check the clocks of the nodes and of whoever made this time",
        MAX_CLOCK_OFFSET_MS
    )]
    ClockOutOfBounds {
        /// The kind of timestamp, as the message names it.
        #[rkyv(with = AsOwned)]
        what: Cow<'static, str>,
        /// By how much, rounded up.
        ahead_ms: u64,
    },
    /// The value of an increment is no signed 64-bit decimal number.
    #[error("the value is not a signed 64-bit decimal number")]
    NotANumber,
    /// An increment would leave the signed 64 bits.
    #[error("the increment would overflow a signed 64-bit number")]
    NumberOverflow,
    /// The node stops.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// The replica is not ready yet.
    #[error("the range is being recovered")]
    Recovering,
    /// The range's replicas hold different rows, and no majority holds the same.
    #[error(
        "range {0} has stopped: its replicas hold different rows, and no majority of them the same; \
         see the nodes' logs, and restore the range or start the nodes whose replicas are right"
    )]
    Diverged(RangeId),
    /// The disk has no room for more writes; deletes are taken as long as log and memtables have room.
    #[error("the disk is full")]
    DiskFull,
    /// A block of a table that the answer needs cannot be read, or is damaged. Where the range has other
    /// replicas, one of them leads and answers in a moment.
    #[error(
        "a block of a table with rows of range {0} cannot be read from this node's disk, or is damaged: \
         the node's log names the file; other replicas of the range take over, and without any the rows \
         stay unreadable until the node has another disk"
    )]
    Unreadable(RangeId),
}

impl From<BrokenLimit> for Error {
    fn from(broken: BrokenLimit) -> Error {
        Error::Invalid(broken.to_string())
    }
}

impl Error {
    /// The error of a request whose fate is not known.
    pub fn unknown(why: &'static str) -> Error {
        Error::Unknown(Cow::Borrowed(why))
    }

    /// The error of a request that meets a limit.
    pub fn overloaded(reason: &'static str, retry_after_ms: u32) -> Error {
        Error::Overloaded {
            reason: Cow::Borrowed(reason),
            retry_after_ms,
        }
    }

    /// What became of the write that got this error.
    pub fn fate(&self) -> Fate {
        match self {
            Error::Unknown(_) | Error::SessionExpired => Fate::Unknown,
            Error::NoQuorum(fate) => *fate,
            Error::Invalid(_)
            | Error::Moved(_)
            | Error::SeveralRanges
            | Error::NotLeader(_)
            | Error::Overloaded { .. }
            | Error::DeadlineExceeded
            | Error::SnapshotTooOld { .. }
            | Error::ClockOutOfBounds { .. }
            | Error::NotANumber
            | Error::NumberOverflow
            | Error::ShuttingDown
            | Error::Recovering
            | Error::Diverged(_)
            | Error::DiskFull
            | Error::Unreadable(_) => Fate::NotApplied,
        }
    }
}

/// Why the process must end: nothing continues on bad state.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The log is damaged, or a durable write failed.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The tables are damaged or cannot be read.
    #[error("{0}{advice}", advice = .0.advice())]
    Lsm(#[from] LsmError),
    /// Consensus gave up.
    #[error("raft of range {range}: {message}")]
    Raft {
        /// The group's range.
        range: RangeId,
        /// openraft's words.
        message: String,
    },
    /// A write of the log does not end.
    #[error(
        "a write of the log has not ended for {0:?}: the disk of the data folder hangs. Look at the \
         kernel's log (dmesg) and at the disk, then start the node again; its replicas catch up"
    )]
    LogHangs(Duration),
    /// Another process has taken over this node.
    #[error(
        "another process runs as node {0}, and was started later: this one ends; if the data folder \
         was copied, give the copy up"
    )]
    Superseded(NodeId),
    /// The folder is an older one of the node.
    #[error(
        "this data folder is older than what node {node} has already run on (start {start}, the \
         cluster has seen start {seen}), or another copy of it: it was restored from a backup, or \
         copied. It must not rejoin, since it lacks what the node has acknowledged since. Start the \
         node with an empty --data-dir and --join NODES: it gets its replicas anew"
    )]
    OldFolder {
        /// The node that the folder belongs to.
        node: NodeId,
        /// Which start of the folder this is.
        start: u64,
        /// The last start that was seen.
        seen: u64,
    },
    /// Operators have removed the node from the cluster.
    #[error(
        "node {0} was removed from the cluster by `rangedb node remove`, and its id is not taken back: \
         start the node with an empty --data-dir and --join NODES, and it joins as a new one"
    )]
    Removed(NodeId),
    /// A part of the shard's folder is missing, or is not the one that belongs there.
    #[error(transparent)]
    Folder(#[from] FolderFault),
    /// Log and tables contradict each other.
    #[error("inconsistent state: {0}")]
    Inconsistent(String),
}

impl Fatal {
    /// Whether no process may run on the folder any more.
    pub fn gives_up_folder(&self) -> bool {
        matches!(
            self,
            Fatal::OldFolder { .. } | Fatal::Superseded(_) | Fatal::Removed(_)
        )
    }
}

/// Why the parts of a shard's folder do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderFault {
    /// The log has another id.
    #[error(
        "the log in wal/ is not this shard's own: it belongs to another shard or another data folder"
    )]
    LogOfAnother,
    /// The log was last opened at an earlier start than the node records.
    #[error(
        "the log in wal/ is older than node.json: it was last written at start {found} of this node, \
         and start {known} has written to it since"
    )]
    LogBeforeStart {
        /// The start that the log records.
        found: u64,
        /// The start that the node records.
        known: u64,
    },
    /// The log ends before a batch that the tables have seen.
    #[error(
        "the log in wal/ is older than the tables, or its end is missing: its last batch is {found}, \
         and the tables were written when batch {known} was durable"
    )]
    LogBeforeTables {
        /// The last batch of the log.
        found: u64,
        /// The batch that the tables have seen.
        known: u64,
    },
    /// The log lacks a range with which the folder was made.
    #[error("the log in wal/ does not know of range {0}, with which this folder was made")]
    RangeUnknown(RangeId),
    /// The log was opened at a later start than the node counts.
    #[error(
        "node.json is older than the log in wal/: it counts start {found}, and the log has seen \
         start {known}"
    )]
    NodeBeforeLog {
        /// The start that the node counts.
        found: u64,
        /// The start that the log records.
        known: u64,
    },
    /// There are no tables, or they were never this shard's.
    #[error(
        "the tables in tables/ are missing: the folder has none of the rows that this node wrote"
    )]
    TablesGone,
    /// The tables name another log.
    #[error(
        "the tables in tables/ are not this shard's own: they belong to another shard or another \
         data folder"
    )]
    TablesOfAnother,
    /// The tables lack flushes that the log records.
    #[error(
        "the tables in tables/ are older than the log: they have taken {found} flushes, and the log \
         knows of {known}"
    )]
    TablesBeforeLog {
        /// Flushes that the tables have.
        found: u64,
        /// Flushes that the log records.
        known: u64,
    },
    /// Entries between the tables and the log are missing.
    #[error(
        "the tables in tables/ are older than the log: they have range {} up to entry {applied}, and \
         the log begins after entry {purged}", .group.range
    )]
    EntriesGone {
        /// The replica.
        group: Group,
        /// The last entry that the tables have.
        applied: u64,
        /// The last entry that is purged from the log.
        purged: u64,
    },
    /// The tables have rows of a replica that the log does not know.
    #[error(
        "the tables in tables/ hold replica {0}, of which the log in wal/ knows nothing: one of the \
         two was lost or belongs to another folder"
    )]
    ReplicaUnknown(ReplicaId),
}
