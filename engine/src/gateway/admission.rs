//! Admission: whether the shard takes requests, and how many it works on. The places for scans are
//! shared fairly by the ranges ([`crate::fair_share`]). Lives on its shard's thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::fair_share::Use;
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

/// The state of a shard's admission.
#[derive(Default)]
pub(super) struct Admission {
    is_draining: Cell<bool>,
    in_flight: Count,
    scans: Rc<Scans>,
    /// Bytes of the requests that wait for a leader.
    leader_waits: Rc<Count>,
    /// The newest timestamp in a caller's token that was accepted.
    seen: Cell<Timestamp>,
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
        if self.is_draining.get() {
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
    pub fn drain(&self) {
        self.is_draining.set(true);
    }

    /// Whether all requests are refused.
    pub fn is_draining(&self) -> bool {
        self.is_draining.get()
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
    pub fn begin_scan(&self, range: Option<RangeId>) -> Result<ScanPlace, Error> {
        self.scans.begin(range)
    }

    /// How many scans were refused because those of their range have their share of the places.
    pub fn scans_refused(&self) -> u64 {
        self.scans.refused.get()
    }

    /// Counts a request of this many bytes as waiting for a leader until the returned value is dropped.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many requests wait.
    pub fn begin_leader_wait(&self, len: usize) -> Result<Held, Error> {
        let len = len + LEADER_WAIT_LEN;
        if self.leader_waits.get() + len > LEADER_WAIT_LEN_MAX {
            let reason = "too many requests wait for a range to have a leader";
            return Err(Error::overloaded(reason, RETRY_AFTER_MS));
        }
        Ok(Held::of(&self.leader_waits, len))
    }
}

/// The scans that run.
#[derive(Default)]
struct Scans {
    running: Cell<usize>,
    /// How many there are of each range that has any.
    of_range: RefCell<FxHashMap<Option<RangeId>, usize>>,
    refused: Cell<u64>,
}

impl Scans {
    fn begin(self: &Rc<Scans>, range: Option<RangeId>) -> Result<ScanPlace, Error> {
        let mut of_range = self.of_range.borrow_mut();
        let own = of_range.get(&range).copied().unwrap_or(0);
        let all = Use {
            max: SCANS_MAX,
            used: self.running.get(),
            holders: of_range.len(),
        };
        if !all.allows(own, 1) {
            self.refused.set(self.refused.get() + 1);
            let reason = "as many scans run as may, and those of the range have their share";
            return Err(Error::overloaded(reason, RETRY_AFTER_MS));
        }
        of_range.insert(range, own + 1);
        self.running.set(self.running.get() + 1);
        Ok(ScanPlace {
            scans: self.clone(),
            range,
        })
    }
}

/// The place of a scan that runs.
pub struct ScanPlace {
    scans: Rc<Scans>,
    range: Option<RangeId>,
}

impl Drop for ScanPlace {
    fn drop(&mut self) {
        let mut of_range = self.scans.of_range.borrow_mut();
        let own = of_range.get(&self.range).map_or(0, |own| own - 1);
        match own {
            0 => of_range.remove(&self.range),
            own => of_range.insert(self.range, own),
        };
        self.scans.running.set(self.scans.running.get() - 1);
    }
}

/// Raises a count for as long as it lives.
pub struct Held {
    count: Rc<Count>,
    by: usize,
}

impl Held {
    /// Counts one more.
    pub fn new(count: &Rc<Count>) -> Held {
        Held::of(count, 1)
    }

    /// Raises the count by a number.
    fn of(count: &Rc<Count>, by: usize) -> Held {
        count.add(by);
        Held {
            count: count.clone(),
            by,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.subtract(self.by);
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
        admission.drain();
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
        let fill = |range| -> Vec<ScanPlace> {
            std::iter::from_fn(|| admission.begin_scan(range).ok()).collect()
        };
        let mut running = fill(one);
        assert_eq!(running.len(), SCANS_MAX / 2);
        assert_eq!(admission.scans_refused(), 1);
        let others = fill(other);
        assert_eq!(others.len(), SCANS_MAX / 4);
        running.pop();
        assert!(admission.begin_scan(one).is_err(), "it has its share");
        assert!(admission.begin_scan(Some(RangeId(3))).is_ok());
        drop((running, others));
        assert!(admission.scans.of_range.borrow().is_empty());
        assert_eq!(fill(one).len(), SCANS_MAX / 2);
    }

    #[test]
    fn only_so_many_bytes_wait_for_a_leader() {
        let admission = Admission::default();
        let large = LEADER_WAIT_LEN_MAX / 4;
        let begin = |_| admission.begin_leader_wait(large).expect("room");
        let mut waiting: Vec<Held> = (0..3).map(begin).collect();
        assert!(matches!(
            admission.begin_leader_wait(large),
            Err(Error::Overloaded { .. })
        ));
        waiting.push(admission.begin_leader_wait(0).expect("room"));
        drop(waiting);
        assert_eq!(admission.leader_waits.get(), 0);
    }
}
