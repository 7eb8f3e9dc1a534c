//! A range: an interval of keys that one Raft group replicates. Its state, the commands that change
//! it, and what a leader does with writes before Raft.

pub mod apply;
pub mod budget;
pub mod command;
mod command_v1;
mod descriptor;
pub mod digest;
pub mod export;
#[cfg(test)]
mod fuzz;
pub mod proposer;
pub mod replica;
mod session_export;
mod session_row;
pub mod sessions;
pub mod state;

pub use descriptor::{Descriptor, Keyspace, ReplicaPlace};

use crate::types::{Epoch, KeyRange, Location, RangeId};

/// Where to send requests for an interval of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The range.
    pub range: RangeId,
    /// The range's epoch when the route was made.
    pub epoch: Epoch,
    /// The interval that the range holds.
    pub keys: KeyRange,
    /// The shard of the range's leader; `None` if it is not known.
    pub leader: Option<Location>,
}
