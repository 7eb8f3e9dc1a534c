//! A client's request on its way from the shard that got it to the shard that leads its range, and
//! the answer.
//!
//! A shard cannot read messages of another version ([`crate::codec`]). Operations and results are only
//! added, at the end of their enums: a shard that does not know one cannot read its message either.
//! Pure.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use std::time::Duration;

use bytes::Bytes;

use super::responder::Response;
use super::values::Values;
use crate::codec;
use crate::error::Error;
use crate::range::command;
use crate::request::{Batch, Outcome, RequestId, ScanReply, ScanRequest, Target, Versioned};
use crate::types::{Blob, Timestamp};

/// The version of all messages. In version 1 each row of a scan had buffers of its own, up to
/// version 2 the refusal of a key that is elsewhere had one route, and up to version 3 a scan did not say where
/// the keys of its snapshot end.
const VERSION: u8 = 4;

/// What a request takes besides a batch, about.
const HEAD_LEN: usize = 256;

/// A request that is forwarded.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Request {
    /// How long the caller still waits, in microseconds; `None` if it sets no limit.
    pub left_us: Option<u64>,
    /// The largest timestamp that the caller has seen.
    pub token: Timestamp,
    /// The range that the caller believes to hold the key.
    pub target: Option<Target>,
    /// The operation.
    pub body: Body,
}

impl Request {
    /// How long the caller still waits, if it sets a limit.
    pub fn left(&self) -> Option<Duration> {
        self.left_us.map(Duration::from_micros)
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Body {
    Get { key: Blob },
    Write { batch: Batch, session: RequestId },
    Scan(ScanRequest),
    MultiGet { keys: Vec<Blob> },
}

/// The answer to a forwarded request.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Reply {
    /// The time of the cluster when it was given. Every version in it is at or below this.
    pub now: Timestamp,
    /// The answer, or why there is none.
    pub result: Result<Found, Error>,
}

impl Reply {
    /// Whether all bytes are there that its rows name.
    fn is_whole(&self) -> bool {
        match &self.result {
            Ok(Found::Rows(scanned)) => scanned.rows.is_whole(),
            _ => true,
        }
    }
}

/// The result of a request that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Found {
    Value(Option<Versioned>),
    Written(Outcome),
    Rows(ScanReply),
    Values(Values),
}

impl From<Response<'_>> for Found {
    fn from(response: Response<'_>) -> Found {
        match response {
            Response::Value(found) => Found::Value(found.map(|(value, version)| Versioned {
                value: Blob::copy_from_slice(value),
                version,
            })),
            Response::Written(outcome) => Found::Written(outcome),
            Response::Rows(rows) => Found::Rows(rows.clone()),
            Response::Values(values) => Found::Values(values.clone()),
        }
    }
}

/// The bytes of a request.
pub fn encode_request(request: &Request) -> Vec<u8> {
    let len = match &request.body {
        Body::Write { batch, .. } => command::encoded_len_max(batch),
        _ => 0,
    };
    codec::encode(VERSION, request, HEAD_LEN + len)
}

/// Reads what [`encode_request`] wrote; `None` if the bytes are not a request of this version.
pub fn decode_request(bytes: &[u8]) -> Option<Request> {
    codec::decode(VERSION, bytes)
}

/// The bytes of a reply.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    let len = match &reply.result {
        Ok(Found::Rows(scanned)) => HEAD_LEN + scanned.rows.len_in_bytes(),
        _ => 0,
    };
    codec::encode(VERSION, reply, len)
}

/// Reads what [`encode_reply`] wrote; `None` if the bytes are not a reply of this version. The rows of a
/// scan share the memory of the bytes.
pub fn decode_reply(bytes: &Bytes) -> Option<Reply> {
    codec::decode_shared(VERSION, bytes).filter(Reply::is_whole)
}
