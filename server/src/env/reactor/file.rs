//! Direct reads and writes of files.

#![expect(unsafe_code, reason = "memory is aligned as direct I/O needs it")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use rangedb_engine::limits::BLOCK_LEN;

use super::Reactor;
use super::ring::Operation;

/// Memory that begins at a multiple of a block.
pub struct AlignedBuffer {
    memory: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    /// A buffer of `len` zeros.
    ///
    /// # Panics
    /// `len` is 0 or too large.
    pub fn new(len: usize) -> AlignedBuffer {
        assert!(len > 0, "nothing needs no buffer");
        let layout = Layout::from_size_align(len, BLOCK_LEN).expect("a sound length");
        // SAFETY: the length is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(layout);
        };
        AlignedBuffer { memory, layout }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: so much is allocated and initialised, and owned by this.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.layout.size()) }
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: so much is allocated and initialised, and owned by this.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.layout.size()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// A read or write under way, with everything that the kernel uses for it.
pub(super) struct Transfer {
    file: Rc<File>,
    buffer: AlignedBuffer,
    offset: u64,
    direction: Direction,
    state: State,
}

enum State {
    /// With the waker of the waiting task, once that has polled.
    UnderWay(Option<Waker>),
    /// No task waits any more.
    Abandoned,
    /// With the kernel's result.
    Done(i32),
}

impl Transfer {
    pub(super) fn entry(&self) -> squeue::Entry {
        let fd = Fd(self.file.as_raw_fd());
        let memory = self.buffer.memory.as_ptr();
        let len = self.buffer.layout.size();
        let len = u32::try_from(len).expect("engine limits keep buffers far below 4 GiB");
        match self.direction {
            Direction::Read => opcode::Read::new(fd, memory, len)
                .offset(self.offset)
                .build(),
            Direction::Write => opcode::Write::new(fd, memory, len)
                .offset(self.offset)
                .build(),
        }
    }

    /// Sets the result. Gives whether no task waits for it.
    pub(super) fn answer(&mut self, result: i32, woken: &mut Vec<Waker>) -> bool {
        match std::mem::replace(&mut self.state, State::Done(result)) {
            State::UnderWay(waker) => {
                woken.extend(waker);
                false
            }
            State::Abandoned => true,
            State::Done(_) => unreachable!("a transfer is answered once"),
        }
    }
}

/// Waits for a transfer. If it is dropped before, the kernel finishes the transfer all the same.
struct Wait {
    reactor: Rc<Reactor>,
    /// The transfer's number; `None` after its result was taken.
    number: Option<usize>,
}

impl Wait {
    fn begin(file: &Rc<File>, buffer: AlignedBuffer, offset: u64, direction: Direction) -> Wait {
        let reactor = Reactor::here();
        let number = reactor.ring.borrow_mut().transfer(Transfer {
            file: file.clone(),
            buffer,
            offset,
            direction,
            state: State::UnderWay(None),
        });
        Wait {
            reactor,
            number: Some(number),
        }
    }
}

impl Future for Wait {
    type Output = io::Result<(AlignedBuffer, usize)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut ring = this.reactor.ring.borrow_mut();
        let number = this.number.expect("it is not polled after its end");
        let Some(Operation::Transfer(transfer)) = ring.operations.get_mut(number) else {
            unreachable!("it is under way until it is taken");
        };
        match &mut transfer.state {
            State::UnderWay(waker) => {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            State::Abandoned => unreachable!("this waits"),
            State::Done(_) => this.number = None,
        }
        let Operation::Transfer(Transfer { buffer, state, .. }) = ring.operations.remove(number)
        else {
            unreachable!("it was one just now");
        };
        let State::Done(result) = state else {
            unreachable!("it was just now");
        };
        Poll::Ready(match usize::try_from(result) {
            Ok(len) => Ok((buffer, len)),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        })
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut ring = self.reactor.ring.borrow_mut();
        if let Some(Operation::Transfer(transfer)) = ring.operations.get_mut(number) {
            match transfer.state {
                State::Done(_) => drop(ring.operations.remove(number)),
                _ => transfer.state = State::Abandoned,
            }
        }
    }
}

/// Writes a buffer, with one operation. Gives how many bytes were written.
///
/// # Errors
/// The kernel's.
pub async fn write_at(file: &Rc<File>, buffer: AlignedBuffer, offset: u64) -> io::Result<usize> {
    let written = Wait::begin(file, buffer, offset, Direction::Write).await;
    written.map(|(_, len)| len)
}

/// Reads up to `len` bytes, with one operation.
///
/// # Errors
/// The kernel's.
pub async fn read_at(file: &Rc<File>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let buffer = AlignedBuffer::new(len);
    let (buffer, len) = Wait::begin(file, buffer, offset, Direction::Read).await?;
    Ok(buffer.as_ref().get(..len).unwrap_or_default().to_vec())
}
