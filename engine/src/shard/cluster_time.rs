//! The time of the cluster, as this node knows it: that of its hybrid logical clock ([`crate::hlc`]). It
//! follows the timestamps that clients send and those in the heartbeats of other shards, within a bound above
//! the wall clock. What replicas apply raises it without a bound ([`crate::shard::lifecycle`],
//! [`crate::range`]). Lives on the shard's thread; the shards of a node share the clock.

use super::{Shard, ShardInner};
use crate::env::{Clock, Env};
use crate::error::Error;
use crate::types::Timestamp;

impl<E: Env> Shard<E> {
    /// The cluster's time, as this node knows it.
    pub fn now(&self) -> Timestamp {
        self.inner.now()
    }

    /// Takes the largest timestamp that a client has seen: its next writes get higher ones.
    ///
    /// # Errors
    /// [`Error::ClockOutOfBounds`].
    pub fn take_token(&self, token: Timestamp) -> Result<(), Error> {
        self.inner.follow("token", token)
    }
}

impl<E: Env> ShardInner<E> {
    pub(super) fn now(&self) -> Timestamp {
        self.hlc.now(self.around.clock.wall_ms())
    }

    /// Raises the clock to a time that was known elsewhere. `what` names it in the error.
    ///
    /// # Errors
    /// [`Error::ClockOutOfBounds`]; the clock has not moved.
    pub(super) fn follow(&self, what: &'static str, seen: Timestamp) -> Result<(), Error> {
        self.hlc.follow(self.around.clock.wall_ms(), what, seen)
    }
}
