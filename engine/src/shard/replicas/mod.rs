//! The replicas of this shard, as a leader and the cluster's manager have them made, moved, checked and removed.
//!
//! - `members` creates and removes replicas, and changes the members of a group.
//! - `leadership_transfer` hands a leadership over to another replica.
//! - `digests` compares what the replicas of a range hold.
//! - `unreadable` gives up a replica that has met a block which cannot be read.
//! - `leaving_shard` is about a shard that its node gives up.
//!
//! Where replicas and leaders should be is decided in [`crate::cluster::placement`]; how a group changes its
//! members is in [`crate::raft`]. Lives on the shard's thread.

pub(in crate::shard) mod digests;
mod leadership_transfer;
mod leaving_shard;
mod members;
mod unreadable;
