//! When a group's log is purged: never beyond what the tree has made durable, and with a tail kept for
//! replicas that are behind and answer.

use openraft::async_runtime::watch::WatchReceiver;

use crate::env::Env;
use crate::error::Fatal;
use crate::raft::group::Group;
use crate::types::ReplicaId;

/// For a replica that answers and is behind, so many times more entries are kept.
const LAGGARD_KEPT: u64 = 16;

impl<E: Env> Group<E> {
    /// Tells openraft how far the tree is durable: up to there the log may be purged.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn note_durable(&self) -> Result<(), Fatal> {
        self.told(self.raft.trigger().snapshot().await)
    }

    /// Has the log purged as far as the tree is durable, but for a tail that a replica behind can
    /// catch up by: some entries always, and as many times [`LAGGARD_KEPT`] for a replica that
    /// answers. With `is_full` nobody is waited for.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn purge(
        &self,
        is_there: impl Fn(ReplicaId) -> bool,
        is_full: bool,
    ) -> Result<(), Fatal> {
        let up_to = {
            let metrics = self.metrics.borrow_watched();
            let Some(durable) = metrics.snapshot.as_ref().map(|id| id.index) else {
                return Ok(());
            };
            let kept = match metrics.membership_config.nodes().count() {
                0 | 1 => 0,
                _ if is_full => 0,
                _ => self.entries_kept,
            };
            let up_to = durable.saturating_sub(kept);
            let followers = metrics.replication.iter().flatten();
            let behind = followers.filter(|(id, _)| **id != self.replica && is_there(**id));
            let slowest = behind.map(|(_, matched)| matched.as_ref().map_or(0, |id| id.index));
            let waited_for = slowest.min().unwrap_or(up_to);
            let up_to = up_to.min(waited_for.max(durable.saturating_sub(kept * LAGGARD_KEPT)));
            let purged = metrics.purged.as_ref().map_or(0, |id| id.index);
            (up_to > purged).then_some(up_to)
        };
        let Some(up_to) = up_to else { return Ok(()) };
        tracing::debug!(range = %self.range, replica = %self.replica, up_to, "purges");
        self.told(self.raft.trigger().purge_log(up_to).await)
    }
}
