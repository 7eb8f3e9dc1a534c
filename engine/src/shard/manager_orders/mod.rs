//! The shard that hosts the cluster's manager: it takes the orders of operators, and has leaders carry out what the
//! manager decides.
//!
//! `orders` moves replicas and leaders, and sets settings; `split_orders` and `merge_orders` see an order
//! through that needs several steps. `auto_splits` begins the splits that the manager decides on its own.
//! `hot_ranges` asks leaders for their hottest keys, and also has how a leader answers. `given_orders` counts
//! and logs what was ordered.
//!
//! The decisions themselves are not here but in [`crate::cluster`], which does no I/O. Nor is the work of the
//! leaders: a shard that is asked does it in `split_merge` and `replicas`. Lives on the thread of the shard
//! that leads the system range.

mod auto_splits;
pub(in crate::shard) mod given_orders;
mod hot_ranges;
pub(in crate::shard) mod merge_orders;
pub(in crate::shard) mod orders;
pub(in crate::shard) mod split_orders;
