//! openraft's state machine: applies entries to the group's [`Machine`], and gives out snapshots as
//! handles.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::alias::SnapshotOf;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use crate::env::{AsyncRuntime, yield_now};
use crate::error::Fatal;
use crate::mutant::{self, Mutant};
use crate::raft::convert;
use crate::raft::ending::Ending;
use crate::raft::machine::{AppliedState, Machine, RuntimeOf};
use crate::raft::pins::{Pin, Pins};
use crate::raft::type_config::{RaftLogId, RaftMembership, SnapshotMeta, TypeConfig};
use crate::wal::{GroupLog, LogEntry, Payload};

/// After an entry this long others get a turn before the next one is applied.
const LONG_ENTRY_LEN: usize = 16 << 10;
/// Pause before an entry that needs what cannot be read is tried again.
/// By time: that a disk can be read again is no event.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A handle of a snapshot; its rows are read when it is sent.
pub enum SnapshotHandle<M: Machine> {
    /// Of the replica here. It is read as of when it is sent, which covers at least what the tree
    /// has made durable. A handle that is to be sent pins the log after it.
    Own(Rc<M>, Option<Pin>),
    /// Received from another replica, and durable here.
    Staged(M::Staged),
}

/// A snapshot as openraft passes it on.
pub type Snapshot<M> = SnapshotOf<TypeConfig<M>, SnapshotHandle<M>>;

/// The state machine of one group.
pub struct StateMachine<M: Machine> {
    machine: Rc<M>,
    log: GroupLog<M::Env>,
    pins: Rc<Pins>,
    ending: Rc<Ending>,
}

impl<M: Machine> StateMachine<M> {
    /// The state machine on `machine`, its log, its pins and its end.
    pub fn new(
        machine: Rc<M>,
        log: GroupLog<M::Env>,
        pins: Rc<Pins>,
        ending: Rc<Ending>,
    ) -> StateMachine<M> {
        StateMachine {
            machine,
            log,
            pins,
            ending,
        }
    }

    /// Applies an entry, as soon as there is room for it and what it needs can be read. `None`: the group has
    /// stopped, and nothing has changed.
    async fn apply_one(&self, entry: &LogEntry) -> io::Result<Option<M::Results>> {
        while !self.ending.has_stopped() {
            let room = self.machine.make_room(entry).await;
            room.map_err(|fatal| self.fatal(fatal))?;
            // It may have stopped during the wait for room.
            if self.ending.has_stopped() {
                break;
            }
            let applied = self.machine.apply(entry);
            let applied = applied.map_err(|fatal| self.fatal(fatal))?;
            if applied.is_some() {
                return Ok(applied);
            }
            let _ = RuntimeOf::<M>::timeout(RETRY_INTERVAL, self.ending.stopped()).await;
        }
        Ok(None)
    }

    fn snapshot(&self, pin: impl FnOnce(u64) -> Option<Pin>) -> io::Result<Snapshot<M>> {
        let mut durable = self.machine.durable_state();
        if mutant::is(Mutant::PurgeBeforeDurable) {
            durable.applied = self.machine.applied();
        }
        // openraft assumes that the receiver has exactly this entry once it has installed the
        // snapshot.
        let last = durable.applied.map_or(0, |id| id.index);
        Ok(Snapshot::<M> {
            meta: snapshot_meta(&durable)?,
            snapshot: SnapshotHandle::Own(self.machine.clone(), pin(last)),
        })
    }

    /// Passes an error to the shard before openraft stops the group because of it.
    fn fatal(&self, fatal: Fatal) -> io::Error {
        let message = fatal.to_string();
        self.machine.fail(fatal);
        io::Error::other(message)
    }
}

/// Whether an entry takes so long to apply that other tasks run before the next one.
fn is_long(entry: &LogEntry) -> bool {
    match &entry.payload {
        Payload::Commands(bytes) => bytes.len() >= LONG_ENTRY_LEN,
        Payload::Blank | Payload::Membership(_) => false,
    }
}

/// openraft's description of a snapshot that covers what is applied here.
///
/// # Errors
/// The bytes of the membership are none.
pub fn snapshot_meta(covers: &AppliedState) -> io::Result<SnapshotMeta> {
    let (last_log_id, last_membership) = raft_applied_state(covers)?;
    Ok(SnapshotMeta {
        last_log_id,
        last_membership,
    })
}

fn raft_applied_state(state: &AppliedState) -> io::Result<(Option<RaftLogId>, RaftMembership)> {
    let members = convert::decode_membership(&state.membership.body)?;
    let set_by = state.membership.log_id.map(convert::raft_log_id);
    let applied = state.applied.map(convert::raft_log_id);
    Ok((applied, RaftMembership::new(set_by, members)))
}

impl<M: Machine> RaftStateMachine<TypeConfig<M>> for StateMachine<M> {
    type SnapshotData = SnapshotHandle<M>;
    type SnapshotBuilder = SnapshotBuilder<M>;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, RaftMembership), io::Error> {
        raft_applied_state(&self.machine.applied_state())
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig<M>>, io::Error>> + Unpin,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let entry = convert::entry(entry)?;
            // Nobody waits for what a group that has stopped does not apply.
            let Some(results) = self.apply_one(&entry).await? else {
                continue;
            };
            if let Some(responder) = responder {
                responder.send(results);
            }
            let saved = self.machine.save_ahead().await;
            saved.map_err(|fatal| self.fatal(fatal))?;
            if is_long(&entry) {
                yield_now().await;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<M> {
        SnapshotBuilder {
            machine: StateMachine::new(
                self.machine.clone(),
                self.log.clone(),
                self.pins.clone(),
                self.ending.clone(),
            ),
        }
    }

    async fn install_snapshot(
        &mut self,
        _: &SnapshotMeta,
        snapshot: SnapshotHandle<M>,
    ) -> Result<(), io::Error> {
        let SnapshotHandle::Staged(staged) = snapshot else {
            // At a start openraft may offer a replica its own snapshot, which it already has.
            return Ok(());
        };
        if self.ending.has_stopped() {
            return Ok(());
        }
        let installed = self.machine.install(staged, &self.log).await;
        installed.map_err(|fatal| self.fatal(fatal))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<M>>, io::Error> {
        if self.machine.durable_state().applied.is_none() {
            return Ok(None);
        }
        self.snapshot(|last| Some(self.pins.pin(last))).map(Some)
    }
}

/// Makes handles of what is durable.
pub struct SnapshotBuilder<M: Machine> {
    machine: StateMachine<M>,
}

impl<M: Machine> RaftSnapshotBuilder<TypeConfig<M>> for SnapshotBuilder<M> {
    type SnapshotData = SnapshotHandle<M>;

    async fn build_snapshot(&mut self) -> Result<Snapshot<M>, io::Error> {
        self.machine.snapshot(|_| None)
    }
}
