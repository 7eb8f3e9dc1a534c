//! The received and unhandled bytes of one connection, usually a part of a frame.
//!
//! The buffer grows with the bytes that arrive, not with the length that a frame announces, and
//! only within the shard's budget ([`Buffers::frames_len`]). A frame that does not fit is answered
//! with `overloaded`, and the rest of it is discarded on arrival; the connection lives on. Short
//! frames may use the whole budget, long frames leave a quarter of it to them.

use bytes::{Buf, Bytes};
use rangedb_protocol::frame;
use rangedb_protocol::limits::FRAME_LEN_MAX;

use crate::net::buffers::{Buffers, READ_LEN};
use rangedb_engine::boot_time::BootTime;

/// An incomplete frame must get this many bytes, or its end, within the time limit for progress.
const PROGRESS_LEN: usize = 64 << 10;

/// Most bytes of a frame with its length field.
const WHOLE_LEN_MAX: usize = FRAME_LEN_MAX + frame::LENGTH_LEN;

/// The received and unhandled bytes of a connection.
#[derive(Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// Whether a whole frame may be among them.
    pub more: bool,
    /// When they were received.
    pub received: BootTime,
    /// Bytes of a refused frame that are still to come, and to be discarded.
    skipped: usize,
    /// Bytes of the incomplete frame since it was last found to make progress.
    progress: usize,
}

/// A connection's own buffer, in which frames lie. A write may keep it.
#[derive(Clone, Copy)]
pub struct OwnBuffer<'a> {
    bytes: &'a Bytes,
    capacity: usize,
}

/// The least that a write must use of a buffer to keep it: no budget counts the rest.
fn least_kept(capacity: usize) -> usize {
    capacity / 4 * 3
}

impl OwnBuffer<'_> {
    /// Whether a write with `len` bytes of keys and values may keep the buffer.
    pub fn may_be_kept(self, len: usize) -> bool {
        len >= least_kept(self.capacity)
    }

    /// The part of the buffer that `part` borrows from it.
    pub fn share(self, part: &[u8]) -> Bytes {
        self.bytes.slice_ref(part)
    }
}

/// How far the bytes at hand were handled.
pub struct Taken {
    /// How many bytes were handled.
    pub len: usize,
    /// Whether a whole frame may follow.
    pub more: bool,
}

/// The result of adding bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The bytes are kept.
    Kept,
    /// There is no memory for them: the frame of this request is refused.
    Refused(u64),
}

impl Input {
    /// Whether a frame is incomplete.
    pub fn is_unfinished(&self) -> bool {
        self.skipped > 0 || (!self.more && !self.bytes.is_empty())
    }

    /// Whether the incomplete frame has made progress since this was last asked.
    pub fn take_progress(&mut self) -> bool {
        let enough = self.progress >= PROGRESS_LEN;
        if enough {
            self.progress = 0;
        }
        enough
    }

