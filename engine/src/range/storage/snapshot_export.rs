//! Reads a range for a snapshot (the export): its state, its rows with all their versions, its session
//! table. `raft/network/snapshot_sender.rs` sends it.
//!
//! An export has the rows of the range's interval only: other ranges may share the data id. If the
//! range gets other bounds meanwhile, the export fails, since rows that have left the range are no
//! longer kept for it, and the leader begins another one.
//!
//! An export reads the rows in turns of a bounded time, while the leader works on. It shows the range
//! at the moment at which the export began: later versions are left out. The receiver applies the
//! entries after that moment and must find the same versions as the other replicas did. So the sender
//! keeps that moment's versions until the export ends. Older versions may be collected during the
//! export. So the last part carries the collection threshold as it is at the end.
//!
//! A turn also ends where a block of a table is needed that is not in memory: it is fetched beside the shard's
//! thread, with those that come next ([`crate::tree::cold_scans`]). All versions of a key go into one part, so
//! the key in hand is read again then. Lives on the shard's thread.

use std::collections::VecDeque;
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::env::{AsyncRuntime, Env, TimeSlice, yield_now};
use crate::error::Fatal;
use crate::limits::SESSION_ROWS_PER_TURN;
use crate::lsm::keys::{self, InSnapshot, RowKind};
use crate::lsm::{ColdStop, Direction, LsmError, ScanStop};
use crate::mutant::{self, Mutant};
use crate::raft::{SnapshotReader, SnapshotRow};
use crate::range::replica::Replica;
use crate::range::rows::data_parts::DataParts;
use crate::range::sessions::{SessionExport, SessionRow};
use crate::tree::cold_scans::ScanBlocks;
use crate::types::{DataId, Timestamp};
use crate::wal::LogId;

/// About how many bytes of rows one part has.
const PART_LEN: usize = 256 << 10;
/// When an export asks again for a block that was refused because so many are on their way.
/// By time: a place that becomes free is no event.
const FETCH_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A snapshot that is being read and sent.
pub struct Export<E: Env> {
    replica: Rc<Replica<E>>,
    /// The data ids of its rows.
    parts: DataParts,
    /// The version of the range's bounds.
    version: u32,
    /// The last entry that the snapshot covers.
    last: LogId,
    /// The timestamp of the moment that it shows.
    at: Timestamp,
    /// The encoded state as of that moment.
    state: Vec<u8>,
    /// The session table as of that moment; `None` once all of it is read.
    sessions: Option<SessionExport>,
    /// Rows that were read and not yet sent.
    read: VecDeque<SnapshotRow>,
    /// How many bytes of a part had been read when the turn ended within it; `None`: it did not.
    cut: Option<usize>,
    /// The blocks of tables that were fetched for the export.
    blocks: ScanBlocks<E>,
    /// The rows of the tree that are still to be read: of each kind, those of each part of the range.
    left: VecDeque<RowInterval>,
}

/// Why a turn of an export ended.
enum Turn {
    /// A part is complete, or there are no more rows.
    Read,
    /// The time was up.
    TimeIsUp,
    /// A block is not in memory.
    Cold(Box<ColdStop>),
}

/// Rows of one kind under one data id.
struct RowInterval {
    data_id: DataId,
    first: Vec<u8>,
    /// The first key after them.
    end: Vec<u8>,
}

/// The kinds of rows that an export reads from one place.
fn kinds(from: InSnapshot) -> impl Iterator<Item = RowKind> {
    let all = RowKind::ALL.iter().copied();
    all.filter(move |kind| kind.rule().in_snapshot == from)
}

impl<E: Env> Export<E> {
    /// Begins an export: captures at once all that may change later.
    ///
    /// # Errors
    /// The state cannot be encoded, or no entry is applied yet.
    pub fn begin(replica: Rc<Replica<E>>) -> Result<Export<E>, Fatal> {
        let range = replica.group.range;
        let failed =
            |what: String| Fatal::Inconsistent(format!("snapshot of range {range}: {what}"));
        let parts = replica.parts();
        let (last, at, state, sessions) = replica.with_state(|state| {
            let last = state
                .applied
                .ok_or_else(|| failed("nothing is applied".to_owned()))?;
            let row = state.encode(&[]).map_err(|e| failed(e.to_string()))?;
            Ok::<_, Fatal>((last, state.last_ts, row, state.sessions.export()))
        })?;
        let version = replica.with_state(|state| state.descriptor.epoch.version);
        let intervals = replica.intervals();
        let left = kinds(InSnapshot::FromTree).flat_map(|kind| {
            intervals.iter().filter_map(move |(data_id, keys)| {
                let keys = match mutant::is(Mutant::ExportOfWholeDataId) {
                    true => (&[][..], None),
                    false => keys.interval(),
                };
                let (mut first, mut end) = (Vec::new(), Vec::new());
                let has_rows = kind.bounds(*data_id, keys, &mut first, &mut end);
                has_rows.then_some(RowInterval {
                    data_id: *data_id,
                    first,
                    end,
                })
            })
        });
        let left = left.collect();
        replica.keep_versions(at);
        Ok(Export {
            replica,
            parts,
            version,
            last,
            at,
            state,
            sessions: kinds(InSnapshot::FromSessions).next().map(|_| sessions),
            read: VecDeque::new(),
            cut: None,
            blocks: ScanBlocks::default(),
            left,
        })
    }

