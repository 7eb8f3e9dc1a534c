//! Clocks and randomness of the machine.

use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rangedb_engine::env::{Clock, Instant};
use rustix::time::{ClockId, clock_gettime};

/// A point in time of CLOCK_BOOTTIME: it never goes back, and goes on while the machine sleeps,
/// so that a lease cannot outlive a suspended laptop. A hypervisor may stop this clock, too, while it
/// moves or pauses a virtual machine: then a lease outlives the pause by what was left of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootInstant(Duration);

impl Instant for BootInstant {
    fn now() -> BootInstant {
        // Linux has had this clock since 2.6.39.
        let time = clock_gettime(ClockId::Boottime);
        BootInstant(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

impl Add<Duration> for BootInstant {
    type Output = BootInstant;
    fn add(self, later: Duration) -> BootInstant {
        BootInstant(self.0.saturating_add(later))
    }
}

impl AddAssign<Duration> for BootInstant {
    fn add_assign(&mut self, later: Duration) {
        *self = *self + later;
    }
}

impl Sub<Duration> for BootInstant {
    type Output = BootInstant;
    fn sub(self, earlier: Duration) -> BootInstant {
        BootInstant(self.0.saturating_sub(earlier))
    }
}

impl SubAssign<Duration> for BootInstant {
    fn sub_assign(&mut self, earlier: Duration) {
        *self = *self - earlier;
    }
}

impl Sub for BootInstant {
    type Output = Duration;
    fn sub(self, earlier: BootInstant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The machine's wall clock and its source of randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        // A clock set before 1970 counts as 1970; timestamps rise by themselves.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }

    fn random_u64(&self) -> u64 {
        rand::random()
    }
}
