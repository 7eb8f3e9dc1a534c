//! The rows of the session table in the tree and in snapshots.

use rkyv::rancor;

use crate::request::Outcome;
use crate::types::{Blob, ClientId, Timestamp};

/// What the table remembers of a client besides its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ClientMarks {
    /// The highest `lowest_unanswered` that the client has sent.
    pub lowest_unanswered: u64,
    /// The latest of the commit timestamps of the client's writes in this range and of the times at
    /// which it says that it first tried them. The client may have that time from a node whose
    /// clock is ahead.
    pub last_seen: Timestamp,
}

/// What the table remembers of a request.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SavedRequest {
    /// The commit timestamp of its command.
    pub decided: Timestamp,
    /// The outcome of its command.
    pub outcome: Outcome,
}

/// A row of the table, to be written or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum SessionRow {
    /// A client's marks; `None` after it was forgotten.
    Client(ClientId, Option<ClientMarks>),
    /// A request, at its first key; `None` after it was forgotten.
    Request {
        first_key: Blob,
        client: ClientId,
        sequence: u64,
        saved: Option<SavedRequest>,
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

impl SavedRequest {
    /// The bytes of the row.
    ///
    /// # Errors
    /// The encoder failed, which no request in memory can cause.
    pub fn encode(&self) -> Result<Vec<u8>, rancor::Error> {
        rkyv::to_bytes::<rancor::Error>(self).map(|bytes| bytes.to_vec())
    }

    /// Reads what [`SavedRequest::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are not a request.
    pub fn decode(bytes: &[u8]) -> Result<SavedRequest, rancor::Error> {
        rkyv::from_bytes::<SavedRequest, rancor::Error>(bytes)
    }
}
