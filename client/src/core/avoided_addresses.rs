//! The addresses that do not answer. Each is avoided for a time that doubles with each failure, as
//! long as there are others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an address is avoided after its first failure, and the longest time.
const LEFT_OUT_FIRST: Duration = Duration::from_millis(50);
const LEFT_OUT_MAX: Duration = Duration::from_secs(5);

/// An address that failed and has not answered since.
#[derive(Clone, Copy, Debug)]
struct Failed {
    times: u32,
    until: Instant,
}

/// The addresses that failed and have not answered since.
#[derive(Debug, Default)]
pub struct AvoidedAddresses(Mutex<HashMap<Arc<str>, Failed>>);

impl AvoidedAddresses {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Failed>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has answered at this address.
    pub fn reached(&self, address: &str) {
        self.lock().remove(address);
    }

    /// Avoids an address for a time. Failures of callers that wait at the same time count as one.
    pub fn leave_out(&self, address: &Arc<str>, now: Instant) {
        let mut failed = self.lock();
        let known = failed.get(address).copied();
        if known.is_some_and(|known| now < known.until) {
            return;
        }
        let times = known.map_or(0, |known| known.times);
        let left_out = LEFT_OUT_FIRST
            .saturating_mul(1 << times.min(10))
            .min(LEFT_OUT_MAX);
        tracing::debug!(%address, ?left_out, "an address is left out");
        let (times, until) = (times.saturating_add(1), now + left_out);
        failed.insert(address.clone(), Failed { times, until });
    }

    /// Whether an address is being avoided.
    pub fn is_left_out(&self, address: &str, now: Instant) -> bool {
        (self.lock().get(address)).is_some_and(|failed| now < failed.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_left_out_for_a_time_that_doubles_until_it_answers() {
        let failures = AvoidedAddresses::default();
        let address: Arc<str> = Arc::from("here:1");
        let mut now = Instant::now();
        for expected_ms in [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let expected = Duration::from_millis(expected_ms);
            failures.leave_out(&address, now);
            let last = now + expected - Duration::from_millis(1);
            failures.leave_out(&address, last);
            assert!(failures.is_left_out("here:1", last), "{expected:?}");
            now += expected;
            assert!(!failures.is_left_out("here:1", now), "{expected:?}");
        }
        failures.leave_out(&address, now);
        failures.reached("here:1");
        assert!(!failures.is_left_out("here:1", now));
        failures.leave_out(&address, now);
        let first = now + LEFT_OUT_FIRST;
        assert!(!failures.is_left_out("here:1", first), "counted anew");
    }
}
