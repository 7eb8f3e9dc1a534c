//! The figures of the whole node, such as latencies, disk space and clock error. The control thread
//! measures them, and each shard sends them to the cluster's manager in its reports.

use std::sync::{Mutex, PoisonError};

use rangedb_engine::types::NodeStats;

/// What was measured last, for all shards of this process.
static LAST: Mutex<Option<NodeStats>> = Mutex::new(None);

/// Keeps what was measured now.
pub fn keep(stats: NodeStats) {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
}

/// What was measured last; nothing is known before that.
pub fn last() -> NodeStats {
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    last.unwrap_or_default()
}
