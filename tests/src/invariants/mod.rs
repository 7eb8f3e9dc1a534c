//! The invariants: properties that hold in every run. Each file has one, and its header states it.
//!
//! Some are checked for each entry that a replica applies ([`EachEntry`]), some when a client asks or
//! is answered ([`asked`]), when a request is forwarded ([`forwarded`]), when a replica answers another
//! ([`answered`]) or starts ([`log_read_back`]), when a row cache answers a read ([`row_cached`]), some
//! by a look at all replicas at one moment ([`Watch`]) or at everything that they store
//! ([`compare`]). The others are checked against the observations of clients.

mod commands;
pub mod completeness;
pub mod convergence;
pub mod counters;
pub mod deadlines;
pub mod directories;
pub mod epochs;
pub mod forwarding;
pub mod leadership;
pub mod log_matching;
pub mod moments;
pub mod pairs;
pub mod progress;
pub mod promises;
pub mod registers;
pub mod replay;
pub mod replicas;
pub mod replication;
mod row_cache;
pub mod rows;
pub mod session_requests;
mod snapshot_rows;
pub mod snapshots;
pub mod state_machine;
pub mod steadiness;
pub mod targets;
pub mod tiling;
pub mod voters;

use std::cell::RefCell;
use std::collections::BTreeSet;

use bytes::Bytes;
use rangedb_engine::gateway::message::{self, Body};
use rangedb_engine::lsm::row::Row;
use rangedb_engine::raft::{self, Message, RaftRequest, RaftResponse};
use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::apply::observer::ApplyObserver;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::{Location, NodeId, RangeId, ReplicaId};
use rangedb_engine::wal::{Group, LogEntry, LogId, LogState};

use crate::sim::client_network::ClientRequest;
use crate::sim::cluster::{Cluster, Look};
use crate::sim::executor;
use crate::sim::seen::Seen;

/// The observations of all entries that replicas have applied.
#[derive(Default)]
struct Entries {
    log: log_matching::Log,
    machine: state_machine::Machine,
    requests: session_requests::Requests,
    promises: promises::Promises,
    voters: voters::Voters,
    forwarding: forwarding::Forwarding,
    targets: targets::Targets,
    snapshots: snapshot_rows::Sent,
    /// How often a machine was paused.
    pauses: u64,
    /// Nodes that have failed and have not started again.
    failed: BTreeSet<NodeId>,
    violations: Vec<String>,
}

thread_local! {
    static ENTRIES: RefCell<Entries> = RefCell::default();
}

/// Forgets the observations of an earlier run on this thread.
pub fn forget() {
    ENTRIES.take();
}

/// Checks each entry when a replica has applied it.
pub struct EachEntry;

impl ApplyObserver for EachEntry {
    fn applied(&self, group: Group, entry: &LogEntry, results: &[Applied], state: &RangeState) {
        ENTRIES.with_borrow_mut(|entries| {
            let checks = [
                entries.log.check(group, entry),
                entries.machine.check(group, entry, results, state),
                entries.requests.check(group, entry, results),
                epochs::check(group, entry, results, state),
                entries.targets.check(group, entry, results, state),
                entries.voters.check(group, entry, state),
            ];
            let found = checks.into_iter().filter_map(Result::err);
            entries.violations.extend(found);
        });
    }
}

/// Records a replica's answer to another one, which relies on it from now on. Returns whether the
/// answer is a vote for the other.
pub fn answered(request: Bytes, response: &Bytes) -> bool {
    let Some(response) = raft::decode_response(response) else {
        return false;
    };
    if matches!(response, RaftResponse::Refused | RaftResponse::Conflict) {
        return false;
    }
    let Some(Message::Request(envelope, request)) = raft::decode(&request) else {
        return false;
    };
    if let RaftRequest::Snapshot(part) = &request {
        ENTRIES.with_borrow_mut(|entries| {
            let checked = entries.snapshots.check(envelope, part);
            entries.violations.extend(checked.err());
        });
    }
    if response == RaftResponse::Done {
        return false;
    }
    ENTRIES.with_borrow_mut(|entries| {
        entries.promises.answered(envelope, &request, response);
    });
    matches!(request, RaftRequest::Vote(_))
        && matches!(response, RaftResponse::Voted { granted: true, .. })
}

