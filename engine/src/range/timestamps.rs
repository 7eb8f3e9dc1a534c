//! The timestamps of a replica: those that its leader gives to new commands, and the checks of those
//! that clients send.

use std::cell::{Cell, RefCell};

use crate::env::Clock;
use crate::error::Error;
use crate::hlc::Hlc;
use crate::limits::LEASE_MS;
use crate::types::{KeyRange, Timestamp};

/// So many ranges that were taken over are remembered, the last ones.
const TAKEN_OVER_MAX: usize = 16;

/// The node's clock as one replica uses it.
pub struct Timestamps<C: Clock> {
    hlc: Hlc,
    clock: C,
    /// New writes get timestamps above this, because reads were served up to it.
    floor: Cell<Timestamp>,
    /// The first keys of the ranges that the replica's range has taken over, and when it did.
    taken_over: RefCell<Vec<(Timestamp, Vec<u8>)>>,
}

impl<C: Clock> Timestamps<C> {
    /// Those of a replica that has served nothing yet.
    pub fn new(hlc: Hlc, clock: C) -> Timestamps<C> {
        Timestamps {
            hlc,
            clock,
            floor: Cell::new(Timestamp::ZERO),
            taken_over: RefCell::default(),
        }
    }

    /// Makes all new writes get timestamps above `at`.
    pub fn raise_floor(&self, at: Timestamp) {
        self.floor.set(self.floor.get().max(at));
    }

    /// Notes that the range has taken over its right neighbour, which began at `border`.
    pub fn took_over(&self, at: Timestamp, border: Vec<u8>) {
        let mut taken_over = self.taken_over.borrow_mut();
        if taken_over.len() == TAKEN_OVER_MAX {
            taken_over.remove(0);
        }
        taken_over.push((at, border));
    }

    /// Cuts keys of the range to those around a key that were in one range at a timestamp: those from `from`
    /// on, or in reverse those before it, if it is a key. A scan whose timestamp was chosen in one range
    /// must not read another one at it, in which later writes may have been acknowledged before the scan
    /// began.
    pub fn cut_to_one_range(&self, keys: &mut KeyRange, at: Timestamp, from: &[u8], reverse: bool) {
        for (taken_over, border) in &*self.taken_over.borrow() {
            let is_later = *taken_over > at && keys.contains(border);
            match reverse {
                false if is_later && border.as_slice() > from => keys.end = Some(border.clone()),
                true if is_later && (from.is_empty() || border.as_slice() < from) => {
                    keys.start.clone_from(border);
                }
                _ => {}
            }
        }
    }

    /// The highest timestamp at which a read was served, or might have been before this replica led.
    pub fn served(&self) -> Timestamp {
        self.floor.get()
    }

    /// Takes `count` timestamps for new commands, above `last` and all that were served; gives the
    /// first.
    pub fn take(&self, last: Timestamp, count: u64) -> Timestamp {
        let above = last.max(self.floor.get());
        self.hlc.take(self.clock.wall_ms(), above, count)
    }

    /// The ceiling of an entry whose last timestamp is `last`. It is based on the wall clock, not
    /// on the hybrid clock: the next leader starts above the ceiling, and if each based its own on
    /// that start, the clock would run ahead by a lease with every change of leaders.
    pub fn ceiling(&self, last: Timestamp) -> Timestamp {
        Timestamp::from_ms(self.clock.wall_ms() + LEASE_MS).max(last)
    }

    /// Lets the node's clock not fall behind what was applied.
    pub fn observe(&self, applied: Timestamp) {
        self.hlc.observe(applied);
    }

    /// Refuses a timestamp from a client that is too far ahead; see [`Hlc::check`].
    ///
    /// # Errors
    /// [`Error::ClockOutOfBounds`].
    pub fn check(&self, what: &'static str, seen: Timestamp) -> Result<(), Error> {
        self.hlc.check(self.clock.wall_ms(), what, seen)
    }

    /// The cluster's time, as this node knows it.
    pub fn now(&self) -> Timestamp {
        self.hlc.now(self.clock.wall_ms())
    }

    /// A random id, such as a client's.
    pub fn random_id(&self) -> u128 {
        u128::from(self.clock.random_u64()) << 64 | u128::from(self.clock.random_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoClock;

    impl Clock for NoClock {
        fn wall_ms(&self) -> u64 {
            0
        }

        fn random_u64(&self) -> u64 {
            0
        }
    }

    impl Clone for NoClock {
        fn clone(&self) -> NoClock {
            NoClock
        }
    }

    #[test]
    fn a_scan_reads_at_its_timestamp_only_what_was_in_one_range_then() {
        let timestamps = Timestamps::new(Hlc::default(), NoClock);
        timestamps.took_over(Timestamp(50), b"m".to_vec());
        timestamps.took_over(Timestamp(70), b"t".to_vec());
        let cut = |at: u64, from: &str, reverse: bool| {
            let mut keys = KeyRange {
                start: b"c".to_vec(),
                end: Some(b"z".to_vec()),
            };
            timestamps.cut_to_one_range(&mut keys, Timestamp(at), from.as_bytes(), reverse);
            let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            (text(&keys.start), text(&keys.end.unwrap_or_default()))
        };
        let keys = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        assert_eq!(cut(70, "d", false), keys("c", "z"));
        assert_eq!(cut(60, "d", false), keys("c", "t"));
        assert_eq!(cut(40, "d", false), keys("c", "m"));
        assert_eq!(cut(40, "m", false), keys("c", "t"));
        assert_eq!(cut(40, "t", false), keys("c", "z"));
        assert_eq!(cut(40, "", true), keys("t", "z"));
        assert_eq!(cut(40, "t", true), keys("m", "z"));
        assert_eq!(cut(40, "m", true), keys("c", "z"));
        assert_eq!(cut(60, "q", true), keys("c", "z"));
    }
}
