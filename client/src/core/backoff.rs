//! How long to wait before a retry: jittered backoff, and a budget that keeps retries from becoming the
//! load. Whether a call is tried again is decided in [`super::call`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// A range whose leader died has another within a second: longer pauses would only add to that.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// A call earns this much of a retry; a retry costs [`RETRY`].
const EARNED: i64 = 1;
const RETRY: i64 = 10;
/// In this time one [`EARNED`] comes without a call: 10 retries a second, as in Finagle's budget. A client of few
/// calls would run dry after enough short outages, and fail at once in the next one.
const EARNED_EVERY: Duration = Duration::from_millis(10);
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
pub struct Budget {
    saved: AtomicI64,
    /// When time began to count, and what it has given since then.
    began: OnceLock<Instant>,
    by_time: AtomicI64,
}

/// A full budget.
impl Default for Budget {
    fn default() -> Budget {
        Budget {
            saved: AtomicI64::new(SAVED_MAX),
            began: OnceLock::new(),
            by_time: AtomicI64::new(0),
        }
    }
}

impl Budget {
    /// Earns the share of one call.
    pub fn earn(&self) {
        if self.saved.load(Ordering::Relaxed) < SAVED_MAX {
            self.saved.fetch_add(EARNED, Ordering::Relaxed);
        }
    }

    /// Earns the share of the time until now.
    pub fn pass(&self, now: Instant) {
        let began = self.began.get_or_init(|| now);
        let since = now.saturating_duration_since(*began).as_millis();
        let given = (since / EARNED_EVERY.as_millis()) as i64 * EARNED;
        let more = given - self.by_time.fetch_max(given, Ordering::Relaxed);
        let room = SAVED_MAX - self.saved.load(Ordering::Relaxed);
        if more > 0 && room > 0 {
            self.saved.fetch_add(more.min(room), Ordering::Relaxed);
        }
    }

    /// Takes one retry from the budget, if there is one.
    pub fn take(&self) -> bool {
        if self.saved.fetch_sub(RETRY, Ordering::Relaxed) >= RETRY {
            return true;
        }
        self.saved.fetch_add(RETRY, Ordering::Relaxed);
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

    #[test]
    fn time_alone_earns_ten_retries_a_second() {
        let (budget, begun) = (Budget::default(), Instant::now());
        let after = |millis| begun + Duration::from_millis(millis);
        budget.pass(begun);
        while budget.take() {}
        budget.pass(after(99));
        assert!(!budget.take());
        budget.pass(after(1_000));
        budget.pass(after(500));
        assert_eq!((0..100).filter(|_| budget.take()).count(), 10);
        budget.pass(after(1_000_000));
        let taken = (0..10_000).filter(|_| budget.take()).count();
        assert_eq!(taken as i64, SAVED_MAX / RETRY, "it is full");
    }
}
