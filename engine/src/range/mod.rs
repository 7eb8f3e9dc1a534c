//! A range: an interval of keys and its Raft group.

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
