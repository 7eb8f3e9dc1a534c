//! One Raft group for each range, by openraft.
//!
//! This folder is all that knows openraft; the rest of the engine sees [`RaftGroup`]: propose a
//! batch, lead, build a snapshot so that the log may be purged, stop. openraft is an alpha,
//! pinned to one exact version; its engine decides, and what it decides meets our world in
//! [`log_store`] (the shard's WAL), [`state_machine`] (apply) and [`network`] (links).
//!
//! Settings that matter: `enable_leader_restore` is off, so that after a restart a replica leads
//! only in a new term (floors and leases were in memory). Ticks are off in a group of one voter:
//! it needs no heartbeat and no election timer, so an idle range costs nothing. Snapshots are
//! never built by openraft's own policy: one is "built" (an O(1) handle) when the tree has
//! made entries durable, and only then may openraft purge them.

mod convert;
mod group;
mod log_store;
mod message;
mod network;
mod state_machine;
mod type_config;

pub use convert::{encode_membership, is_sole_voter, members, replicas};
pub use group::{ProposalResult, RaftGroup, Start};
pub use log_store::LogStore;
pub use message::{Answer, Envelope, Question, SnapshotPart, decode, encode_answer};
pub use state_machine::{SnapshotHandle, StateMachine};
pub use type_config::{CallbackResponder, Commands, EntryResults, TypeConfig};
