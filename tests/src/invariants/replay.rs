//! After a clean stop, a start applies no entry a second time.

use std::collections::BTreeMap;

use rangedb_engine::shard::RangeStatus;
use rangedb_engine::types::ReplicaId;

use crate::sim::seen::Seen;

/// What the replicas of users' ranges on a node had applied when it was told to stop.
pub type Applied = BTreeMap<ReplicaId, u64>;

/// What replicas have applied. In the system range the manager of a new term writes at once.
pub fn applied(ranges: &[RangeStatus]) -> Applied {
    let users = ranges.iter().filter(|range| !range.system);
    users.map(|range| (range.replica, range.applied)).collect()
}

/// Checks a shard right after a start that followed a clean stop. Entries that a replica had but did not
/// know to be committed are applied then for the first time.
pub fn check_after_clean_stop(seen: &Seen, before: &Applied, ranges: &[RangeStatus]) {
    for range in ranges {
        let applied = before.get(&range.replica).copied().unwrap_or(0);
        if applied > range.durable {
            seen.violation(format!(
                "range {}: entries {} to {applied} were applied again after a clean stop",
                range.route.range,
                range.durable + 1,
            ));
        }
    }
}
