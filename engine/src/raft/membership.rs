//! The members of a group and how they are changed, in openraft's terms. The steps of a change are
//! put together in [`crate::shard`]; who should be a member is decided in [`crate::cluster`].

use std::collections::{BTreeMap, BTreeSet};

use openraft::alias::StoredMembershipOf;
use openraft::async_runtime::watch::WatchReceiver;

use crate::env::{Env, Now};
use crate::error::Fatal;
use crate::raft::group::Group;
use crate::raft::type_config::TypeConfig;
use crate::range::ReplicaPlace;
use crate::types::{Location, ReplicaId};

/// The members of a group, as of the last entry of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// All replicas, with or without a vote.
    pub places: BTreeMap<ReplicaId, Location>,
    /// Those that vote; of a change that is half done those before and after.
    pub voters: BTreeSet<ReplicaId>,
    /// Whether a change is half done.
    pub is_joint: bool,
}

impl<E: Env> Group<E> {
    /// Begins a change of members; `false`: one is being made.
    pub fn begin_change(&self) -> bool {
        !self.changing.replace(true)
    }

    /// A change of members has ended.
    pub fn end_change(&self) {
        self.changing.set(false);
    }

    /// Whether a change of members is being made here.
    pub fn is_changing(&self) -> bool {
        self.changing.get()
    }

    /// From now on it neither answers others nor campaigns.
    pub fn retire(&self) {
        self.retired.set(true);
    }

    /// Whether it is on its way out.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Its members, as of the last entry of the log.
    ///
    /// # Errors
    /// The group has stopped.
    pub async fn membership(&self) -> Result<Membership, Fatal> {
        let effective = self
            .raft
            .with_raft_state(|state| state.membership_state.effective().clone())
            .await
            .map_err(|e| self.failed(e))?;
        Ok(membership::<E>(&effective))
    }

    /// Its members, as far as openraft has told by now.
    pub fn known_membership(&self) -> Membership {
        membership::<E>(&self.metrics.borrow_watched().membership_config)
    }

    /// Entries that another replica lacks; `u64::MAX`: it is not known.
    pub fn lag(&self, replica: ReplicaId) -> u64 {
        let metrics = self.metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let mut all = metrics.replication.iter().flatten();
        let matched = all.find(|(id, _)| **id == replica);
        matched
            .and_then(|(_, matched)| matched.as_ref())
            .map_or(u64::MAX, |id| last.saturating_sub(id.index))
    }

    /// The last entry that another replica is known to have.
    pub fn matched(&self, replica: ReplicaId) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        let mut all = metrics.replication.iter().flatten();
        let (_, matched) = all.find(|(id, _)| **id == replica)?;
        matched.as_ref().map(|id| id.index)
    }

    /// When another replica last took a part of a snapshot of this one: it comes nearer, though the
    /// entry that it has does not tell until the end.
    pub fn part_taken(&self) -> Option<Now<E>> {
        self.part_taken.get()
    }

    /// Has a replica learn.
    ///
    /// # Errors
    /// This replica does not lead, a change is under way, or the group has stopped.
    pub async fn add_learner(&self, place: ReplicaPlace) -> Result<(), String> {
        let added = self.raft.add_learner(place.replica, place.location, false);
        added.await.map(drop).map_err(|e| e.to_string())
    }

    /// Makes these learners its voters, in one joint change; who was one and is none of them is a
    /// learner then.
    ///
    /// # Errors
    /// See [`Group::add_learner`].
    pub async fn change_voters(&self, voters: BTreeSet<ReplicaId>) -> Result<(), String> {
        let changed = self.raft.change_membership(voters, true);
        changed.await.map(drop).map_err(|e| e.to_string())
    }

    /// Removes learners.
    ///
    /// # Errors
    /// See [`Group::add_learner`].
    pub async fn remove_learners(&self, learners: BTreeSet<ReplicaId>) -> Result<(), String> {
        let changes = openraft::ChangeMembers::RemoveNodes(learners);
        let removed = self.raft.change_membership(changes, false);
        removed.await.map(drop).map_err(|e| e.to_string())
    }
}

fn membership<E: Env>(stored: &StoredMembershipOf<TypeConfig<E>>) -> Membership {
    Membership {
        places: stored.nodes().map(|(id, place)| (*id, *place)).collect(),
        voters: stored.voter_ids().collect(),
        is_joint: stored.membership().get_joint_config().len() > 1,
    }
}
