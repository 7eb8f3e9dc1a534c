//! openraft's watched values, between tasks of one thread.
//!
//! openraft changes a dozen of them with each entry, and most have one watcher or none. For that
//! tokio's locks the value and eight lists of waiters, which was a tenth of what replication costs.
//! As in [`queue`](super::queue), wakers are called and values dropped only after the borrow has
//! ended.

use std::cell::{Cell, Ref, RefCell};
use std::future::poll_fn;
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use openraft_rt::watch::{RecvError, SendError};
use openraft_rt::{Watch, WatchReceiver, WatchSender};

use super::channels::Channels;

struct Shared<T> {
    value: RefCell<T>,
    /// Rises with each change that watchers must see.
    version: Cell<u64>,
    senders: Cell<usize>,
    receivers: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

fn add(count: &Cell<usize>) {
    count.set(count.get() + 1);
}

impl<T> Shared<T> {
    fn tell(&self) {
        self.version.set(self.version.get() + 1);
        self.wake_all();
    }

    fn wake_all(&self) {
        // One at a time: this allocates nothing, and a waker may use the value again.
        loop {
            let next = self.waiting.borrow_mut().pop();
            let Some(waker) = next else { return };
            waker.wake();
        }
    }

    fn watcher(self: &Rc<Self>, seen: u64) -> Watcher<T> {
        add(&self.receivers);
        Watcher {
            shared: self.clone(),
            seen,
        }
    }
}

/// The changing end of a watched value.
pub struct Watched<T>(Rc<Shared<T>>);

/// A watcher of a value.
pub struct Watcher<T> {
    shared: Rc<Shared<T>>,
    /// The last version that it has seen.
    seen: u64,
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Watched<T> {
        add(&self.0.senders);
        Watched(self.0.clone())
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        let left = self.0.senders.get() - 1;
        self.0.senders.set(left);
        if left == 0 {
            self.0.wake_all();
        }
    }
}

impl<T> Clone for Watcher<T> {
    fn clone(&self) -> Watcher<T> {
        self.shared.watcher(self.seen)
    }
}

impl<T> Drop for Watcher<T> {
    fn drop(&mut self) {
        self.shared.receivers.set(self.shared.receivers.get() - 1);
    }
}

impl<T> Watcher<T> {
    fn poll_changed(&mut self, cx: &Context<'_>) -> Poll<Result<(), RecvError>> {
        let version = self.shared.version.get();
        if mem::replace(&mut self.seen, version) != version {
            return Poll::Ready(Ok(()));
        }
        if self.shared.senders.get() == 0 {
            return Poll::Ready(Err(RecvError(())));
        }
        let mut waiting = self.shared.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Watch for Channels {
    type Sender<T> = Watched<T>;
    type Receiver<T> = Watcher<T>;
    type Ref<'a, T: 'a> = Ref<'a, T>;

    fn channel<T>(first: T) -> (Watched<T>, Watcher<T>) {
        let shared = Rc::new(Shared {
            value: RefCell::new(first),
            version: Cell::new(0),
            senders: Cell::new(1),
            receivers: Cell::new(0),
            waiting: RefCell::default(),
        });
        let watcher = shared.watcher(0);
        (Watched(shared), watcher)
    }
}

impl<T> WatchSender<Channels, T> for Watched<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.receivers.get() == 0 {
            return Err(SendError(value));
        }
        let before = self.0.value.replace(value);
        self.0.tell();
        drop(before);
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = modify(&mut self.0.value.borrow_mut());
        if modified {
            self.0.tell();
        }
        modified
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.0.value.borrow()
    }

    fn subscribe(&self) -> Watcher<T> {
        self.0.watcher(self.0.version.get())
    }
}

impl<T> WatchReceiver<Channels, T> for Watcher<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        poll_fn(|cx| self.poll_changed(cx)).await
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.version.get();
        self.shared.value.borrow()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_change_is_told_once_to_each_and_the_end_after_the_last() {
        let (sender, mut first) = Channels::channel(1);
        let mut second = first.clone();
        assert!(first.changed().now_or_never().is_none());
        assert!(!sender.send_if_modified(|value| *value == 0));
        assert!(first.changed().now_or_never().is_none());
        sender.send(2).expect("it is watched");
        for watcher in [&mut first, &mut second] {
            assert_eq!(watcher.changed().now_or_never(), Some(Ok(())));
            assert!(watcher.changed().now_or_never().is_none());
        }
        // A watcher that subscribes later has seen the current value.
        assert!(sender.subscribe().changed().now_or_never().is_none());
        let other = sender.clone();
        drop(sender);
        other.send(3).expect("it is watched");
        assert_eq!(*first.borrow_and_update(), 3);
        assert!(first.changed().now_or_never().is_none());
        drop(other);
        assert_eq!(first.changed().now_or_never(), Some(Err(RecvError(()))));
        assert_eq!(second.changed().now_or_never(), Some(Ok(())));
        assert_eq!(second.changed().now_or_never(), Some(Err(RecvError(()))));
    }

    #[test]
    fn who_asks_again_and_again_waits_once() {
        let (sender, mut watcher) = Channels::channel(0);
        for _ in 0..10 {
            assert!(watcher.changed().now_or_never().is_none());
        }
        assert_eq!(sender.0.waiting.borrow().len(), 1);
        drop(watcher);
        assert_eq!(sender.send(1), Err(SendError(1)));
    }
}
