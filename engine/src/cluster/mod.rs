//! The cluster: which nodes there are, which ranges, where their replicas should be, and its settings.
//!
//! The truth about a range is its own replicated state. What is known of all of them lives with the
//! shard that leads the **system range**: its [`manager`] hears every shard's [`message::Report`] once a
//! second, keeps the records that must outlive it in the system range ([`record`]), and has replicas and
//! leaders moved as [`placement`] says. It decides nothing on the data path: while no shard leads the
//! system range, nodes go on serving, and nothing moves. The shards' side of it (reporting, making and
//! removing replicas, changing a group's members) is in [`crate::shard`].

mod health;
mod ids;
pub mod manager;
pub mod message;
pub mod placement;
pub mod record;
pub mod settings;
mod view;

pub use message::{Ask, HighestIds, NodeState, NodeView, RangeView, Told, Trouble, View};
pub use record::{NodeRecord, Setting};
