//! The cluster: its nodes, its ranges, where their replicas should be, and its settings.
//!
//! The truth about a range is the range's own replicated state. What is known about all ranges together lives
//! with the shard that leads the **system range**: that shard hosts the [`manager`]. Every shard sends the
//! manager a [`message::Report`] twice a second. The manager keeps in the system range what must outlive it
//! ([`record`]). It orders replicas and leaders to move, and ranges to be split and merged.
//!
//! The manager is not on the data path. While no shard leads the system range, nodes go on serving requests,
//! and nothing moves.
//!
//! Nothing in this folder does I/O: the code is called on a shard's thread, gets the time passed in, and
//! returns what should be done. The shard's part is in [`crate::shard`]: it sends reports, makes and removes
//! replicas, changes the members of a group, and carries out the manager's orders.
//!
//! | module | what it holds |
//! |---|---|
//! | [`record`], [`settings`] | what is stored: the rows of the system range, and the cluster's settings |
//! | [`message`] | requests and responses, reports, and the view of the cluster |
//! | [`reporter`] | the shard's side: what the next report must contain |
//! | [`placement`] | pure algorithms: repair, balance by load and by number, scatter, moves |
//! | [`manager`] | what the manager knows: nodes, ranges, shards, ids, health, orders under way |
//! | `operator_orders` | which orders of operators the manager accepts |
//! | `view` | how the manager derives the view from what it knows |
//! | [`split_merge`] | which ranges are split and merged, and in which steps |
//! | `leaving` | nodes that drain or are decommissioned, and shards that a node gives up |
//! | `planning` | the manager's rounds: which order it gives next, why, and how each order ends |
//!
//! A module imports only from the rows above its own; `xtask layers` checks that.

pub mod backoff;
#[cfg(test)]
mod fuzz;
mod leaving;
pub mod manager;
pub mod message;
mod operator_orders;
pub mod placement;
mod planning;
pub mod record;
pub mod reporter;
pub mod settings;
pub mod split_merge;
#[cfg(test)]
mod test_reports;
mod view;

pub use manager::decision_log::NewDecision;
pub use message::{
    BlockReason, BoundsPhase, ClusterRequest, ClusterResponse, Decision, DecisionKind, HighestIds,
    HotRange, Leaving, NodeHealth, NodeView, Outcome, RangeRates, RangeStats, RangeView,
    ReplicaFault, ShardStats, SplitBlocked, SplitPart, SplitReason, View, ViewNews,
};
pub use operator_orders::voter_on;
pub use record::{MembershipStatus, NodeRecord, Setting};
