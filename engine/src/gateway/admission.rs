//! Admission: whether the shard takes requests, and how many it works on. Lives on its shard's
//! thread.

use std::cell::Cell;
use std::rc::Rc;

use crate::error::Error;
use crate::limits::LEADER_WAIT_LEN_MAX;
use crate::notify::Count;
use crate::types::Timestamp;

/// Most scans of one shard that run at the same time.
const SCANS_MAX: usize = 64;
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
    scans: Rc<Count>,
    /// Bytes of the requests that wait for a leader.
    leader_waits: Rc<Count>,
    /// The newest timestamp in a caller's token that was accepted.
    seen: Cell<Timestamp>,
}

impl Admission {
    /// Checks that the shard serves, that the deadline has not passed, and that the token is possible,
    /// by `take`, unless a newer one was accepted before.
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

    /// Counts a scan as running until the returned value is dropped.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many scans are running.
    pub fn begin_scan(&self) -> Result<Held, Error> {
        if self.scans.get() >= SCANS_MAX {
            return Err(Error::overloaded("too many scans run", RETRY_AFTER_MS));
        }
        Ok(Held::new(&self.scans))
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
    fn only_so_many_scans_run_at_a_time() {
        let admission = Admission::default();
        let begin = |_| admission.begin_scan().expect("room");
        let mut running: Vec<Held> = (0..SCANS_MAX).map(begin).collect();
        assert!(matches!(
            admission.begin_scan(),
            Err(Error::Overloaded { .. })
        ));
        running.pop();
        assert!(admission.begin_scan().is_ok());
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
