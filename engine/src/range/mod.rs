//! A range: an interval of keys that one Raft group replicates. Its state, the commands that change
//! it, and what a leader does with writes before Raft.
//!
//! A range has one replica on each of several shards. All that is here lives on the thread of the replica's shard.
//! The folder knows no message and no other shard: those are in [`crate::raft`] and [`crate::shard`].
//!
//! The way of a write through it: the leader's [`proposer`] queues the write, [`raft_adapter`] proposes it in an
//! entry of [commands](command), and when the entry is committed, every [`replica`] has it [applied](apply) to
//! its [`state`] and its [`rows`].
//!
//! | module | what it holds |
//! |---|---|
//! | `descriptor` | a range's interval of keys, its epoch, its replicas |
//! | [`command`] | commands in the log, and the formats of entries |
//! | [`sessions`] | the session table, by which a write is applied at most once |
//! | [`rows`] | rows as apply sees them, and the data ids under which they lie |
//! | [`state`] | the replicated state besides rows, and the row in which the tree keeps it |
//! | [`split_merge`] | how a split and a merge change states; replicas that are born and taken over |
//! | [`mod@apply`] | applies an entry of the log: the only place where rows change; who watches it |
//! | [`digest`] | what replicas compare |
//! | [`usage`] | how busy a range is, and its hottest keys |
//! | [`proposer`] | the leader's queue of writes, and their admission |
//! | [`replica`] | a replica: leadership, timestamps, faults, its part in splits and merges |
//! | [`storage`] | a replica in the tree: state rows, recovery, snapshots, rewrites |
//! | [`raft_adapter`] | the task that proposes, and the replica as the state machine of its group |
//!
//! A module imports only from the rows above its own; `xtask layers` checks that.

pub mod apply;
pub mod command;
mod descriptor;
pub mod digest;
#[cfg(test)]
mod fuzz;
pub mod proposer;
pub mod raft_adapter;
pub mod replica;
pub mod rows;
pub mod sessions;
pub mod split_merge;
pub mod state;
pub mod storage;
pub mod usage;

pub use crate::types::{ReplicaPlace, Route};
pub use descriptor::{Descriptor, Keyspace};
pub use raft_adapter::RaftGroup;
