//! One client's connection: frames in, replies out, in any order.
//!
//! Hot path: a get is answered while its frame still lies in the receive buffer, straight into
//! the output; nothing is allocated for it. Replies of one turn go out in one send. Results that
//! come later wake the connection's task once, which then sends them together.
//!
//! What bounds it: requests in flight (more get a typed error), replies that the client does not
//! read (no more is read from it, and after a time it is cut off), scans (one at a time). The
//! task is a single poll function without a pause inside a turn, so no borrow crosses one. Lives
//! on its shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use slab::Slab;

use crate::net::buffers::Output;
use crate::shard::context::Context;

/// Unsent replies after which no more is read from the client.
pub const UNSENT_LEN_PAUSE: usize = 1 << 20;
/// Frames handled before other connections have their turn.
const FRAMES_PER_TURN: usize = 256;
/// A client that takes nothing for so long is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long and how much is read and thrown away after a last word, so that it arrives.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_LEN_MAX: usize = 1 << 20;
