//! Each write is applied at most once, and once it is acknowledged exactly once, however often it
//! was tried: a counter is at least what was acknowledged, at most what may have been added beyond.

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
