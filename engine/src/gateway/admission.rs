//! Admission: whether the shard accepts a request, and how many requests are in flight. The places for
//! scans and the memory of requests that wait for a leader are shared fairly by the ranges
//! ([`crate::fair_share`]). This is not where a shard with too many writes refuses more of them: that is
//! `engine/src/range/proposer/write_admission.rs`, at the range's leader. Lives on its shard's thread.

use std::cell::Cell;
use std::rc::Rc;

use crate::error::Error;
use crate::fair_share::{self, Shared};
use crate::limits::LEADER_WAIT_LEN_MAX;
use crate::notify::Count;
use crate::types::{RangeId, Timestamp};

/// How many scans of a shard may run at a time. If only one range scans, it gets half.
const SCANS_MAX: usize = 128;
/// What a request that waits for a leader counts for besides its own bytes: its task, and its share of
/// the tries that they all make.
const LEADER_WAIT_LEN: usize = 8 << 10;
/// When a caller should try again after an overload, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;

/// A part of something that the ranges share. `None` is all ranges that are not known here.
pub(super) type Part = fair_share::Part<Option<RangeId>>;

/// The state of a shard's admission.
pub(super) struct Admission {
    is_shutting_down: Cell<bool>,
    in_flight: Count,
    /// The scans that run.
    scans: Rc<Shared<Option<RangeId>>>,
    /// Bytes of the requests that wait for a leader.
    leader_waits: Rc<Shared<Option<RangeId>>>,
    /// The newest timestamp in a caller's token that was accepted.
    seen: Cell<Timestamp>,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission {
            is_shutting_down: Cell::new(false),
            in_flight: Count::default(),
            scans: Rc::new(Shared::new(SCANS_MAX)),
            leader_waits: Rc::new(Shared::new(LEADER_WAIT_LEN_MAX)),
            seen: Cell::default(),
        }
    }
}

impl Admission {
    /// Checks that the shard serves, that the deadline has not passed and, unless a token as new was
    /// accepted before, that `take` accepts this one.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`], [`Error::DeadlineExceeded`], or that of `take`.
    pub fn admit(
        &self,
        is_late: bool,
        token: Timestamp,
        take: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.is_shutting_down.get() {
            return Err(Error::ShuttingDown);
        }
        if is_late {
            return Err(Error::DeadlineExceeded);
        }
        if token > self.seen.get() {
            take()?;
            self.seen.set(token);
        }
        Ok(())
    }

    /// Refuses all requests from now on.
    pub fn shut_down(&self) {
        self.is_shutting_down.set(true);
    }

    /// Whether all requests are refused.
    pub fn is_shutting_down(&self) -> bool {
        self.is_shutting_down.get()
    }

    /// Counts a request in flight.
    pub fn begin(&self) {
        self.in_flight.add(1);
    }

    /// Counts a request as answered.
    pub fn end(&self) {
        self.in_flight.subtract(1);
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Waits until no request is in flight.
    pub async fn idle(&self) {
        self.in_flight.until(|number| number == 0).await;
    }

    /// Counts a scan of a range as running until the returned value is dropped. `None`: the range is not
    /// known, which the scan itself will find.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many scans are running, and those of the range have their share.
    pub fn begin_scan(&self, range: Option<RangeId>) -> Result<Part, Error> {
        self.scans.take(range, 1).ok_or_else(|| {
            let reason = "as many scans run as may, and those of the range have their share";
            Error::overloaded(reason, RETRY_AFTER_MS)
        })
    }

    /// Counts a request of this many bytes, for a key of this range, as waiting for a leader until the
    /// returned value is dropped.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many requests wait, and those of the range have their share.
    pub fn begin_leader_wait(&self, range: Option<RangeId>, len: usize) -> Result<Part, Error> {
        let held = self.leader_waits.take(range, len + LEADER_WAIT_LEN);
        held.ok_or_else(|| {
            let reason = "as many requests wait for a leader as may, and those of the range have their share";
            Error::overloaded(reason, RETRY_AFTER_MS)
        })
    }

    /// How many scans and waits for a leader were refused because their range has its share.
    pub fn refused(&self) -> u64 {
        self.scans.refused() + self.leader_waits.refused()
    }
}

/// Raises a count by one for as long as it lives.
pub struct Held(Rc<Count>);

impl Held {
    /// Counts one more.
    pub fn new(count: &Rc<Count>) -> Held {
        count.add(1);
        Held(count.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.subtract(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_or_comes_to_a_shard_that_stops_is_refused() {
        let admission = Admission::default();
        let admit = |is_late| admission.admit(is_late, Timestamp::ZERO, || Ok(()));
        assert_eq!(admit(false), Ok(()));
        assert_eq!(admit(true), Err(Error::DeadlineExceeded));
        admission.shut_down();
        assert_eq!(admit(false), Err(Error::ShuttingDown));
    }

    #[test]
    fn a_token_is_taken_once_and_a_refused_one_never() {
        let admission = Admission::default();
        let taken = Cell::new(0);
        let take = || {
            taken.set(taken.get() + 1);
            Ok(())
        };
        for _ in 0..2 {
            assert_eq!(admission.admit(false, Timestamp(5), take), Ok(()));
        }
        assert_eq!(taken.get(), 1);
        let refused = || Err(Error::ShuttingDown);
        for _ in 0..2 {
            let admitted = admission.admit(false, Timestamp(6), refused);
            assert_eq!(admitted, Err(Error::ShuttingDown));
        }
    }

    #[test]
    fn only_so_many_scans_run_at_a_time_and_one_range_does_not_take_all_places() {
        let admission = Admission::default();
        let [one, other] = [Some(RangeId(1)), Some(RangeId(2))];
        let fill = |range| -> Vec<Part> {
            std::iter::from_fn(|| admission.begin_scan(range).ok()).collect()
        };
        let mut running = fill(one);
        assert_eq!(running.len(), SCANS_MAX / 2);
        assert_eq!(admission.refused(), 1);
        let others = fill(other);
        assert_eq!(others.len(), SCANS_MAX / 4);
        running.pop();
        assert!(admission.begin_scan(one).is_err(), "it has its share");
        assert!(admission.begin_scan(Some(RangeId(3))).is_ok());
        drop((running, others));
        assert_eq!(fill(one).len(), SCANS_MAX / 2);
    }

    #[test]
    fn a_range_without_a_leader_does_not_take_all_memory_for_waits() {
        let admission = Admission::default();
        let [one, other] = [Some(RangeId(1)), Some(RangeId(2))];
        let fill = |range| -> Vec<Part> {
            std::iter::from_fn(|| admission.begin_leader_wait(range, 0).ok()).collect()
        };
        let waiting = fill(one);
        assert_eq!(waiting.len(), LEADER_WAIT_LEN_MAX / 2 / LEADER_WAIT_LEN);
        let refused = admission.begin_leader_wait(one, 0).err();
        assert!(
            matches!(refused, Some(Error::Overloaded { retry_after_ms, .. }) if retry_after_ms > 0),
            "{refused:?}"
        );
        // The other one waits, also with a large write, and one that is not known here.
        let large = LEADER_WAIT_LEN_MAX / 4;
        let others = [
            admission.begin_leader_wait(other, large),
            admission.begin_leader_wait(None, 100),
        ];
        assert!(others.iter().all(Result::is_ok));
        assert!(admission.begin_leader_wait(other, large).is_err());
        drop((waiting, others));
        assert_eq!(admission.leader_waits.used(), 0);
        assert_eq!(admission.refused(), 3);
    }
}
