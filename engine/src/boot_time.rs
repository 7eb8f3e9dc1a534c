//! Points in time: what leases, timers, deadlines and the manager's plans are reckoned with.
//!
//! One plain type for every environment. The environment reads the clock ([`crate::env::Env::now`]);
//! what only reckons with time takes points in time from its caller, or a [`BootClock`] where it must
//! look itself, and so it runs in unit tests without any environment. Pure: no clock is read here.

use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// A point in time of the shard's boot-time clock, in nanoseconds since the machine started; 584 years
/// fit. The clock never goes back, and goes on while the machine sleeps. Sums and differences stop at
/// the ends of the range instead of overflowing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(u64);

/// Reads the boot-time clock of the calling shard's thread.
pub type BootClock = fn() -> BootTime;

fn nanos(time: Duration) -> u64 {
    let secs = time.as_secs().saturating_mul(NANOS_PER_SEC);
    secs.saturating_add(u64::from(time.subsec_nanos()))
}

impl BootTime {
    /// The point in time this long after the machine started.
    pub fn after_boot(time: Duration) -> BootTime {
        BootTime(nanos(time))
    }

    /// How long after the machine started this is.
    pub fn since_boot(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;
    fn add(self, later: Duration) -> BootTime {
        BootTime(self.0.saturating_add(nanos(later)))
    }
}

impl AddAssign<Duration> for BootTime {
    fn add_assign(&mut self, later: Duration) {
        *self = *self + later;
    }
}

impl Sub<Duration> for BootTime {
    type Output = BootTime;
    fn sub(self, earlier: Duration) -> BootTime {
        BootTime(self.0.saturating_sub(nanos(earlier)))
    }
}

impl SubAssign<Duration> for BootTime {
    fn sub_assign(&mut self, earlier: Duration) {
        *self = *self - earlier;
    }
}

/// The time from one point to another; zero if the other is later.
impl Sub for BootTime {
    type Output = Duration;
    fn sub(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A clock for unit tests, which each test sets itself.
#[cfg(test)]
pub mod test_clock {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NOW: Cell<BootTime> = const { Cell::new(BootTime(NANOS_PER_SEC * 3600)) };
    }

    /// The time on this thread: an hour after the start, and what it was advanced by.
    pub fn now() -> BootTime {
        NOW.get()
    }

    /// Lets this time pass.
    pub fn advance(time: Duration) {
        NOW.set(NOW.get() + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_differences_are_exact_and_stop_at_the_ends() {
        let at = BootTime::after_boot(Duration::new(7, 999_999_999));
        assert_eq!(at.since_boot(), Duration::new(7, 999_999_999));
        let later = at + Duration::from_nanos(2);
        assert_eq!(later.since_boot(), Duration::new(8, 1));
        assert_eq!(later - at, Duration::from_nanos(2));
        assert_eq!(at - later, Duration::ZERO);
        assert_eq!(later - Duration::from_secs(9), BootTime::default());
        let end = at + Duration::MAX;
        assert!(end > later && end + Duration::from_secs(1) == end);
    }
}
