//! Watches the wall clock: one that is set, or that drifts far from the machine's own count of time,
//! is logged, since timestamps and the agreement of nodes depend on it. It changes nothing. Lives on
//! the control thread.

use std::time::Duration;

use rangedb_engine::env::Clock;

use crate::env::{self, SystemClock};

/// The time from one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// A wall clock that moves by as much against the machine's count of time has jumped, in milliseconds.
const JUMP_MIN_MS: i64 = 250;

/// Logs each jump of the wall clock; never returns.
pub(super) async fn watch() {
    let mut before = (env::now(), SystemClock.wall_ms());
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = (env::now(), SystemClock.wall_ms());
        if let Some(millis) = jump(before.1, now.1, now.0 - before.0) {
            let way = if millis > 0 { "ahead" } else { "back" };
            tracing::warn!(
                event = "clock_jumped",
                "the wall clock of this machine has jumped {way} by {} ms; the clocks of all nodes must \
                 agree within 500 ms",
                millis.abs()
            );
        }
        before = now;
    }
}

/// By how many milliseconds the wall clock has jumped while so much time has passed, if it has.
fn jump(before_ms: u64, now_ms: u64, passed: Duration) -> Option<i64> {
    let by_wall = now_ms as i64 - before_ms as i64;
    let jump = by_wall - passed.as_millis() as i64;
    (jump.abs() >= JUMP_MIN_MS).then_some(jump)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_keeps_time_has_not_jumped() {
        let second = Duration::from_secs(1);
        assert_eq!(jump(5000, 6000, second), None);
        assert_eq!(jump(5000, 6100, second), None);
        assert_eq!(jump(5000, 9000, second), Some(3000));
        assert_eq!(jump(5000, 1000, second), Some(-5000));
        // A machine that has slept counts the time, too.
        assert_eq!(jump(0, 3_600_000, Duration::from_hours(1)), None);
    }
}
