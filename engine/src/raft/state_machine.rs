//! openraft's state machine: applies entries to the range, and gives out snapshots as handles.

use std::io;
use std::rc::Rc;

use futures_util::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use crate::env::{Env, yield_now};
use crate::error::Fatal;
use crate::limits::SESSION_ROWS_PER_TURN;
use crate::mutant::{self, Mutant};
use crate::raft::convert;
use crate::raft::pins::{Pin, Pins};
use crate::raft::type_config::{EntryResults, TypeConfig};
use crate::range::recovery;
use crate::range::replica::Replica;
use crate::range::saved;
use crate::range::state::{AppliedMembership, RangeState};
use crate::types::DataId;
use crate::wal::GroupLog;

/// A handle of a snapshot; its rows are read when it is sent.
pub enum SnapshotHandle<E: Env> {
    /// Of the replica here. It is read as of when it is sent, which covers at least what the tree
    /// has made durable. A handle that is to be sent pins the log after it.
    Own(Rc<Replica<E>>, Option<Pin<E>>),
    /// Received from another replica: durable in the tree under this data id, with this state.
    Staged(DataId, Box<RangeState>),
}

/// The state machine of one group.
pub struct StateMachine<E: Env> {
    replica: Rc<Replica<E>>,
    log: GroupLog<E>,
    pins: Rc<Pins<E>>,
}

impl<E: Env> StateMachine<E> {
    /// The state machine on `replica`, its log and its pins.
    pub fn new(replica: Rc<Replica<E>>, log: GroupLog<E>, pins: Rc<Pins<E>>) -> StateMachine<E> {
        StateMachine { replica, log, pins }
    }

    fn snapshot(
        &self,
        pin: impl FnOnce(u64) -> Option<Pin<E>>,
    ) -> io::Result<SnapshotOf<TypeConfig<E>, SnapshotHandle<E>>> {
        let mut durable = self.replica.durable();
        if mutant::is(Mutant::PurgeBeforeDurable) {
            durable.applied = self.replica.with_state(|state| state.applied);
        }
        // openraft assumes that the receiver has exactly this entry once it has installed the
        // snapshot.
        let last = durable.applied.map_or(0, |id| id.index);
        let meta = SnapshotMetaOf::<TypeConfig<E>> {
            last_log_id: durable.applied.map(convert::raft_log_id::<E>),
            last_membership: stored_membership::<E>(&durable.membership)?,
        };
        Ok(SnapshotOf::<TypeConfig<E>, SnapshotHandle<E>> {
            meta,
            snapshot: SnapshotHandle::Own(self.replica.clone(), pin(last)),
        })
    }

    /// Passes an error to the shard before openraft stops the group because of it.
    fn fatal(&self, fatal: Fatal) -> io::Error {
        let message = fatal.to_string();
        self.replica.store.fail(fatal);
        io::Error::other(message)
    }
}

/// An applied membership as openraft's.
///
/// # Errors
/// The bytes are not a membership.
pub fn stored_membership<E: Env>(
    membership: &AppliedMembership,
) -> io::Result<StoredMembershipOf<TypeConfig<E>>> {
    let members = convert::decode_membership(&membership.body)?;
    let log_id = membership.log_id.map(convert::raft_log_id::<E>);
    Ok(StoredMembershipOf::<TypeConfig<E>>::new(log_id, members))
}

impl<E: Env> RaftStateMachine<TypeConfig<E>> for StateMachine<E> {
    type SnapshotData = SnapshotHandle<E>;
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
            // Waits here while the memtables are full: apply is where back pressure begins.
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
            let saved = self.replica.store.save_sessions_ahead().await;
            saved.map_err(|fatal| self.fatal(fatal))?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<E> {
        SnapshotBuilder {
            machine: StateMachine::new(self.replica.clone(), self.log.clone(), self.pins.clone()),
        }
    }

    async fn install_snapshot(
        &mut self,
        _: &SnapshotMetaOf<TypeConfig<E>>,
        snapshot: SnapshotHandle<E>,
    ) -> Result<(), io::Error> {
        let SnapshotHandle::Staged(data_id, mut state) = snapshot else {
            // At a start openraft may offer a replica its own snapshot, which it already has.
            return Ok(());
        };
        let (Some(last), Ok(row)) = (state.applied, state.encode()) else {
            return Err(io::Error::other("a snapshot without a state"));
        };
        let store = &self.replica.store;
        let loaded = recovery::load_snapshot_sessions(store, data_id, &mut state).await;
        loaded.map_err(|fatal| self.fatal(fatal))?;
        let mut from = Some(0);
        while let Some(place) = from {
            from = self.replica.with_state(|before| {
                let sessions = &mut state.sessions;
                sessions.inherit(&before.sessions, place, SESSION_ROWS_PER_TURN)
            });
            yield_now().await;
        }
        // One durable record switches data, state and log; only then does the replica change in
        // memory.
        let switched = self.log.switch(data_id, last, row.into()).await;
        switched.map_err(|error| self.fatal(error.into()))?;
        // Not before the switch: a start after a crash would find these rows beside the older
        // state.
        let replica = self.replica.group.replica;
        let saved = saved::save_snapshot_sessions(store, replica, data_id, &mut state);
        saved.await.map_err(|fatal| self.fatal(fatal))?;
        self.replica.install(data_id, *state);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig<E>, SnapshotHandle<E>>>, io::Error> {
        if self.replica.durable().applied.is_none() {
            return Ok(None);
        }
        self.snapshot(|last| Some(self.pins.pin(last))).map(Some)
    }
}

/// Makes handles of what is durable.
pub struct SnapshotBuilder<E: Env> {
    machine: StateMachine<E>,
}

impl<E: Env> RaftSnapshotBuilder<TypeConfig<E>> for SnapshotBuilder<E> {
    type SnapshotData = SnapshotHandle<E>;

    async fn build_snapshot(
        &mut self,
    ) -> Result<SnapshotOf<TypeConfig<E>, SnapshotHandle<E>>, io::Error> {
        self.machine.snapshot(|_| None)
    }
}
