//! What a shard counts of its own doing: plain cells on its thread, copied when somebody asks.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use rangedb_engine::shard::ShardStatus;
use rangedb_protocol::ErrorCode;

use crate::env::Now;
use crate::env::reactor::Load;
use crate::handler::{Asked, Operation};

/// Longer latencies count as this long: a minute.
const LATENCY_NANOS_MAX: u64 = 60_000_000_000;

/// Counts of one shard.
#[derive(Clone)]
pub struct ShardProbe {
    /// Time from the arrival of a request to its reply, in nanoseconds, by operation.
    pub latency: Vec<(Operation, Histogram<u64>)>,
    /// Requests that were refused, by code.
    pub refused: BTreeMap<ErrorCode, u64>,
}

impl ShardProbe {
    /// Nothing counted yet.
    pub fn new() -> ShardProbe {
        let histogram =
            || Histogram::new_with_max(LATENCY_NANOS_MAX, 2).expect("these bounds are allowed");
        ShardProbe {
            latency: Operation::ALL.iter().map(|op| (*op, histogram())).collect(),
            refused: BTreeMap::new(),
        }
    }

    /// A request was answered.
    pub fn answered(&mut self, asked: &Asked, now: Now) {
        let nanos = (now - asked.received).as_nanos() as u64;
        if let Some((_, latency)) = self.latency.get_mut(asked.operation as usize) {
            latency.saturating_record(nanos.max(1));
        }
    }

    /// A request was refused.
    pub fn refused(&mut self, code: ErrorCode) {
        *self.refused.entry(code).or_default() += 1;
    }
}

impl Default for ShardProbe {
    fn default() -> ShardProbe {
        ShardProbe::new()
    }
}

/// What a shard tells the admin thread.
pub struct ShardReport {
    /// Its counts.
    pub probe: ShardProbe,
    /// Its engine's state.
    pub status: ShardStatus,
    /// Open connections.
    pub connections: usize,
    /// Connections that had to go before they had said who they are.
    pub greetings_evicted: u64,
    /// Memory of frames in the making.
    pub frames_len: usize,
    /// Connections that were cut off because their frame did not go on.
    pub stalled: u64,
    /// Requests in flight.
    pub in_flight: usize,
    /// Frames that were damaged on their way from other nodes.
    pub damaged_frames: u64,
    /// How the shard's thread has fared.
    pub load: Load,
}
