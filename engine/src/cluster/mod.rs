//! The cluster: its nodes, its ranges, where their replicas should be, and its settings.
//!
//! The truth about a range is its own replicated state. Knowledge of all ranges lives with the
//! shard that leads the **system range**. Its [`manager`] receives every shard's
//! [`message::Report`] twice a second, keeps in the system range the records that must outlive it
//! ([`record`]), and orders replicas and leaders to move as [`planning`] says, and ranges to be split
//! ([`split`], [`load_splits`]) and merged ([`merge`]). It decides nothing on the data path: while no shard
//! leads the system range, nodes go on
//! serving, and nothing moves.
//! The shards' part (reporting, making and removing replicas, changing a group's members) is in
//! [`crate::shard`].

pub mod backoff;
mod balance;
mod bounds;
pub mod cluster_settings;
pub mod decisions;
mod departure;
#[cfg(test)]
mod fuzz;
mod health;
mod ids;
mod intake;
mod known_shards;
mod leaving;
mod load_mean;
pub mod load_splits;
mod loads;
pub mod manager;
pub mod merge;
pub mod message;
pub mod moves;
mod news;
mod orders;
mod overlap;
pub mod placement;
pub mod planned;
mod planning;
mod progress;
mod reasons;
pub mod record;
mod report;
pub mod reporter;
mod scatter;
mod shard_departures;
pub mod split;
mod split_watch;
mod spread;
mod stuck;
#[cfg(test)]
mod test_reports;
mod view;

pub use decisions::{Decision, DecisionKind, NewDecision, Outcome};
pub use message::{
    BoundsPhase, ClusterRequest, ClusterResponse, HighestIds, HotRange, Leaving, NodeHealth,
    NodeView, RangeRates, RangeStats, RangeView, ReplicaFault, ShardStats, SplitPart, SplitReason,
    View, ViewNews,
};
pub use orders::voter_on;
pub use record::{MembershipStatus, NodeRecord, Setting};
pub use split_watch::{BlockReason, SplitBlocked};
