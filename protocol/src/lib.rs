//! The wire protocol of RangeDB: bytes and tables, no sockets. This page is enough to write a
//! client in another language, together with `schema/client.fbs`.
//!
//! # A connection
//!
//! TCP; all numbers little endian. The client sends a preamble of 16 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `52 44 42 0a` (`RDB`, line feed) |
//! | 4 | 2 | oldest protocol version that the client speaks |
//! | 6 | 2 | newest |
//! | 8 | 1 | role: 0 client, 1 peer (another node; needs a credential) |
//! | 9 | 1 | flags: 1 smart (wants routes, not forwarding), 2 wants TLS |
//! | 10 | 2 | the shard wanted, `ff ff` for any |
//! | 12 | 4 | zero |
//!
//! The server answers with 40 bytes, and closes the connection unless the verdict is 0:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `52 44 42 0d` |
//! | 4 | 2 | verdict: 0 accepted, 1 no common version, 2 unknown shard, 3 no TLS, 4 role refused, 5 too many connections, 6 shutting down |
//! | 6 | 2 | the version spoken from here on: the newest that both know |
//! | 8 | 2 | the shard that serves the connection |
//! | 10 | 2 | shards of the node |
//! | 12 | 4 | zero |
//! | 16 | 8 | node id |
//! | 24 | 16 | cluster id |
//!
//! # Frames
//!
//! From then on both sides send frames:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length of all that follows, at most 8 MiB |
//! | 4 | 8 | request id, chosen by the client; the reply carries it |
//! | 12 | 2 | kind |
//! | 14 | 2 | zero |
//! | 16 | n | a FlatBuffers table without file identifier |
//!
//! Requests may be sent without waiting, up to 1,024 without a reply; replies come in any order.
//! A frame that cannot be read is answered with an error, if its id can be, and the connection is
//! closed; a kind that the server does not know is answered with an error, and the connection
//! lives on.
//!
//! | kind | table | | kind | table |
//! |---|---|---|---|---|
//! | 1 | `Get` | answered by | 0x8001 | `Value` |
//! | 2 | `Put` | | 0x8002 | `Written` |
//! | 3 | `Delete` | | 0x8002 | `Written` |
//! | 4 | `CompareAndSwap` | | 0x8002, 0x8003 | `Written` or `ConditionFailed` |
//! | 5 | `Increment` | | 0x8004 | `Number` |
//! | 6 | `Write` | | 0x8002 | `Written` |
//! | 7 | `Scan` | | 0x8005 | `Rows` |
//! | 8 | `Directory` | | 0x8006 | `Routes` |
//! | 9 | `Status` | | 0x8007 | `NodeState` |
//! | 10 | `Admin` | | 0x8008 | `AdminDone` |
//! | | any | | 0x80ff | `Error` |
//!
//! # Meaning
//!
//! A key is 1 to 4,096 arbitrary bytes, ordered byte by byte, unsigned. A value is 0 to 1 MiB; an
//! empty value differs from none. A version is the commit timestamp of a write: bits 16 to 62 are
//! milliseconds since 1970, bits 0 to 15 a counter.
//!
//! `deadline_ms` counts from the arrival of the request; 0 means none. `target` names the range and
//! epoch in which the client believes; leave it out if you do not know. `token` is the largest
//! `now` that the client has seen in replies, 0 at first.
//!
//! **Writes carry a session** so that a retry is applied at most once. `client` is 128 random
//! bits, kept for the life of the client; `sequence` counts the client's writes from 1 and is the
//! same for every try of one write; `lowest_unanswered` is the lowest sequence that has had no
//! reply yet and may still be tried; `first_tried` is the `now` of the last reply plus the time
//! since by a monotonic clock, taken at the first try (ask for the directory first to have one).
//! A write whose pair is known is answered with its first outcome. One whose sequence lies below
//! a `lowest_unanswered` seen before, or that was first tried more than ten minutes ago, is refused
//! as `session_expired`.
//!
//! **Errors** carry a code (see [`ErrorCode`]), what became of a write ([`Fate`]), when to try
//! again, a message for people, and for `moved` and `not_leader` the route to take instead.
//!
//! **Scans** cover `[start, end)`, are a snapshot within one range, and go on with the continuation
//! of the reply before. At a range's border a new snapshot begins.
//!
//! **Admin** requests show the cluster and steer it, at any node. A command is a JSON object of at
//! most 16 KiB, `{"command":"nodes"}`; there are `nodes`, `ranges`, `status`, `config_get` (`name`,
//! or all), `config_set` (`name`, `value`), `config_history`, `transfer_leader` (`range`, `to` a
//! node, or to any) and `move_replica` (`range`, `from` and `to_node` nodes, `to_shard`). An order
//! that may have been taken when the leader of the system range was lost has an unknown fate; each
//! may be given again.
//!
//! # Example
//!
//! A get of the key `k` under request id 1:
//!
//! ```
//! use rangedb_protocol::{FlatBufferBuilder, Request, RequestBody, frame};
//!
//! let request = Request {
//!     body: RequestBody::Get { key: b"k" },
//!     target: None,
//!     deadline_ms: 0,
//!     token: 0,
//! };
//! let mut bytes = Vec::new();
//! request.encode(1, &mut FlatBufferBuilder::new(), &mut bytes);
//! let frame = frame::decode(&bytes)?.expect("a whole frame");
//! assert_eq!((frame.id, frame.kind), (1, 1));
//! assert_eq!(Request::decode(frame.kind, frame.body)?, request);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod continuation;
mod error_code;
pub mod frame;
#[allow(missing_docs, unsafe_code)]
mod generated;
pub mod limits;
pub mod preamble;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use error_code::{ErrorCode, Fate};
pub use flatbuffers::FlatBufferBuilder;
pub use reply::{
    BadReply, ErrorReply, NodeState, RangeState, Reply, Route, Row, ShardState, kind as reply_kind,
};
pub use request::{
    BadRequest, Condition, Mutation, Request, RequestBody, Session, Target, kind as request_kind,
};
