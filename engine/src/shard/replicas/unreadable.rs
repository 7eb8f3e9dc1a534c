//! What a shard does when a block of a table cannot be read or is damaged: it gives up the replicas whose
//! reads have met it, and the manager has them made anew.
//!
//! The read itself fails with [`Error::Unreadable`]; it never reports the key as absent. A leader hands its
//! leadership over, to a replica that can answer. A replica that does not lead removes itself, if without
//! it a majority of the voters is well: it asks each of them. A voter that has met such a block itself says
//! no, and every replica that asks has met one. So of two that ask at the same time at least one learns of
//! the other, and no majority is ever given up. A replica that may not go stays: it votes, serves what does
//! not need the block, and asks again. The only replica of a range stays for good.
//!
//! The shard's thread looks once a second; nothing is kept between two looks.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::cluster::{ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fatal, OrderError};
use crate::lsm::LsmError;
use crate::raft::Role;
use crate::range::RaftGroup;
use crate::range::replica::Replica;
use crate::shard::{RangeHandle, ShardInner};
use crate::types::{RangeId, ReplicaId};
use crate::wal::Group;

/// Time limit for a voter's answer whether it is well.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

impl<E: Env> ShardInner<E> {
    /// The error of a request that needs rows of a replica which could not be read. Errors of other kinds
    /// end the process.
    pub(in crate::shard) fn unreadable(&self, replica: &Replica<E>, error: LsmError) -> Error {
        match error {
            LsmError::Unreadable { .. } => {
                replica.found_unreadable(&error);
                Error::Unreadable(replica.group.range)
            }
            LsmError::Failed { .. } | LsmError::UnknownRow => {
                self.store.fail(error.into());
                Error::ShuttingDown
            }
        }
    }

    /// Takes a step for each replica that is to be given up.
    pub(in crate::shard) fn look_after_unreadable(self: &Rc<Self>) {
        if self.closing.get() {
            return;
        }
        let is_due = |running: &RangeHandle<E>| running.replica.begin_leaving();
        for (replica, raft) in self.ranges.groups_that(is_due) {
            let inner = self.clone();
            drop(E::Runtime::spawn(async move {
                let running = RangeHandle { replica, raft };
                let given_up = inner.give_up(&running).await;
                running.replica.end_leaving();
                if let Err(fatal) = given_up
                    && !inner.closing.get()
                {
                    inner.store.fail(fatal);
                }
            }));
        }
    }

    /// Hands over the leadership of a replica, or removes it if it does not lead.
    async fn give_up(
        self: &Rc<Self>,
        RangeHandle { replica, raft }: &RangeHandle<E>,
    ) -> Result<(), Fatal> {
        let Group { range, replica: me } = replica.group;
        if raft.is_alone() || raft.is_retired() {
            return Ok(());
        }
        if replica.leading().is_some() {
            self.hand_over(replica, raft, raft.transfer_targets())
                .await?;
            return Ok(());
        }
        if raft.role() == Role::Leader {
            return self.hand_over_unapplied(replica, raft).await;
        }
        if !self.others_are_well(replica, raft).await || raft.role() == Role::Leader {
            return Ok(());
        }
        if let ClusterResponse::Done = self.remove_replica(range, me).await? {
            let counters = &self.around.counters;
            counters.count(|stats| stats.given_up += 1);
            tracing::warn!(%range, replica = %me, shard = %self.location, "a replica with an unreadable block is given up");
            self.report_soon();
        }
        Ok(())
    }

    /// Asks another replica to lead in place of this one, which was elected and may be unable to apply the log
    /// up to the entry from which on it would lead.
    async fn hand_over_unapplied(
        self: &Rc<Self>,
        replica: &Replica<E>,
        raft: &RaftGroup<E>,
    ) -> Result<(), Fatal> {
        let targets = raft.transfer_targets();
        if let Some(target) = self.transfer_target(replica, targets).await
            && raft.role() == Role::Leader
        {
            replica.stop_leading();
            raft.transfer_to(target.replica).await?;
        }
        Ok(())
    }

    /// Whether a majority of the voters is well without this replica, and another one leads.
    async fn others_are_well(self: &Rc<Self>, replica: &Replica<E>, raft: &RaftGroup<E>) -> bool {
        let Group { range, replica: me } = replica.group;
        // By the log: what is applied may be old, if an entry needs the block.
        let members = raft.known_membership();
        let leads_elsewhere = replica.leadership.leader().is_some();
        if members.is_joint || !leads_elsewhere {
            return false;
        }
        let others = members.voters.iter().filter(|id| **id != me);
        let asked = others.map(|id| {
            let (place, request) = (
                members.places.get(id),
                ClusterRequest::IsWell {
                    range,
                    replica: *id,
                },
            );
            async move {
                let response = self.ask(*place?, &request, ASK_TIMEOUT).await;
                matches!(response, Some(ClusterResponse::Done)).then_some(())
            }
        });
        let well = join_all(asked).await.into_iter().flatten().count();
        well * 2 > members.voters.len()
    }

    /// Whether a replica of this shard does its part, and has met no unreadable block.
    pub(in crate::shard) fn is_well(&self, range: RangeId, replica: ReplicaId) -> ClusterResponse {
        let is_well = |here: &RangeHandle<E>| {
            let has_state = here.replica.with_state(|state| state.applied.is_some());
            let is_faulty = here.replica.is_unreadable() || here.replica.is_halted();
            has_state && !is_faulty && !here.raft.is_retired()
        };
        match self.running(Group { range, replica }) {
            Some(here) if is_well(&here) => ClusterResponse::Done,
            _ => ClusterResponse::Refused(OrderError::busy(format!(
                "shard {} does not hold replica {replica} of range {range}, or cannot read all of it",
                self.location
            ))),
        }
    }
}
