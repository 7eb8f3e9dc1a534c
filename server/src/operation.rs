//! The kinds of requests, and the data that is kept for a request until its reply. Pure.

use rangedb_engine::boot_time::BootTime;
use rangedb_protocol::{Batch, Change, RequestBody};

/// The kinds of requests that counters distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's chapter says what each is")]
pub enum Operation {
    Get,
    MultiGet,
    Put,
    Delete,
    CompareAndSwap,
    Increment,
    Write,
    Scan,
    Directory,
    Status,
    Admin,
}

impl Operation {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Operation; 11] = [
        Operation::Get,
        Operation::MultiGet,
        Operation::Put,
        Operation::Delete,
        Operation::CompareAndSwap,
        Operation::Increment,
        Operation::Write,
        Operation::Scan,
        Operation::Directory,
        Operation::Status,
        Operation::Admin,
    ];

    /// The kind's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::MultiGet => "multi_get",
            Operation::Put => "put",
            Operation::Delete => "delete",
            Operation::CompareAndSwap => "cas",
            Operation::Increment => "incr",
            Operation::Write => "write",
            Operation::Scan => "scan",
            Operation::Directory => "directory",
            Operation::Status => "status",
            Operation::Admin => "admin",
        }
    }

    /// The kind of a request.
    pub fn of(body: &RequestBody<'_>) -> Operation {
        match body {
            RequestBody::Get { .. } => Operation::Get,
            RequestBody::MultiGet { .. } => Operation::MultiGet,
            RequestBody::Batch { batch, .. } => Operation::of_batch(batch),
            RequestBody::Scan { .. } => Operation::Scan,
            RequestBody::Directory => Operation::Directory,
            RequestBody::Status => Operation::Status,
            RequestBody::Admin { .. } => Operation::Admin,
        }
    }

    /// Batches are counted by what they are made for.
    fn of_batch(batch: &Batch<'_>) -> Operation {
        match (batch.conditions.as_slice(), batch.mutations.as_slice()) {
            ([], [only]) => match only.change {
                Change::Put(_) => Operation::Put,
                Change::Delete => Operation::Delete,
                Change::Add(_) => Operation::Increment,
            },
            ([condition], [only]) if condition.key == only.key => Operation::CompareAndSwap,
            _ => Operation::Write,
        }
    }

    /// Whether it goes through the log of a range.
    pub fn writes(self) -> bool {
        match self {
            Operation::Put
            | Operation::Delete
            | Operation::CompareAndSwap
            | Operation::Increment
            | Operation::Write => true,
            Operation::Get
            | Operation::MultiGet
            | Operation::Scan
            | Operation::Directory
            | Operation::Status
            | Operation::Admin => false,
        }
    }

    /// The room that a reply of this kind may need, in units of the longest value.
    pub fn weight(self) -> usize {
        match self {
            // The rows of a scan, the values of many keys, or the state of the whole cluster.
            Operation::Scan | Operation::MultiGet | Operation::Admin => 4,
            _ => 1,
        }
    }
}

/// The part of a request that is kept until its reply.
#[derive(Clone, Copy, Debug)]
pub struct PendingRequest {
    /// The client's id of the request.
    pub request: u64,
    /// The request's kind.
    pub operation: Operation,
    /// The time when the request arrived.
    pub received: BootTime,
    /// The time when it was handled.
    pub handled: BootTime,
}
