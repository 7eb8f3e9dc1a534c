//! Splits and merges as the leaders of the ranges carry them out.
//!
//! `split` and `merge` have the two protocols, step by step. `freeze` is the part of the right range in a
//! merge, and `rewrites` prepares a replica for one whose rows lie under too many data ids. `changes` counts
//! what is under way and what has ended.
//!
//! This folder does not decide which ranges are split or merged: the cluster's manager does
//! ([`crate::cluster::split_merge`]), and the shard that hosts it gives the orders (`manager_orders`). How the
//! entries change the ranges is in [`crate::range::split_merge`]. Lives on the shard's thread.

pub(in crate::shard) mod changes;
pub(in crate::shard) mod freeze;
mod merge;
mod rewrites;
pub(in crate::shard) mod split;
