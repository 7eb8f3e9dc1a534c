//! Writes: the checks of a write before it is queued in its range's proposer.
//!
//! A write is refused here if it breaks a limit, if this shard does not lead the range of its first key, or if
//! the disk has no room for it. What becomes of it after that is decided by [`crate::range`]: the proposer may
//! still refuse it because too much waits, and conditions are decided when the entry is applied. Lives on the
//! shard's thread.

use std::rc::Rc;

use rangedb_limits::BrokenLimit;

use crate::boot_time::BootTime;
use crate::env::Env;
use crate::error::{Error, Fate};
use crate::mutant::{self, Mutant};
use crate::range::proposer::sink::WriteSink;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::range::sessions::Verdict;
use crate::range::usage::hot_keys::Sample;
use crate::request::{Batch, Change, Expected, Read, RequestId, Target};
use crate::shard::Shard;
use crate::types::{Blob, Timestamp};

/// Why a shard whose tables take no more writes refuses them, and when to try again.
const STUCK: &str = "compactions fail on the node that leads the range, and its tables take no more writes until \
     another node leads: the node's log names the damaged file (event compaction_failed)";
const STUCK_RETRY_AFTER_MS: u32 = 1_000;

/// The parts of a write besides its command.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest {
    /// The range that the sender believes to hold the first key.
    pub target: Option<Target>,
    /// The write's request id, by which a retry is known.
    pub session: RequestId,
    /// It is not proposed after this.
    pub deadline: Option<BootTime>,
}

impl<E: Env> Shard<E> {
    /// Proposes a write. `sink` receives the result exactly once, now or later, unless the process
    /// ends before.
    pub fn write(&self, write: Batch, request: WriteRequest, sink: Rc<dyn WriteSink>, token: u64) {
        let checked = check_write(&write).and_then(|first_key| {
            check_session(&request.session)?;
            let replica = self.with_running(&first_key, |running| {
                self.check(&running.replica, &first_key, request.target)?;
                let first_tried = request.session.first_tried;
                running
                    .replica
                    .timestamps
                    .check("first_tried", first_tried)?;
                if running.replica.leadership.lacks_quorum() {
                    // Heartbeats find out when a majority is back.
                    running.raft.stay_awake();
                    return Err(Error::NoQuorum(Fate::NotApplied));
                }
                Ok(running.replica.clone())
            })??;
            let store = &self.inner.store;
            if store.disk_full() && !(write.only_deletes() && store.has_reserve()) {
                return Err(Error::DiskFull);
            }
            if store.is_stuck() {
                return Err(Error::overloaded(STUCK, STUCK_RETRY_AFTER_MS));
            }
            Ok(replica)
        });
        let replica = match checked {
            Ok(replica) => replica,
            Err(error) => return sink.complete(token, Err(error)),
        };
        let began = replica.usage.begin();
        let version = replica.with_state(|state| state.descriptor.epoch.version);
        if !all_in_range(&replica, &write) {
            return self.refuse_several_ranges(&replica, &request, sink.as_ref(), token);
        }
        if let Err(error) = self.look_ahead(&replica, &write) {
            return sink.complete(token, Err(error));
        }
        let write = match mutant::is(Mutant::CasBeforeLog) {
            true => self.decide_now(&replica, write),
            false => write,
        };
        let bytes = write.len_in_bytes();
        let keys = began.and_then(|_| Sample::of_all(write.keys().map(|key| &**key)));
        let kind = ProposalKind::Write(write, request.session);
        let proposal = Proposal::new(kind, version, request.deadline, (sink, token));
        let proposal = proposal.named(request.target.is_some());
        if let Some(untold) = replica.proposer.push(proposal) {
            let (range, shard) = (replica.group.range, self.inner.location);
            tracing::warn!(
                event = "range_overloaded",
                untold,
                "range {range} is offered more writes than shard {shard} takes: the excess is refused as \
                 overloaded until what waits has become less; other ranges go on"
            );
        }
        replica.usage.has_written(keys, bytes, began);
    }

    /// Refuses a write that depends on a row which cannot be read: once it is in the log it must be applied,
    /// and whatever comes after it would have to wait.
    fn look_ahead(&self, replica: &Replica<E>, write: &Batch) -> Result<(), Error> {
        for key in write.keys_read() {
            let read = (self.inner.store).newest(replica.data_id_of(key), key, |_| ());
            read.map_err(|error| self.inner.unreadable(replica, error))?;
        }
        Ok(())
    }

    /// The batch without its conditions if they hold now.
    fn decide_now(&self, replica: &Replica<E>, mut write: Batch) -> Batch {
        let hold = write.conditions.iter().all(|condition| {
            let look = |found: Option<(&[u8], Timestamp)>| holds(&condition.expected, found);
            let read = self.look(replica, &condition.key, Timestamp::MAX, look);
            matches!(read, Ok(Read::Done(true)))
        });
        if hold {
            write.conditions.clear();
        }
        write
    }

    /// Refuses a write that spans ranges, unless it is a retry that was applied before a split: its
    /// pair tells.
    fn refuse_several_ranges(
        &self,
        replica: &Replica<E>,
        request: &WriteRequest,
        sink: &dyn WriteSink,
        token: u64,
    ) {
        let now = replica.timestamps.now();
        let verdict = replica.with_state(|state| state.sessions.check(&request.session, now));
        let result = match verdict {
            Verdict::Seen(outcome) => Ok(outcome),
            Verdict::Expired => Err(Error::SessionExpired),
            Verdict::Fresh => Err(Error::SeveralRanges),
        };
        sink.complete(token, result);
    }
}

/// Whether the key's present value, if it has one, is what is expected. Apply asks the same of the
/// entry in the log; this is for the deliberate bug that decides before.
fn holds(expected: &Expected, live: Option<(&[u8], Timestamp)>) -> bool {
    match expected {
        Expected::Absent => live.is_none(),
        Expected::Value(wanted) => live.is_some_and(|(value, _)| value == &**wanted),
        Expected::Version(wanted) => live.is_some_and(|(_, version)| version == *wanted),
        Expected::Exists => live.is_some(),
    }
}

/// Checks that a write does not say that it was answered itself.
fn check_session(session: &RequestId) -> Result<(), Error> {
    let (sequence, lowest) = (session.sequence, session.lowest_unanswered);
    if lowest > sequence {
        return Err(Error::Invalid(format!(
            "the session's lowest_unanswered is {lowest}, above the write's own sequence {sequence}"
        )));
    }
    Ok(())
}

/// Checks a write's limits; gives its first key.
fn check_write(write: &Batch) -> Result<Blob, Error> {
    write.check()?;
    let names_expiry = |change: &Change| match change {
        Change::Put { expires_at, .. } => expires_at.is_some(),
        Change::Delete | Change::Add { .. } => false,
    };
    if write.mutations.iter().any(|m| names_expiry(&m.change)) {
        let rule = "the write names an expiry; this release has none";
        return Err(Error::Invalid(rule.to_owned()));
    }
    write
        .first_key()
        .cloned()
        .ok_or_else(|| BrokenLimit::NoMutation.into())
}

fn all_in_range<E: Env>(replica: &Replica<E>, write: &Batch) -> bool {
    // The first key of a batch has found the replica.
    if write.operations() == 1 {
        return true;
    }
    replica.with_state(|state| write.keys().all(|key| state.descriptor.keys.contains(key)))
}
