//! The progress of a node that leaves: how fast it goes, and since when it stands still. Pure.
//!
//! Twice a second the manager looks at each node that drains or is decommissioned. It keeps how much was left
//! at points over the last minute, for the rate. It also keeps which ranges have been at rest since the
//! order: a change that was under way at the time of the order may still bring a replica to the node, a later
//! change cannot. So ranges that happen to change at the moment, of which a large cluster always has some, do
//! not hold the node up. If nothing has left for [`STUCK_AFTER`], every range that is left is named with the
//! reason ([`crate::cluster::leaving::stuck`]).

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::record::MembershipStatus;
use crate::types::RangeId;

/// Without progress for this long, all that is left is named.
pub(in crate::cluster) const STUCK_AFTER: Duration = Duration::from_secs(10);
/// The rate is that of this time.
const WINDOW: Duration = Duration::from_mins(1);
/// Least time between two samples of what is left.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Least time from one log line about a node that stands still to the next.
const TELL_INTERVAL: Duration = Duration::from_mins(1);

/// How the leaving of one node goes on; see the module's chapter.
pub(in crate::cluster) struct Departure {
    /// What the node does; with another decision everything begins anew.
    pub(in crate::cluster) membership: MembershipStatus,
    /// The ranges of which no change was under way at some time since the order.
    pub(in crate::cluster) rested: BTreeSet<RangeId>,
    /// How many ranges were left, and when.
    samples: VecDeque<(BootTime, usize)>,
    /// The fewest ranges that were left, and since when.
    least: (usize, BootTime),
    /// When it was last logged that the node stands still.
    told: Option<BootTime>,
}

impl Departure {
    pub(in crate::cluster) fn new(
        membership: MembershipStatus,
        left: usize,
        now: BootTime,
    ) -> Departure {
        Departure {
            membership,
            rested: BTreeSet::new(),
            samples: VecDeque::new(),
            least: (left, now),
            told: None,
        }
    }

    /// Takes how many ranges are left.
    pub(in crate::cluster) fn note(&mut self, left: usize, now: BootTime) {
        if left < self.least.0 {
            self.least = (left, now);
        }
        let newest = self.samples.back();
        if newest.is_none_or(|(at, _)| now >= *at + SAMPLE_INTERVAL) {
            self.samples.push_back((now, left));
        }
        while self.samples.len() > 1
            && self
                .samples
                .front()
                .is_some_and(|(at, _)| now > *at + WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// How many ranges have left in a minute, by the last minute or by the time since the order.
    pub(in crate::cluster) fn per_minute(&self, left: usize, now: BootTime) -> u64 {
        let Some((at, before)) = self.samples.front() else {
            return 0;
        };
        let took = (now - *at).max(SAMPLE_INTERVAL);
        let gone = before.saturating_sub(left) as f64;
        (gone * WINDOW.as_secs_f64() / took.as_secs_f64()).round() as u64
    }

    /// How long nothing has left.
    pub(in crate::cluster) fn stuck_for(&self, now: BootTime) -> Duration {
        now - self.least.1
    }

    /// Whether it must be logged now that the node stands still; then it need not for a while.
    pub(in crate::cluster) fn tells(&mut self, left: usize, now: BootTime) -> bool {
        let is_news = self.told.is_none_or(|told| now >= told + TELL_INTERVAL);
        let tells = left > 0 && self.stuck_for(now) >= STUCK_AFTER && is_news;
        if tells {
            self.told = Some(now);
        }
        tells
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    #[test]
    fn the_rate_is_that_of_the_last_minute_and_standing_still_is_told_once_in_a_while() {
        let begun = test_clock::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut departure = Departure::new(MembershipStatus::Decommissioning, 100, begun);
        for second in 0..=30 {
            departure.note(100 - second as usize, at(second));
        }
        assert_eq!(departure.per_minute(70, at(30)), 60, "one a second");
        assert_eq!(departure.stuck_for(at(30)), Duration::ZERO);
        assert!(!departure.tells(70, at(39)));
        assert!(departure.tells(70, at(40)));
        assert!(!departure.tells(70, at(41)), "it was told");
        // A range that was split on the way is one more, which is no progress.
        departure.note(71, at(45));
        departure.note(70, at(46));
        assert_eq!(departure.stuck_for(at(50)), Duration::from_secs(20));
        for second in 47..=150 {
            departure.note(70, at(second));
        }
        assert_eq!(departure.per_minute(70, at(150)), 0);
        assert!(departure.tells(70, at(150)) && !departure.tells(0, at(300)));
        departure.note(69, at(151));
        assert_eq!(departure.stuck_for(at(152)), Duration::from_secs(1));
    }
}
