//! One Raft group for each range, by openraft.
//!
//! This folder is all that knows openraft; the rest of the engine sees [`RaftGroup`]: propose a
//! batch, lead, build a snapshot so that the log may be purged, stop. openraft is an alpha,
//! pinned to one exact version; its engine decides, and what it decides meets our world in
//! [`log_store`] (the shard's WAL), [`state_machine`] (apply) and [`network`] (links).
//!
//! Settings that matter: `enable_leader_restore` is off, so that after a restart a replica leads
//! only in a new term (floors and leases were in memory). Ticks are off: [`pulse`] says when
//! heartbeats go out and when a replica campaigns; a group of one needs neither. Snapshots are
//! never built by openraft's own policy: one is "built" (an O(1) handle) when the tree has
//! made entries durable, and only then may openraft purge them.

mod append_lane;
mod convert;
mod followers;
mod group;
mod install;
mod lease;
mod log_store;
mod membership;
mod message;
mod network;
mod pins;
mod pulse;
mod purge;
mod state_machine;
mod transfer;
mod type_config;

pub use convert::{encode_membership, members, replicas, voters};
pub use group::{Around, Made, ProposalResult, RaftGroup, Role, Tick};
pub use log_store::LogStore;
pub use membership::Membership;
pub use message::{
    Answer, Envelope, Led, Message, Question, SnapshotPart, decode, decode_answer, decode_behind,
    encode_answer, encode_beat, encode_behind, encode_cluster,
};
pub use network::PART_PATIENCE;
pub use pulse::TICK;
pub use purge::Pinned;
pub use state_machine::{SnapshotHandle, StateMachine};
pub use type_config::{CallbackResponder, Commands, EntryResults, TypeConfig};
