//! The node's hybrid logical clock.
//!
//! One atomic word for all shards of the node (the only one on the data path besides counters),
//! taken in blocks: a proposer takes the timestamps of a whole log entry at once. It never goes
//! back while the process lives; over restarts each range starts above its own `last_ts` and
//! ceiling, so nothing here is stored. Kulkarni et al., "Logical Physical Clocks" (2014).
//!
//! It follows what its replicas have applied, since that has happened. It follows a client, and the
//! heartbeats of other nodes, only up to [`MAX_CLOCK_OFFSET_MS`] above the wall clock. The bound is
//! reckoned from the wall clock and never from the hybrid clock: otherwise each request could move the
//! clock by the bound once more. The ceilings of ranges are reckoned from the wall clock for the same
//! reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::limits::MAX_CLOCK_OFFSET_MS;
use crate::types::Timestamp;

/// A cheap clone of the node's clock.
#[derive(Clone, Debug, Default)]
pub struct Hlc {
    last: Arc<AtomicU64>,
}

impl Hlc {
    /// A clock that starts at zero.
    pub fn new() -> Hlc {
        Hlc::default()
    }

    /// Takes `count` timestamps in a row, all above `above`, above every one given before, and not
    /// below the wall clock. Returns the first.
    pub fn take(&self, wall_ms: u64, above: Timestamp, count: u64) -> Timestamp {
        let least = Timestamp::from_ms(wall_ms).0.max(above.next().0);
        let mut seen = self.last.load(Ordering::Relaxed);
        loop {
            let first = least.max(seen + 1);
            let last = first + count.max(1) - 1;
            match self
                .last
                .compare_exchange_weak(seen, last, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Timestamp(first),
                Err(now) => seen = now,
            }
        }
    }

    /// The present time: not below the wall clock, nor below any timestamp given. Takes nothing.
    pub fn now(&self, wall_ms: u64) -> Timestamp {
        Timestamp(
            Timestamp::from_ms(wall_ms)
                .0
                .max(self.last.load(Ordering::Relaxed)),
        )
    }

    /// Raises the clock to a timestamp that a replica of this node has applied.
    pub fn observe(&self, applied: Timestamp) {
        self.last.fetch_max(applied.0, Ordering::Relaxed);
    }

    /// Whether a client can have a timestamp from a node whose clock is right: it is not above this
    /// clock, or within [`MAX_CLOCK_OFFSET_MS`] of the wall clock. `what` names it in the error.
    ///
    /// # Errors
    /// [`Error::ClockOutOfBounds`].
    pub fn check(&self, wall_ms: u64, what: &'static str, seen: Timestamp) -> Result<(), Error> {
        let wall = Timestamp::from_ms(wall_ms);
        if seen <= wall.plus_ms(MAX_CLOCK_OFFSET_MS) || seen <= self.now(wall_ms) {
            return Ok(());
        }
        let ahead = seen.0.saturating_sub(wall.0);
        Err(Error::ClockOutOfBounds {
            what: what.into(),
            ahead_ms: ahead.div_ceil(1 << Timestamp::COUNTER_BITS),
        })
    }

    /// Raises the clock to a timestamp that a client has seen at another node.
    ///
    /// # Errors
    /// [`Error::ClockOutOfBounds`]; the clock has not moved.
    pub fn follow(&self, wall_ms: u64, what: &'static str, seen: Timestamp) -> Result<(), Error> {
        self.check(wall_ms, what, seen)?;
        self.last.fetch_max(seen.0, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_when_the_wall_clock_goes_back() {
        let hlc = Hlc::new();
        let a = hlc.take(10_000, Timestamp::ZERO, 5);
        let b = hlc.take(1_000, Timestamp::ZERO, 1);
        assert_eq!(b, Timestamp(a.0 + 5));
        let c = hlc.take(1_000, Timestamp::from_ms(20_000), 1);
        assert_eq!(c, Timestamp::from_ms(20_000).next());
        assert!(hlc.now(0) >= c);
    }

    #[test]
    fn no_client_moves_it_further_than_the_bound_above_the_wall_clock() {
        let hlc = Hlc::new();
        let wall_ms = 1_000_000;
        let bound = Timestamp::from_ms(wall_ms).plus_ms(MAX_CLOCK_OFFSET_MS);
        let mut refused = 0;
        for _ in 0..10_000 {
            let token = hlc.now(wall_ms).plus_ms(MAX_CLOCK_OFFSET_MS - 1);
            refused += u32::from(hlc.follow(wall_ms, "token", token).is_err());
            assert!(hlc.now(wall_ms) <= bound);
        }
        assert_eq!(refused, 9_999, "the first one alone is within the bound");
    }

    #[test]
    fn a_timestamp_is_refused_only_above_both_clocks_and_the_error_says_by_how_much() {
        let hlc = Hlc::new();
        let wall_ms = 1_000_000;
        let at = |ms: u64| Timestamp::from_ms(wall_ms + ms);
        assert_eq!(hlc.check(wall_ms, "token", at(500)), Ok(()));
        let far = Timestamp(at(500).0 + 1);
        let refused = hlc.check(wall_ms, "token", far).expect_err("too far");
        assert_eq!(
            refused,
            Error::ClockOutOfBounds {
                what: "token".into(),
                ahead_ms: 501
            }
        );
        assert!(refused.to_string().contains("501 ms ahead"), "{refused}");
        for far in [u64::MAX, Timestamp::MAX.0] {
            assert!(hlc.follow(wall_ms, "token", Timestamp(far)).is_err());
        }
        // What was applied here has happened, and a client may have seen it.
        hlc.observe(at(60_000));
        assert_eq!(hlc.follow(wall_ms, "token", at(60_000)), Ok(()));
        assert!(hlc.follow(wall_ms, "token", at(60_001)).is_err());
        // The same after the wall clock was set back.
        assert_eq!(hlc.check(0, "token", at(60_000)), Ok(()));
    }
}
