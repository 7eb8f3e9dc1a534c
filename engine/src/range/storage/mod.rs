//! How a replica is stored: what it writes into the shard's tree besides the rows of users, how a start recovers
//! it from there, and how it is read for a snapshot.
//!
//! - `state_rows` writes the state and the session table when a memtable freezes.
//! - `recovery` reads them at a start, or from the rows of a snapshot.
//! - `snapshot_export` reads a whole range while its leader works on. `raft/network/snapshot_sender.rs` sends it,
//!   and `shard/snapshots/receiver.rs` takes it in at another replica.
//! - `rewrite` copies the rows of a replica under one data id. Its copies are read by an export, too.
//!
//! The tree itself is not here ([`crate::tree`], [`crate::lsm`]), nor is the log ([`crate::wal`]). Runs on the
//! shard's thread, in turns.

pub mod recovery;
mod rewrite;
pub mod snapshot_export;
pub mod state_rows;
