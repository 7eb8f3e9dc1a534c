//! Reads at the leader of a range: of one key (`get`), of several keys (`multi_get`), and of an interval (`scan`).
//!
//! Every read checks first that the leader has its lease, or asks a majority; when a lease holds is decided in
//! [`crate::raft`]. Then it reads the tree, in turns. None of them waits for the disk on the shard's thread: a
//! block that is not in memory ends the turn, and a helper thread of [`crate::tree`] fetches it.
//!
//! Which shard serves a key is not found here; that is the [gateway](crate::gateway)'s part. Lives on the
//! shard's thread.

mod get;
pub(in crate::shard) mod multi_get;
mod scan;
