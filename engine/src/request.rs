//! What a caller may ask of a shard, and what it gets. No wire format: the server translates.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use crate::types::{Blob, ClientId, Epoch, RangeId, Timestamp};

/// The name of one write, the same for every try of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPair {
    /// Who writes.
    pub client: ClientId,
    /// Which of the client's writes; counts from 1.
    pub sequence: u64,
    /// Below this every write of the client has been answered, and no try of it is under way.
    pub lowest_unanswered: u64,
    /// The client's estimate of the cluster's time when it first tried this write.
    pub first_tried: Timestamp,
}

/// Which range the sender believes to own the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The range.
    pub range: RangeId,
    /// Its epoch as the sender knows it.
    pub epoch: Epoch,
}

/// When a compare-and-swap writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent,
    /// The key has exactly this value.
    Value(Blob),
    /// The key's newest version has this timestamp, and is a value.
    Version(Timestamp),
}

/// One change of a multi-write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// The key.
    pub key: Blob,
    /// The new value, or `None` to delete the key.
    pub value: Option<Blob>,
}

/// A write within one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key. Answered with [`Outcome::Done`].
    Put { key: Blob, value: Blob },
    /// Removes a key. Answered with [`Outcome::Done`]; `existed` tells whether there was a value.
    Delete { key: Blob },
    /// Sets or (with no `value`) removes a key if the condition holds.
    CompareAndSwap {
        key: Blob,
        condition: Condition,
        value: Option<Blob>,
    },
    /// Adds to a signed 64-bit number in decimal text; an absent key counts as 0.
    Increment { key: Blob, delta: i64 },
    /// Several changes, all or nothing; of the same key twice the last wins.
    Multi { mutations: Vec<Mutation> },
}

impl Write {
    /// The key that decides where the write goes and where its session pair lies.
    pub fn first_key(&self) -> Option<&Blob> {
        match self {
            Write::Put { key, .. }
            | Write::Delete { key }
            | Write::CompareAndSwap { key, .. }
            | Write::Increment { key, .. } => Some(key),
            Write::Multi { mutations } => mutations.first().map(|m| &m.key),
        }
    }
}

/// What a write that was decided did.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Outcome {
    /// Written at this version. `existed`: a delete found a value.
    Done { version: Timestamp, existed: bool },
    /// The number after an increment.
    Number { version: Timestamp, value: i64 },
    /// The condition did not hold; nothing was written. The version of the present value, if any.
    ConditionFailed { current: Option<Timestamp> },
    /// An increment met a value that is no number.
    NotANumber,
    /// An increment would have left the signed 64 bits.
    NumberOverflow,
    /// The epoch was stale at apply, or a key lay outside the range; nothing was written.
    Moved,
    /// The session pair can no longer be told apart; nothing was written now.
    SessionExpired,
}

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes; empty differs from absent.
    pub value: Blob,
    /// Its commit timestamp.
    pub version: Timestamp,
}

/// A forward scan within one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// First key, inclusive; absent: from the beginning.
    pub start: Option<Blob>,
    /// End, exclusive; absent: to the end.
    pub end: Option<Blob>,
    /// Most rows of the reply; 0 and more than the limit mean the limit.
    pub rows_max: usize,
    /// Most bytes of the reply; 0 and more than the limit mean the limit.
    pub bytes_max: usize,
    /// The snapshot to read, from a continuation; absent: the latest.
    pub at: Option<Timestamp>,
}

/// Rows of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanReply {
    /// In key order.
    pub rows: Vec<(Blob, Versioned)>,
    /// The snapshot read.
    pub at: Timestamp,
    /// Where to go on, within this range (same snapshot) or at the next range's start (`at` is
    /// then that of the next range's own); `None`: the interval is exhausted.
    pub next: Option<ScanNext>,
}

/// Where a scan goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanNext {
    /// First key not yet looked at.
    pub start: Blob,
    /// The snapshot, when `start` lies in the same range.
    pub at: Option<Timestamp>,
}
