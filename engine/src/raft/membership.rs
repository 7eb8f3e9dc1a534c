//! The members of a group and the steps that change them, in openraft's terms. [`crate::shard`]
//! puts the steps of a change together; [`crate::cluster`] decides who should be a member.

use std::collections::{BTreeMap, BTreeSet};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};

use crate::boot_time::BootTime;
use crate::error::{Fatal, OrderError};
use crate::raft::group::Group;
use crate::raft::machine::Machine;
use crate::raft::type_config::{RaftMembership, TypeConfig};
use crate::types::{Location, ReplicaId, ReplicaPlace};

/// The members of a group by the last membership entry of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// All replicas, voters and learners, and where each lives.
    pub places: BTreeMap<ReplicaId, Location>,
    /// The voters. During a joint change: the voters before and after.
    pub voters: BTreeSet<ReplicaId>,
    /// Whether a joint change is half done.
    pub is_joint: bool,
}

impl<M: Machine> Group<M> {
    /// Begins a change of members; `false` if another one is under way here.
    pub fn begin_change(&self) -> bool {
        !self.changing.replace(true)
    }

    /// Ends a change of members.
    pub fn end_change(&self) {
        self.changing.set(false);
    }

    /// Whether this replica is carrying out a change of members.
    pub fn is_changing(&self) -> bool {
        self.changing.get()
    }

    /// Makes this replica answer no requests and campaign no more: it is being removed.
    pub fn retire(&self) {
        self.ending.retired.set(true);
    }

    /// Whether this replica is being removed.
    pub fn is_retired(&self) -> bool {
        self.ending.retired.get()
    }

    /// The members by the last membership entry of the log.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn membership(&self) -> Result<Membership, Fatal> {
        let effective = self
            .raft
            .with_raft_state(|state| state.membership_state.effective().clone())
            .await
            .map_err(|e| self.failed(e))?;
        Ok(membership(&effective))
    }

    /// The members that openraft's metrics name now.
    pub fn known_membership(&self) -> Membership {
        membership(&self.metrics.borrow_watched().membership_config)
    }

    /// How many entries another replica lacks; `u64::MAX` if that is not known.
    pub fn lag(&self, replica: ReplicaId) -> u64 {
        let metrics = self.metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let mut all = metrics.replication.iter().flatten();
        let matched = all.find(|(id, _)| **id == replica);
        matched
            .and_then(|(_, matched)| matched.as_ref())
            .map_or(u64::MAX, |id| last.saturating_sub(id.index))
    }

    /// The index of the last entry that another replica is known to have.
    pub fn matched(&self, replica: ReplicaId) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        let mut all = metrics.replication.iter().flatten();
        let (_, matched) = all.find(|(id, _)| **id == replica)?;
        matched.as_ref().map(|id| id.index)
    }

    /// When another replica last took a part of a snapshot of this one. While it receives a
    /// snapshot it comes nearer, although its last entry does not change until the end.
    pub fn part_taken(&self) -> Option<BootTime> {
        self.progress.part_taken.get()
    }

    /// Adds a learner.
    ///
    /// # Errors
    /// This replica does not lead, a change is under way, or the group has stopped.
    pub async fn add_learner(&self, place: ReplicaPlace) -> Result<(), OrderError> {
        let added = self.raft.add_learner(place.replica, place.location, false);
        added.await.map(drop).map_err(refusal)
    }

    /// Makes these learners the voters, in one joint change. A voter that is not among them becomes
    /// a learner.
    ///
    /// # Errors
    /// See [`Group::add_learner`].
    pub async fn change_voters(&self, voters: BTreeSet<ReplicaId>) -> Result<(), OrderError> {
        let changed = self.raft.change_membership(voters, true);
        changed.await.map(drop).map_err(refusal)
    }

    /// Removes learners.
    ///
    /// # Errors
    /// See [`Group::add_learner`].
    pub async fn remove_learners(&self, learners: BTreeSet<ReplicaId>) -> Result<(), OrderError> {
        let changes = openraft::ChangeMembers::RemoveNodes(learners);
        let removed = self.raft.change_membership(changes, false);
        removed.await.map(drop).map_err(refusal)
    }
}

/// Why openraft refused a change of members.
fn refusal<M: Machine>(
    error: RaftError<TypeConfig<M>, ClientWriteError<TypeConfig<M>>>,
) -> OrderError {
    let message = error.to_string();
    match error.into_api_error() {
        // The group has stopped, or another leader decides on the entry.
        None | Some(ClientWriteError::LogEntryDiscarded(_)) => OrderError::Unknown(message),
        Some(ClientWriteError::ForwardToLeader(_) | ClientWriteError::PreconditionFailed(_)) => {
            OrderError::busy(message)
        }
        Some(ClientWriteError::ChangeMembershipError(why)) => match why {
            ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_) => OrderError::busy(message),
            ChangeMembershipError::LearnerNotFound(_) => OrderError::NotFound(message),
            _ => OrderError::Invalid(message),
        },
    }
}

fn membership(stored: &RaftMembership) -> Membership {
    Membership {
        places: stored.nodes().map(|(id, place)| (*id, *place)).collect(),
        voters: stored.voter_ids().collect(),
        is_joint: stored.membership().get_joint_config().len() > 1,
    }
}