/// Records a request that a client has sent to the shard at `at`.
pub fn asked(at: Location, asked: &ClientRequest) {
    let Body::Write { session, .. } = &asked.body else {
        return;
    };
    ENTRIES.with_borrow_mut(|entries| {
        entries.targets.asked(session, asked.target);
        if !asked.caller.follows_routes {
            entries.forwarding.asked(at, session);
        }
    });
}

/// Checks a request that the shard at `from` forwards to that at `to`.
pub fn forwarded(from: Location, to: Location, request: &[u8]) {
    let request = message::decode_request(request);
    let Some(Body::Write { session, .. }) = request.map(|request| request.body) else {
        return;
    };
    ENTRIES.with_borrow_mut(|entries| {
        let checked = entries.forwarding.forwarded((from, to), &session);
        entries.violations.extend(checked.err());
    });
}

/// Checks an answer of a row cache; `tree` is what memtables and tables hold.
pub fn row_cached(key: &[u8], cached: Row<'_>, tree: Option<Row<'_>>) {
    let checked = row_cache::check(key, cached, tree);
    ENTRIES.with_borrow_mut(|entries| entries.violations.extend(checked.err()));
}

/// Checks the logs that a shard has just read back: for each replica, its state and its entries.
pub fn log_read_back(logs: &[(Group, LogState, Vec<LogId>)]) {
    ENTRIES.with_borrow_mut(|entries| {
        for (group, state, ids) in logs {
            let checks = [
                entries.log.check_stored(*group, state, ids),
                entries.promises.check(*group, state, ids),
            ];
            let found = checks.into_iter().filter_map(Result::err);
            entries.violations.extend(found);
        }
    });
}

/// Checks all logs and the contents of all replicas; see [`replicas::check`].
pub fn compare(seen: &Seen, cluster: &Cluster, at_rest: bool) {
    let mut replicas = Vec::new();
    for (host, shard) in cluster.shards() {
        let (contents, logs) =
            executor::current().on_host(host, || (shard.contents(), shard.logs()));
        match contents {
            Ok(contents) => replicas.extend(contents),
            Err(fatal) => seen.violation(format!("a replica cannot be read: {fatal}")),
        }
        ENTRIES.with_borrow(|entries| {
            for (group, state, ids) in logs {
                let checked = entries.log.check_stored(group, &state, &ids);
                checked.unwrap_or_else(|what| seen.violation(what));
            }
        });
    }
    replicas::check(seen, &replicas, at_rest);
}

/// Whether a replica is no voter of its range any more.
fn is_out(range: RangeId, replica: ReplicaId) -> bool {
    ENTRIES.with_borrow(|entries| entries.voters.is_out(range, replica))
}

/// Whether each range has enough voters to lose the disk of one: those with which the cluster begins, and
/// those that were split off.
pub fn can_spare_a_disk(
    ranges: impl Iterator<Item = RangeId>,
    begun_with: usize,
    looks: &[Look],
) -> bool {
    let born = replication::born(looks);
    ENTRIES.with_borrow(|entries| {
        let mut born = born.iter();
        entries.voters.are_enough(ranges, begun_with)
            && born.all(|(range, born)| entries.voters.are_born(*range, born))
    })
}

/// The checks of all replicas at one moment.
#[derive(Default)]
pub struct Watch {
    leadership: leadership::Leadership,
    progress: progress::Progress,
}

impl Watch {
    /// Checks everything that holds at any moment.
    pub fn check(&mut self, seen: &Seen, looks: &[Look]) {
        let found = ENTRIES.with_borrow_mut(|entries| {
            completeness::check(&entries.log, seen, looks);
            std::mem::take(&mut entries.violations)
        });
        found.into_iter().for_each(|what| seen.violation(what));
        self.leadership.check(seen, looks);
        self.progress.check(seen, looks);
        tiling::check(seen, looks);
    }
}
