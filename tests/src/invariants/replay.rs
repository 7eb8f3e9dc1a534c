//! A clean stop leaves nothing to apply again, and the log never outgrows its bound.

use rangedb_engine::shard::RangeStatus;

use crate::sim::seen::Seen;

/// Checks a shard right after a start that followed a clean stop.
pub fn check_after_clean_stop(seen: &Seen, ranges: &[RangeStatus]) {
    // The manager of a new term writes in the system range at once.
    for range in ranges.iter().filter(|range| !range.system) {
        // The new term's own first entry is all there is.
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