    /// The same of the users' rows alone.
    ///
    /// # Errors
    /// See [`Export::begin`].
    pub fn of_rows(replica: Rc<Replica<E>>) -> Result<Export<E>, Fatal> {
        let mut export = Export::begin(replica)?;
        export.sessions = None;
        Ok(export)
    }

    /// Reads until a part is complete, the range ends, the time is up or a block is needed.
    fn read_on(&mut self) -> Result<Turn, Fatal> {
        if self.replica.parts() != self.parts {
            return Err(self.failed("the rows of the replica lie under other data ids by now"));
        }
        let version = (self.replica).with_state(|state| state.descriptor.epoch.version);
        if version != self.version {
            return Err(self.failed("the range has other bounds by now"));
        }
        while self.read.is_empty()
            && let Some(sessions) = self.sessions.take()
        {
            self.sessions = self.read_sessions(sessions)?;
        }
        while (self.read.is_empty() || self.cut.is_some())
            && let Some(mut from) = self.left.pop_front()
        {
            let cold = match self.read_rows(&from) {
                Ok(None) => continue,
                Ok(Some(first)) => {
                    from.first = first;
                    None
                }
                Err(ScanStop::Cold(stop)) => {
                    if let Some(next) = &stop.next {
                        from.first.clone_from(next);
                    }
                    Some(stop)
                }
                Err(ScanStop::Failed(error)) => return Err(self.unreadable(error)),
            };
            self.left.push_front(from);
            match cold {
                Some(stop) => return Ok(Turn::Cold(stop)),
                None if self.cut.is_some() => return Ok(Turn::TimeIsUp),
                None => {}
            }
        }
        Ok(Turn::Read)
    }

    /// Waits until the block has come at which a turn ended.
    async fn wait_for(&mut self, stop: &ColdStop) -> Result<(), LsmError> {
        let (range, store) = (self.replica.group.range, self.replica.store.clone());
        while store.fetch_for_scan(range, &mut self.blocks, stop).is_err() {
            E::Runtime::sleep(FETCH_RETRY_INTERVAL).await;
        }
        store.fetched(stop.block).await
    }

    /// An error of the tables, which the replica must know of if it is one of a block.
    fn unreadable(&self, error: LsmError) -> Fatal {
        if let LsmError::Unreadable { .. } = error {
            self.replica.found_unreadable(&error);
        }
        error.into()
    }

    /// Takes the rows of one part from those that were read.
    fn take_part(&mut self) -> Vec<SnapshotRow> {
        let (mut rows, mut len) = (Vec::new(), 0);
        while len < PART_LEN
            && let Some(row) = self.read.pop_front()
        {
            len += row_len(&row);
            rows.push(row);
        }
        rows
    }

    /// Reads some rows of the session table; gives the export of the table back if there may be more
    /// rows.
    fn read_sessions(&mut self, export: SessionExport) -> Result<Option<SessionExport>, Fatal> {
        let rows = self.replica.with_state(|state| {
            let rows = state.sessions.next_rows(&export, SESSION_ROWS_PER_TURN);
            rows.ok_or("the session table is another")
        });
        let rows = rows.map_err(|why| self.failed(why))?;
        let goes_on = !rows.is_empty();
        for row in rows {
            let row = session_row(row, self.at).ok_or("a session cannot be encoded");
            self.read.push_back(row.map_err(|why| self.failed(why))?);
        }
        Ok(goes_on.then_some(export))
    }

    fn failed(&self, why: &str) -> Fatal {
        let range = self.replica.group.range;
        Fatal::Inconsistent(format!("snapshot of range {range}: {why}"))
    }

