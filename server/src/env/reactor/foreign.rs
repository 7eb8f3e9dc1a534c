//! Wakes from other threads.
//!
//! A task of glommio that another thread wakes is put where only glommio's own reactor looks. So who
//! waits for another thread does so under a waker of this module's: it posts a number to the mail of
//! the task's thread, without a lock, and rings the bell if that thread sleeps.

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

/// What other threads know of a thread.
struct Mailbox {
    posted: SegQueue<usize>,
    /// Whether the bell is to be rung.
    sleeps: AtomicBool,
    bell: OwnedFd,
}

/// One thread's mail.
pub struct Mail {
    mailbox: Arc<Mailbox>,
    /// Whom each number wakes.
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

    /// What becomes readable when mail comes while the thread sleeps. It need not be read.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.mailbox.bell.as_fd()
    }

    /// Takes what was posted.
    pub(super) fn take(&self, woken: &mut Vec<Waker>) {
        while let Some(number) = self.mailbox.posted.pop() {
            // Who waited may have given up.
            woken.extend(self.waiting.borrow().get(number).cloned());
        }
    }

    /// The thread is about to sleep. Whether it may: nothing was posted meanwhile.
    pub(super) fn expect(&self) -> bool {
        self.mailbox.sleeps.store(true, Ordering::SeqCst);
        // Whoever posts looks at `sleeps` afterwards, so one of the two sees the other.
        fence(Ordering::SeqCst);
        let may = self.mailbox.posted.is_empty();
        if !may {
            self.mailbox.sleeps.store(false, Ordering::Relaxed);
        }
        may
    }

    /// The thread has slept.
    pub(super) fn awake(&self, woken: &mut Vec<Waker>) {
        self.mailbox.sleeps.store(false, Ordering::Relaxed);
        self.take(woken);
    }
}

/// Wakes one of those who wait.
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
            // It fails when the counter is full: then it has rung.
            let _ = rustix::io::write(&self.mailbox.bell, &1_u64.to_ne_bytes());
        }
    }
}

/// One who waits for another thread.
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

    /// The waker that other threads may have, which wakes this task.
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
        // It may be the last that holds its task.
        drop(kept);
    }
}

/// A future that another thread completes: see [`foreign`].
pub struct Foreign<F> {
    future: Pin<Box<F>>,
    place: Option<Place>,
}

/// Makes a future that another thread completes fit to be waited for on this one.
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
