//! One Raft group for each range, by openraft.
//!
//! This folder is the adapter to openraft. The rest of the engine sees [`RaftGroup`]: propose a
//! batch, campaign, transfer leadership, change members, purge, stop. (Outside this folder only
//! openraft's runtime traits, its one-shot channel and one error type are named.) openraft is an
//! alpha, pinned to one exact version. Its engine decides; what it decides is carried out in
//! [`log_store`] (the shard's WAL), [`state_machine`] (apply) and [`network`] (messages to other
//! shards). What is replicated is a [`Machine`], of which nothing else is known here.
//!
//! Settings that matter:
//!
//! - `enable_leader_restore` is off: after a restart a replica leads only in a new term, because
//!   timestamp floors and leases were in memory.
//! - openraft's ticks are off: [`timers`] decides when heartbeats go out and when a replica
//!   campaigns. A group of one replica needs neither.
//! - openraft never builds a snapshot by its own policy. We "build" one (an O(1) handle) when the
//!   tree has made entries durable, and only then may openraft purge them.

mod acknowledged;
mod append_stream;
mod convert;
mod counters;
mod ending;
mod followers;
#[cfg(test)]
mod fuzz;
mod group;
mod install;
mod lease;
mod log_store;
mod machine;
mod membership;
mod message;
mod network;
mod pins;
mod progress;
mod purge;
mod role;
mod snapshot_pace;
mod state_machine;
mod tick;
mod timers;
mod transfer;
mod type_config;

pub use convert::{encode_membership, members, renamed, replicas, voters};
pub use counters::{RaftCounters, RaftStats};
pub use group::{GroupDeps, ProposalResult, RaftGroup, StartMode};
pub use log_store::LogStore;
pub use machine::{AppliedMembership, AppliedState, Machine, SnapshotReader};
pub use membership::Membership;
pub use message::{
    Envelope, Led, Message, RaftRequest, RaftResponse, SnapshotPart, SnapshotRow, decode,
    decode_response, decode_to_wake, encode, encode_response, encode_to_wake,
};
pub use network::PART_TIMEOUT;
pub use purge::{Pinned, placed};
pub use role::Role;
pub use state_machine::{SnapshotHandle, StateMachine};
pub use tick::Tick;
pub use timers::{DriverTimes, TICK};
pub use type_config::{CallbackResponder, Commands, TypeConfig};
