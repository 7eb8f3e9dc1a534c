//! Memory of connections that are at work; an idle connection owns none.
//!
//! All connections of a shard read into one place, since a read and the handling of what it
//! brought happen without a pause in between. Replies gather in buffers that go round. Lives on
//! the shard's thread.

use std::cell::{Cell, RefCell};

/// Bytes that one read takes at most.
pub const READ_LEN: usize = 64 << 10;
/// A buffer that has grown beyond this is not kept.
const KEPT_LEN_MAX: usize = 256 << 10;
/// Buffers that are kept.
const KEPT_MAX: usize = 64;
/// What a new buffer begins with.
const NEW_LEN: usize = 4 << 10;

/// The buffers of one shard.
pub struct Buffers {
    /// Where connections read into.
    pub received: RefCell<Box<[u8]>>,
    kept: RefCell<Vec<Vec<u8>>>,
    unsent_len: Cell<usize>,
    unsent_len_max: usize,
    frames_len: Cell<usize>,
    frames_len_max: usize,
    unfinished: Cell<isize>,
}

impl Buffers {
    /// Buffers with a budget for frames in the making, and one for replies.
    pub fn new(frames_len_max: usize, unsent_len_max: usize) -> Buffers {
        Buffers {
            received: RefCell::new(vec![0; READ_LEN].into_boxed_slice()),
            kept: RefCell::default(),
            unsent_len: Cell::new(0),
            unsent_len_max,
            frames_len: Cell::new(0),
            frames_len_max,
            unfinished: Cell::new(0),
        }
    }

    /// Memory of frames in the making, of all connections.
    pub fn frames_len(&self) -> usize {
        self.frames_len.get()
    }

    /// Whether a frame in the making may take so much more. A quarter is left to short ones.
    pub fn has_room(&self, more: usize, is_long: bool) -> bool {
        let kept_free = if is_long { self.frames_len_max / 4 } else { 0 };
        self.frames_len.get() + more <= self.frames_len_max - kept_free
    }

    /// A frame in the making has taken so much.
    pub fn hold(&self, len: usize) {
        self.frames_len.set(self.frames_len.get() + len);
    }

    /// It has given so much back.
    pub fn release(&self, len: usize) {
        self.frames_len.set(self.frames_len.get() - len);
    }

    /// So many connections more have a frame in the making.
    pub fn count_unfinished(&self, more: isize) {
        self.unfinished.set(self.unfinished.get() + more);
    }

    /// Whether any connection has one.
    pub fn has_unfinished(&self) -> bool {
        self.unfinished.get() > 0
    }

    /// Whether so many replies wait to be sent that no long one may be added.
    pub fn is_full(&self) -> bool {
        self.unsent_len.get() > self.unsent_len_max
    }

    /// Bytes of replies that wait to be sent, of all connections.
    pub fn unsent_len(&self) -> usize {
        self.unsent_len.get()
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

/// Replies of one connection that are not sent yet.
#[derive(Default)]
pub struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// What is to be sent next.
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Adds what `write` appends.
    pub fn append<R>(&mut self, buffers: &Buffers, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        if self.bytes.capacity() == 0 {
            self.bytes = buffers.take();
        }
        let before = self.bytes.len();
        let result = write(&mut self.bytes);
        let added = self.bytes.len() - before;
        buffers.unsent_len.set(buffers.unsent_len.get() + added);
        result
    }

    /// Forgets the first `len` bytes of what is unsent.
    pub fn advance(&mut self, buffers: &Buffers, len: usize) {
        self.sent += len;
        buffers.unsent_len.set(buffers.unsent_len.get() - len);
        if self.sent == self.bytes.len() {
            buffers.give_back(std::mem::take(&mut self.bytes));
            self.sent = 0;
        } else if self.sent > KEPT_LEN_MAX && self.sent > self.bytes.len() / 2 {
            // A client that always leaves a little unread does not make the buffer grow for ever.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Forgets everything.
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
