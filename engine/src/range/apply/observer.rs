//! Observers of the entries that replicas apply.

use std::rc::Rc;

use crate::range::apply::Applied;
use crate::range::state::RangeState;
use crate::wal::{Group, LogEntry};

/// Watches every entry that a replica of a shard applies. It runs within apply, on the shard's
/// thread: it must be quick, and must not call back into the replica.
pub trait ApplyObserver {
    /// `entry` was applied by the replica `group`, with these results, one for each of its commands.
    /// `state` is the replica's state with the entry.
    fn applied(&self, group: Group, entry: &LogEntry, results: &[Applied], state: &RangeState);
}

/// The observers of a shard, in the order in which they are called. A node has none; in the
/// simulator one compares the replicas of a range.
pub type ApplyObservers = Rc<[Rc<dyn ApplyObserver>]>;
