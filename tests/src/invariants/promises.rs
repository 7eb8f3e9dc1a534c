//! After a crash, a replica still knows everything that it has acknowledged to another replica as
//! durable: its vote, the entries that it accepted, and the snapshot that it installed. Raft rests on
//! this alone.

use std::collections::BTreeMap;

use rangedb_engine::raft::{Envelope, RaftRequest, RaftResponse, SnapshotPart};
use rangedb_engine::wal::{Group, LogId, LogState, Vote};

/// The promises of one replica.
#[derive(Clone, Copy, Debug)]
struct Promise {
    /// The newest vote that other replicas know of.
    vote: Vote,
    /// The last entry that it accepted from a leader, with that leader's vote: a later leader may make
    /// it drop entries.
    taken: Option<(Vote, LogId)>,
}

/// The promises of all replicas.
#[derive(Default)]
pub struct Promises(BTreeMap<Group, Promise>);

/// The order of votes, in which it does not matter whether they are committed.
fn rank(vote: Vote) -> (u64, u64) {
    (vote.term, vote.leader.0)
}

impl Promises {
    /// Records an answer that a replica is sending.
    pub fn answered(&mut self, envelope: Envelope, request: &RaftRequest, response: RaftResponse) {
        let (vote, last) = match (request, response) {
            (RaftRequest::Vote(vote_request), RaftResponse::Voted { granted: true, .. }) => {
                (vote_request.vote, None)
            }
            (
                RaftRequest::Append {
                    vote,
                    previous,
                    entries,
                    ..
                },
                RaftResponse::Appended,
            ) => (*vote, entries.last().map(|entry| entry.id).or(*previous)),
            (RaftRequest::Append { vote, .. }, RaftResponse::AppendedUpTo(last)) => (*vote, last),
            (
                RaftRequest::Snapshot(SnapshotPart::End { vote, last, .. }),
                RaftResponse::Installed(now),
            ) if rank(now) == rank(*vote) => (*vote, Some(*last)),
            _ => return,
        };
        let group = Group {
            range: envelope.range,
            replica: envelope.to,
        };
        let promise = self.0.entry(group).or_insert(Promise { vote, taken: None });
        if rank(vote) > rank(promise.vote) {
            promise.vote = vote;
        }
        let Some(last) = last else { return };
        match &mut promise.taken {
            Some((of, _)) if rank(*of) > rank(vote) => {}
            Some((of, taken)) if rank(*of) == rank(vote) => {
                if last.index > taken.index {
                    *taken = last;
                }
            }
            taken => *taken = Some((vote, last)),
        }
    }

    /// Checks a log that was just read back.
    ///
    /// # Errors
    /// The replica has forgotten a promise.
    pub fn check(&self, group: Group, state: &LogState, entries: &[LogId]) -> Result<(), String> {
        let Some(promise) = self.0.get(&group) else {
            return Ok(());
        };
        let forgot = |what: String| {
            let Group { range, replica } = group;
            Err(format!(
                "range {range}: {replica} forgot {what}, its log says {state:?}"
            ))
        };
        let Some(vote) = state.vote.filter(|vote| rank(*vote) >= rank(promise.vote)) else {
            return forgot(format!("its vote {:?}", promise.vote));
        };
        let Some((of, taken)) = promise.taken else {
            return Ok(());
        };
        if rank(vote) > rank(of) {
            return Ok(());
        }
        let has_it = match state.purged {
            Some(purged) if purged.index >= taken.index => true,
            _ => entries.contains(&taken),
        };
        if has_it {
            return Ok(());
        }
        forgot(format!("that it took {taken:?}"))
    }
}
