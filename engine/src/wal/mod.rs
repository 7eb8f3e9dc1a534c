//! The shard's write-ahead log: one for all groups of the shard, and at once their Raft log.
//!
//! Lives on the shard's thread. What is appended is readable at once and durable later, in one
//! totally ordered stream: a durable write covers everything appended before it. While one write
//! is in flight, what arrives gathers for the next ([`writer`]): natural group commit.
//!
//! **On disk.** Segments `GENERATION.wal`, preallocated and recycled under a new generation
//! ([`segment`]). Block 0 of a segment holds its secret, its length and the number of its first
//! batch; from block 1 on it is a row of batches ([`batch`]), each one durable write; a batch is a
//! row of records ([`record`]). Those three modules describe the format byte by byte, and
//! [`sealed`] that of block 0. Each segment begins with a checkpoint: every replica's creation,
//! vote, purge position and commit hint, every tombstone, and the data ids reserved. So only
//! entries can hold an older segment back; the oldest goes when all its entries are purged, and
//! if there come to be too many, its live entries are written again further on, as long as less than
//! half of the log lives: so the log takes at most twice the space of what lives in it, or that of a
//! few segments, and a log that has to keep much is not copied over and over.
//!
//! **Users' bytes are never taken for the log's.** A recycled segment holds, block by block, what
//! clients wrote before, and recovery looks at blocks behind the last batch. So a batch carries a
//! checksum keyed by the segment's secret, which is chosen when the segment is taken into use:
//! nothing older and nobody outside can have made one. The secret stands in block 0, where nothing
//! but such a block is ever written; a spare segment gets it, durably, before it gets its name.
//!
//! **Recovery** ([`recovery`]) reads every batch of every segment that is left, in order. Block 0 of
//! the next segment says where a segment ends: a batch that is missing before that is corruption.
//! In the last segment a bad batch n is corruption if a valid later one exists, because that was
//! written only after n had been acknowledged; otherwise it is the torn tail of the write that was
//! in flight, and is cut: the next write goes to its place, under its number. A segment that has
//! no good batch can only be the newest: others lost their elders after their checkpoint. A clean
//! stop leaves the file `clean` with the last number; a tail that does not end there is corruption
//! too. The file is removed, durably, before anything is written.
//!
//! **Format 1** had neither block 0 nor a secret. A log of format 1 is read by the same rules, with
//! batches as [`sealed`] describes them from the first byte of a segment on; then it goes on in a
//! new segment of format 2. As soon as there is one, nothing that stands behind the last batch of
//! the old segments counts. They are recycled as any others. Version 1 refuses a log that has a
//! segment of format 2.
//!
//! **Entries** keep the checksum of their bytes that their leader computed ([`Body`]), in the
//! record, in messages and in memory. It is compared when an entry is read from disk, when it is
//! received, and when it is applied.
//!
//! A failed write ends the log: every waiter and every later call gets the error, and the shard
//! ends the process. Only what the disk had no room for, or the process no resources, is tried again
//! ([`patience`]).

mod batch;
mod body;
mod keeper;
mod log;
mod marks;
mod page;
mod patience;
mod record;
mod recovery;
mod sealed;
mod segment;
mod stats;
mod writer;

use std::io;

use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::env::Lack;
use crate::limits::SEGMENT_LEN;
use crate::types::{DataId, RangeId, ReplicaId};
pub use body::Body;
pub use log::GroupLog;
pub use writer::Wal;

/// The name of a replica's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Its range.
    pub range: RangeId,
    /// The replica, never used again.
    pub replica: ReplicaId,
}

/// The name of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub leader: ReplicaId,
    /// The place in the log.
    pub index: u64,
}

/// A replica's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// Whom it is for.
    pub leader: ReplicaId,
    /// Whether a quorum has granted it.
    pub committed: bool,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a leader's first entry.
    Blank,
    /// A batch of commands, opaque here.
    Commands(Body),
    /// A membership, opaque here.
    Membership(Body),
}

impl Payload {
    /// Size in bytes.
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

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its name.
    pub id: LogId,
    /// What it holds.
    pub payload: Payload,
}

/// That a replica exists, and what it began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its name.
    pub group: Group,
    /// Where its rows lie in the tree.
    pub data_id: DataId,
    /// Its range's descriptor, opaque here.
    pub descriptor: Bytes,
    /// Its membership, opaque here.
    pub membership: Bytes,
    /// Its log starts after this entry; `None`: it is empty and waits for a leader.
    pub first: Option<LogId>,
}

