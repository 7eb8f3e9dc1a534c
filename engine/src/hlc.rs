//! The node's hybrid logical clock.
//!
//! One atomic word for all shards of the node (the only one on the data path besides counters),
//! taken in blocks: a proposer takes the timestamps of a whole log entry at once. It never goes
//! back while the process lives; over restarts each range starts above its own `last_ts` and
//! ceiling, so nothing here is stored. Kulkarni et al., "Logical Physical Clocks" (2014).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

    /// Raises the clock to a timestamp seen elsewhere.
    pub fn observe(&self, seen: Timestamp) {
        self.last.fetch_max(seen.0, Ordering::Relaxed);
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
}
