//! A replica as the state machine of its Raft group ([`crate::raft::Machine`]).

use std::rc::Rc;

use crate::env::{Env, yield_now};
use crate::error::Fatal;
use crate::limits::{ENTRY_COMMANDS_MAX, SESSION_ROWS_PER_TURN};
use crate::raft::{self, AppliedState, Machine};
use crate::range::apply::Applied;
use crate::range::command::{self, Entry};
use crate::range::replica::Replica;
use crate::range::state::RangeState;
use crate::range::storage::recovery::load_snapshot_sessions;
use crate::range::storage::snapshot_export::Export;
use crate::range::storage::state_rows;
use crate::types::DataId;
use crate::wal::{Body, Group, GroupLog, LogEntry, LogId, Payload};

/// The Raft group of a range's replica.
pub type RaftGroup<E> = raft::RaftGroup<Replica<E>>;

/// A snapshot of another replica, of which all rows are durable in the tree here.
pub struct StagedSnapshot {
    /// The data id of its rows.
    pub data_id: DataId,
    /// Its state, without the session table, which is among the rows.
    pub state: Box<RangeState>,
}

impl<E: Env> Machine for Replica<E> {
    type Env = E;
    type Results = Vec<Applied>;
    type Staged = StagedSnapshot;
    type Reader = Export<E>;

    fn group(&self) -> Group {
        self.group
    }

    fn applied(&self) -> Option<LogId> {
        self.with_state(|state| state.applied)
    }

    fn applied_state(&self) -> AppliedState {
        self.with_state(RangeState::applied_state)
    }

    fn durable_state(&self) -> AppliedState {
        self.durable()
    }

    fn is_idle(&self) -> bool {
        self.proposer.is_idle()
    }

    fn empty_entry() -> Result<Body, Fatal> {
        command::encode(&Entry::default(), 0)
    }

    async fn make_room(&self, entry: &LogEntry) -> Result<(), Fatal> {
        // First: no task may take the room between the last wait and the entry.
        self.prepare_split(entry).await?;
        self.prepare_merge(entry).await?;
        let (rows, bytes) = room_needed(entry);
        self.store.make_room(rows, bytes).await
    }

    fn apply(&self, entry: &LogEntry) -> Result<Option<Vec<Applied>>, Fatal> {
        Replica::apply(self, entry)
    }

    async fn save_ahead(&self) -> Result<(), Fatal> {
        self.store.save_sessions_ahead().await
    }

    fn read_snapshot(self: Rc<Self>) -> Result<Export<E>, Fatal> {
        Export::begin(self)
    }

    async fn install(&self, staged: StagedSnapshot, log: &GroupLog<E>) -> Result<(), Fatal> {
        let StagedSnapshot { data_id, mut state } = staged;
        let without_state = || Fatal::Inconsistent("a snapshot without a state".to_owned());
        let last = state.applied.ok_or_else(without_state)?;
        let row = state.encode(&[]).map_err(|_| without_state())?;
        load_snapshot_sessions(&self.store, data_id, &mut state).await?;
        let mut from = Some(0);
        while let Some(place) = from {
            from = self.with_state(|before| {
                let sessions = &mut state.sessions;
                sessions.inherit(&before.sessions, place, SESSION_ROWS_PER_TURN)
            });
            yield_now().await;
        }
        let newborns = &self.home.newborns;
        newborns.make_independent(self.group, &self.store).await?;
        // One durable record switches data, state and log; only then does the replica change in
        // memory.
        log.install_snapshot(data_id, last, row.into()).await?;
        // Not before the switch: a start after a crash would find these rows beside the older
        // state.
        let replica = self.group.replica;
        state_rows::save_snapshot_sessions(&self.store, replica, data_id, &mut state).await?;
        self.become_snapshot(data_id, *state);
        self.absorb_covered();
        Ok(())
    }

    fn fail(&self, fatal: Fatal) {
        self.store.fail(fatal);
    }
}

/// How many rows and bytes an entry may add to the memtable.
fn room_needed(entry: &LogEntry) -> (usize, usize) {
    match &entry.payload {
        Payload::Blank | Payload::Membership(_) => (0, 0),
        Payload::Commands(bytes) => (ENTRY_COMMANDS_MAX.min(bytes.len()), bytes.len()),
    }
}
