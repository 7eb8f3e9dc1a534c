//! The format of commands in the log: many in one entry, read in place.
//!
//! An entry's payload is one rkyv archive of [`Entry`], then one byte with the number of its
//! [format](FORMAT). The archive borrows keys and values from the requests when it is written, and
//! is never deserialised: apply walks [`ArchivedEntry`]. What it holds is checked each time it is
//! read (rkyv's `bytecheck`), so a damaged entry is an error. Entries of the first format, which
//! older logs hold, are written anew when they are read ([`mod@format`]).

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

pub mod format;
pub(in crate::range) mod v1;

use bytes::Bytes;
use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::with::Inline;

use crate::error::Fatal;
use crate::request::{ArchivedChange, ArchivedRequestId, Batch, RequestId};
use crate::types::{Epoch, MergeId, RangeId, ReplicaId, Timestamp};
use crate::wal::Body;

/// The last byte of an entry's payload: the format of what is before it. An entry of the first
/// format ends with a zero.
pub const FORMAT: u8 = 2;
/// The last byte of an entry that holds one split and nothing else. Its archive has today's format. By
/// the byte a replica knows before it applies the entry that it may give birth to a range, without
/// reading each entry twice; and a release that cannot split refuses the entry.
pub const FORMAT_SPLIT: u8 = 3;
/// The same for one order of a merge: to freeze, to thaw, to merge or to cancel.
pub const FORMAT_MERGE: u8 = 4;

/// The payload of one log entry.
#[derive(Default, rkyv::Archive, rkyv::Serialize)]
pub struct Entry<'a> {
    /// The leader serves no read at a timestamp above this before a later entry raises it.
    pub ceiling: u64,
    /// In the order of their timestamps.
    pub commands: Vec<Command<'a>>,
}

/// One command.
#[derive(rkyv::Archive, rkyv::Serialize)]
pub struct Command<'a> {
    /// Its commit timestamp, above all before it in the log.
    pub timestamp: u64,
    /// The epoch it was proposed under, checked again at apply. The members of a range do not matter to
    /// its keys, so `conf` is 0; a command of an older release names it, and apply checks it too.
    pub epoch: Epoch,
    /// What to do.
    pub action: Action<'a>,
}

/// What a command does.
#[derive(rkyv::Archive, rkyv::Serialize)]
pub enum Action<'a> {
    /// A client's write.
    Write {
        /// Its name.
        request_id: RequestId,
        /// What it writes, and when.
        #[rkyv(with = Inline)]
        batch: &'a Batch,
    },
    /// An order of the range itself, which no client gives.
    Order(#[rkyv(with = Inline)] &'a RangeOrder),
}

/// What a range does to itself through its log.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize)]
pub enum RangeOrder {
    /// Old versions up to this timestamp may go; reads at or below it are refused from now on.
    SetGcThreshold {
        /// The new threshold.
        threshold: u64,
    },
    /// Nothing. An entry with it alone is a barrier: when it is applied all earlier proposals have
    /// been decided, and the ceiling is raised.
    NoOp,
    /// Every replica makes a digest of what it holds when this is applied; see
    /// [`crate::range::digest`].
    Digest {
        /// The leader's number of it.
        number: u64,
    },
    /// The range is split: see [`crate::range::split_merge::split`]. Such a command is alone in its entry.
    Split(SplitOrder),
    /// The range is frozen, to become a part of its left neighbour: see [`crate::range::split_merge::merge`].
    /// This and the orders after it are alone in their entries, too.
    Freeze(FreezeOrder),
    /// The range is no longer frozen for this merge.
    Unfreeze {
        /// The attempt for which it was frozen.
        merge: MergeId,
    },
    /// The range takes over its right neighbour.
    Merge(MergeOrder),
    /// The range does not take over its right neighbour, whatever comes later in its log.
    CancelMerge {
        /// The attempt that is cancelled.
        merge: MergeId,
    },
}

impl RangeOrder {
    /// Whether the order changes the bounds of a range, or prepares that. Then it is alone in its entry,
    /// and nothing is proposed after it until it is applied.
    pub fn is_alone(&self) -> bool {
        self.format() != FORMAT
    }

    /// The format of an entry with this order alone.
    fn format(&self) -> u8 {
        match self {
            RangeOrder::Split(_) => FORMAT_SPLIT,
            RangeOrder::Freeze(_)
            | RangeOrder::Unfreeze { .. }
            | RangeOrder::Merge(_)
            | RangeOrder::CancelMerge { .. } => FORMAT_MERGE,
            RangeOrder::SetGcThreshold { .. } | RangeOrder::NoOp | RangeOrder::Digest { .. } => {
                FORMAT
            }
        }
    }
}

/// How a range is frozen.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize)]
pub struct FreezeOrder {
    /// The merge for which it is frozen.
    pub merge: MergeId,
    /// Which members it has: the descriptor's `conf`.
    pub conf: u32,
    /// The highest timestamp at which the leader has served a read; it serves no more of them once the
    /// order is queued.
    pub served: u64,
}

/// How a range takes over its right neighbour, as that was frozen.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize)]
pub struct MergeOrder {
    /// The attempt, whose freeze the right range has in its log.
    pub merge: MergeId,
    /// Which members the range has: the descriptor's `conf`.
    pub conf: u32,
    /// The right neighbour.
    pub right: RangeId,
    /// The version of its bounds.
    pub right_version: u32,
    /// Its first key.
    pub border: Vec<u8>,
    /// The end of its keys.
    pub end: Option<Vec<u8>>,
    /// The timestamp of its last command.
    pub last_ts: Timestamp,
    /// The highest timestamp at which one of its leaders has served a read.
    pub ceiling: Timestamp,
    /// Its threshold of collection.
    pub gc_threshold: Timestamp,
}

