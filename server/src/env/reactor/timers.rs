//! Timers: tasks sleep until points of the boot-time clock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Reactor;
use rangedb_engine::boot_time::BootTime;

use crate::env::clock;

/// The sleeping tasks of one thread, by when they must wake.
#[derive(Default)]
pub(super) struct Timers {
    sleeping: RefCell<BTreeMap<(BootTime, u64), Waker>>,
    last: Cell<u64>,
}

impl Timers {
    /// When the next timer is due.
    pub(super) fn next(&self) -> Option<BootTime> {
        let sleeping = self.sleeping.borrow();
        sleeping.first_key_value().map(|((until, _), _)| *until)
    }

    /// Takes the wakers of all timers that are due; returns by how much the most overdue one is late.
    pub(super) fn take_due(&self, now: BootTime, woken: &mut Vec<Waker>) -> Duration {
        let mut sleeping = self.sleeping.borrow_mut();
        let mut late = Duration::ZERO;
        while let Some(next) = sleeping.first_entry() {
            let (until, _) = *next.key();
            if until > now {
                break;
            }
            late = late.max(now - until);
            woken.push(next.remove());
        }
        late
    }
}

/// Completes at a point in time. May be made anywhere: the timer is set at the first poll.
pub struct Sleep {
    until: BootTime,
    timer: Option<(Rc<Reactor>, u64)>,
}

impl Sleep {
    /// Completes at `until`.
    pub fn until(until: BootTime) -> Sleep {
        Sleep { until, timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        if clock::now() >= until {
            return Poll::Ready(());
        }
        let (reactor, id) = self.timer.get_or_insert_with(|| {
            let reactor = Reactor::here();
            let id = reactor.timers.last.get() + 1;
            reactor.timers.last.set(id);
            (reactor, id)
        });
        let mut sleeping = reactor.timers.sleeping.borrow_mut();
        match sleeping.get_mut(&(until, *id)) {
            Some(kept) => kept.clone_from(cx.waker()),
            None => drop(sleeping.insert((until, *id), cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((reactor, id)) = self.timer.take() {
            let kept = reactor
                .timers
                .sleeping
                .borrow_mut()
                .remove(&(self.until, id));
            // It may be the last reference to its task.
            drop(kept);
        }
    }
}
