//! A transfer: a read or write of a file, with the memory that the kernel uses for it.

#![expect(unsafe_code, reason = "memory is aligned as direct I/O needs it")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::Waker;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use rangedb_engine::limits::BLOCK_LEN;

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
        // SAFETY: this buffer owns the memory, and all of its bytes are initialised.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.layout.size()) }
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: this buffer owns the memory, and all of its bytes are initialised.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.layout.size()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// A read or write under way, with everything that the kernel uses for it.
pub(super) struct Transfer {
    pub(super) file: Rc<File>,
    pub(super) buffer: AlignedBuffer,
    pub(super) offset: u64,
    pub(super) direction: Direction,
    pub(super) state: TransferState,
}

/// How far a transfer is.
pub(super) enum TransferState {
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

    /// Sets the result. Returns whether no task waits for it.
    pub(super) fn answer(&mut self, result: i32, woken: &mut Vec<Waker>) -> bool {
        match std::mem::replace(&mut self.state, TransferState::Done(result)) {
            TransferState::UnderWay(waker) => {
                woken.extend(waker);
                false
            }
            TransferState::Abandoned => true,
            TransferState::Done(_) => unreachable!("a transfer is answered once"),
        }
    }
}
