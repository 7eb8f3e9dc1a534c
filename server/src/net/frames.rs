//! The frames of clients, as the network gives them to what handles them.

use rangedb_engine::boot_time::BootTime;
use rangedb_protocol::frame::{self, Frame};
use rangedb_protocol::{BadRequest, Request, RequestBody};
use smallvec::SmallVec;

use crate::context::Context;

/// Most frames that are decoded before the first of them is handled, so that gets among them are
/// prepared together ([`prepare`]).
pub const FRAMES_TOGETHER: usize = 16;
/// A frame that is longer than this, such as a multi-get of many keys, waits for a later pass if this one
/// is cut short, but not for long.
pub const SHORT_FRAME_LEN: usize = 2 << 10;

/// Frames that are handled one after the other, decoded.
pub type Together<'b> = SmallVec<[Decoded<'b>; FRAMES_TOGETHER]>;

/// The times that belong to a frame.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The time when its bytes arrived.
    pub received: BootTime,
    /// The present.
    pub now: BootTime,
}

/// A frame's table does not match its kind; the connection must be closed.
#[derive(Debug)]
pub struct Malformed;

/// A frame of a client, and the request in it.
pub struct Decoded<'a> {
    /// The frame as it was received.
    pub frame: Frame<'a>,
    /// What the frame asks for, or why it cannot be read.
    pub request: Result<Request<'a>, BadRequest>,
}

impl<'a> Decoded<'a> {
    /// Decodes the request of a frame.
    pub fn of(frame: Frame<'a>) -> Decoded<'a> {
        Decoded {
            frame,
            request: Request::decode(frame.kind, frame.body),
        }
    }

    /// The key, if the request is a get.
    fn key_to_get(&self) -> Option<&'a [u8]> {
        match &self.request {
            Ok(request) => match request.body {
                RequestBody::Get { key } => Some(key),
                _ => None,
            },
            Err(_) => None,
        }
    }
}

/// Prepares requests that are handled next, one after the other: those that are gets wait for memory
/// together.
pub fn prepare(context: &Context, requests: &[Decoded<'_>]) {
    if requests.len() > 1 {
        let keys = requests.iter().filter_map(Decoded::key_to_get);
        context.gateway.prefetch(keys);
    }
}

/// Decodes the first frame of `bytes` and those short ones that follow it.
pub fn gather<'b>(first: Frame<'b>, bytes: &'b [u8], count_max: usize) -> Together<'b> {
    let mut together = Together::new();
    let (mut next, mut rest) = (first, bytes);
    loop {
        rest = rest.get(next.len..).unwrap_or_default();
        together.push(Decoded::of(next));
        if next.len > SHORT_FRAME_LEN || together.len() == count_max {
            return together;
        }
        // What is wrong with a frame is told when those before it are handled.
        next = match frame::decode(rest) {
            Ok(Some(found)) if found.len <= SHORT_FRAME_LEN => found,
            _ => return together,
        };
    }
}
