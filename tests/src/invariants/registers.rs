//! Reads and writes of one key are linearizable, across crashes and jumps of the wall clock.

use crate::sim::seen::Seen;

/// Checks the whole history of all registers.
pub fn check(seen: &Seen) {
    let verdict = seen.history.take().finish();
    for (key, history) in &verdict.violations {
        seen.violation(format!("{key} is not linearizable:\n{history}"));
    }
}
