//! A range: an interval of keys that one Raft group replicates. Its state, the commands that change
//! it, and what a leader does with writes before Raft.

pub mod absorbed_replicas;
pub mod apply;
pub mod command;
mod command_v1;
mod conditional_write;
pub mod data_parts;
mod descriptor;
pub mod digest;
mod faults;
mod fitness;
pub mod format;
#[cfg(test)]
mod fuzz;
pub mod hot_keys;
pub mod leadership;
pub mod machine;
pub mod merge;
pub mod merged_borders;
pub mod newborns;
pub mod observer;
mod pending_split;
pub mod proposer;
pub mod proposer_task;
pub mod recover_state;
pub mod replica;
mod replica_digest;
mod replica_split;
mod rewrite;
mod row_places;
pub mod rows;
mod session_export;
mod session_row;
pub mod sessions;
pub mod sink;
pub mod snapshot_export;
pub mod split;
pub mod state;
pub mod state_rows;
mod take_over;
pub mod timestamps;
pub mod usage;
mod write_admission;

pub use crate::types::{ReplicaPlace, Route};
pub use descriptor::{Descriptor, Keyspace};
pub use machine::RaftGroup;
