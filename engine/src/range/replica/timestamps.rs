//! The timestamps of a replica: those that its leader gives to new commands, and the checks of those
//! that clients send.

use std::cell::Cell;

use crate::env::Clock;
use crate::error::Error;
use crate::hlc::Hlc;
use crate::limits::LEASE_MS;
use crate::types::Timestamp;

/// The node's clock as one replica uses it.
pub struct Timestamps<C: Clock> {
    hlc: Hlc,
    clock: C,
    /// New writes get timestamps above this, because reads were served up to it.
    floor: Cell<Timestamp>,
}

impl<C: Clock> Timestamps<C> {
    /// Those of a replica that has served nothing yet.
    pub fn new(hlc: Hlc, clock: C) -> Timestamps<C> {
        Timestamps {
            hlc,
            clock,
            floor: Cell::new(Timestamp::ZERO),
        }
    }

    /// Makes all new writes get timestamps above `at`.
    pub fn raise_floor(&self, at: Timestamp) {
        self.floor.set(self.floor.get().max(at));
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
