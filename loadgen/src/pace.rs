//! Decides when operations begin.
//!
//! Closed loop: each as soon as the one before it is answered. Open loop: at fixed moments, whether
//! earlier ones are answered or not. An operation that finds no free slot waits, and its latency
//! counts from the moment at which it was meant to begin, so that a stall of the database shows in
//! every operation that it delays.
//!
//! One pace a thread, single-threaded. tokio's timers have a resolution of a millisecond, so the
//! kernel's are used ([`Alarm`]). Polling would take processor time from a database on the same
//! machine.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::stop::Stop;

/// How often, at least, an open loop checks whether it has ended.
const END_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Gives out the moments at which operations begin.
#[derive(Debug)]
pub struct Pace {
    start: Instant,
    end: Option<Instant>,
    /// Time between two operations; `None` in a closed loop.
    interval: Option<Duration>,
    taken: Cell<u64>,
    idle: RefCell<VecDeque<Waker>>,
    is_over: Cell<bool>,
    is_exhausted: Cell<bool>,
    stop: Stop,
}

impl Pace {
    /// A pace from `start` until `end`, or until `stop` says so, of `rate` operations a second if one is
    /// given.
    pub fn new((start, end): (Instant, Option<Instant>), rate: Option<f64>, stop: Stop) -> Pace {
        Pace {
            start,
            end,
            interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            taken: Cell::new(0),
            idle: RefCell::default(),
            is_over: Cell::new(false),
            is_exhausted: Cell::new(false),
            stop,
        }
    }

    /// The moment at which the next operation is meant to begin, now or earlier; waits for it.
    /// `None`: the time is over. `now` is a recent reading of the clock.
    pub async fn next(&self, now: Instant) -> Option<Instant> {
        let Some(interval) = self.interval else {
            let is_over = self.is_over() || self.end.is_some_and(|end| now >= end);
            return (!is_over).then_some(now);
        };
        let mut now = now;
        poll_fn(|context| {
            let ticket = self.taken.get();
            let intended = self.moment(interval, ticket);
            // The last operations are due so shortly before the end that no slot wakes before it.
            let is_late = |end| intended >= end || now >= end + interval;
            if self.is_over() || self.end.is_some_and(is_late) {
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

    fn is_over(&self) -> bool {
        self.is_over.get() || self.is_stopped()
    }

    /// Whether it was told to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_told()
    }

    /// Whether this is a closed loop.
    pub fn is_closed(&self) -> bool {
        self.interval.is_none()
    }

    /// Ends the pace: no operation begins any more.
    pub fn finish(&self) {
        self.is_over.set(true);
        self.idle.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Ends the pace since there is nothing left to do, so that nothing is due any more.
    pub fn exhaust(&self) {
        self.is_exhausted.set(true);
        self.finish();
    }

    /// How many operations were due before the end but have not begun.
    pub fn not_started(&self) -> u64 {
        let (Some(interval), Some(end), false) = (self.interval, self.end, self.is_exhausted.get())
        else {
            return 0;
        };
        // It may have been told to stop.
        let end = end.min(Instant::now()).max(self.start);
        let due = (end - self.start)
            .as_nanos()
            .div_ceil(interval.as_nanos().max(1));
        u64::try_from(due)
            .unwrap_or(u64::MAX)
            .saturating_sub(self.taken.get())
    }

    /// Wakes slots when their operations are due, until the end. Does nothing in a closed loop.
    ///
    /// # Errors
    /// The kernel refuses a timer.
    pub async fn drive(&self) -> io::Result<()> {
        match self.interval {
            Some(interval) => {
                let driven = self.drive_at(interval).await;
                // Slots that were woken last begin before the end is told.
                tokio::task::yield_now().await;
                self.finish();
                driven
            }
            None => Ok(()),
        }
    }

    async fn drive_at(&self, interval: Duration) -> io::Result<()> {
        let mut alarm = Alarm::new()?;
        while !self.is_over() {
            let now = Instant::now();
            if now < self.start {
                alarm.at(self.start.min(now + END_CHECK_INTERVAL)).await?;
                continue;
            }
            let passed = (now - self.start).as_nanos();
            let begun = u64::try_from(passed / interval.as_nanos().max(1)).unwrap_or(u64::MAX);
            self.wake(begun.saturating_add(1).saturating_sub(self.taken.get()));
            if self.end.is_some_and(|end| now >= end) {
                break;
            }
            let next = self
                .moment(interval, begun + 1)
                .min(now + END_CHECK_INTERVAL);
            alarm.at(self.end.map_or(next, |end| next.min(end))).await?;
        }
        Ok(())
    }

    /// Wakes up to `count` waiting slots.
    fn wake(&self, count: u64) {
        let mut idle = self.idle.borrow_mut();
        let count = idle.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        idle.drain(..count).for_each(Waker::wake);
    }
}

/// A kernel timer, exact to microseconds. tokio can read it like a pipe.
struct Alarm {
    timer: pipe::Receiver,
}

impl Alarm {
    fn new() -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Alarm {
            timer: pipe::Receiver::from_owned_fd_unchecked(timer)?,
        })
    }

    /// Waits until `moment`.
    async fn at(&mut self, moment: Instant) -> io::Result<()> {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Other tasks must get a turn all the same.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec::try_from(left).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        // Returns how often the timer has expired: once.
        self.timer.read_u64_le().await?;
        Ok(())
    }
}
