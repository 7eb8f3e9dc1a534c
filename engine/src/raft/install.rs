//! Hands the snapshot of another replica to openraft, which has the state machine install it: that is in
//! [`crate::range::raft_adapter::state_machine`] for a range.

use openraft::async_runtime::watch::WatchReceiver;

use crate::raft::convert;
use crate::raft::group::Group;
use crate::raft::machine::{AppliedState, Machine};
use crate::raft::message::RaftResponse;
use crate::raft::state_machine::{Snapshot, SnapshotHandle, snapshot_meta};
use crate::wal::Vote;

impl<M: Machine> Group<M> {
    /// The answer to a leader whose snapshot was installed.
    pub fn installed(&self) -> RaftResponse {
        RaftResponse::Installed(convert::vote(&self.metrics.borrow_watched().vote))
    }

    /// Installs a snapshot that is durable here and covers the log as far as given, unless it is no
    /// longer needed.
    pub async fn install(
        &self,
        vote: Vote,
        covers: &AppliedState,
        staged: M::Staged,
    ) -> RaftResponse {
        let Ok(meta) = snapshot_meta(covers) else {
            return RaftResponse::Refused;
        };
        let snapshot = Snapshot::<M> {
            meta,
            snapshot: SnapshotHandle::Staged(staged),
        };
        let vote = convert::raft_vote(vote);
        match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => RaftResponse::Installed(convert::vote(&response.vote)),
            Err(_) => RaftResponse::Refused,
        }
    }
}
