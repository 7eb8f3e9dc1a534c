//! The shard's write-ahead log, which is also the Raft log of all groups of the shard.
//!
//! Lives on the shard's thread. An appended record is readable at once and durable later, in one
//! totally ordered stream: a durable write covers everything appended before it. While one write is
//! in flight, new records gather for the next ([`writer`]): natural group commit.
//!
//! **On disk.** Segments `GENERATION.wal`, preallocated and recycled under a new generation
//! ([`segment`]). Block 0 of a segment holds in its header the number of the segment's first batch,
//! and in its body the segment's secret and the length of its file. From block 1 on it is a row of
//! batches ([`batch`]), each one durable write; a batch is a row of records ([`record`]). Those
//! three modules describe the format byte by byte, and [`sealed`] that of block 0.
//!
//! Each segment begins with a checkpoint: every replica's creation, last installed snapshot, vote, purge
//! position and commit hint, every replica tombstone, and the reserved data ids. So an old segment is
//! needed only for its entries. The oldest segment is recycled when all its entries are purged. If there
//! are too many segments, the live entries of the oldest are written again at the end, as long as less than
//! half of the log is live. So the log takes at most twice the space of what is live in it, or that of a
//! few segments; and a log of which most is live is not copied over and over.
//!
//! **Users' bytes are never taken for the log's.** A recycled segment holds, block by block, what
//! clients wrote before, and recovery looks at blocks behind the last batch. So a batch carries a
//! checksum keyed by the segment's secret, which is chosen when the segment is taken into use:
//! nothing older and nobody outside can have made one. The secret stands in block 0, where nothing
//! but such a block is ever written. A spare segment gets its block 0, durably, before it is
//! renamed to a segment in use.
//!
//! **Recovery** ([`recovery`]) reads every batch of every segment that is left, in order. Block 0
//! of the next segment says where a segment ends: a batch that is missing before that is
//! corruption. In the last segment a bad batch n is corruption if a valid later batch exists,
//! because that one was written only after n had been acknowledged. Otherwise batch n is the torn
//! tail of the write that was in flight, and is cut: the next write goes to its place, under its
//! number. Older segments are recycled only after a new segment's checkpoint is durable. So only
//! the newest segment may lack a good batch. A clean stop leaves the file `clean` with the last
//! batch number; if the log does not end with that batch, it is corrupt. The file is removed,
//! durably, before anything is written.
//!
//! **Format 1** had neither block 0 nor a secret. A log of format 1 is read by the same rules, with
//! batches as [`sealed`] describes them, from the first byte of a segment on; then it goes on in a
//! new segment of format 3. From then on nothing behind the last batch of the old segments counts.
//! They are recycled like any others. Version 1 refuses a log that has a segment of a later format.
//!
//! **Format 2** differs from format 3 only in its number and in the entries that it may hold
//! (`range/command/mod.rs`). A log of format 2 also goes on in a new segment: an older release, which
//! cannot read the new entries, then refuses the log instead of taking it to end before them.
//!
//! **Entries** keep the checksum of their bytes that their leader computed ([`Body`]): in the
//! record, in messages and in memory. It is compared when an entry is read from disk, when it is
//! received, and when it is applied.
//!
//! A failed write ends the log: every waiter and every later call gets the error, and the shard
//! ends the process. The exceptions are a full disk, and a process without file descriptors or
//! memory: then the log waits and tries again ([`retry`]).

mod batch;
mod body;
mod clean_mark;
#[cfg(test)]
mod fuzz;
mod group_log;
mod handle;
mod log;
mod marks;
mod page;
mod recent;
mod record;
mod recovery;
mod retry;
mod sealed;
mod segment;
mod segment_manager;
mod shared;
mod stats;
mod tombstones;
mod writer;

use std::io;

use bytes::Bytes;

