//! Wakes from other threads.
//!
//! If another thread wakes one of glommio's tasks directly, the task is put where only glommio's
//! own reactor looks. So a task that waits for another thread does so with a waker of this module:
//! it pushes a number onto a lock-free queue of the task's thread, and signals an eventfd if that
//! thread sleeps.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};
use slab::Slab;

use super::Reactor;

/// The part of a thread's wake queue that other threads use.
struct SharedWakeQueue {
    queue: SegQueue<usize>,
    /// Whether the thread sleeps, so that the eventfd must be signalled.
    sleeps: AtomicBool,
    eventfd: OwnedFd,
}

/// The remote wakes of one thread.
pub struct WakeQueue {
    shared: Arc<SharedWakeQueue>,
    /// The task that each number wakes.
    waiting: RefCell<Slab<Waker>>,
}

impl WakeQueue {
    pub(super) fn new() -> io::Result<WakeQueue> {
        let shared = SharedWakeQueue {
            queue: SegQueue::new(),
            sleeps: AtomicBool::new(false),
            eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        Ok(WakeQueue {
            shared: Arc::new(shared),
            waiting: RefCell::default(),
        })
    }

    /// Becomes readable when a wake comes while the thread sleeps. It need not be read.
    pub(super) fn eventfd(&self) -> BorrowedFd<'_> {
        self.shared.eventfd.as_fd()
    }

    /// Empties the queue: adds the wakers of the tasks that it wakes.
    pub(super) fn take(&self, woken: &mut Vec<Waker>) {
        while let Some(number) = self.shared.queue.pop() {
            // The task may have given up.
            woken.extend(self.waiting.borrow().get(number).cloned());
        }
    }

    /// Called before the thread sleeps. Returns whether it may sleep, that is, whether the queue is empty.
    pub(super) fn expect(&self) -> bool {
        self.shared.sleeps.store(true, Ordering::SeqCst);
        // A sender reads `sleeps` after it has pushed, so one of the two sees the other.
        fence(Ordering::SeqCst);
        let may = self.shared.queue.is_empty();
        if !may {
            self.shared.sleeps.store(false, Ordering::Relaxed);
        }
        may
    }

    /// Called after the thread has slept.
    pub(super) fn awake(&self, woken: &mut Vec<Waker>) {
        self.shared.sleeps.store(false, Ordering::Relaxed);
        self.take(woken);
    }
}

/// Wakes one waiting task from any thread.
struct RemoteWaker {
    shared: Arc<SharedWakeQueue>,
    number: usize,
}

impl Wake for RemoteWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.shared.queue.push(self.number);
        fence(Ordering::SeqCst);
        if self.shared.sleeps.swap(false, Ordering::SeqCst) {
            // The write fails if the counter is full; then the eventfd is signalled already.
            let _ = rustix::io::write(&self.shared.eventfd, &1_u64.to_ne_bytes());
        }
    }
}

/// Holds the waker of a task that waits for another thread.
pub struct WakerSlot {
    reactor: Rc<Reactor>,
    number: usize,
    waker: Waker,
}

impl WakerSlot {
    fn new(task: &Waker) -> WakerSlot {
        let reactor = Reactor::here();
        let number = reactor.wake_queue.waiting.borrow_mut().insert(task.clone());
        let shared = reactor.wake_queue.shared.clone();
        let waker = Arc::new(RemoteWaker { shared, number }).into();
        WakerSlot {
            reactor,
            number,
            waker,
        }
    }

    /// The waker to give to other threads; it wakes this task.
    pub fn waker(slot: &mut Option<WakerSlot>, task: &Waker) -> Waker {
        let slot = slot.get_or_insert_with(|| WakerSlot::new(task));
        let mut waiting = slot.reactor.wake_queue.waiting.borrow_mut();
        if let Some(kept) = waiting.get_mut(slot.number) {
            kept.clone_from(task);
        }
        slot.waker.clone()
    }
}

impl Drop for WakerSlot {
    fn drop(&mut self) {
        let kept = self
            .reactor
            .wake_queue
            .waiting
            .borrow_mut()
            .try_remove(self.number);
        // It may be the last reference to its task.
        drop(kept);
    }
}

/// A future that another thread completes: see [`cross_thread`].
pub struct CrossThread<F> {
    future: Pin<Box<F>>,
    slot: Option<WakerSlot>,
}

/// Lets this thread wait for a future that another thread completes.
pub fn cross_thread<F: Future>(future: F) -> CrossThread<F> {
    CrossThread {
        future: Box::pin(future),
        slot: None,
    }
}

impl<F: Future> Future for CrossThread<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let waker = WakerSlot::waker(&mut self.slot, cx.waker());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}
