//! How long to wait before a retry: jittered backoff, and a budget that keeps retries from becoming the
//! load. Whether a call is tried again is decided in [`super::call`].

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// A range whose leader died has another within a second: longer pauses would only add to that.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// A call earns this much of a retry; a retry costs [`RETRY`].
const EARNED: i64 = 1;
const RETRY: i64 = 10;
/// Most retries that can be saved up.
const SAVED_MAX: i64 = 500 * RETRY;

/// How long to wait before retry number `tries`, at least as long as the server asked. `random` is
/// from 0 to 1. Full jitter: see Brooker, "Exponential Backoff And Jitter" (2015).
pub fn pause(tries: u32, asked: Option<Duration>, random: f64) -> Duration {
    let most = PAUSE_FIRST
        .saturating_mul(1 << tries.min(10))
        .min(PAUSE_MAX);
    asked.unwrap_or_default() + most.mul_f64(random)
}

/// The budget of retries that all calls of a client share.
#[derive(Debug)]
pub struct Budget(AtomicI64);

/// A full budget.
impl Default for Budget {
    fn default() -> Budget {
        Budget(AtomicI64::new(SAVED_MAX))
    }
}

impl Budget {
    /// Earns the share of one call.
    pub fn earn(&self) {
        if self.0.load(Ordering::Relaxed) < SAVED_MAX {
            self.0.fetch_add(EARNED, Ordering::Relaxed);
        }
    }

    /// Takes one retry from the budget, if there is one.
    pub fn take(&self) -> bool {
        if self.0.fetch_sub(RETRY, Ordering::Relaxed) >= RETRY {
            return true;
        }
        self.0.fetch_add(RETRY, Ordering::Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert_eq!(pause(0, None, 1.0), PAUSE_FIRST);
        for tries in 0..40 {
            let (least, most) = (pause(tries, None, 0.0), pause(tries, None, 1.0));
            assert_eq!(least, Duration::ZERO);
            assert!(most <= PAUSE_MAX && most >= pause(tries.saturating_sub(1), None, 1.0));
            assert_eq!(pause(tries, Some(PAUSE_MAX), 0.0), PAUSE_MAX);
        }
    }

    #[test]
    fn a_budget_runs_out_and_is_earned_again() {
        let budget = Budget::default();
        let taken = (0..10_000).filter(|_| budget.take()).count();
        assert_eq!(taken as i64, SAVED_MAX / RETRY);
        (0..RETRY).for_each(|_| budget.earn());
        assert!(budget.take());
        assert!(!budget.take());
    }
}
