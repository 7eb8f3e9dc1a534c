//! A replica and its Raft group: the two ways between them.
//!
//! `proposer_task` takes the writes that wait in the replica's [proposer](crate::range::proposer), and proposes
//! them to the group as entries. `state_machine` is the way back: the replica is the group's state machine
//! ([`crate::raft::Machine`]), which applies committed entries, gives a snapshot and installs one.
//!
//! Elections, leases and messages are not here; they are in [`crate::raft`], which does not know what a range
//! is. Lives on the shard's thread.

pub mod proposer_task;
pub mod state_machine;

pub use state_machine::RaftGroup;
