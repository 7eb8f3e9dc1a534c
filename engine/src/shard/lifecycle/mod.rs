//! How a shard starts, works in the background, and stops.
//!
//! `open` recovers the log, the tree and every replica, after `folder` has checked that they belong together.
//! `background` has the tasks that run until the shard is closed: they take in flushes, have the log purged,
//! and look once a second after what else is due, such as digests. Requests are not served here. Lives on the shard's thread.

pub(in crate::shard) mod background;
pub(in crate::shard) mod folder;
mod open;
