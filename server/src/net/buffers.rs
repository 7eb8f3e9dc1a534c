//! The memory of busy connections; an idle connection owns none.
//!
//! All connections of a shard read into one buffer, since nothing happens between a read and the
//! handling of its bytes. Replies gather in buffers that are used again. Lives on the shard's
//! thread.

use std::cell::{Cell, RefCell, RefMut};

use rangedb_engine::memory::MemoryUse;
use rangedb_engine::notify::Count;

/// Most bytes of one read.
pub const READ_LEN: usize = 64 << 10;
/// A buffer that has grown beyond this is freed, not kept.
const KEPT_LEN_MAX: usize = 256 << 10;
/// Most buffers that are kept for reuse.
const KEPT_MAX: usize = 64;
/// Capacity of a new buffer in bytes.
const NEW_LEN: usize = 4 << 10;

/// The buffers of one shard.
pub struct Buffers {
    /// All connections read into this.
    pub received: RefCell<Box<[u8]>>,
    /// All encrypted connections receive into this; empty before the first.
    encrypted: RefCell<Box<[u8]>>,
    kept: RefCell<Vec<Vec<u8>>>,
    unsent_len: Count,
    unsent_len_max: usize,
    frames_len: Cell<usize>,
    frames_len_max: usize,
    unfinished: Cell<isize>,
}

impl Buffers {
    /// Buffers with a budget in bytes for incomplete frames, and one for replies.
    pub fn new(frames_len_max: usize, unsent_len_max: usize) -> Buffers {
        Buffers {
            received: RefCell::new(vec![0; READ_LEN].into_boxed_slice()),
            encrypted: RefCell::default(),
            kept: RefCell::default(),
            unsent_len: Count::default(),
            unsent_len_max,
            frames_len: Cell::new(0),
            frames_len_max,
            unfinished: Cell::new(0),
        }
    }

    /// The buffer into which all encrypted connections receive, of [`READ_LEN`] bytes.
    pub fn encrypted(&self) -> RefMut<'_, Box<[u8]>> {
        let mut encrypted = self.encrypted.borrow_mut();
        if encrypted.is_empty() {
            *encrypted = vec![0; READ_LEN].into_boxed_slice();
        }
        encrypted
    }

    /// Memory of the incomplete frames of all connections.
    pub fn frames_len(&self) -> usize {
        self.frames_len.get()
    }

    /// The memory of incomplete frames and that of unsent replies.
    pub fn memory(&self) -> [MemoryUse; 2] {
        let memory = |name, used: usize, bound: usize| MemoryUse {
            name,
            used: used as u64,
            bound: bound as u64,
            ..MemoryUse::default()
        };
        [
            memory("requests", self.frames_len(), self.frames_len_max),
            memory("replies", self.unsent_len(), self.unsent_len_max),
        ]
    }

    /// Whether an incomplete frame may use `more` bytes. A quarter of the budget is reserved for
    /// short frames.
    pub fn has_room(&self, more: usize, is_long: bool) -> bool {
        let kept_free = if is_long { self.frames_len_max / 4 } else { 0 };
        self.frames_len.get() + more <= self.frames_len_max - kept_free
    }

    /// Counts `len` bytes of an incomplete frame.
    pub fn hold(&self, len: usize) {
        self.frames_len.set(self.frames_len.get() + len);
    }

    /// Counts `len` bytes of an incomplete frame as freed.
    pub fn release(&self, len: usize) {
        self.frames_len.set(self.frames_len.get() - len);
    }

    /// Changes the count of connections with an incomplete frame by `more`.
    pub fn count_unfinished(&self, more: isize) {
        self.unfinished.set(self.unfinished.get() + more);
    }

    /// Whether any connection has an incomplete frame.
    pub fn has_unfinished(&self) -> bool {
        self.unfinished.get() > 0
    }

    /// Whether the unsent replies exceed their budget, so that no long reply may be added.
    pub fn is_full(&self) -> bool {
        self.unsent_len.get() > self.unsent_len_max
    }

    /// Bytes of unsent replies of all connections.
    pub fn unsent_len(&self) -> usize {
        self.unsent_len.get()
    }

    /// Waits until all replies are sent.
    pub async fn all_sent(&self) {
        self.unsent_len.until(|len| len == 0).await;
    }

    fn take(&self) -> Vec<u8> {
        self.kept
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(NEW_LEN))
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut kept = self.kept.borrow_mut();
        if buffer.capacity() > 0 && buffer.capacity() <= KEPT_LEN_MAX && kept.len() < KEPT_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

/// The unsent replies of one connection.
#[derive(Default)]
pub struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// The bytes to send next.
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Adds the bytes that `write` appends.
    pub fn append<R>(&mut self, buffers: &Buffers, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        if self.bytes.capacity() == 0 {
            self.bytes = buffers.take();
        }
        let before = self.bytes.len();
        let result = write(&mut self.bytes);
        let added = self.bytes.len() - before;
        buffers.unsent_len.add(added);
        result
    }

    /// Notes that the first `len` unsent bytes were sent.
    pub fn advance(&mut self, buffers: &Buffers, len: usize) {
        self.sent += len;
        buffers.unsent_len.subtract(len);
        if self.sent == self.bytes.len() {
            buffers.give_back(std::mem::take(&mut self.bytes));
            self.sent = 0;
        } else if self.sent > KEPT_LEN_MAX && self.sent > self.bytes.len() / 2 {
            // Without this, a client that always leaves a few bytes unread would make the buffer
            // grow without end.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Drops all unsent bytes.
    pub fn clear(&mut self, buffers: &Buffers) {
        let len = self.unsent().len();
        self.advance(buffers, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_given_back() {
        let buffers = Buffers::new(0, 0);
        let mut output = Output::default();
        output.append(&buffers, |bytes| bytes.extend_from_slice(b"hello"));
        output.advance(&buffers, 2);
        output.append(&buffers, |bytes| bytes.extend_from_slice(b"!"));
        assert_eq!(output.unsent(), b"llo!");
        assert_eq!(buffers.unsent_len(), 4);
        output.advance(&buffers, 4);
        assert_eq!((output.unsent().len(), buffers.unsent_len()), (0, 0));
        assert_eq!(output.bytes.capacity(), 0);
        assert_eq!(buffers.kept.borrow().len(), 1);
    }

    #[test]
    fn a_reader_that_is_always_behind_costs_no_more_than_twice_what_it_lacks() {
        let buffers = Buffers::new(0, 0);
        let mut output = Output::default();
        output.append(&buffers, |bytes| bytes.resize(KEPT_LEN_MAX, 1));
        for _ in 0..100 {
            output.append(&buffers, |bytes| {
                bytes.resize(bytes.len() + KEPT_LEN_MAX, 2)
            });
            output.advance(&buffers, KEPT_LEN_MAX);
        }
        assert!(
            output.bytes.len() <= 4 * KEPT_LEN_MAX,
            "{}",
            output.bytes.len()
        );
        output.clear(&buffers);
        assert_eq!(buffers.unsent_len(), 0);
        assert!(buffers.kept.borrow().is_empty());
    }
}
