//! The cluster: its nodes, its ranges, where their replicas should be, and its settings.
//!
//! The truth about a range is its own replicated state. Knowledge of all ranges lives with the
//! shard that leads the **system range**. Its [`manager`] receives every shard's
//! [`message::Report`] twice a second, keeps in the system range the records that must outlive it
//! ([`record`]), and orders replicas and leaders to move as [`placement`] says, and ranges to be split
//! ([`split`], [`load_splits`]). It decides nothing on the data path: while no shard leads the system range, nodes go on
//! serving, and nothing moves.
//! The shards' part (reporting, making and removing replicas, changing a group's members) is in
//! [`crate::shard`].

mod blocked;
mod bounds;
#[cfg(test)]
mod fuzz;
mod health;
mod ids;
mod leaving;
pub mod load_splits;
pub mod manager;
pub mod message;
pub mod moves;
mod orders;
mod overlap;
pub mod placement;
pub mod record;
pub mod settings;
pub mod split;
mod view;

pub use blocked::{BlockReason, SplitBlocked};
pub use message::{
    ClusterRequest, ClusterResponse, HighestIds, HotRange, Leaving, NodeHealth, NodeView,
    RangeStats, RangeView, ShardStats, SplitPart, SplitReason, Trouble, View,
};
pub use orders::voter_on;
pub use record::{MembershipStatus, NodeRecord, Setting};
