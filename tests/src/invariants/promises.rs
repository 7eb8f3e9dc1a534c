//! What a replica has told another is durable it still knows after a crash: its vote, the entries that
//! it took, the snapshot that it took over. Raft rests on nothing else.

use std::collections::BTreeMap;

use rangedb_engine::raft::{Answer, Envelope, Question, SnapshotPart};
use rangedb_engine::wal::{Group, LogId, LogState, Vote};

/// What one replica has promised.
#[derive(Clone, Copy, Debug)]
struct Promise {
    /// The newest vote that others know of.
    vote: Vote,
    /// The last entry that it took from the leader of a vote, and that vote: another leader may have it
    /// drop entries.
    taken: Option<(Vote, LogId)>,
}

/// What all replicas have promised.
#[derive(Default)]
pub struct Promises(BTreeMap<Group, Promise>);

/// Votes by their order: whether they are committed does not count.
fn rank(vote: Vote) -> (u64, u64) {
    (vote.term, vote.leader.0)
}

impl Promises {
    /// A replica answers a question, and the answer is on its way.
    pub fn answered(&mut self, envelope: Envelope, question: &Question, answer: Answer) {
        let (vote, last) = match (question, answer) {
            (Question::Vote(candidacy), Answer::Voted { granted: true, .. }) => {
                (candidacy.vote, None)
            }
            (
                Question::Append {
                    vote,
                    previous,
                    entries,
                    ..
                },
                Answer::Appended,
            ) => (*vote, entries.last().map(|entry| entry.id).or(*previous)),
            (Question::Append { vote, .. }, Answer::AppendedUpTo(last)) => (*vote, last),
            (Question::Snapshot(SnapshotPart::End { vote, last, .. }), Answer::Installed(now))
                if rank(now) == rank(*vote) =>
            {
                (*vote, Some(*last))
            }
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
    /// What was forgotten.
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
