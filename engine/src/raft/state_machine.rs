//! openraft's state machine: entries go into the range, snapshots come out as handles.

use std::future::Future;
use std::io;
use std::rc::Rc;

use futures_util::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use crate::env::Env;
use crate::error::Fatal;
use crate::raft::convert;
use crate::raft::type_config::{EntryResults, TypeConfig};
use crate::range::replica::{Durable, Replica};
use crate::range::state::AppliedMembership;

/// Names a state that is durable in the tree; its rows are read only when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHandle {
    /// Up to where the tree is durable.
    pub durable: Durable,
}

/// The state machine of one group.
pub struct StateMachine<E: Env> {
    replica: Rc<Replica<E>>,
}

impl<E: Env> StateMachine<E> {
    /// The state machine that is `replica`.
    pub fn new(replica: Rc<Replica<E>>) -> StateMachine<E> {
        StateMachine { replica }
    }

    fn snapshot(&self) -> io::Result<SnapshotOf<TypeConfig<E>, SnapshotHandle>> {
        let durable = self.replica.durable();
        let meta = SnapshotMetaOf::<TypeConfig<E>> {
            last_log_id: durable.applied.map(convert::raft_log_id::<E>),
            last_membership: stored_membership::<E>(&durable.membership)?,
        };
        Ok(SnapshotOf::<TypeConfig<E>, SnapshotHandle> {
            meta,
            snapshot: SnapshotHandle { durable },
        })
    }

    /// Tells the shard of an error before openraft stops the group with it.
    fn fatal(&self, fatal: Fatal) -> io::Error {
        let message = fatal.to_string();
        self.replica.store.fail(fatal);
        io::Error::other(message)
    }
}

fn stored_membership<E: Env>(
    membership: &AppliedMembership,
) -> io::Result<StoredMembershipOf<TypeConfig<E>>> {
    let members = convert::decode_membership(&membership.body)?;
    let log_id = membership.log_id.map(convert::raft_log_id::<E>);
    Ok(StoredMembershipOf::<TypeConfig<E>>::new(log_id, members))
}

impl<E: Env> RaftStateMachine<TypeConfig<E>> for StateMachine<E> {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = SnapshotBuilder<E>;

    async fn applied_state(
        &mut self,
    ) -> Result<
        (
            Option<LogIdOf<TypeConfig<E>>>,
            StoredMembershipOf<TypeConfig<E>>,
        ),
        io::Error,
    > {
        let (applied, membership) = self
            .replica
            .with_state(|state| (state.applied, state.membership.clone()));
        Ok((
            applied.map(convert::raft_log_id::<E>),
            stored_membership::<E>(&membership)?,
        ))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig<E>>, io::Error>> + Unpin,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let entry = convert::entry::<E>(entry)?;
            let (rows, bytes) = Replica::<E>::room_needed(&entry);
            let room = self.replica.store.make_room(rows, bytes).await;
            room.map_err(|fatal| self.fatal(fatal))?;
            let results = self
                .replica
                .apply(&entry)
                .map_err(|fatal| self.fatal(fatal))?;
            if let Some(responder) = responder {
                responder.send(EntryResults(results));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<E> {
        SnapshotBuilder {
            machine: StateMachine::new(self.replica.clone()),
        }
    }

    fn install_snapshot(
        &mut self,
        _: &SnapshotMetaOf<TypeConfig<E>>,
        _: SnapshotHandle,
    ) -> impl Future<Output = Result<(), io::Error>> {
        // Nobody can send one: a handle names this very replica's durable state.
        std::future::ready(Err(io::Error::other(
            "a replica's own snapshot is never installed",
        )))
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig<E>, SnapshotHandle>>, io::Error> {
        if self.replica.durable().applied.is_none() {
            return Ok(None);
        }
        self.snapshot().map(Some)
    }
}

/// Builds handles of what is durable.
pub struct SnapshotBuilder<E: Env> {
    machine: StateMachine<E>,
}

impl<E: Env> RaftSnapshotBuilder<TypeConfig<E>> for SnapshotBuilder<E> {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(
        &mut self,
    ) -> Result<SnapshotOf<TypeConfig<E>, SnapshotHandle>, io::Error> {
        self.machine.snapshot()
    }
}
