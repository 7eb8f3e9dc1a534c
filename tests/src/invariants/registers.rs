//! Reads and writes of one key are linearizable, over crashes and whatever the wall clock does.

use crate::sim::seen::Seen;

/// Checks the whole history.
pub fn check(seen: &Seen) {
    let verdict = seen.history.take().finish();
    for (key, history) in &verdict.violations {
        seen.violation(format!("{key} is not linearizable:\n{history}"));
    }
}
