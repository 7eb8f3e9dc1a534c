//! When operations begin. Closed loop: at once, as soon as the one before it is answered. Open
//! loop: at fixed moments, whether earlier ones are answered or not; an operation that finds no free
//! place waits, and its latency counts from the moment it was meant to begin, so that a stall of
//! the database shows in all that it delays.
//!
//! One per thread, single-threaded. tokio's timers are a millisecond coarse, so the last stretch
//! before an operation is due is spent polling.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// From here on the pacer polls instead of sleeping.
const POLL_BEFORE: Duration = Duration::from_millis(3);

/// Hands out the moments at which operations begin.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    end: Option<Instant>,
    /// Between two operations; `None` in a closed loop.
    interval: Option<Duration>,
    taken: Cell<u64>,
    idle: RefCell<VecDeque<Waker>>,
    is_over: Cell<bool>,
}

impl Pace {
    /// From `start` until `end`, at `rate` operations a second if there is one.
    pub fn new(start: Instant, end: Option<Instant>, rate: Option<f64>) -> Pace {
        let interval = rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let (taken, is_over) = (Cell::new(0), Cell::new(false));
        Pace {
            start,
            end,
            interval,
            taken,
            idle: RefCell::default(),
            is_over,
        }
    }

    /// When the next operation is meant to begin: now or earlier. `None`: the time is over.
    /// `now` is a recent reading of the clock.
    pub async fn next(&self, now: Instant) -> Option<Instant> {
        let Some(interval) = self.interval else {
            let is_over = self.is_over.get() || self.end.is_some_and(|end| now >= end);
            return (!is_over).then_some(now);
        };
        let mut now = now;
        poll_fn(|context| {
            let ticket = self.taken.get();
            let intended = self.moment(interval, ticket);
            if self.is_over.get() || self.end.is_some_and(|end| intended >= end || now >= end) {
                return Poll::Ready(None);
            }
            if intended <= now {
                self.taken.set(ticket + 1);
                return Poll::Ready(Some(intended));
            }
            now = Instant::now();
            if intended <= now {
                self.taken.set(ticket + 1);
                return Poll::Ready(Some(intended));
            }
            self.idle.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn moment(&self, interval: Duration, ticket: u64) -> Instant {
        self.start + Duration::from_nanos((interval.as_nanos() as f64 * ticket as f64) as u64)
    }

    /// Whether operations wait for answers, not for their moment.
    pub fn is_closed(&self) -> bool {
        self.interval.is_none()
    }

    /// Ends the pace: nothing begins any more.
    pub fn finish(&self) {
        self.is_over.set(true);
        self.idle.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Operations that were due before the end and have not begun.
    pub fn not_started(&self) -> u64 {
        let (Some(interval), Some(end)) = (self.interval, self.end) else {
            return 0;
        };
        let due = (end - self.start)
            .as_nanos()
            .div_ceil(interval.as_nanos().max(1));
        u64::try_from(due)
            .unwrap_or(u64::MAX)
            .saturating_sub(self.taken.get())
    }

    /// Wakes places for operations when they are due, until the end. Does nothing in a closed loop.
    pub async fn drive(&self) {
        let Some(interval) = self.interval else {
            return;
        };
        while !self.is_over.get() {
            let now = Instant::now();
            if self.end.is_some_and(|end| now >= end) {
                return self.finish();
            }
            let next = self.moment(interval, self.taken.get());
            if next > now + POLL_BEFORE {
                let until = self.end.map_or(next, |end| next.min(end));
                tokio::time::sleep_until((until - POLL_BEFORE / 2).into()).await;
                continue;
            }
            let passed = now.saturating_duration_since(next).as_nanos();
            let due = if next > now {
                0
            } else {
                1 + passed / interval.as_nanos().max(1)
            };
            self.wake(usize::try_from(due).unwrap_or(usize::MAX));
            tokio::task::yield_now().await;
        }
    }

    /// Wakes up to `count` places that wait.
    fn wake(&self, count: usize) {
        let mut idle = self.idle.borrow_mut();
        let count = idle.len().min(count);
        idle.drain(..count).for_each(Waker::wake);
    }
}
