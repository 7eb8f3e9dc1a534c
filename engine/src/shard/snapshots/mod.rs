//! Snapshots at this shard: `receiver` takes them in, and `pinned_logs` bounds the logs that are kept for
//! replicas which receive one.
//!
//! The other end is not here: [`crate::range::storage::snapshot_export`] reads a range, and
//! `raft/network/snapshot_sender.rs` sends it. Lives on the shard's thread.

pub(in crate::shard) mod pinned_logs;
pub(in crate::shard) mod receiver;