use crate::disk_fault::{DAMAGED_ADVICE, Lack};
use crate::distribution::Distribution;
use crate::limits::SEGMENT_LEN;
use crate::memory::MemoryUse;
use crate::types::{DataId, RangeId, ReplicaId};
pub use batch::FORMAT;
pub use body::Body;
pub use group_log::GroupLog;
pub use handle::Wal;
pub use recent::{SLOW_WRITE, WriteSpeed};

/// Identifies a replica and its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// The range that the replica belongs to.
    pub range: RangeId,
    /// The replica's id, which is never used again.
    pub replica: ReplicaId,
}

/// Identifies an entry, as in the Raft papers.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct LogId {
    /// The term of the leader that made the entry.
    pub term: u64,
    /// The leader of that term that made the entry.
    pub leader: ReplicaId,
    /// The index in the log.
    pub index: u64,
}

/// A replica's vote, as openraft keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Vote {
    /// The term in which it votes.
    pub term: u64,
    /// The candidate that the vote is for.
    pub leader: ReplicaId,
    /// Whether a quorum has granted it, so that the candidate is the leader.
    pub committed: bool,
}

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Payload {
    /// No content: the first entry of a leader.
    Blank,
    /// A batch of commands, opaque here.
    Commands(Body),
    /// A membership, opaque here.
    Membership(Body),
}

impl Payload {
    /// Length in bytes; 0 for a blank entry.
    pub fn len(&self) -> usize {
        match self {
            Payload::Blank => 0,
            Payload::Commands(body) | Payload::Membership(body) => body.len(),
        }
    }

    /// Whether the bytes are those that its leader encoded.
    pub fn is_intact(&self) -> bool {
        match self {
            Payload::Blank => true,
            Payload::Commands(body) | Payload::Membership(body) => body.is_intact(),
        }
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct LogEntry {
    /// Its term, leader and index.
    pub id: LogId,
    /// Its content.
    pub payload: Payload,
}

/// A replica exists, and how it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The replica.
    pub group: Group,
    /// The data id of its rows in the tree.
    pub data_id: DataId,
    /// The descriptor of its range, opaque here.
    pub descriptor: Bytes,
    /// Its first membership, opaque here.
    pub membership: Bytes,
    /// The entry after which its log starts; `None`: the log is empty and waits for a leader.
    pub first: Option<LogId>,
    /// How it was born, if its range was split off another one.
    pub birth: Option<Birth>,
}

/// The birth of a replica. Until a flush covers the replica, a start makes it anew by replaying its
/// parent's log up to the split, which is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The replica that gave birth to it.
    pub parent: Group,
    /// The entry of the parent's log that is the split.
    pub split: LogId,
}

/// A replica has installed a snapshot whose rows are durable in the tree. One record switches its
/// data, its state and its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledSnapshot {
    /// The data id of its rows from now on.
    pub data_id: DataId,
    /// The last entry that the snapshot covers; the log starts after it.
    pub last: LogId,
    /// Whether the log had that very entry, and keeps the entries after it.
    pub keeps_later: bool,
    /// The state of the range besides rows, opaque here.
    pub state: Bytes,
}

/// Identifies the log and says how far the rest of its folder was. A start compares this with
/// `node.json` and with the tables, and so notices a part that belongs to another folder or is
/// older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMark {
    /// The log's own random id.
    pub log: u128,
    /// The number of the node's start at which the log was last opened.
    pub start: u64,
    /// At least this many flushes are durable in the tables.
    pub flushes: u64,
}

/// The Raft state of a group's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry, or the purge position if there is none after it.
    pub last: Option<LogId>,
    /// The last entry that is purged.
    pub purged: Option<LogId>,
    /// The replica's vote.
    pub vote: Option<Vote>,
    /// The last entry that was known to be committed.
    pub committed: Option<LogId>,
}

