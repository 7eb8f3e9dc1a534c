//! What the manager remembers of a range for its splits: since when it has been hot, and why it could not be
//! split. Pure.
//!
//! After a failed split the manager waits before it tries again, and the pause doubles each time. The pauses
//! for size and for load are separate, since the cause that blocks one kind of split need not block the
//! other. A new manager knows nothing of this.

use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::backoff::{Backoff, Limits};
use crate::cluster::message::{BlockReason, SplitBlocked};

/// A range is hot above this CPU time, in milliseconds a second (a quarter of a core).
const HOT_MILLIS: u32 = 250;
/// A range is split for its load only after it has been hot for so long.
const HOT_FOR: Duration = Duration::from_secs(10);
/// Reports that are further apart do not tell that it was hot between them.
const REPORT_GAP_MAX: Duration = Duration::from_secs(3);
/// The pauses after splits that could not be made.
const PAUSES: Limits = Limits {
    first: Duration::from_mins(1),
    longest: Duration::from_hours(1),
};

/// A split that could not be made, and is not tried again before a time.
#[derive(Clone)]
pub(in crate::cluster) struct FailedSplit {
    pub(in crate::cluster) blocked: SplitBlocked,
    pub(in crate::cluster) pause: Backoff,
}

/// Since when a range has been hot.
#[derive(Clone, Copy)]
struct Hot {
    since: BootTime,
    last_reported: BootTime,
}

/// What is remembered of a range.
#[derive(Default)]
pub(in crate::cluster) struct SplitWatch {
    /// The version of the bounds that this is about.
    version: u32,
    hot: Option<Hot>,
    /// A split because of its size.
    pub(in crate::cluster) size: Option<FailedSplit>,
    /// A split because of its load.
    pub(in crate::cluster) load: Option<FailedSplit>,
}

impl SplitWatch {
    /// Takes the report of a range's leader: the version of its bounds, and its CPU time in milliseconds
    /// a second.
    pub(in crate::cluster) fn take(&mut self, version: u32, cpu_millis: u32, now: BootTime) {
        if version != self.version {
            // What is left of it must show anew whether it is hot.
            *self = SplitWatch {
                version,
                ..SplitWatch::default()
            };
        }
        if cpu_millis <= HOT_MILLIS {
            self.hot = None;
            if self
                .load
                .as_ref()
                .is_some_and(|load| !load.pause.lasts(now))
            {
                self.load = None;
            }
            return;
        }
        let goes_on = self
            .hot
            .filter(|hot| now < hot.last_reported + REPORT_GAP_MAX);
        self.hot = Some(Hot {
            since: goes_on.map_or(now, |hot| hot.since),
            last_reported: now,
        });
    }

    /// Whether the range has been hot long enough to be split.
    pub(in crate::cluster) fn is_hot(&self, now: BootTime) -> bool {
        let long = |hot: Hot| {
            now < hot.last_reported + REPORT_GAP_MAX && hot.last_reported >= hot.since + HOT_FOR
        };
        self.hot.is_some_and(long)
    }
}

impl FailedSplit {
    /// A split that could not be made now. The pause is longer than the one before.
    pub(in crate::cluster) fn after(
        before: Option<&FailedSplit>,
        reason: BlockReason,
        key: Option<Vec<u8>>,
        (now, wall_ms): (BootTime, u64),
    ) -> FailedSplit {
        let same = before.filter(|before| before.blocked.reason == reason);
        FailedSplit {
            blocked: SplitBlocked {
                reason,
                since_ms: same.map_or(wall_ms, |before| before.blocked.since_ms),
                key,
            },
            pause: Backoff::after(before.map(|before| &before.pause), PAUSES, now),
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    const REPORT: Duration = Duration::from_millis(500);

    /// Half a second after half a second.
    fn pass(watch: &mut SplitWatch, now: &mut BootTime, reports: u32, cpu: u32) {
        for _ in 0..reports {
            *now += REPORT;
            watch.take(3, cpu, *now);
        }
    }

    #[test]
    fn a_range_is_hot_when_reports_of_ten_seconds_say_so() {
        let (mut watch, mut now) = (SplitWatch::default(), test_clock::now());
        pass(&mut watch, &mut now, 100, 250);
        assert!(!watch.is_hot(now), "a quarter of a core is not too much");
        pass(&mut watch, &mut now, 20, 251);
        assert!(!watch.is_hot(now), "it is not hot for long enough");
        pass(&mut watch, &mut now, 1, 900);
        assert!(watch.is_hot(now));
        assert!(!watch.is_hot(now + REPORT_GAP_MAX), "nothing is known now");
        pass(&mut watch, &mut now, 1, 249);
        pass(&mut watch, &mut now, 20, 900);
        assert!(!watch.is_hot(now), "it was cold meanwhile");
        now += REPORT_GAP_MAX;
        pass(&mut watch, &mut now, 1, 900);
        assert!(!watch.is_hot(now), "nothing was reported meanwhile");
        pass(&mut watch, &mut now, 20, 900);
        assert!(watch.is_hot(now));
        watch.take(4, 900, now);
        assert!(!watch.is_hot(now), "it has other bounds");
    }

    #[test]
    fn pauses_double_up_to_an_hour_and_the_first_time_of_a_reason_stays() {
        let now = test_clock::now();
        let mut failed = FailedSplit::after(None, BlockReason::NoKey, None, (now, 7));
        let mut lengths = Vec::new();
        for wall_ms in 8..16 {
            lengths.push(failed.pause.length().as_secs() / 60);
            assert_eq!(failed.blocked.since_ms, 7);
            failed = FailedSplit::after(Some(&failed), BlockReason::NoKey, None, (now, wall_ms));
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 60, 60]);
        let key = Some(b"k".to_vec());
        let failed = FailedSplit::after(
            Some(&failed),
            BlockReason::SingleKey,
            key.clone(),
            (now, 99),
        );
        let wanted = SplitBlocked {
            reason: BlockReason::SingleKey,
            since_ms: 99,
            key,
        };
        let length = failed.pause.length();
        assert_eq!((failed.blocked, length), (wanted, PAUSES.longest));
    }

    #[test]
    fn what_stood_in_the_way_of_a_hot_range_is_forgotten_when_it_has_cooled() {
        let (mut watch, mut now) = (SplitWatch::default(), test_clock::now());
        pass(&mut watch, &mut now, 30, 900);
        let failed = FailedSplit::after(None, BlockReason::NoKey, None, (now, 7));
        watch.load = Some(failed);
        pass(&mut watch, &mut now, 100, 0);
        assert!(watch.load.is_some(), "the pause lasts");
        pass(&mut watch, &mut now, 20, 900);
        assert!(watch.load.is_some(), "it is hot");
        pass(&mut watch, &mut now, 2, 0);
        assert!(watch.load.is_none());
    }
}
