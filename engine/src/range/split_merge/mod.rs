//! Splits and merges: how they change the states of ranges, and which replicas of a shard they concern.
//!
//! `split` and `merge` are the rules, pure and deterministic: [`apply`](crate::range::apply) calls them when it
//! comes to such an entry. `pending_split`, `newborns` and `absorbed_replicas` are what a replica and its shard
//! remember while a split or a merge is under way.
//!
//! This folder carries nothing out, and decides nothing. What a replica does in the turn in which it applies
//! such an entry is in `replica/split.rs` and `replica/take_over.rs`; the protocol between leaders is in
//! [`crate::shard`]; which ranges are split and merged is decided in [`crate::cluster::split_merge`]. Lives on
//! the shard's thread.

pub mod absorbed_replicas;
pub mod merge;
pub mod newborns;
pub(in crate::range) mod pending_split;
pub mod split;
