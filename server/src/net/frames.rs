//! The frames of clients, as the network gives them to what handles them.

use rangedb_engine::boot_time::BootTime;

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