/// How a range is split: it keeps the keys before `key`, and a new range, its child, gets the others.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize)]
pub struct SplitOrder {
    /// The first key of the child.
    pub key: Vec<u8>,
    /// The id of the child.
    pub child: RangeId,
    /// For each replica of the range the id of the child's replica beside it.
    pub replicas: Vec<(ReplicaId, ReplicaId)>,
    /// The highest timestamp at which the leader has served a read of the child's keys; it serves no
    /// more of them once the split is queued.
    pub served: u64,
}

/// What one command adds to an entry besides its batch, generously rounded up.
pub const COMMAND_OVERHEAD: usize = 128;
/// What one condition or mutation adds besides its key and value.
pub const OPERATION_OVERHEAD: usize = 32;

/// Bytes that a write takes in an entry, at most.
pub fn encoded_len_max(batch: &Batch) -> usize {
    COMMAND_OVERHEAD + batch.operations() * OPERATION_OVERHEAD + batch.len_in_bytes()
}

/// The bytes of an entry, with their checksum. Room for `len` bytes is made at once.
///
/// # Errors
/// The encoder failed, which no entry in memory can cause.
pub fn encode(entry: &Entry<'_>, len: usize) -> Result<Body, Fatal> {
    let format = match entry.commands.as_slice() {
        [
            Command {
                action: Action::Order(order),
                ..
            },
        ] => order.format(),
        _ => FORMAT,
    };
    archive(entry, len, format).map(|bytes| Body::seal(Bytes::from_owner(bytes)))
}

/// The split in the payload of an entry, if it is one.
///
/// # Errors
/// The bytes are no entry.
pub fn split_of(
    payload: &[u8],
) -> Result<Option<(&ArchivedCommand<'_>, &ArchivedSplitOrder)>, Fatal> {
    if !is_split(payload) {
        return Ok(None);
    }
    let entry = access(payload)?;
    Ok(match entry.commands.as_slice() {
        [command] => match &command.action {
            ArchivedAction::Order(ArchivedRangeOrder::Split(order)) => Some((command, order)),
            _ => None,
        },
        _ => None,
    })
}

/// The range that is taken over, and the merge, if the payload of an entry is one merge.
///
/// # Errors
/// The bytes are no entry.
pub fn merge_of(payload: &[u8]) -> Result<Option<(RangeId, MergeId)>, Fatal> {
    if payload.last() != Some(&FORMAT_MERGE) {
        return Ok(None);
    }
    let entry = access(payload)?;
    Ok(match entry.commands.as_slice() {
        [command] => match &command.action {
            ArchivedAction::Order(ArchivedRangeOrder::Merge(order)) => {
                Some((RangeId(order.right.0.to_native()), order.merge.to_native()))
            }
            _ => None,
        },
        _ => None,
    })
}

/// Whether the payload of an entry is one split.
pub fn is_split(payload: &[u8]) -> bool {
    payload.last() == Some(&FORMAT_SPLIT)
}

/// The bytes of an entry.
///
/// # Errors
/// As [`encode`].
pub(super) fn encode_bytes(entry: &Entry<'_>) -> Result<Vec<u8>, Fatal> {
    archive(entry, 0, FORMAT).map(AlignedVec::into_vec)
}

fn archive(entry: &Entry<'_>, len: usize, format: u8) -> Result<AlignedVec, Fatal> {
    let room = AlignedVec::with_capacity(len);
    let mut bytes = rkyv::api::high::to_bytes_in::<_, rancor::Error>(entry, room)
        .map_err(|e| Fatal::Inconsistent(format!("an entry cannot be encoded: {e}")))?;
    bytes.push(format);
    Ok(bytes)
}

/// Reads an entry of today's format in place; [`format::current`] gives its bytes.
///
/// # Errors
/// The bytes are no entry.
pub fn access(current: &[u8]) -> Result<&ArchivedEntry<'_>, Fatal> {
    let archive = match current.split_last() {
        Some((&(FORMAT | FORMAT_SPLIT | FORMAT_MERGE), archive)) => archive,
        _ => &[],
    };
    rkyv::access::<ArchivedEntry<'_>, rancor::Error>(archive)
        .map_err(|e| Fatal::Inconsistent(format!("a log entry cannot be read: {e}")))
}

impl ArchivedRequestId {
    /// The pair as a value.
    pub fn to_native(&self) -> RequestId {
        RequestId {
            client: crate::types::ClientId(self.client.0.to_native()),
            sequence: self.sequence.to_native(),
            lowest_unanswered: self.lowest_unanswered.to_native(),
            first_tried: Timestamp(self.first_tried.0.to_native()),
        }
    }
}

impl ArchivedChange {
    /// The value that it sets.
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            ArchivedChange::Put { value, .. } => Some(value),
            ArchivedChange::Delete | ArchivedChange::Add { .. } => None,
        }
    }
}

impl crate::types::ArchivedEpoch {
    /// The epoch as a value.
    pub fn epoch(&self) -> Epoch {
        Epoch {
            version: self.version.to_native(),
            conf: self.conf.to_native(),
        }
    }
}