/// A position in the stream of written bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// Options of a log.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// Size of a segment in bytes.
    pub segment_bytes: u64,
    /// How many bytes of entries may stay in memory.
    pub entry_cache_bytes: usize,
    /// With more segments than this, of which less than half is live, the live entries of the
    /// oldest segment are written again at the end of the log.
    pub segments_max: usize,
    /// Whether the log was made before: if it is missing then, that is an error.
    pub must_exist: bool,
}

impl Default for WalOptions {
    fn default() -> WalOptions {
        WalOptions {
            segment_bytes: SEGMENT_LEN as u64,
            entry_cache_bytes: 64 << 20,
            segments_max: 4,
            must_exist: false,
        }
    }
}

/// What a log held when it was opened.
pub struct Recovered<E: crate::env::Env> {
    /// Whether the last stop was clean.
    pub clean: bool,
    /// The replicas that exist, and their logs.
    pub replicas: Vec<(Created, GroupLog<E>)>,
    /// Of each range the last replica that is gone for good; it stands for all before it.
    pub removed: Vec<Group>,
    /// Data ids up to this one may be in use.
    pub data_ids_reserved: DataId,
    /// Identifies the log, if it says so.
    pub mark: Option<LogMark>,
    /// The number of the last batch; 0 if there is none.
    pub last_batch: u64,
    /// The position of the oldest record.
    pub begins: Position,
}

/// The space that a log takes on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Segments in use.
    pub segments: usize,
    /// Size of each segment in bytes.
    pub segment_bytes: u64,
    /// Bytes of entries in them that are not purged.
    pub live_bytes: u64,
}

/// Counters of a log since its start, and its sizes now.
#[derive(Clone, Debug)]
pub struct WalStats {
    /// How many durable writes there were.
    pub writes: u64,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// How many records were written.
    pub records: u64,
    /// Bytes of records that wait for a write.
    pub pending_bytes: usize,
    /// Segments in use.
    pub segments: usize,
    /// Bytes of entries in them that are not purged.
    pub live_bytes: u64,
    /// The memory of entries, kept for replicas that are a little behind.
    pub cache: MemoryUse,
    /// Duration of a durable write, in microseconds.
    pub write_micros: Distribution,
    /// How many records a durable write had.
    pub batch_records: Distribution,
    /// How many bytes a durable write had, padding included.
    pub batch_bytes: Distribution,
}

/// An error of the log. Each ends the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The disk refused an operation.
    #[error("log file {file}: {action} failed: {message}")]
    Io {
        /// The file's name.
        file: String,
        /// What the log tried to do.
        action: &'static str,
        /// The system's error message.
        message: String,
        /// The system's kind of error.
        kind: io::ErrorKind,
        /// What the disk lacked, if that was the reason.
        lack: Option<Lack>,
    },
    /// Acknowledged bytes are no longer what was written.
    #[error(
        "log file {file} is damaged at byte {offset}: {what}; {}",
        DAMAGED_ADVICE
    )]
    Corrupt {
        /// The file's name.
        file: String,
        /// The offset of the damage in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The log was written by another version.
    #[error(
        "log file {file} has format {found}, this version of rangedb reads formats {} to {}; \
         start the version that wrote it",
        batch::FORMAT_WITHOUT_KEY,
        batch::FORMAT
    )]
    OtherFormat {
        /// The file's name.
        file: String,
        /// The format that it has.
        found: u16,
    },
    /// A log that was made before is not there.
    #[error(
        "the log is missing: its folder has no segment (NUMBER.wal), but it was written before"
    )]
    Missing,
    /// A replica with this id exists or existed before.
    #[error(
        "replica {} of range {}, or another replica of that range, exists or existed before",
        .0.replica,
        .0.range
    )]
    ReplicaNameUsed(Group),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

impl WalError {
    fn io(file: &str, action: &'static str, error: &io::Error) -> WalError {
        let (file, message) = (file.to_owned(), error.to_string());
        WalError::Io {
            file,
            action,
            message,
            kind: error.kind(),
            lack: Lack::of(error),
        }
    }
}
