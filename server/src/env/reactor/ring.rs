//! The ring: submits operations to the kernel and takes their completions.

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
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use slab::Slab;

use super::cross_thread::WakeQueue;
use super::transfer::Transfer;

/// Most operations submitted with one call; more need another call.
const SUBMITTED_MAX: u32 = 1024;
/// Most completions that wait in the ring; the kernel keeps any beyond that.
const COMPLETED_MAX: u32 = 8192;
/// Longest sleep, whatever the tasks wait for.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// The user data of completions that nobody needs: those of cancellations.
const NOBODY: u64 = u64::MAX;
/// The user data of completions of the eventfd of the wake queue.
const EVENTFD: u64 = u64::MAX - 1;
/// The events for which a socket is polled: data, room, and the end of the other side.
const EVENTS: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) as u32;
/// The events after which a socket stays ready.
const LASTING: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;

/// What the kernel lacks.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// It refuses a ring, or an operation with one.
    #[error("cannot set up io_uring for a shard: {0}")]
    Kernel(#[from] io::Error),
    /// A sleep with a time limit (Linux 5.11) or multishot polls (5.13).
    #[error("this kernel's io_uring is too old: RangeDB needs Linux 5.13 or newer")]
    TooOld,
}

/// What a socket is ready for, as far as is known.
#[derive(Debug, Default)]
pub struct Readiness {
    /// A read may give something.
    pub readable: Cell<bool>,
    /// A write may have room.
    pub writable: Cell<bool>,
    /// The other side has ended, or the connection is broken: whatever is ready stays ready.
    pub lasting: Cell<bool>,
    /// The task that waits to read.
    pub reader: RefCell<Option<Waker>>,
    /// The task that waits to write.
    pub writer: RefCell<Option<Waker>>,
}

/// An operation under way.
pub(super) enum Operation {
    /// A poll of a socket's readiness, until the socket is dropped.
    Watch(RawFd, Rc<Readiness>),
    /// The poll of a dropped socket, whose last completion has not come.
    Unwatched,
    /// A read or write of a file.
    Transfer(Transfer),
}

/// A ring of one thread.
pub(super) struct Ring {
    ring: IoUring,
    /// By their numbers, which are also their user data.
    pub(super) operations: Slab<Operation>,
    eventfd: RawFd,
    /// How it sleeps.
    sleep_flags: EnterFlags,
    /// Wakers of completions that were taken only to make room for submissions.
    early: Vec<Waker>,
}

impl Ring {
    /// Makes a ring in which the kernel does its part of the work when this thread asks for
    /// completions, if the kernel can do that (Linux 6.1; 5.19 for the second-best way). The wake queue's
    /// eventfd ends its sleep.
    pub(super) fn new(wake_queue: &WakeQueue) -> Result<Ring, Unsupported> {
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
        // Multishot polls have no feature flag of their own; they came with resource tagging.
        if !features.is_feature_ext_arg() || !features.is_feature_resource_tagging() {
            return Err(Unsupported::TooOld);
        }
        let mut sleep_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        // Since Linux 6.15: otherwise the sleep of an idle shard counts as a wait for a disk, in `top` and
        // wherever else the kernel's `iowait` is shown.
        if features.is_feature_no_iowait() {
            sleep_flags |= EnterFlags::NO_IOWAIT;
        }
        let mut ring = Ring {
            ring,
            operations: Slab::new(),
            eventfd: wake_queue.eventfd().as_raw_fd(),
            sleep_flags,
            early: Vec::new(),
        };
        ring.watch_eventfd();
        Ok(ring)
    }

    fn watch_eventfd(&mut self) {
        self.push_watch(self.eventfd, libc::POLLIN as u32, EVENTFD);
    }

    fn push_watch(&mut self, fd: RawFd, events: u32, name: u64) {
        let poll = opcode::PollAdd::new(Fd(fd), events).multi(true);
        // SAFETY: no memory is involved.
        unsafe { self.push(&poll.build().user_data(name)) };
    }

    /// # Safety
    /// The memory that the operation names must stay valid until the operation completes.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // The caller guarantees it.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            check(self.ring.submit());
            // The kernel takes no submissions while too many completions wait.
            let mut early = std::mem::take(&mut self.early);
            self.take_completed(&mut early);
            self.early.append(&mut early);
        }
    }

    /// Starts to track a socket's readiness; returns the number of the operation.
    pub(super) fn watch(&mut self, fd: RawFd, readiness: Rc<Readiness>) -> usize {
        let number = self.operations.insert(Operation::Watch(fd, readiness));
        self.push_watch(fd, EVENTS, number as u64);
        number
    }

    /// Stops tracking a socket's readiness.
    pub(super) fn unwatch(&mut self, number: usize) {
        self.operations[number] = Operation::Unwatched;
        let cancel = opcode::AsyncCancel::new(number as u64).build();
        // SAFETY: no memory is involved.
        unsafe { self.push(&cancel.user_data(NOBODY)) };
    }

    /// Begins to read or write a file; returns the number of the operation.
    pub(super) fn transfer(&mut self, transfer: Transfer) -> usize {
        let entry = transfer.entry();
        let number = self.operations.insert(Operation::Transfer(transfer));
        // The transfer owns its memory and its file, and stays in the slab until it completes.
        unsafe { self.push(&entry.user_data(number as u64)) };
        number
    }

    /// Submits what was pushed, and takes completions.
    pub(super) fn submit(&mut self, woken: &mut Vec<Waker>) {
        let submission = self.ring.submission();
        if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
            return;
        }
        drop(submission);
        check(self.ring.submit());
        self.take_completed(woken);
    }

    /// Submits what was pushed, and waits for a completion or the time limit.
    pub(super) fn sleep(&mut self, limit: Option<Duration>, woken: &mut Vec<Waker>) {
        let limit = limit.map_or(SLEEP_MAX, |limit| limit.min(SLEEP_MAX));
        let limit = Timespec::from(limit);
        let arguments = SubmitArgs::new().timespec(&limit);
        let pushed = self.ring.submission().len() as u32;
        let (submitter, flags) = (self.ring.submitter(), self.sleep_flags.bits());
        // SAFETY: the flags announce arguments of this type, and those are there until the call ends.
        check(unsafe { submitter.enter(pushed, 1, flags, Some(&arguments)) });
        self.take_completed(woken);
    }

    /// Takes all completions.
    pub(super) fn take_completed(&mut self, woken: &mut Vec<Waker>) {
        woken.append(&mut self.early);
        loop {
            // One at a time: handling a completion may push new submissions.
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
            EVENTFD => {
                if !lasts {
                    self.watch_eventfd();
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
        // The kernel may still be using the memory of these operations: it is leaked.
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

/// Checks the result of a submission. An interruption or a reached time limit is no error.
fn check(result: io::Result<usize>) {
    match result {
        Ok(_) => {}
        Err(error) => match error.raw_os_error() {
            // In order: a signal; the time limit; completions must be taken first; memory is short
            // for a moment.
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => {}
            _ => panic!("the ring is broken: {error}"),
        },
    }
}
