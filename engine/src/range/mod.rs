//! A range: an interval of keys and its Raft group.

pub mod apply;
pub mod budget;
pub mod command;
mod descriptor;
pub mod digest;
pub mod export;
pub mod proposer;
pub mod replica;
mod session_export;
mod session_row;
pub mod sessions;
pub mod state;

pub use descriptor::{Descriptor, Keyspace, ReplicaPlace};

use crate::types::{Epoch, KeyRange, Location, RangeId};

/// Where requests for an interval of keys go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The range.
    pub range: RangeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its interval.
    pub keys: KeyRange,
    /// Where its leader is, as far as is known.
    pub leader: Option<Location>,
}