/// That a replica took over a snapshot, whose rows are durable in the tree: its data, its state and
/// the reset of its log, in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// Where its rows lie from now on.
    pub data_id: DataId,
    /// The last entry that the snapshot covers: the log starts after it.
    pub last: LogId,
    /// Whether the log had that very entry, and keeps what came after it.
    pub keeps_later: bool,
    /// The state besides rows, opaque here.
    pub state: Bytes,
}

/// Whose log it is, and how far the rest of its folder was: a start compares this with `node.json`
/// and with the tables, so that a part of another folder, or an older one, is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMark {
    /// The log's own random id.
    pub log: u128,
    /// The start of the node at which the log was opened last.
    pub start: u64,
    /// The tables have taken at least this many flushes.
    pub flushes: u64,
}

/// What is known of a group's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry, or the purge position if there is none after it.
    pub last: Option<LogId>,
    /// Entries up to here are gone.
    pub purged: Option<LogId>,
    /// The vote.
    pub vote: Option<Vote>,
    /// Entries up to here were known to be committed.
    pub committed: Option<LogId>,
}

/// A place in the stream of written bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// How a log is opened.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// Size of a segment in bytes.
    pub segment_bytes: u64,
    /// Budget for entries kept in memory, in bytes.
    pub entry_cache_bytes: usize,
    /// With more segments than this, of which less than half lives, the live entries of the oldest
    /// are written again further on.
    pub segments_max: usize,
    /// The log was made before: if it is not there, it was lost.
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
    /// Whether the last stop was a clean one.
    pub clean: bool,
    /// The replicas that exist.
    pub replicas: Vec<(Created, GroupLog<E>)>,
    /// Replicas that are gone for good.
    pub removed: Vec<Group>,
    /// Data ids up to this one may be in use.
    pub data_ids_reserved: DataId,
    /// Whose log it is, if it says so.
    pub mark: Option<LogMark>,
    /// The number of the last batch; 0: there is none.
    pub last_batch: u64,
    /// Where the oldest record that was read lies.
    pub begins: Position,
}

/// What a log takes on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Segments in use.
    pub segments: usize,
    /// Bytes of each.
    pub segment_bytes: u64,
    /// Bytes of entries in them that are not purged.
    pub live_bytes: u64,
}

/// Counters of a log.
#[derive(Clone, Debug)]
pub struct WalStats {
    /// Durable writes.
    pub writes: u64,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// Records written.
    pub records: u64,
    /// Bytes that wait for a write.
    pub pending_bytes: usize,
    /// Segments in use.
    pub segments: usize,
    /// Bytes of entries in them that are not purged.
    pub live_bytes: u64,
    /// Bytes of entries kept in memory.
    pub cached_bytes: usize,
    /// Duration of a durable write, in microseconds.
    pub write_micros: Histogram<u64>,
    /// Records of a durable write.
    pub batch_records: Histogram<u64>,
    /// Bytes of a durable write, padding included.
    pub batch_bytes: Histogram<u64>,
}

/// What can go wrong in the log. Each ends the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The disk refused.
    #[error("log file {file}: {action} failed: {message}")]
    Io {
        /// Which file.
        file: String,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        message: String,
        /// The system's kind of error.
        kind: io::ErrorKind,
        /// What the disk lacked, if that was the reason.
        lack: Option<Lack>,
    },
    /// Bytes that were acknowledged are no longer what was written.
    #[error(
        "log file {file} is damaged at byte {offset}: {what}; {}",
        crate::error::DAMAGED_ADVICE
    )]
    Corrupt {
        /// Which file.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The log was written by another version.
    #[error(
        "log file {file} has format {found}, this version of rangedb reads formats {} and {}; \
         start the version that wrote it",
        batch::FORMAT_WITHOUT_KEY,
        batch::FORMAT
    )]
    OtherFormat {
        /// Which file.
        file: String,
        /// Its format.
        found: u16,
    },
    /// The log was made before, and is not there.
    #[error(
        "the log is missing: its folder has no segment (NUMBER.wal), but it was written before"
    )]
    Missing,
    /// A replica's name was used twice.
    #[error("replica {} of range {} exists or existed before", .0.replica, .0.range)]
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
