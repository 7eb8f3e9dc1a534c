//! Installs a snapshot of another replica in place of what a replica has.

use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::async_runtime::watch::WatchReceiver;

use crate::env::Env;
use crate::raft::convert;
use crate::raft::group::Group;
use crate::raft::message::Answer;
use crate::raft::state_machine::{SnapshotHandle, stored_membership};
use crate::raft::type_config::TypeConfig;
use crate::range::state::RangeState;
use crate::types::DataId;
use crate::wal::Vote;

impl<E: Env> Group<E> {
    /// The answer to a leader whose snapshot was installed.
    pub fn installed(&self) -> Answer {
        Answer::Installed(convert::vote::<E>(&self.metrics.borrow_watched().vote))
    }

    /// Installs a snapshot whose rows are durable in the tree, unless it is no longer needed.
    pub async fn install(&self, vote: Vote, data_id: DataId, state: RangeState) -> Answer {
        let Ok(membership) = stored_membership::<E>(&state.membership) else {
            return Answer::Refused;
        };
        let snapshot = SnapshotOf::<TypeConfig<E>, SnapshotHandle<E>> {
            meta: SnapshotMetaOf::<TypeConfig<E>> {
                last_log_id: state.applied.map(convert::raft_log_id::<E>),
                last_membership: membership,
            },
            snapshot: SnapshotHandle::Staged(data_id, Box::new(state)),
        };
        let vote = convert::raft_vote::<E>(vote);
        match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => Answer::Installed(convert::vote::<E>(&response.vote)),
            Err(_) => Answer::Refused,
        }
    }
}
