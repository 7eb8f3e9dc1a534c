//! The durations of the latest durable writes of the log. They tell a slow disk from a hiccup.
//!
//! The 99th percentile is of the last two seconds. Right after a disk has become slow these hold many
//! more fast writes than slow ones, so the median of the last few writes counts if it is longer. A
//! disk counts as steadily slow only if several slow writes have ended within ten seconds. Pure; the
//! log of each shard has one.

use std::time::Duration;

use crate::boot_time::BootTime;

use hdrhistogram::Histogram;

/// A write that takes longer is slow.
pub const SLOW_WRITE: Duration = Duration::from_millis(50);
/// The time of which the percentile is.
const WINDOW: Duration = Duration::from_secs(2);
/// The time after which the oldest writes leave the window together.
const SLOT: Duration = Duration::from_millis(500);
/// So many slow writes are no hiccup any more,
const SLOW_WRITES_MIN: usize = 3;
/// if they have ended within this time.
const SLOW_WRITES_WITHIN: Duration = Duration::from_secs(10);
/// The median of so many writes counts if it is above the percentile.
const LAST_WRITES: usize = 5;
/// Most microseconds of a write in the histograms, a minute; longer ones count as this.
const MICROS_MAX: u64 = 60_000_000;

/// The writes of one slot, and when it began.
struct Slot {
    since: Option<BootTime>,
    micros: Histogram<u32>,
}

/// The speed of the log's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteSpeed {
    /// The 99th percentile of the last two seconds' writes, or the median of the last few if that is
    /// longer.
    pub p99: Duration,
    /// Whether several writes were slow within the last ten seconds.
    pub is_steadily_slow: bool,
}

/// See the module's chapter.
pub struct RecentWrites {
    slots: Vec<Slot>,
    /// The slot that is being filled.
    current: usize,
    /// How long the last writes took, in a ring, and the place of the next one.
    last: ([Duration; LAST_WRITES], usize),
    /// When the last slow writes ended, in a ring.
    slow_ends: [Option<BootTime>; SLOW_WRITES_MIN],
    /// The place in the ring of the next one: that of the oldest.
    next_slow: usize,
}

fn histogram() -> Histogram<u32> {
    Histogram::new_with_max(MICROS_MAX, 1).expect("these bounds are allowed")
}

impl Default for RecentWrites {
    fn default() -> RecentWrites {
        let slot = || Slot {
            since: None,
            micros: histogram(),
        };
        // One more than the window has, since the current one is filled in part.
        let slots = WINDOW.as_millis() / SLOT.as_millis() + 1;
        RecentWrites {
            slots: (0..slots).map(|_| slot()).collect(),
            current: 0,
            last: ([Duration::ZERO; LAST_WRITES], 0),
            slow_ends: [None; SLOW_WRITES_MIN],
            next_slow: 0,
        }
    }
}

impl RecentWrites {
    /// Counts a write that has just ended.
    pub fn count(&mut self, took: Duration, now: BootTime) {
        let is_current = |slot: &Slot| slot.since.is_some_and(|since| now < since + SLOT);
        if !self.slots.get(self.current).is_some_and(is_current) {
            self.current = (self.current + 1) % self.slots.len();
            if let Some(slot) = self.slots.get_mut(self.current) {
                slot.since = Some(now);
                slot.micros.reset();
            }
        }
        if let Some(slot) = self.slots.get_mut(self.current) {
            slot.micros
                .saturating_record((took.as_micros() as u64).max(1));
        }
        let (last, next) = &mut self.last;
        last[*next] = took;
        *next = (*next + 1) % LAST_WRITES;
        if took > SLOW_WRITE {
            if let Some(end) = self.slow_ends.get_mut(self.next_slow) {
                *end = Some(now);
            }
            self.next_slow = (self.next_slow + 1) % SLOW_WRITES_MIN;
        }
    }

    /// The speed of the writes up to now; `None` if none has ended within the window.
    pub fn speed(&self, now: BootTime) -> Option<WriteSpeed> {
        let mut merged = histogram();
        for slot in &self.slots {
            if slot.since.is_some_and(|since| now < since + WINDOW + SLOT) {
                merged.add(&slot.micros).expect("the bounds are the same");
            }
        }
        if merged.is_empty() {
            return None;
        }
        let mut last = self.last.0;
        last.sort_unstable();
        let median = last[LAST_WRITES / 2];
        let is_late =
            |end: &Option<BootTime>| end.is_some_and(|end| now < end + SLOW_WRITES_WITHIN);
        Some(WriteSpeed {
            p99: Duration::from_micros(merged.value_at_quantile(0.99)).max(median),
            is_steadily_slow: self.slow_ends.iter().all(is_late),
        })
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    const MS: Duration = Duration::from_millis(1);

    /// Counts writes one after the other; gives the speed right after them.
    fn after(
        recent: &mut RecentWrites,
        now: &mut BootTime,
        writes: &[(usize, Duration)],
    ) -> WriteSpeed {
        for (number, took) in writes {
            for _ in 0..*number {
                *now += *took;
                recent.count(*took, *now);
            }
        }
        recent.speed(*now).expect("writes have just ended")
    }

    #[test]
    fn one_or_two_slow_writes_are_a_hiccup_and_three_are_not() {
        let (mut recent, mut now) = (RecentWrites::default(), test_clock::now());
        assert_eq!(recent.speed(now), None);
        let speed = after(&mut recent, &mut now, &[(20, MS), (2, MS * 400)]);
        assert!(speed.p99 > SLOW_WRITE, "{speed:?}");
        assert!(!speed.is_steadily_slow, "{speed:?}");
        let speed = after(&mut recent, &mut now, &[(1, MS * 200)]);
        assert!(speed.is_steadily_slow, "{speed:?}");
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let (mut recent, mut now) = (RecentWrites::default(), test_clock::now());
        let _ = after(&mut recent, &mut now, &[(9, MS * 200)]);
        now += WINDOW + SLOT * 2;
        assert_eq!(recent.speed(now), None, "no write at all");
        let speed = after(&mut recent, &mut now, &[(99, MS)]);
        assert!(speed.p99 < MS * 2, "{speed:?}");
        assert!(speed.is_steadily_slow, "slow a few seconds ago: {speed:?}");
        now += SLOW_WRITES_WITHIN;
        let speed = after(&mut recent, &mut now, &[(1, MS)]);
        assert!(!speed.is_steadily_slow, "{speed:?}");
    }

    #[test]
    fn a_disk_that_becomes_slow_is_known_after_three_writes() {
        let (mut recent, mut now) = (RecentWrites::default(), test_clock::now());
        let speed = after(&mut recent, &mut now, &[(1000, MS), (2, MS * 200)]);
        assert!(speed.p99 < MS * 2, "{speed:?}");
        let speed = after(&mut recent, &mut now, &[(1, MS * 200)]);
        assert_eq!(speed.p99, MS * 200);
        assert!(speed.is_steadily_slow, "{speed:?}");
    }

    #[test]
    fn a_write_that_takes_longer_than_the_window_is_seen_when_it_has_ended() {
        let (mut recent, mut now) = (RecentWrites::default(), test_clock::now());
        let speed = after(&mut recent, &mut now, &[(3, MS * 3_000)]);
        assert!(speed.p99 >= MS * 2_800, "{speed:?}");
        assert!(speed.is_steadily_slow, "{speed:?}");
    }
}
