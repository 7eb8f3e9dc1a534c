//! Commands as they lie in the log: many in one entry, read in place.
//!
//! An entry's payload is one rkyv archive of [`Entry`]. It borrows keys and values from the
//! requests when it is written, and is never deserialised: apply walks [`ArchivedEntry`]. What it
//! holds is checked each time it is read (rkyv's `bytecheck`), so a damaged entry is an error.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use bytes::Bytes;
use rkyv::rancor;
use rkyv::with::InlineAsBox;

use crate::error::Fatal;
use crate::request::{Condition, Mutation, SessionPair, Write};
use crate::types::{Epoch, Timestamp};
use crate::wal::Body;

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
    /// The epoch it was proposed under, checked again at apply.
    pub epoch: Epoch,
    /// What to do.
    pub action: Action<'a>,
}

/// The name of a write.
#[derive(Clone, Copy, rkyv::Archive, rkyv::Serialize)]
pub struct Pair {
    /// Client id.
    pub client: u128,
    /// The client's number of this write.
    pub sequence: u64,
    /// See [`SessionPair::lowest_unanswered`].
    pub lowest_unanswered: u64,
    /// See [`SessionPair::first_tried`].
    pub first_tried: u64,
}

/// What a command does.
#[derive(rkyv::Archive, rkyv::Serialize)]
pub enum Action<'a> {
    /// See [`Write::Put`].
    Put {
        /// Session pair.
        pair: Pair,
        /// Key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
        /// Value.
        #[rkyv(with = InlineAsBox)]
        value: &'a [u8],
    },
    /// See [`Write::Delete`].
    Delete {
        /// Session pair.
        pair: Pair,
        /// Key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
    },
    /// See [`Write::CompareAndSwap`].
    CompareAndSwap {
        /// Session pair.
        pair: Pair,
        /// Key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
        /// When it writes.
        expected: Expected<'a>,
        /// What it writes.
        change: Change<'a>,
    },
    /// See [`Write::Increment`].
    Increment {
        /// Session pair.
        pair: Pair,
        /// Key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
        /// What is added.
        delta: i64,
    },
    /// See [`Write::Multi`].
    Multi {
        /// Session pair.
        pair: Pair,
        /// Changes in request order.
        changes: Vec<KeyChange<'a>>,
    },
    /// Old versions up to this timestamp may go; reads at or below it are refused from now on.
    CollectBelow {
        /// The new threshold.
        threshold: u64,
    },
    /// Nothing: the entry is there for its ceiling.
    Nothing,
    /// Every replica makes a digest of what it holds when this is applied; see
    /// [`crate::range::digest`].
    Digest {
        /// The leader's number of it.
        number: u64,
    },
}

/// The archived form of [`Condition`].
#[derive(rkyv::Archive, rkyv::Serialize)]
pub enum Expected<'a> {
    /// No value.
    Absent,
    /// This value.
    Value(#[rkyv(with = InlineAsBox)] &'a [u8]),
    /// The version with this timestamp.
    Version(u64),
}

/// A new value or none.
#[derive(rkyv::Archive, rkyv::Serialize)]
pub enum Change<'a> {
    /// Write this.
    Set(#[rkyv(with = InlineAsBox)] &'a [u8]),
    /// Delete.
    Remove,
}

/// One change of a multi-write.
#[derive(rkyv::Archive, rkyv::Serialize)]
pub struct KeyChange<'a> {
    /// Key.
    #[rkyv(with = InlineAsBox)]
    pub key: &'a [u8],
    /// Its new value or none.
    pub change: Change<'a>,
}

/// What one command adds to an entry besides keys and values, generously rounded up.
pub const COMMAND_OVERHEAD: usize = 128;
/// What one change of a multi-write adds besides its key and value.
pub const CHANGE_OVERHEAD: usize = 32;

impl<'a> Change<'a> {
    fn of(value: Option<&'a [u8]>) -> Change<'a> {
        value.map_or(Change::Remove, Change::Set)
    }
}

impl Pair {
    fn of(pair: &SessionPair) -> Pair {
        Pair {
            client: pair.client.0,
            sequence: pair.sequence,
            lowest_unanswered: pair.lowest_unanswered,
            first_tried: pair.first_tried.0,
        }
    }
}

impl<'a> Action<'a> {
    /// The command of a client's write.
    pub fn of(write: &'a Write, pair: &SessionPair) -> Action<'a> {
        let pair = Pair::of(pair);
        match write {
            Write::Put { key, value } => Action::Put { pair, key, value },
            Write::Delete { key } => Action::Delete { pair, key },
            Write::CompareAndSwap {
                key,
                condition,
                value,
            } => Action::CompareAndSwap {
                pair,
                key,
                expected: match condition {
                    Condition::Absent => Expected::Absent,
                    Condition::Value(value) => Expected::Value(value),
                    Condition::Version(version) => Expected::Version(version.0),
                },
                change: Change::of(value.as_deref()),
            },
            Write::Increment { key, delta } => Action::Increment {
                pair,
                key,
                delta: *delta,
            },
            Write::Multi { mutations } => Action::Multi {
                pair,
                changes: mutations
                    .iter()
                    .map(|Mutation { key, value }| KeyChange {
                        key,
                        change: Change::of(value.as_deref()),
                    })
                    .collect(),
            },
        }
    }
}

/// Bytes that a write takes in an entry, at most.
pub fn encoded_len_max(write: &Write) -> usize {
    let body = match write {
        Write::Put { key, value } => key.len() + value.len(),
        Write::Delete { key } | Write::Increment { key, .. } => key.len(),
        Write::CompareAndSwap {
            key,
            condition,
            value,
        } => {
            let expected = match condition {
                Condition::Value(value) => value.len(),
                Condition::Absent | Condition::Version(_) => 0,
            };
            key.len() + expected + value.as_ref().map_or(0, Bytes::len)
        }
        Write::Multi { mutations } => mutations
            .iter()
            .map(|m| m.key.len() + m.value.as_ref().map_or(0, Bytes::len) + CHANGE_OVERHEAD)
            .sum(),
    };
    body + COMMAND_OVERHEAD
}

/// The bytes of an entry, with their checksum.
///
/// # Errors
/// The encoder failed, which no entry in memory can cause.
pub fn encode(entry: &Entry<'_>) -> Result<Body, Fatal> {
    rkyv::to_bytes::<rancor::Error>(entry)
        .map(|bytes| Body::seal(Bytes::from_owner(bytes)))
        .map_err(|e| Fatal::Inconsistent(format!("an entry cannot be encoded: {e}")))
}

/// Reads an entry in place.
///
/// # Errors
/// The bytes are no entry.
pub fn access(bytes: &[u8]) -> Result<&ArchivedEntry<'_>, Fatal> {
    rkyv::access::<ArchivedEntry<'_>, rancor::Error>(bytes)
        .map_err(|e| Fatal::Inconsistent(format!("a log entry cannot be read: {e}")))
}

impl ArchivedPair {
    /// The pair as the session table speaks of it.
    pub fn pair(&self) -> SessionPair {
        SessionPair {
            client: crate::types::ClientId(self.client.to_native()),
            sequence: self.sequence.to_native(),
            lowest_unanswered: self.lowest_unanswered.to_native(),
            first_tried: Timestamp(self.first_tried.to_native()),
        }
    }
}

impl ArchivedChange<'_> {
    /// The new value, if there is one.
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            ArchivedChange::Set(value) => Some(value),
            ArchivedChange::Remove => None,
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
