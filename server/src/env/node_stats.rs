//! How this node is as a whole: the control thread measures it, and each shard tells the cluster's manager with
//! its reports.

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
