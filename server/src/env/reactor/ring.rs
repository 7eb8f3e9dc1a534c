//! The ring: what was asked of the kernel, and what it has answered.

#![expect(
    unsafe_code,
    reason = "the kernel reads and writes the memory of operations under way"
)]

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use slab::Slab;

use super::file::Transfer;
use super::foreign::Mail;

/// Operations that are submitted with one call at most; more take another one.
const SUBMITTED_MAX: u32 = 1024;
/// Answers that wait to be taken; should there be more, the kernel keeps them.
const COMPLETED_MAX: u32 = 8192;
/// A sleep ends after so long, whatever is awaited.
const SLEEP_LONGEST: Duration = Duration::from_secs(3600);
/// What answers to cancellations are called.
const NOBODY: u64 = u64::MAX;
/// What the bell of the mail is called.
const MAIL: u64 = u64::MAX - 1;
/// What makes a socket ready for something: data, room, the other side's end.
const EVENTS: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) as u32;
/// What stays so once it has come.
const LASTING: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;

/// What the kernel lacks.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// A ring, or something with it.
    #[error("no io_uring for a shard: {0}")]
    Kernel(#[from] io::Error),
    /// Sleep with an end (Linux 5.11) and polls that last (5.13).
    #[error("this kernel's io_uring is too old: RangeDB needs Linux 5.13 or newer")]
    TooOld,
}

/// For what a socket is ready, as far as is known.
#[derive(Debug, Default)]
pub struct Readiness {
    /// A read may find something.
    pub readable: Cell<bool>,
    /// A write may find room.
    pub writable: Cell<bool>,
    /// The other side has ended, or all has: what is ready stays so.
    pub lasting: Cell<bool>,
    /// Who waits to read.
    pub reader: RefCell<Option<Waker>>,
    /// Who waits to write.
    pub writer: RefCell<Option<Waker>>,
}

/// What is under way.
pub(super) enum Operation {
    /// A socket's readiness, until the socket is dropped.
    Watch(RawFd, Rc<Readiness>),
    /// The same, of a socket that was dropped: the last answer has not come.
    Unwatched,
    /// A read or write of a file.
    Transfer(Transfer),
}

/// A ring of one thread.
pub(super) struct Ring {
    ring: IoUring,
    /// By their number.
    pub(super) operations: Slab<Operation>,
    bell: RawFd,
    /// Whom answers woke that were taken to make room.
    early: Vec<Waker>,
}

impl Ring {
    /// Makes one that runs the kernel's part of its work when this thread asks for answers, as far
    /// as the kernel knows how (Linux 6.1, or 5.19 for the second best). The mail's bell ends its sleep.
    pub(super) fn new(mail: &Mail) -> Result<Ring, Unsupported> {
        let new = |set: fn(&mut io_uring::Builder)| {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(COMPLETED_MAX);
            set(&mut builder);
            builder.build(SUBMITTED_MAX)
        };
        let ring = new(|builder| {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag();
        })
        .or_else(|_| {
            new(|builder| {
                builder.setup_coop_taskrun().setup_taskrun_flag();
            })
        })
        .or_else(|_| new(|_| {}))?;
        let features = ring.params();
        // Polls that last have no sign of their own; they came together with the second.
        if !features.is_feature_ext_arg() || !features.is_feature_resource_tagging() {
            return Err(Unsupported::TooOld);
        }
        let mut ring = Ring {
            ring,
            operations: Slab::new(),
            bell: mail.bell().as_raw_fd(),
            early: Vec::new(),
        };
        ring.watch_bell();
        Ok(ring)
    }

    fn watch_bell(&mut self) {
        self.push_watch(self.bell, libc::POLLIN as u32, MAIL);
    }

    fn push_watch(&mut self, fd: RawFd, events: u32, name: u64) {
        let poll = opcode::PollAdd::new(Fd(fd), events).multi(true);
        // SAFETY: no memory is involved.
        unsafe { self.push(&poll.build().user_data(name)) };
    }

