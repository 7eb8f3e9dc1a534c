//! What must hold in every run: one property a file, its statement on top.
//!
//! Some are checked at each entry that any replica applies ([`entry_applied`]), some when a replica
//! answers another ([`answered`]) and when it starts ([`log_read_back`]), some by a look at all replicas
//! at one moment ([`Watch`]) or at all that they hold ([`compare`]), the others by what clients saw.

pub mod completeness;
pub mod convergence;
pub mod counters;
pub mod epochs;
pub mod leadership;
pub mod log_matching;
pub mod pairs;
pub mod progress;
pub mod promises;
pub mod registers;
pub mod replay;
pub mod replicas;
pub mod replication;
pub mod rows;
pub mod session_pairs;
pub mod snapshots;
pub mod state_machine;
pub mod steadiness;
pub mod tiling;
pub mod voters;

use std::cell::RefCell;

use bytes::Bytes;
use rangedb_engine::raft::{self, Answer, Message, Question};
use rangedb_engine::range::apply::Applied;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::types::RangeId;
use rangedb_engine::wal::{Group, LogEntry, LogId, LogState};

use crate::sim::cluster::{Cluster, Look};
use crate::sim::executor;
use crate::sim::seen::Seen;

/// What was seen of all entries that were applied.
#[derive(Default)]
struct Entries {
    log: log_matching::Log,
    machine: state_machine::Machine,
    pairs: session_pairs::Pairs,
    promises: promises::Promises,
    voters: voters::Voters,
    violations: Vec<String>,
}

thread_local! {
    static ENTRIES: RefCell<Entries> = RefCell::default();
}

/// Forgets what an earlier run on this thread has seen.
pub fn forget() {
    ENTRIES.take();
}

/// A replica has applied an entry.
pub fn entry_applied(group: Group, entry: &LogEntry, results: &[Applied], state: &RangeState) {
    ENTRIES.with_borrow_mut(|entries| {
        let checks = [
            entries.log.check(group, entry),
            entries.machine.check(group, entry, results, state),
            entries.pairs.check(group, entry, results),
            epochs::check(group, entry, results, state),
            entries.voters.check(group, entry, state),
        ];
        let found = checks.into_iter().filter_map(Result::err);
        entries.violations.extend(found);
    });
}

/// A replica answers another, which may come to know of it from now on. Says whether it has voted for
/// the other.
pub fn answered(question: Bytes, answer: &Bytes) -> bool {
    let Some(answer) = raft::decode_answer(answer.clone()) else {
        return false;
    };
    if matches!(answer, Answer::Refused | Answer::Done | Answer::Conflict) {
        return false;
    }
    let Some(Message::Question(envelope, question)) = raft::decode(question) else {
        return false;
    };
    ENTRIES.with_borrow_mut(|entries| {
        entries.promises.answered(envelope, &question, answer);
    });
    matches!(question, Question::Vote(_)) && matches!(answer, Answer::Voted { granted: true, .. })
}

/// A shard has just read its log back: of each replica what is known of it, and its entries.
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

/// Looks at all logs and all that replicas hold; see [`replicas::check`].
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

/// Whether each of these ranges has enough voters for the disk of one to be lost.
pub fn can_spare_a_disk(ranges: impl Iterator<Item = RangeId>, begun_with: usize) -> bool {
    ENTRIES.with_borrow(|entries| entries.voters.are_enough(ranges, begun_with))
}

/// Looks at all replicas at one moment.
#[derive(Default)]
pub struct Watch {
    leadership: leadership::Leadership,
    progress: progress::Progress,
}

impl Watch {
    /// Checks what holds at any moment.
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
