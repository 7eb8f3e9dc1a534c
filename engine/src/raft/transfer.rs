//! Leadership transfer from one replica to another: before its node stops, to spread leaders, or on
//! an operator's order (Raft dissertation, 3.10).
//!
//! A leader stops serving before it asks another to lead, and never serves in that term again. So
//! the candidate that it names breaks no lease. Replicas that withhold their vote after a restart
//! may vote for this candidate, and may be it: they have promised nothing in a later term, or their
//! vote would say so.

use openraft::raft::TransferLeaderRequest;

use crate::error::Fatal;
use crate::raft::convert;
use crate::raft::group::Group;
use crate::raft::machine::Machine;
use crate::raft::message::RaftResponse;
use crate::types::ReplicaId;
use crate::wal::{LogId, Vote};

impl<M: Machine> Group<M> {
    /// The other voters, those with the shortest lag first.
    pub fn transfer_targets(&self) -> Vec<ReplicaId> {
        let voters = self.known_membership().voters.into_iter();
        let mut others: Vec<ReplicaId> = voters.filter(|id| *id != self.replica).collect();
        others.sort_by_key(|id| self.lag(*id));
        others
    }

    /// Asks a voter to lead. The caller must stop reads and proposals of this replica before the
    /// call and for the rest of its term: the others vote for that candidate in spite of the lease.
    ///
    /// An empty entry goes first: while a replica has written no entry since it started (or since
    /// it installed a snapshot), openraft takes its log for one that is behind.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn transfer_to(&self, to: ReplicaId) -> Result<(), Fatal> {
        self.renew_lease().await?;
        self.propose(M::empty_entry()?, |_| ()).await?;
        self.transferred.set(self.term());
        self.told(self.raft.trigger().transfer_leader(to).await)
    }

    /// Whether this replica has asked another to lead in this term.
    pub(super) fn has_transferred(&self) -> bool {
        // In nearly all groups it never has, and each read asks.
        let of = self.transferred.get();
        of != 0 && of == self.term()
    }

    /// Campaigns because the leader of this term asks for it, unless the node is stopping.
    pub(super) async fn timeout_now(&self, vote: Vote, last: Option<LogId>) -> RaftResponse {
        if self.leaves.get() {
            return RaftResponse::Refused;
        }
        let vote = convert::raft_vote(vote);
        let last = last.map(convert::raft_log_id);
        let request = TransferLeaderRequest::new(vote, self.replica, last);
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => RaftResponse::Done,
            _ => RaftResponse::Refused,
        }
    }
}