    /// # Safety
    /// The memory that the operation names stays until it is answered.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: by the caller's word.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            check(self.ring.submit());
            // The kernel takes nothing while too many answers wait.
            let mut early = std::mem::take(&mut self.early);
            self.take_completed(&mut early);
            self.early.append(&mut early);
        }
    }

    /// Follows for what a socket is ready; by the number given.
    pub(super) fn watch(&mut self, fd: RawFd, readiness: Rc<Readiness>) -> usize {
        let number = self.operations.insert(Operation::Watch(fd, readiness));
        self.push_watch(fd, EVENTS, number as u64);
        number
    }

    /// No longer does.
    pub(super) fn unwatch(&mut self, number: usize) {
        self.operations[number] = Operation::Unwatched;
        let cancel = opcode::AsyncCancel::new(number as u64).build();
        // SAFETY: no memory is involved.
        unsafe { self.push(&cancel.user_data(NOBODY)) };
    }

    /// Begins to read or write a file; by the number given.
    pub(super) fn transfer(&mut self, transfer: Transfer) -> usize {
        let entry = transfer.entry();
        let number = self.operations.insert(Operation::Transfer(transfer));
        // SAFETY: the transfer owns its memory and its file, and stays until it is answered.
        unsafe { self.push(&entry.user_data(number as u64)) };
        number
    }

    /// Submits what was asked for, and takes what has come.
    pub(super) fn submit(&mut self, woken: &mut Vec<Waker>) {
        let submission = self.ring.submission();
        if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
            return;
        }
        drop(submission);
        check(self.ring.submit());
        self.take_completed(woken);
    }

    /// The same, but waits until something has come, or so long.
    pub(super) fn sleep(&mut self, limit: Option<Duration>, woken: &mut Vec<Waker>) {
        let limit = limit.map_or(SLEEP_LONGEST, |limit| limit.min(SLEEP_LONGEST));
        let limit = Timespec::from(limit);
        let arguments = SubmitArgs::new().timespec(&limit);
        check(self.ring.submitter().submit_with_args(1, &arguments));
        self.take_completed(woken);
    }

    /// Takes what has come.
    pub(super) fn take_completed(&mut self, woken: &mut Vec<Waker>) {
        woken.append(&mut self.early);
        loop {
            // Each is taken by itself, since it may lead to new submissions.
            let Some(answer) = self.ring.completion().next() else {
                return;
            };
            self.complete(&answer, woken);
        }
    }

    fn complete(&mut self, answer: &cqueue::Entry, woken: &mut Vec<Waker>) {
        let lasts = cqueue::more(answer.flags());
        let number = match answer.user_data() {
            NOBODY => return,
            MAIL => {
                if !lasts {
                    self.watch_bell();
                }
                return;
            }
            number => number as usize,
        };
        let again = match self.operations.get_mut(number) {
            Some(Operation::Watch(fd, readiness)) => {
                readiness.answer(answer.result(), woken);
                (!lasts && answer.result() >= 0).then_some(*fd)
            }
            Some(Operation::Unwatched) => {
                if !lasts {
                    self.operations.remove(number);
                }
                None
            }
            Some(Operation::Transfer(transfer)) => {
                if transfer.answer(answer.result(), woken) {
                    self.operations.remove(number);
                }
                None
            }
            None => unreachable!("an answer to operation {number}, which is not under way"),
        };
        if let Some(fd) = again {
            self.push_watch(fd, EVENTS, number as u64);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still use their memory.
        for (_, operation) in std::mem::take(&mut self.operations) {
            if matches!(operation, Operation::Transfer(_)) {
                std::mem::forget(operation);
            }
        }
    }
}

impl Readiness {
    fn answer(&self, events: i32, woken: &mut Vec<Waker>) {
        let lasting = events < 0 || events & LASTING != 0;
        if lasting {
            self.lasting.set(true);
        }
        if lasting || events & i32::from(libc::POLLIN) != 0 {
            self.readable.set(true);
            woken.extend(self.reader.take());
        }
        if lasting || events & i32::from(libc::POLLOUT) != 0 {
            self.writable.set(true);
            woken.extend(self.writer.take());
        }
    }
}

/// What the kernel says to a submission: it may have been interrupted, or the time was up.
fn check(result: io::Result<usize>) {
    match result {
        Ok(_) => {}
        Err(error) => match error.raw_os_error() {
            // In order: a signal; the sleep's end; answers are to be taken first, or memory is
            // short for a moment.
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => {}
            _ => panic!("the ring is broken: {error}"),
        },
    }
}
