//! What other shards ask of this one, and what a read asks of them.

use bytes::Bytes;

use super::{Running, Shard};
use crate::env::Env;
use crate::error::Error;
use crate::raft::{self, Answer, Question};
use crate::request::Target;
use crate::types::{RangeId, ReplicaId};

impl<E: Env> Shard<E> {
    /// Answers a question of another replica. A replica that is not here is never made by this.
    pub async fn answer(&self, question: Bytes) -> Bytes {
        let answer = match raft::decode(question) {
            Some((envelope, question)) => match self.group(envelope.range, envelope.to) {
                Some(group) => match question {
                    Question::Snapshot(part) => self.take_part(&group, envelope, part).await,
                    question => group.answer(question).await,
                },
                None => Answer::Refused,
            },
            None => Answer::Refused,
        };
        raft::encode_answer(&answer)
    }

    fn group(&self, range: RangeId, replica: ReplicaId) -> Option<raft::RaftGroup<E>> {
        let is_it = |running: &&Running<E>| {
            running.replica.group.range == range && running.replica.group.replica == replica
        };
        let (ranges, system) = (self.inner.ranges.borrow(), self.inner.system.borrow());
        let found = ranges.iter().chain(system.iter()).find(is_it);
        found.map(|running| running.raft.clone())
    }

    /// Waits until a read of the key, made at once after this, sees everything that was committed
    /// before the call: what a leader does whose lease has run out.
    ///
    /// # Errors
    /// [`Error::NotLeader`] if this replica does not lead or cannot reach a majority, and what
    /// [`Shard::get`] gives.
    pub async fn confirm(&self, key: &[u8], target: Option<Target>) -> Result<(), Error> {
        super::check_key(key)?;
        self.confirm_at(key, target).await
    }

    /// The same for the range that holds `key`, which may be the empty one: the first.
    pub(super) async fn confirm_at(&self, key: &[u8], target: Option<Target>) -> Result<(), Error> {
        let (replica, raft) = self.find_running(key)?;
        replica.check(target)?;
        if raft.has_lease() || raft.read_barrier().await {
            return replica.check(target);
        }
        Err(Error::NotLeader(Some(Box::new(replica.route()))))
    }
}
