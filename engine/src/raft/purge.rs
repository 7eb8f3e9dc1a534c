//! When a group's log is purged: never beyond what the tree has made durable, and with a tail kept
//! for replicas that are behind and answer, or that receive a snapshot ([`super::pins`]).

use openraft::async_runtime::watch::WatchReceiver;

use crate::env::Env;
use crate::error::Fatal;
use crate::mutant::{self, Mutant};
use crate::raft::group::Group;
use crate::raft::machine::Machine;
use crate::raft::pins::Follower;
use crate::types::{Location, ReplicaId};
use crate::wal::LogId;
use crate::words::listed;

/// For a replica that answers and is behind, this many times more entries are kept.
const LAGGARD_KEPT: u64 = 16;

/// The log of a group of which a part is pinned for snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The replicas that it is kept for.
    pub replicas: Vec<ReplicaId>,
    /// How many entries it has.
    pub entries: usize,
    /// Their bytes on disk.
    pub bytes: u64,
}

/// A replica and its shard, for people, who know nodes and not replicas.
pub fn placed(replica: ReplicaId, at: Option<Location>) -> String {
    match at {
        Some(at) => format!("{replica} on shard {at}"),
        None => replica.to_string(),
    }
}

impl<M: Machine> Group<M> {
    /// Tells openraft how far the tree is durable: up to there the log may be purged.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn note_durable(&self) -> Result<(), Fatal> {
        self.told(self.raft.trigger().snapshot().await)
    }

    /// Makes it durable that an entry which is applied here is committed, with all entries up to it: a restart
    /// applies them without hearing from another replica.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn commit_durably(&self, applied: LogId) -> Result<(), Fatal> {
        Ok(self.log.commit_durably(applied).await?)
    }

    /// The size of the log, if a part of it is pinned for snapshots.
    pub fn pinned(&self) -> Option<Pinned> {
        let (entries, bytes) = self.log.size();
        self.pins.is_pinned().then(|| Pinned {
            replicas: self.pins.replicas(),
            entries,
            bytes,
        })
    }

    /// Drops all pins of snapshots.
    pub fn give_up_pins(&self) {
        self.pins.give_up();
    }

    /// Purges the log as far as the tree is durable, except for a tail by which a replica that is
    /// behind can catch up: `entries_kept` entries always, [`LAGGARD_KEPT`] times as many for a
    /// replica that answers, and everything that is pinned. With `is_full` only what is pinned is
    /// kept.
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
            let purged = metrics.purged.as_ref().map_or(0, |id| id.index);
            // Most groups have nothing to purge most of the time.
            if up_to <= purged && !self.pins.is_pinned() {
                return Ok(());
            }
            let followers = metrics.replication.iter().flatten();
            let behind = followers.filter(|(id, _)| **id != self.replica && is_there(**id));
            let slowest = behind.map(|(_, matched)| matched.as_ref().map_or(0, |id| id.index));
            let waited_for = slowest.min().unwrap_or(up_to);
            let up_to = up_to.min(waited_for.max(durable.saturating_sub(kept * LAGGARD_KEPT)));
            let follower = |id| {
                let matched = metrics.replication.as_ref()?.get(&id)?;
                Some(Follower {
                    matched: matched.as_ref().map_or(0, |id| id.index),
                    is_there: is_there(id),
                })
            };
            let placed = |id: ReplicaId| {
                let at = metrics.membership_config.membership().get_node(&id);
                placed(id, at.copied())
            };
            let last = metrics.last_log_index.unwrap_or(0);
            let near = last.saturating_sub(self.entries_kept);
            let up_to = self.leave_pinned(up_to, near, follower, placed);
            (up_to > purged).then_some(up_to)
        };
        let Some(up_to) = up_to else { return Ok(()) };
        tracing::debug!(range = %self.range, replica = %self.replica, up_to, "purges");
        self.told(self.raft.trigger().purge_log(up_to).await)
    }

    /// Lowers `up_to`, the index up to which the log would be purged, to keep what is pinned. `placed` names a
    /// replica for people.
    fn leave_pinned(
        &self,
        up_to: u64,
        near: u64,
        follower: impl Fn(ReplicaId) -> Option<Follower>,
        placed: impl Fn(ReplicaId) -> String,
    ) -> u64 {
        let after = self.pins.kept_after(near, M::Env::now(), follower);
        let Some(after) = after.filter(|_| !mutant::is(Mutant::SnapshotPinsNoLog)) else {
            return up_to;
        };
        if after < up_to && self.pins.matters() {
            tracing::info!(
                range = %self.range,
                replicas = listed(self.pins.replicas().into_iter().map(placed)),
                after,
                "the log is kept for replicas that install a snapshot, until they have caught up"
            );
        }
        up_to.min(after)
    }
}