    /// Whether no bytes are kept.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Drops from new bytes those that belong to a refused frame; returns the rest.
    pub fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (skipped, rest) = bytes.split_at(self.skipped.min(bytes.len()));
        if !skipped.is_empty() {
            self.skipped -= skipped.len();
            self.progress += skipped.len();
            self.note_end(self.skipped == 0);
        }
        rest
    }

    /// The end of a frame counts as progress, however short the frame was.
    fn note_end(&mut self, ended: bool) {
        if ended {
            self.progress = PROGRESS_LEN;
        }
    }

    /// Appends bytes to those that are kept.
    pub fn add(&mut self, buffers: &Buffers, bytes: &[u8]) -> Added {
        if bytes.is_empty() {
            return Added::Kept;
        }
        self.progress += bytes.len();
        let len = self.bytes.len() + bytes.len();
        if len > self.bytes.capacity() {
            let expected = self.expected_len(bytes);
            let doubled = (self.bytes.capacity() * 2).min(expected);
            let more = doubled.max(len) - self.bytes.capacity();
            if !buffers.has_room(more, expected > READ_LEN)
                && let Some(id) = self.refuse(buffers, bytes, expected)
            {
                return Added::Refused(id);
            }
            let before = self.bytes.capacity();
            self.bytes
                .reserve_exact(doubled.max(len) - self.bytes.len());
            buffers.hold(self.bytes.capacity() - before);
        }
        self.bytes.extend_from_slice(bytes);
        Added::Kept
    }

    /// The length of the first frame, which starts in the kept bytes or, if there are none, in
    /// `bytes`.
    fn expected_len(&self, bytes: &[u8]) -> usize {
        match self.bytes.is_empty() {
            true => frame::expected_len(bytes),
            false => frame::expected_len(&self.bytes),
        }
    }

    /// Refuses the incomplete frame, if its header has arrived and its length is allowed.
    fn refuse(&mut self, buffers: &Buffers, bytes: &[u8], expected: usize) -> Option<u64> {
        let mut header = [0; frame::HEADER_LEN];
        let from = self.bytes.iter().chain(bytes);
        let header_len = header.iter_mut().zip(from).map(|(to, from)| *to = *from);
        let has_header = header_len.count() == frame::HEADER_LEN;
        let id = header.get(frame::LENGTH_LEN..)?.first_chunk::<8>()?;
        let arrived = self.bytes.len() + bytes.len();
        if !has_header || arrived >= expected || expected > WHOLE_LEN_MAX {
            return None;
        }
        self.skipped = expected - arrived;
        self.clear(buffers);
        Some(u64::from_le_bytes(*id))
    }

    /// Whether the first frame is whole, or too long to wait for it.
    pub fn is_whole(&self) -> bool {
        let expected = frame::expected_len(&self.bytes);
        expected > WHOLE_LEN_MAX || self.bytes.len() >= expected
    }

    /// Has the kept bytes handled, and keeps those that `handle` leaves. It gets them as a buffer that may
    /// be kept, too, if their first frame is most of that.
    pub fn handle(
        &mut self,
        buffers: &Buffers,
        handle: impl FnOnce(&[u8], Option<OwnBuffer<'_>>) -> Taken,
    ) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let capacity = bytes.capacity();
        let taken = if frame::expected_len(&bytes) >= least_kept(capacity) {
            let mut shared = Bytes::from(bytes);
            let own = OwnBuffer {
                bytes: &shared,
                capacity,
            };
            let taken = handle(&shared, Some(own));
            shared.advance(taken.len);
            // The rest moves to the front of its buffer, or to a new one if a write has kept that.
            bytes = Vec::from(shared);
            taken
        } else {
            let taken = handle(&bytes, None);
            bytes.drain(..taken.len);
            taken
        };
        self.more = taken.more;
        self.note_end(taken.len > 0);
        // An empty buffer is freed, since idle connections would be dear; and a short rest does not
        // keep the memory of a long frame.
        if bytes.is_empty() {
            bytes = Vec::new();
        } else if capacity > READ_LEN && bytes.len() < capacity / 4 {
            bytes.shrink_to_fit();
        }
        buffers.release(capacity - bytes.capacity());
        self.bytes = bytes;
    }

    /// Drops everything.
    pub fn clear(&mut self, buffers: &Buffers) {
        let bytes = std::mem::take(&mut self.bytes);
        buffers.release(bytes.capacity());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_of(id: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::encode(id, 1, &vec![7; len], &mut bytes);
        bytes
    }

    fn handle(input: &mut Input, buffers: &Buffers) {
        input.handle(buffers, |bytes, _| handle_first(bytes).0);
    }

    /// Handles the first frame; gives its body, too.
    fn handle_first(bytes: &[u8]) -> (Taken, &[u8]) {
        let frame = frame::decode(bytes).expect("good").expect("whole");
        let (len, more) = (frame.len, frame.len < bytes.len());
        (Taken { len, more }, frame.body)
    }

    #[test]
    fn a_write_that_fills_its_buffer_keeps_it_and_the_rest_gets_another() {
        let buffers = Buffers::new(4 << 20, 0);
        for rest in [0, 20] {
            let mut input = Input::default();
            let mut bytes = frame_of(1, 1 << 20);
            let next = frame_of(2, 10);
            bytes.extend_from_slice(&next[..rest]);
            assert_eq!(input.add(&buffers, &bytes), Added::Kept);
            let mut kept = Bytes::new();
            input.handle(&buffers, |bytes, own| {
                let (taken, body) = handle_first(bytes);
                let own = own.expect("it has the frame alone");
                assert!(own.may_be_kept(body.len()));
                assert!(!own.may_be_kept(body.len() / 2));
                kept = own.share(body);
                assert_eq!(kept.as_ptr(), body.as_ptr(), "not a copy");
                taken
            });
            assert!(buffers.frames_len() < 100, "{}", buffers.frames_len());
            assert_eq!(input.add(&buffers, &next[rest..]), Added::Kept);
            assert!(input.is_whole());
            handle(&mut input, &buffers);
            assert_eq!(kept, vec![7; 1 << 20]);
            assert_eq!(buffers.frames_len(), 0);
        }
    }

    #[test]
    fn memory_grows_with_what_came_and_goes_with_the_frame() {
        let buffers = Buffers::new(4 << 20, 0);
        let mut input = Input::default();
        let bytes = frame_of(1, 1 << 20);
        for piece in bytes.chunks(10_000) {
            assert_eq!(input.add(&buffers, piece), Added::Kept);
            assert!(buffers.frames_len() <= 2 * input.bytes.len());
            assert!(buffers.frames_len() <= bytes.len());
        }
        assert!(input.is_whole());
        handle(&mut input, &buffers);
        assert_eq!(buffers.frames_len(), 0);
    }

    #[test]
    fn what_the_budget_does_not_hold_is_refused_and_skipped() {
        let buffers = Buffers::new(4 << 20, 0);
        let mut long: Vec<(Input, Vec<u8>)> = (0..8)
            .map(|id| (Input::default(), frame_of(id, 2 << 20)))
            .collect();
        let mut refused = 0;
        for (id, (input, bytes)) in (0u64..).zip(&mut long) {
            for piece in bytes.chunks(READ_LEN) {
                let piece = input.skip(piece);
                refused += match input.add(&buffers, piece) {
                    Added::Kept => 0,
                    Added::Refused(of) => {
                        assert_eq!(of, id);
                        1
                    }
                };
            }
            assert!(buffers.frames_len() <= 3 << 20);
        }
        assert_eq!(refused, 7);
        // There is still room for a short frame, and all connections live on.
        for (id, (input, _)) in (0u64..).zip(&mut long) {
            if input.is_empty() {
                let short = frame_of(id, 1000);
                assert_eq!(input.skip(&short).len(), short.len());
                assert_eq!(input.add(&buffers, &short), Added::Kept);
            }
            assert!(input.is_whole());
            handle(input, &buffers);
        }
        assert_eq!(buffers.frames_len(), 0);
    }

    #[test]
    fn a_frame_that_is_too_long_is_not_waited_for() {
        let buffers = Buffers::new(4 << 20, 0);
        let mut input = Input::default();
        assert_eq!(input.add(&buffers, &[0xff; 2]), Added::Kept);
        assert!(!input.is_whole());
        assert_eq!(input.add(&buffers, &[0xff; 2]), Added::Kept);
        assert!(input.is_whole());
    }

    #[test]
    fn a_short_rest_does_not_keep_a_long_frame_s_memory() {
        let buffers = Buffers::new(4 << 20, 0);
        let mut input = Input::default();
        let mut bytes = frame_of(1, 1 << 20);
        bytes.extend_from_slice(&frame_of(2, 10)[..20]);
        assert_eq!(input.add(&buffers, &bytes), Added::Kept);
        handle(&mut input, &buffers);
        assert!(buffers.frames_len() < 100, "{}", buffers.frames_len());
        input.clear(&buffers);
        assert_eq!(buffers.frames_len(), 0);
    }
}
