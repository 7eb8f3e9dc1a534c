//! The rows of the session table, as they lie in the tree and in snapshots.

use rkyv::rancor;

use crate::request::Outcome;
use crate::types::{Blob, ClientId, Timestamp};

/// A client's marks, as they lie in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ClientMarks {
    /// The highest `lowest_unanswered` seen.
    pub lowest_unanswered: u64,
    /// The latest of the commit timestamps of the client's writes here, and of the times at which it
    /// says that it first tried them: it may have that time from a node that is ahead.
    pub last_seen: Timestamp,
}

/// A remembered pair, as it lies in the tree.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SavedPair {
    /// The commit timestamp it was decided at.
    pub decided: Timestamp,
    /// What it did.
    pub outcome: Outcome,
}

/// A row to be written or deleted when a memtable freezes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum SessionRow {
    /// A client's marks; `None` when it was forgotten.
    Client(ClientId, Option<ClientMarks>),
    /// A pair at its first key; `None` when it was forgotten.
    Pair {
        first_key: Blob,
        client: ClientId,
        sequence: u64,
        saved: Option<SavedPair>,
    },
}

impl ClientMarks {
    /// The bytes of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend_from_slice(&self.lowest_unanswered.to_le_bytes());
        bytes.extend_from_slice(&self.last_seen.0.to_le_bytes());
        bytes
    }

    /// Reads what [`ClientMarks::encode`] wrote; `None` if the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Option<ClientMarks> {
        let (lowest, last_seen) = bytes.split_first_chunk::<8>()?;
        Some(ClientMarks {
            lowest_unanswered: u64::from_le_bytes(*lowest),
            last_seen: Timestamp(u64::from_le_bytes(last_seen.try_into().ok()?)),
        })
    }
}

impl SavedPair {
    /// The bytes of the row.
    ///
    /// # Errors
    /// The encoder failed, which no pair in memory can cause.
    pub fn encode(&self) -> Result<Vec<u8>, rancor::Error> {
        rkyv::to_bytes::<rancor::Error>(self).map(|bytes| bytes.to_vec())
    }

    /// Reads what [`SavedPair::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are no pair.
    pub fn decode(bytes: &[u8]) -> Result<SavedPair, rancor::Error> {
        rkyv::from_bytes::<SavedPair, rancor::Error>(bytes)
    }
}
