//! The rows of a range's state, its own and those of its session table, on their way into the tree.

use std::rc::Rc;

use rkyv::rancor;

use crate::env::{Env, yield_now};
use crate::error::Fatal;
use crate::limits::SESSION_ROWS_PER_TURN;
use crate::lsm::keys;
use crate::range::replica::Replica;
use crate::range::rows::data_parts::DataParts;
use crate::range::sessions::SessionRow;
use crate::range::state::RangeState;
use crate::tree::{Participant, PutRow, Store, WhenDurable};
use crate::types::{DataId, ReplicaId, Timestamp};

impl<E: Env> Participant for Replica<E> {
    fn replica(&self) -> ReplicaId {
        self.group.replica
    }

    fn save(self: Rc<Self>, put: &mut PutRow<'_>) -> Result<Option<WhenDurable>, Fatal> {
        if !self.saved.changed.replace(false) {
            return Ok(None);
        }
        let mut state = self.state.borrow_mut();
        // Of one that was taken over the tables must know that it is frozen, as soon as they know the replica
        // that took it over.
        if self.is_absorbed() && state.frozen.is_none() {
            return Ok(None);
        }
        let encoding = |e: rancor::Error| {
            Fatal::Inconsistent(format!("state of range {}: {e}", self.group.range))
        };
        let row = state.encode(self.rows.parts().others()).map_err(encoding)?;
        let mut key = Vec::new();
        keys::state_key(self.group.replica, &mut key);
        put(&key, state.last_ts, Some(&row));
        let rows = state.sessions.save(usize::MAX);
        let sessions = SessionRows::of(&self, &state);
        sessions.put(&rows, put)?;
        self.count_unsaved(&state);
        let durable = state.applied_state();
        let replica = Rc::downgrade(&self);
        Ok(Some(Box::new(move || {
            if let Some(replica) = replica.upgrade() {
                replica.made_durable(durable);
            }
        })))
    }

    fn save_some(&self, put: &mut PutRow<'_>) -> Result<usize, Fatal> {
        let mut state = self.state.borrow_mut();
        let rows = state.sessions.save(SESSION_ROWS_PER_TURN);
        SessionRows::of(self, &state).put(&rows, put)?;
        self.count_unsaved(&state);
        Ok(rows.len())
    }

    fn unsaved(&self) -> usize {
        self.saved.unsaved.get()
    }
}

/// Writes all session rows of a state that no replica has yet, a few at a time. The rows of its
/// requests are in the tree already.
///
/// # Errors
/// The tree has failed.
pub async fn save_snapshot_sessions<E: Env>(
    store: &Store<E>,
    replica: ReplicaId,
    data_id: DataId,
    state: &mut RangeState,
) -> Result<(), Fatal> {
    let sessions = SessionRows {
        replica,
        parts: DataParts::one(data_id),
        version: state.last_ts,
    };
    loop {
        store.make_room_for_sessions().await?;
        let rows = state.sessions.save(SESSION_ROWS_PER_TURN);
        if rows.is_empty() {
            return Ok(());
        }
        sessions.put(&rows, &mut |key, version, value| {
            store.insert_row(key, version, value);
        })?;
        yield_now().await;
    }
}

/// Where the rows of a session table go.
struct SessionRows {
    replica: ReplicaId,
    parts: DataParts,
    /// The version that they get.
    version: Timestamp,
}

impl SessionRows {
    fn of<E: Env>(replica: &Replica<E>, state: &RangeState) -> SessionRows {
        SessionRows {
            replica: replica.group.replica,
            parts: replica.parts(),
            version: state.last_ts,
        }
    }

    fn put(&self, rows: &[SessionRow], put: &mut PutRow<'_>) -> Result<(), Fatal> {
        let mut key = Vec::new();
        for row in rows {
            match row {
                SessionRow::Client(id, marks) => {
                    keys::client_key(self.replica, *id, &mut key);
                    let row = marks.map(|marks| marks.encode());
                    put(&key, self.version, row.as_deref());
                }
                SessionRow::Request {
                    first_key,
                    client,
                    sequence,
                    saved,
                } => {
                    let data_id = self.parts.of(first_key);
                    keys::request_key(data_id, first_key, *client, *sequence, &mut key);
                    let row = saved.as_ref().map(|saved| saved.encode()).transpose();
                    let encoding = |e: rancor::Error| {
                        Fatal::Inconsistent(format!("a request of a session: {e}"))
                    };
                    put(&key, self.version, row.map_err(encoding)?.as_deref());
                }
            }
        }
        Ok(())
    }
}
