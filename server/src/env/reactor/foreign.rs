//! Wakes from other threads.
//!
//! If another thread wakes one of glommio's tasks directly, the task is put where only glommio's
//! own reactor looks. So a task that waits for another thread does so with a waker of this module:
//! it pushes a number onto a lock-free queue of the task's thread ("mail"), and signals an eventfd
//! ("bell") if that thread sleeps.

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

/// The part of a thread's mail that other threads use.
struct Mailbox {
    posted: SegQueue<usize>,
    /// Whether the thread sleeps, so that the bell must be rung.
    sleeps: AtomicBool,
    bell: OwnedFd,
}

/// The remote wakes of one thread.
pub struct Mail {
    mailbox: Arc<Mailbox>,
    /// The task that each number wakes.
    waiting: RefCell<Slab<Waker>>,
}

impl Mail {
    pub(super) fn new() -> io::Result<Mail> {
        let mailbox = Mailbox {
            posted: SegQueue::new(),
            sleeps: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        Ok(Mail {
            mailbox: Arc::new(mailbox),
            waiting: RefCell::default(),
        })
    }

    /// Becomes readable when mail comes while the thread sleeps. It need not be read.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.mailbox.bell.as_fd()
    }

    /// Takes the mail: adds the wakers of the tasks that it wakes.
    pub(super) fn take(&self, woken: &mut Vec<Waker>) {
        while let Some(number) = self.mailbox.posted.pop() {
            // The task may have given up.
            woken.extend(self.waiting.borrow().get(number).cloned());
        }
    }

    /// Called before the thread sleeps. Gives whether it may: no mail has come meanwhile.
    pub(super) fn expect(&self) -> bool {
        self.mailbox.sleeps.store(true, Ordering::SeqCst);
        // A sender reads `sleeps` after it has pushed, so one of the two sees the other.
        fence(Ordering::SeqCst);
        let may = self.mailbox.posted.is_empty();
        if !may {
            self.mailbox.sleeps.store(false, Ordering::Relaxed);
        }
        may
    }

    /// Called after the thread has slept.
    pub(super) fn awake(&self, woken: &mut Vec<Waker>) {
        self.mailbox.sleeps.store(false, Ordering::Relaxed);
        self.take(woken);
    }
}

/// Wakes one waiting task from any thread.
struct Post {
    mailbox: Arc<Mailbox>,
    number: usize,
}

impl Wake for Post {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mailbox.posted.push(self.number);
        fence(Ordering::SeqCst);
        if self.mailbox.sleeps.swap(false, Ordering::SeqCst) {
            // The write fails if the counter is full; then the bell has rung already.
            let _ = rustix::io::write(&self.mailbox.bell, &1_u64.to_ne_bytes());
        }
    }
}

/// A task that waits for another thread.
pub struct Place {
    reactor: Rc<Reactor>,
    number: usize,
    waker: Waker,
}

impl Place {
    fn new(task: &Waker) -> Place {
        let reactor = Reactor::here();
        let number = reactor.mail.waiting.borrow_mut().insert(task.clone());
        let mailbox = reactor.mail.mailbox.clone();
        let waker = Arc::new(Post { mailbox, number }).into();
        Place {
            reactor,
            number,
            waker,
        }
    }

    /// The waker to give to other threads; it wakes this task.
    pub fn waker(place: &mut Option<Place>, task: &Waker) -> Waker {
        let place = place.get_or_insert_with(|| Place::new(task));
        let mut waiting = place.reactor.mail.waiting.borrow_mut();
        if let Some(kept) = waiting.get_mut(place.number) {
            kept.clone_from(task);
        }
        place.waker.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let kept = self
            .reactor
            .mail
            .waiting
            .borrow_mut()
            .try_remove(self.number);
        // It may be the last reference to its task.
        drop(kept);
    }
}

/// A future that another thread completes: see [`foreign`].
pub struct Foreign<F> {
    future: Pin<Box<F>>,
    place: Option<Place>,
}

/// Lets this thread wait for a future that another thread completes.
pub fn foreign<F: Future>(future: F) -> Foreign<F> {
    Foreign {
        future: Box::pin(future),
        place: None,
    }
}

impl<F: Future> Future for Foreign<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let waker = Place::waker(&mut self.place, cx.waker());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}
