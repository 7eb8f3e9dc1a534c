//! The wire protocol of RangeDB: how its messages are encoded, without sockets. The text below is
//! `PROTOCOL.md`, which lies beside `schema/client.fbs`.
#![doc = include_str!("../PROTOCOL.md")]

pub mod admin;
pub mod continuation;
mod error_code;
pub mod frame;
#[allow(missing_docs, unsafe_code)]
mod generated;
pub mod handshake;
pub mod json;
pub mod limits;
mod multi_get;
mod node_state;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use error_code::{ErrorCode, Fate};
pub use flatbuffers::FlatBufferBuilder;
pub use multi_get::{KeyRead, KeyResult, Values};
pub use node_state::{MemoryUse, NodeState, RangeState, ShardState};
pub use reply::{BadReply, ErrorReply, Reply, Route, Row, kind as reply_kind};
pub use request::{
    BadRequest, Batch, Change, Condition, Expected, Mutation, Request, RequestBody, Session,
    Target, kind as request_kind,
};
