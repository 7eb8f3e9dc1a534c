//! The data ids and intervals under which the rows of a replica are stored ([`super::data_parts`]), the rows
//! that only a restart would still need, and the progress of a rewrite (`range/storage/rewrite.rs`).
//! Lives on the shard's thread.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;

use crate::range::rows::data_parts::DataParts;
use crate::types::{Blob, DataId, KeyRange, Timestamp};
use crate::wal::LogId;

/// Most bytes of new rows that are kept in memory for one rewrite. With more it is given up: the range is too
/// busy now.
const NEW_ROWS_LEN_MAX: usize = 16 << 20;

/// A row that apply has written during a rewrite: its key, its version, and its value unless it is deleted.
pub type NewRow = (Blob, Timestamp, Option<Blob>);

/// Rows that are no longer the replica's, but that a start may need: it applies again the entries that no flush
/// covers.
pub(in crate::range) struct Outlived {
    /// The index of the entry from which on the replica does not have them. No start needs them once a flush
    /// covers that entry.
    until: u64,
    data_id: DataId,
    keys: KeyRange,
}

/// The data ids of a replica's rows, and the progress of a rewrite.
pub(in crate::range) struct RowPlaces {
    parts: RefCell<DataParts>,
    /// The new data id, while a rewrite is under way.
    pub(in crate::range) rewrites_to: Cell<Option<DataId>>,
    /// The rows that apply has written since the rewrite began and that are not copied yet, oldest first.
    pub(in crate::range) new_rows: RefCell<VecDeque<NewRow>>,
    /// The bytes of keys and values in `new_rows`.
    pub(in crate::range) new_len: Cell<usize>,
    /// Rows that were rewritten under another data id or that a split gave to the child.
    outlived: RefCell<Vec<Outlived>>,
    /// Whether a task has claimed the rewrite of this replica, so that no second one begins.
    pub(in crate::range) is_claimed: Cell<bool>,
}

impl RowPlaces {
    pub(in crate::range) fn new(parts: DataParts) -> RowPlaces {
        RowPlaces {
            parts: RefCell::new(parts),
            rewrites_to: Cell::new(None),
            new_rows: RefCell::default(),
            new_len: Cell::new(0),
            outlived: RefCell::default(),
            is_claimed: Cell::new(false),
        }
    }

    /// The data ids of the rows.
    pub(in crate::range) fn parts(&self) -> Ref<'_, DataParts> {
        self.parts.borrow()
    }

    /// Sets the data ids of the rows; a rewrite that is under way ends.
    pub(in crate::range) fn set(&self, parts: DataParts) {
        self.parts.replace(parts);
        self.give_up();
    }

    /// Keeps a row that apply writes, if a rewrite is under way.
    pub(in crate::range) fn written(&self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        if self.rewrites_to.get().is_none() {
            return;
        }
        let len = key.len() + value.map_or(0, <[u8]>::len);
        let new_len = self.new_len.get() + len;
        self.new_len.set(new_len);
        if new_len > NEW_ROWS_LEN_MAX {
            return self.give_up();
        }
        let value = value.map(Blob::copy_from_slice);
        let row = (Blob::copy_from_slice(key), version, value);
        self.new_rows.borrow_mut().push_back(row);
    }

    /// Notes rows that this replica no longer has, but that a start needs until a flush covers the entry with
    /// this index.
    pub(in crate::range) fn outlive(&self, rows: Vec<(DataId, KeyRange)>, until: u64) {
        let outlived = rows.into_iter().map(|(data_id, keys)| Outlived {
            until,
            data_id,
            keys,
        });
        self.outlived.borrow_mut().extend(outlived);
    }

    /// The rows that only a start would need: compactions must keep them.
    pub(in crate::range) fn outlived(&self) -> Vec<(DataId, KeyRange)> {
        let outlived = self.outlived.borrow();
        let rows = outlived
            .iter()
            .map(|rows| (rows.data_id, rows.keys.clone()));
        rows.collect()
    }

    /// How many intervals of such rows there are.
    pub(in crate::range) fn outlived_count(&self) -> usize {
        self.outlived.borrow().len()
    }

    /// Notes that a flush covers the replica up to this entry.
    pub(in crate::range) fn durable(&self, applied: Option<LogId>) {
        let applied = applied.map_or(0, |id| id.index);
        self.outlived
            .borrow_mut()
            .retain(|rows| rows.until > applied);
    }

    /// Ends a rewrite that is under way.
    pub(in crate::range) fn give_up(&self) {
        self.rewrites_to.set(None);
        self.new_rows.take();
        self.new_len.set(0);
    }
}
