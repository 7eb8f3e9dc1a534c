//! The pause before a failed step is tried again. It doubles with each failure, up to a maximum. Pure.

use std::time::Duration;

use crate::boot_time::BootTime;

/// How long pauses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The pause after the first failure.
    pub first: Duration,
    /// The longest one.
    pub longest: Duration,
}

/// A pause after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    until: BootTime,
    length: Duration,
}

impl Backoff {
    /// The pause after a failure now. `before` is the pause after the failure before it, if there was one
    /// that counts.
    pub fn after(before: Option<&Backoff>, limits: Limits, now: BootTime) -> Backoff {
        let length = before.map_or(limits.first, |before| before.length * 2);
        let length = length.min(limits.longest);
        Backoff {
            until: now + length,
            length,
        }
    }

    /// Whether it has not ended.
    pub fn lasts(&self, now: BootTime) -> bool {
        now < self.until
    }

    /// Whether it ended so long ago that its failure counts no more: the time since then is some `times` as
    /// long as the pause.
    pub fn is_forgotten(&self, times: u32, now: BootTime) -> bool {
        now >= self.until + self.length * times
    }

    /// How long it is.
    pub fn length(&self) -> Duration {
        self.length
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    const LIMITS: Limits = Limits {
        first: Duration::from_secs(10),
        longest: Duration::from_secs(50),
    };

    #[test]
    fn pauses_double_up_to_the_longest() {
        let now = test_clock::now();
        let mut pause = Backoff::after(None, LIMITS, now);
        let mut lengths = Vec::new();
        for _ in 0..5 {
            lengths.push(pause.length().as_secs());
            pause = Backoff::after(Some(&pause), LIMITS, now);
        }
        assert_eq!(lengths, [10, 20, 40, 50, 50]);
        let narrow = Limits {
            first: Duration::from_secs(9),
            longest: Duration::from_secs(3),
        };
        let pause = Backoff::after(None, narrow, now);
        assert_eq!(pause.length(), narrow.longest, "the longest counts");
    }

    #[test]
    fn a_pause_lasts_for_its_length_from_the_failure_on_and_is_forgotten_later() {
        let failed = test_clock::now();
        let pause = Backoff::after(None, LIMITS, failed);
        let ms = Duration::from_millis(1);
        let end = failed + LIMITS.first;
        assert!(pause.lasts(failed) && pause.lasts(end - ms) && !pause.lasts(end));
        let forgotten = end + LIMITS.first * 2;
        assert!(!pause.is_forgotten(2, forgotten - ms) && pause.is_forgotten(2, forgotten));
        assert!(pause.is_forgotten(0, end));
    }
}
