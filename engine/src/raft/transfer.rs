//! One replica hands its leadership to another: before its node stops, to spread leaders, when a
//! person says so (Raft dissertation, 3.10).
//!
//! Who hands over has stopped to serve before it asks, and never serves in that term again. So the
//! candidate it names breaks no lease, and those that keep silent after a restart may vote for it, and
//! may be it: they have made no promise in a later term, or their vote would say so.

use openraft::raft::TransferLeaderRequest;

use crate::env::Env;
use crate::error::Fatal;
use crate::raft::convert;
use crate::raft::group::Group;
use crate::raft::message::Answer;
use crate::range::command::{self, Entry};
use crate::types::ReplicaId;
use crate::wal::{LogId, Vote};

impl<E: Env> Group<E> {
    /// Other voters, those that have most of the log first.
    pub fn heirs(&self) -> Vec<ReplicaId> {
        let voters = self.known_membership().voters.into_iter();
        let mut others: Vec<ReplicaId> = voters.filter(|id| *id != self.replica).collect();
        others.sort_by_key(|id| self.lag(*id));
        others
    }

    /// Asks a voter to lead. Before the call, and from here on, this replica must neither read alone
    /// nor propose in its term: the others vote for that one in spite of the lease.
    ///
    /// An entry of no effect goes first: openraft has a replica that has written none since it started
    /// (or since it took over a snapshot) take its log for one that is behind.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn hand_over(&self, to: ReplicaId) -> Result<(), Fatal> {
        self.renew_lease().await?;
        let nothing = command::encode(&Entry::default())?;
        self.propose(nothing, |_| ()).await?;
        self.handed_over.set(self.term());
        self.told(self.raft.trigger().transfer_leader(to).await)
    }

    /// Whether another was asked to lead in this term.
    pub(super) fn has_handed_over(&self) -> bool {
        self.handed_over.get() == self.term()
    }

    /// The leader of this term wants it to lead.
    pub(super) async fn take_over(&self, vote: Vote, last: Option<LogId>) -> Answer {
        if self.leaves.get() {
            return Answer::Refused;
        }
        let vote = convert::raft_vote::<E>(vote);
        let last = last.map(convert::raft_log_id::<E>);
        let request = TransferLeaderRequest::new(vote, self.replica, last);
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => Answer::Done,
            _ => Answer::Refused,
        }
    }
}
