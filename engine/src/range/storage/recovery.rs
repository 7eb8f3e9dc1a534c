//! Recovers the state of a replica: from the tree at a start, or from the rows of a snapshot.

use std::ops::Bound;

use crate::env::{Env, yield_now};
use crate::error::Fatal;
use crate::limits::SESSION_ROWS_PER_TURN;
use crate::lsm::keys;
use crate::range::Descriptor;
use crate::range::rows::data_parts::DataParts;
use crate::range::sessions::{ClientMarks, SavedRequest, SessionRow};
use crate::range::state::RangeState;
use crate::tree::Store;
use crate::types::{Blob, ClientId, DataId, ReplicaId, Timestamp};
use crate::wal::{Created, InstalledSnapshot};

/// The state of a replica as of its last flush, and the data ids of its rows; if there was no flush, as it
/// was created.
///
/// # Errors
/// The tree cannot be read.
pub async fn recover_state<E: Env>(
    store: &Store<E>,
    created: &Created,
    installed: Option<&InstalledSnapshot>,
) -> Result<(RangeState, DataParts), Fatal> {
    let (range, replica) = (created.group.range, created.group.replica);
    let damaged = |what: &str| {
        Fatal::Inconsistent(format!(
            "range {range}: its {what} in the tree cannot be read"
        ))
    };
    let mut key = Vec::new();
    keys::state_key(replica, &mut key);
    let row = store.newest_row(&key, |row| row.map(RangeState::decode))?;
    let (mut state, others) = match row {
        Some(saved) => saved.map_err(|_| damaged("state row"))?,
        None => {
            let descriptor = Descriptor::decode(&created.descriptor)
                .map_err(|_| Fatal::Inconsistent(format!("range {range}: bad descriptor")))?;
            let (members, first) = (created.membership.clone(), created.first);
            (RangeState::created(descriptor, members, first), Vec::new())
        }
    };
    if let Some(installed) = installed
        && state
            .applied
            .is_none_or(|id| id.index < installed.last.index)
    {
        // Nothing was flushed since the snapshot was installed: its state is in the log.
        let snapshot = RangeState::decode(&installed.state);
        let (mut snapshot, _) = snapshot.map_err(|_| damaged("snapshot's state"))?;
        load_snapshot_sessions(store, installed.data_id, &mut snapshot).await?;
        read_clients(store, replica, |client, _| {
            snapshot.sessions.was_there(client)
        })?;
        return Ok((snapshot, DataParts::one(installed.data_id)));
    }
    let data_id = installed.map_or(created.data_id, |installed| installed.data_id);
    read_clients(store, replica, |client, marks| {
        state.sessions.load(SessionRow::Client(client, Some(marks)));
    })?;
    let parts = DataParts::new(data_id, others);
    load_requests(store, &parts, &mut state)?;
    Ok((state, parts))
}

/// Loads the session table of a snapshot with rows under `data_id`, a few rows at a time.
///
/// # Errors
/// The tree cannot be read.
pub async fn load_snapshot_sessions<E: Env>(
    store: &Store<E>,
    data_id: DataId,
    state: &mut RangeState,
) -> Result<(), Fatal> {
    for rows in [SessionRows::Clients, SessionRows::Requests] {
        let mut next = Some(Vec::new());
        while let Some(from) = next {
            next = load_some(store, (data_id, rows, from), state)?;
            yield_now().await;
        }
    }
    Ok(())
}

/// The two kinds of session rows in a snapshot.
#[derive(Clone, Copy)]
enum SessionRows {
    Clients,
    Requests,
}

/// Loads some rows from a key on (an empty key: from the first); gives the key at which to go on.
fn load_some<E: Env>(
    store: &Store<E>,
    (data_id, rows, from): (DataId, SessionRows, Vec<u8>),
    state: &mut RangeState,
) -> Result<Option<Vec<u8>>, Fatal> {
    let (mut low, mut high) = (Vec::new(), Vec::new());
    match rows {
        SessionRows::Clients => keys::snapshot_clients_of(data_id, &mut low, &mut high),
        SessionRows::Requests => {
            let keys = state.descriptor.keys.interval();
            keys::requests_of(data_id, keys, &mut low, &mut high);
        }
    }
    let low = if from.is_empty() { low } else { from };
    read_rows(store, (&low, &high), SESSION_ROWS_PER_TURN, |key, value| {
        match rows {
            SessionRows::Clients => {
                let (client, marks) = client_row(key, value)?;
                state.sessions.add_unsaved(client, marks);
            }
            SessionRows::Requests => load_request(state, key, value)?,
        }
        Ok(())
    })
}

fn client_row(key: &[u8], value: &[u8]) -> Result<(ClientId, ClientMarks), Fatal> {
    keys::client_part(key)
        .zip(ClientMarks::decode(value))
        .ok_or_else(|| Fatal::Inconsistent("a client's marks in the tree".to_owned()))
}

fn read_clients<E: Env>(
    store: &Store<E>,
    replica: ReplicaId,
    mut visit: impl FnMut(ClientId, ClientMarks),
) -> Result<(), Fatal> {
    let (mut low, mut high) = (Vec::new(), Vec::new());
    keys::clients_of(replica, &mut low, &mut high);
    read_rows(store, (&low, &high), usize::MAX, |key, value| {
        let (client, marks) = client_row(key, value)?;
        visit(client, marks);
        Ok(())
    })?;
    Ok(())
}

/// Loads the requests of all clients that are loaded.
fn load_requests<E: Env>(
    store: &Store<E>,
    parts: &DataParts,
    state: &mut RangeState,
) -> Result<(), Fatal> {
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for (data_id, keys) in parts.within(&state.descriptor.keys) {
        keys::requests_of(data_id, keys.interval(), &mut low, &mut high);
        read_rows(store, (&low, &high), usize::MAX, |key, value| {
            load_request(state, key, value)
        })?;
    }
    Ok(())
}

/// Loads a request, if its first key is in the range.
fn load_request(state: &mut RangeState, key: &[u8], value: &[u8]) -> Result<(), Fatal> {
    let damaged = || Fatal::Inconsistent("a request of a session in the tree".to_owned());
    let (first_key, client, sequence) = keys::request_parts(key).ok_or_else(damaged)?;
    if state.descriptor.keys.contains(&first_key) {
        let saved = SavedRequest::decode(value).map_err(|_| damaged())?;
        state.sessions.load(SessionRow::Request {
            first_key: Blob::from(first_key),
            client,
            sequence,
            saved: Some(saved),
        });
    }
    Ok(())
}

/// Visits the newest versions of at most `rows_max` rows; gives the key at which to go on.
fn read_rows<E: Env>(
    store: &Store<E>,
    bounds: (&[u8], &[u8]),
    rows_max: usize,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Fatal>,
) -> Result<Option<Vec<u8>>, Fatal> {
    let bounds = (Bound::Included(bounds.0), Bound::Excluded(bounds.1));
    let mut result = Ok(None);
    store.scan(bounds, Timestamp::MAX, |rows| {
        let mut left = rows_max;
        while let Some(row) = rows.next_row()? {
            if left == 0 {
                result = Ok(Some(row.key().to_vec()));
                break;
            }
            left -= 1;
            if let Err(fatal) = visit(row.key(), row.value()) {
                result = Err(fatal);
                break;
            }
        }
        Ok(())
    })?;
    result
}
