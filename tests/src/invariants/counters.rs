//! Each write is applied at most once, and an acknowledged write exactly once, however often it was
//! retried. So a counter is at least the acknowledged sum, and at most that plus the sum of writes
//! whose outcome is unknown.

use crate::sim::seen::Seen;

/// Checks a counter's final value.
pub fn check(seen: &Seen, key: &str, value: i64) {
    let (acknowledged, possible) = seen.counters.borrow().get(key).copied().unwrap_or_default();
    if value < acknowledged || value > acknowledged + possible {
        seen.violation(format!(
            "counter {key} is {value}: {acknowledged} was acknowledged, {possible} more may be there"
        ));
    }
}
