//! Clocks and randomness of the machine.

use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rangedb_engine::boot_time::BootTime;
use rangedb_engine::env::{Clock, Instant};
use rustix::time::{ClockId, clock_gettime};

/// The time on CLOCK_BOOTTIME: it never goes back, and goes on while the machine sleeps, so that a
/// lease cannot outlive a suspended laptop. A hypervisor may stop this clock, too, while it moves or
/// pauses a virtual machine: then a lease outlives the pause by what was left of it.
pub fn now() -> BootTime {
    // Linux has had this clock since 2.6.39.
    let time = clock_gettime(ClockId::Boottime);
    BootTime::after_boot(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// A point in time as openraft names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(BootTime);

impl Instant for BootInstant {
    fn now() -> BootInstant {
        BootInstant(now())
    }
}

impl From<BootTime> for BootInstant {
    fn from(time: BootTime) -> BootInstant {
        BootInstant(time)
    }
}

impl From<BootInstant> for BootTime {
    fn from(instant: BootInstant) -> BootTime {
        instant.0
    }
}

impl Add<Duration> for BootInstant {
    type Output = BootInstant;
    fn add(self, later: Duration) -> BootInstant {
        BootInstant(self.0 + later)
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
        BootInstant(self.0 - earlier)
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
        self.0 - earlier.0
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