    /// Reads keys with all their versions until there are enough for a part or the time is up; gives
    /// the key at which to go on, or `None` at the end of the interval.
    ///
    /// # Errors
    /// A table cannot be read, or a block is not in memory.
    fn read_rows(&mut self, from: &RowInterval) -> Result<Option<Vec<u8>>, ScanStop> {
        let bounds = (
            Bound::Included(from.first.as_slice()),
            Bound::Excluded(from.end.as_slice()),
        );
        let (read, data_id) = (&mut self.read, from.data_id);
        let (mut len, cut) = (self.cut.take().unwrap_or(0), &mut self.cut);
        let (mut slice, mut is_over) = (TimeSlice::<E>::begin(), false);
        let (store, blocks) = (&self.replica.store, &mut self.blocks);
        // The versions of one key come newest first; they leave oldest first.
        let mut versions: Vec<SnapshotRow> = Vec::new();
        let turn = store.try_scan(Direction::Forward, bounds, self.at, blocks, |scan| {
            loop {
                let next = scan.next_version(|key, version, value| SnapshotRow {
                    key: Bytes::copy_from_slice(keys::after_data_id(key).unwrap_or_default()),
                    version,
                    value: value.map(Bytes::copy_from_slice),
                })?;
                let same_key = versions
                    .last()
                    .zip(next.as_ref())
                    .is_some_and(|(last, next)| last.key == next.key);
                if !same_key {
                    read.extend(versions.drain(..).rev());
                }
                let Some(next) = next else { return Ok(None) };
                is_over |= slice.is_over();
                if !same_key && (is_over || len >= PART_LEN) {
                    *cut = (len < PART_LEN).then_some(len);
                    let mut key = Vec::new();
                    keys::with_data_id(data_id, &next.key, &mut key);
                    return Ok(Some(key));
                }
                len += row_len(&next);
                versions.push(next);
            }
        });
        if let Err(ScanStop::Cold(stop)) = &turn {
            let key = stop.next.as_deref().and_then(keys::after_data_id);
            let is_in_hand = (versions.last()).is_some_and(|last| key == Some(&*last.key));
            match is_in_hand {
                // These are read again.
                true => len -= versions.iter().map(row_len).sum::<usize>(),
                false => read.extend(versions.drain(..).rev()),
            }
            *cut = Some(len);
        }
        turn
    }
}

impl<E: Env> SnapshotReader for Export<E> {
    fn last(&self) -> LogId {
        self.last
    }

    async fn next_part(&mut self) -> Result<(Vec<SnapshotRow>, Duration), Fatal> {
        let mut took = Duration::ZERO;
        loop {
            let begun = E::now();
            let turn = self.read_on()?;
            took += E::now() - begun;
            match turn {
                Turn::Read => return Ok((self.take_part(), took)),
                Turn::TimeIsUp => yield_now().await,
                Turn::Cold(stop) => {
                    let waited = self.wait_for(&stop).await;
                    waited.map_err(|error| self.unreadable(error))?;
                }
            }
        }
    }

    fn state(&self) -> Bytes {
        Bytes::copy_from_slice(&self.state)
    }

    fn gc_threshold(&self) -> Timestamp {
        self.replica.with_state(|state| state.gc_threshold)
    }
}

/// Which versions the tables must keep for a replica.
impl<E: Env> Replica<E> {
    /// The timestamp below which old versions may be collected: the collection threshold, since no
    /// client reads at or below it, or less while a snapshot or a digest is being read.
    pub fn droppable_below(&self) -> Timestamp {
        let threshold = self.with_state(|state| state.gc_threshold);
        let exported = self.exported.borrow();
        let kept = exported.iter().copied().chain(self.kept_for_digest());
        kept.fold(threshold, Timestamp::min)
    }

    /// Keeps the versions of a moment until [`Replica::let_go`] is called for it.
    pub(crate) fn keep_versions(&self, at: Timestamp) {
        if !mutant::is(Mutant::SnapshotKeepsNoVersions) {
            self.exported.borrow_mut().push(at);
        }
    }

    /// Ends one call of [`Replica::keep_versions`].
    pub(crate) fn let_go(&self, at: Timestamp) {
        let mut exported = self.exported.borrow_mut();
        if let Some(place) = exported.iter().position(|kept| *kept == at) {
            exported.swap_remove(place);
        }
    }
}

impl<E: Env> Drop for Export<E> {
    fn drop(&mut self) {
        self.replica.let_go(self.at);
    }
}

/// Length of key and value in bytes.
fn row_len(row: &SnapshotRow) -> usize {
    row.key.len() + row.value.as_ref().map_or(0, Bytes::len)
}

/// A row of the session table as it travels in a snapshot.
fn session_row(row: SessionRow, version: Timestamp) -> Option<SnapshotRow> {
    let mut key = Vec::new();
    // The receiver gives the rows its own data id.
    let any = DataId(0);
    let value = match row {
        SessionRow::Client(id, mut marks) => {
            if let Some(marks) = &mut marks
                && mutant::is(Mutant::MarksLeftOutOfSnapshot)
            {
                marks.lowest_unanswered = 0;
            }
            keys::snapshot_client_key(any, id, &mut key);
            marks?.encode()
        }
        SessionRow::Request {
            first_key,
            client,
            sequence,
            saved,
        } => {
            keys::request_key(any, &first_key, client, sequence, &mut key);
            saved?.encode().ok()?
        }
    };
    Some(SnapshotRow {
        key: Bytes::copy_from_slice(keys::after_data_id(&key)?),
        version,
        value: Some(value.into()),
    })
}
