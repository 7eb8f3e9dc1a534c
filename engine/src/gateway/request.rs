//! A client's request as the gateway sees it: the caller, the deadline, the largest timestamp that the
//! caller has seen, and the range that it believes to hold the key. The operations are in
//! [`crate::request`]. Pure.

use crate::boot_time::BootTime;
use crate::request::Target;
use crate::types::Timestamp;

/// The sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whether the caller follows routes. If the key is elsewhere, such a caller is told the route.
    /// The request of any other caller is forwarded, once.
    pub follows_routes: bool,
}

impl Caller {
    /// A shard that has forwarded a request. No request is forwarded twice.
    pub const FORWARDER: Caller = Caller {
        follows_routes: true,
    };
}

/// A request, apart from what it asks for.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The sender.
    pub caller: Caller,
    /// After this the caller no longer waits.
    pub deadline: Option<BootTime>,
    /// The largest timestamp that the caller has seen.
    pub token: Timestamp,
    /// The range that the caller believes to hold the key.
    pub target: Option<Target>,
}
