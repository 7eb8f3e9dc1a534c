//! Splits and merges: which ranges the manager splits and merges, and in which steps. No I/O here; it runs on
//! the shard that hosts the manager.
//!
//! [`split`] has the orders of operators and splits because of size, [`load_splits`] the splits because of
//! load, and [`merge`] all merges. What the manager remembers of a range between two attempts is in
//! `manager/split_watch.rs`. This folder does not carry anything out: that is the task of the leaders of the
//! ranges, in `shard/split_merge/split.rs` and `shard/split_merge/merge.rs`.

pub mod load_splits;
pub mod merge;
pub mod split;
