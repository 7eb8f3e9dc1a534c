//! A shard's counters. They are plain cells on the shard's thread, copied for each report.

use std::collections::BTreeMap;

use rangedb_engine::boot_time::BootTime;
use rangedb_engine::distribution::Distribution;
use rangedb_engine::shard::ShardStatus;
use rangedb_protocol::ErrorCode;
use tokio::sync::oneshot;

use crate::env::reactor::{Load, Traffic};
use crate::operation::{Operation, PendingRequest};

/// Longer latencies are recorded as one minute.
pub const LATENCY_NANOS_MAX: u64 = 60_000_000_000;

/// A request for figures of a shard. Each kind holds the channel for its answer.
pub enum ReportRequest {
    /// The counters of its requests. They cost little whatever the number of ranges.
    Probe(oneshot::Sender<ShardProbe>),
    /// All its counters, and its status with that of every range.
    Report(oneshot::Sender<ShardReport>),
}

/// A request for a shard's beat, by which the shard shows that its thread does not stand still.
pub type BeatRequest = oneshot::Sender<()>;

/// The counters of one shard's requests.
#[derive(Clone)]
pub struct ShardProbe {
    /// The time from a request's arrival to its reply, in nanoseconds, by operation.
    pub latency: Vec<(Operation, Distribution)>,
    /// The number of refused requests, by error code.
    pub refused: BTreeMap<ErrorCode, u64>,
}

impl ShardProbe {
    /// Counters at zero.
    pub fn new() -> ShardProbe {
        let empty = |op: &Operation| (*op, Distribution::new(LATENCY_NANOS_MAX));
        ShardProbe {
            latency: Operation::ALL.iter().map(empty).collect(),
            refused: BTreeMap::new(),
        }
    }

    /// Counts a request that was answered.
    pub fn answered(&mut self, pending: &PendingRequest, now: BootTime) {
        let nanos = (now - pending.received).as_nanos() as u64;
        if let Some((_, latency)) = self.latency.get_mut(pending.operation as usize) {
            latency.record(nanos);
        }
    }

    /// Counts a request that was refused.
    pub fn refused(&mut self, code: ErrorCode) {
        *self.refused.entry(code).or_default() += 1;
    }
}

impl Default for ShardProbe {
    fn default() -> ShardProbe {
        ShardProbe::new()
    }
}

/// The bytes that a shard's connections of one kind have received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

impl Bytes {
    /// The bytes so far.
    pub fn of(traffic: &Traffic) -> Bytes {
        Bytes {
            received: traffic.received(),
            sent: traffic.sent(),
        }
    }
}

/// A shard's report to the admin pages.
pub struct ShardReport {
    /// The counters of requests.
    pub probe: ShardProbe,
    /// The engine's state, and the memory of all budgets.
    pub status: ShardStatus,
    /// The number of open connections.
    pub connections: usize,
    /// Connections that were closed before their handshake arrived, to make room.
    pub handshakes_evicted: u64,
    /// Connections that were closed since the rest of a frame did not arrive.
    pub stalled: u64,
    /// The number of requests in flight.
    pub in_flight: usize,
    /// Requests that were refused because their range fills its shard.
    pub overloaded: u64,
    /// Frames from other nodes that were damaged on their way.
    pub damaged_frames: u64,
    /// Connections to other nodes that have broken.
    pub links_broken: u64,
    /// The bytes of connections of clients.
    pub client_bytes: Bytes,
    /// The bytes of connections to and from other nodes.
    pub peer_bytes: Bytes,
    /// The part of a core that the shard's thread has used over the last 10 s.
    pub cpu: f64,
    /// The load of the shard's thread.
    pub load: Load,
}
