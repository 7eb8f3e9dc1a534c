//! The world of a shard, on glommio.

pub mod handover;
