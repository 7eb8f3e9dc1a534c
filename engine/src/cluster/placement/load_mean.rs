//! Means of loads over 5 minutes, which the manager computes from reports. Pure.
//!
//! A report has the load over about the last 10 s, which jumps. A range that moves because of load should
//! stay at its new place, so the balancer looks at the mean over [`LONG`] ([`Mean`]). During the first 5
//! minutes in which a load is known, all reports count alike.
//!
//! A range's mean ([`RangeMean`]) goes with its leadership. A new leader measures from zero, so for a while
//! ([`MEASURED_AFTER`]) the load counts as it was before. A change of the range's bounds starts a new mean.

use std::time::Duration;

use crate::boot_time::BootTime;
use crate::types::Location;

/// The time over which the mean forgets.
const LONG: Duration = Duration::from_mins(5);
/// After this time a new leader has measured a load: three times what its rates forget over.
const MEASURED_AFTER: Duration = Duration::from_secs(30);

/// The mean of a load that stays as it is from one report to the next.
#[derive(Clone, Copy, Debug)]
pub(in crate::cluster) struct Mean {
    mean: f64,
    last: f64,
    since: BootTime,
    at: BootTime,
}

impl Mean {
    /// Of a load that is known from now on.
    pub fn new(load: f64, now: BootTime) -> Mean {
        Mean {
            mean: load,
            last: load,
            since: now,
            at: now,
        }
    }

    /// Takes what the load is from now on.
    pub fn take(&mut self, load: f64, now: BootTime) {
        self.mean = self.until(now);
        self.at = now;
        self.last = load;
    }

    /// The mean of the time until now.
    pub fn until(&self, now: BootTime) -> f64 {
        let passed = (now - self.at).as_secs_f64();
        let age = (now - self.since).as_secs_f64();
        let long = LONG.as_secs_f64();
        let weight = match age {
            _ if passed <= 0.0 => 0.0,
            age if age < long => passed / age,
            _ => 1.0 - (-passed / long).exp(),
        };
        self.mean + (self.last - self.mean) * weight
    }
}

/// See the module's chapter. Loads are CPU time in thousandths of a core.
pub(in crate::cluster) struct RangeMean {
    version: u32,
    /// `None`: nothing was reported yet.
    known: Option<(Location, Mean)>,
    /// What a new leader has reported, and from when on it counts.
    unmeasured: Option<(BootTime, u32)>,
}

impl RangeMean {
    /// Nothing was reported yet.
    pub fn new() -> RangeMean {
        RangeMean {
            version: 0,
            known: None,
            unmeasured: None,
        }
    }

    /// Takes what the leader at a shard reports of the range with this version of its bounds.
    pub fn take(&mut self, version: u32, led_at: Location, cpu: u32, now: BootTime) {
        let same = self.known.as_mut().filter(|_| self.version == version);
        let Some((before, mean)) = same else {
            self.version = version;
            self.known = Some((led_at, Mean::new(f64::from(cpu), now)));
            self.unmeasured = None;
            return;
        };
        if let Some((from, cpu)) = self.unmeasured.filter(|(from, _)| now >= *from) {
            mean.take(f64::from(cpu), from);
            self.unmeasured = None;
        }
        if *before != led_at {
            *before = led_at;
            self.unmeasured = Some((now + MEASURED_AFTER, cpu));
        }
        match &mut self.unmeasured {
            Some((_, unmeasured)) => *unmeasured = cpu,
            None => mean.take(f64::from(cpu), now),
        }
    }

    /// The load over the last 10 s, and its mean over 5 minutes.
    pub fn loads(&self, now: BootTime) -> (u32, u32) {
        let Some((_, mut mean)) = self.known else {
            return (0, 0);
        };
        if let Some((from, cpu)) = self.unmeasured.filter(|(from, _)| now >= *from) {
            mean.take(f64::from(cpu), from);
        }
        (mean.last.round() as u32, mean.until(now).round() as u32)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;
    use crate::types::{NodeId, ShardId};

    fn at(node: u64) -> Location {
        Location {
            node: NodeId(node),
            shard: ShardId(0),
        }
    }

    #[test]
    fn all_that_is_known_counts_alike_until_it_is_old() {
        let start = test_clock::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut mean = Mean::new(100.0, start);
        assert_eq!(mean.until(start), 100.0);
        mean.take(300.0, after(30));
        assert_eq!(mean.until(after(60)), 200.0);
        // What was long ago is forgotten.
        mean.take(0.0, after(3000));
        assert!((mean.until(after(3000)) - 300.0).abs() < 1.0);
        assert!((mean.until(after(3300)) - 300.0 / std::f64::consts::E).abs() < 1.0);
        assert!(mean.until(after(6000)) < 1.0);
    }

    #[test]
    fn a_load_goes_with_its_leadership_until_the_new_leader_has_measured_it() {
        let start = test_clock::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut range = RangeMean::new();
        assert_eq!(range.loads(start), (0, 0));
        range.take(1, at(1), 200, start);
        range.take(1, at(2), 0, after(10));
        range.take(1, at(2), 70, after(20));
        assert_eq!(range.loads(after(30)), (200, 200));
        // Nothing more is reported: what was reported last counts.
        assert_eq!(range.loads(after(40)), (70, 200));
        assert_eq!(range.loads(after(80)), (70, 135));
        range.take(1, at(2), 500, after(80));
        assert_eq!(range.loads(after(80)), (500, 135));
        range.take(2, at(2), 50, after(80));
        assert_eq!(range.loads(after(80)), (50, 50), "it has other bounds");
    }
}
