//! After a clean stop, a start applies no entry a second time.

use rangedb_engine::shard::RangeStatus;

use crate::sim::seen::Seen;

/// Checks a shard right after a start that followed a clean stop.
pub fn check_after_clean_stop(seen: &Seen, ranges: &[RangeStatus]) {
    // In the system range the manager of a new term writes at once.
    for range in ranges.iter().filter(|range| !range.system) {
        // Only the new leader's own first entry may lie beyond the durable ones.
        if range.applied > range.durable + 1 {
            seen.violation(format!(
                "range {}: entries {} to {} were applied again after a clean stop",
                range.route.range,
                range.durable + 1,
                range.applied
            ));
        }
    }
}
