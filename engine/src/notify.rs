//! An event that tasks of one thread wait for, and a count that they wait for.
//!
//! Each notification of an event lets all waiting tasks look again. An event has no memory: a task looks
//! at the state before it waits, and the code that changes the state notifies afterwards. An event
//! belongs to one thread; between threads, wakers that are `Send` are needed.

use std::cell::{Cell, RefCell};
use std::task::{Poll, Waker};

/// Wakes the tasks that wait for a change.
#[derive(Debug, Default)]
pub struct Notify {
    waiting: RefCell<Vec<Waker>>,
    /// The memory of the list above, while no task waits.
    spare: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Makes all tasks that wait look again.
    pub fn notify(&self) {
        if self.waiting.borrow().is_empty() {
            return;
        }
        // A waker may run code that waits anew.
        let spare = self.spare.take();
        let mut woken = self.waiting.replace(spare);
        woken.drain(..).for_each(Waker::wake);
        self.spare.replace(woken);
    }

    /// Waits for the next notification. A task that waits for something else beside it may go on
    /// before.
    pub async fn next(&self) {
        let mut has_waited = false;
        self.until(|| std::mem::replace(&mut has_waited, true))
            .await;
    }

    /// Waits until `holds` is true: it is asked now and after each notification.
    pub async fn until(&self, mut holds: impl FnMut() -> bool) {
        std::future::poll_fn(|cx| {
            if holds() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            // A task that also waits for something else may come here again before it is notified.
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// A number that tasks of one thread can wait for.
#[derive(Debug, Default)]
pub struct Count {
    number: Cell<usize>,
    changed: Notify,
}

impl Count {
    /// The number now.
    pub fn get(&self) -> usize {
        self.number.get()
    }

    /// Raises the number.
    pub fn add(&self, more: usize) {
        self.number.set(self.number.get() + more);
        self.changed.notify();
    }

    /// Lowers the number.
    pub fn subtract(&self, less: usize) {
        self.number.set(self.number.get() - less);
        self.changed.notify();
    }

    /// Waits until `holds` is true of the number.
    pub async fn until(&self, holds: impl Fn(usize) -> bool) {
        self.changed.until(|| holds(self.number.get())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Wakes>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_goes_on_when_the_count_is_as_it_waits_for() {
        let (count, wakes) = (Count::default(), Arc::new(Wakes::default()));
        count.add(2);
        let waker = Waker::from(wakes.clone());
        let mut none = pin!(count.until(|number| number == 0));
        let mut poll = || none.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(poll().is_pending());
        count.subtract(1);
        assert!(poll().is_pending(), "one is left");
        count.subtract(1);
        assert_eq!((count.get(), wakes.0.load(Ordering::Relaxed)), (0, 2));
        assert!(poll().is_ready());
    }

    #[test]
    fn each_that_waits_is_woken_once_and_goes_on_when_it_holds() {
        let (notify, open) = (Notify::default(), Cell::new(false));
        let counts = [Arc::new(Wakes::default()), Arc::new(Wakes::default())];
        let wakers = counts.clone().map(Waker::from);
        let mut one = pin!(notify.until(|| open.get()));
        let mut other = pin!(notify.until(|| open.get()));
        let poll = |which: usize, task: std::pin::Pin<&mut dyn Future<Output = ()>>| {
            task.poll(&mut Context::from_waker(&wakers[which]))
                .is_ready()
        };
        assert!(!poll(0, one.as_mut()) && !poll(0, one.as_mut()) && !poll(1, other.as_mut()));
        notify.notify();
        notify.notify();
        let woken = || {
            counts
                .each_ref()
                .map(|count| count.0.load(Ordering::Relaxed))
        };
        assert_eq!(woken(), [1, 1]);
        assert!(!poll(0, one.as_mut()), "nothing has changed");
        open.set(true);
        assert!(poll(1, other.as_mut()), "it looks before it waits");
        notify.notify();
        assert_eq!(woken(), [2, 1]);
        assert!(poll(0, one.as_mut()));
    }
}
