//! Where the rows of a replica lie, and what is known of a rewrite of them ([`super::rewrite`]). Lives on the
//! shard's thread.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;

use crate::range::data_parts::DataParts;
use crate::types::{Blob, DataId, KeyRange, Timestamp};
use crate::wal::LogId;

/// Most bytes of new rows that are kept in memory for one rewrite. With more it is given up: the range is too
/// busy now.
const NEW_ROWS_LEN_MAX: usize = 16 << 20;

/// A row that apply has written during a rewrite: its key, its version, and its value unless it is deleted.
pub type NewRow = (Blob, Timestamp, Option<Blob>);

/// Where the rows of a replica lie, and what is known of a rewrite.
pub(super) struct RowPlaces {
    parts: RefCell<DataParts>,
    /// The data id of the rewrite that is under way, if one is.
    pub(super) rewrites_to: Cell<Option<DataId>>,
    /// What apply has written since that began and is not copied yet, oldest first.
    pub(super) new_rows: RefCell<VecDeque<NewRow>>,
    /// The bytes of that.
    pub(super) new_len: Cell<usize>,
    /// Where the rows lay before rewrites, until a flush covers an entry after the last one.
    pub(super) replaced: RefCell<Vec<(DataId, KeyRange)>>,
    /// The last entry before that.
    pub(super) replaced_at: Cell<Option<LogId>>,
    /// Whether a task rewrites the replica.
    pub(super) is_claimed: Cell<bool>,
}

impl RowPlaces {
    pub(super) fn new(parts: DataParts) -> RowPlaces {
        RowPlaces {
            parts: RefCell::new(parts),
            rewrites_to: Cell::new(None),
            new_rows: RefCell::default(),
            new_len: Cell::new(0),
            replaced: RefCell::default(),
            replaced_at: Cell::new(None),
            is_claimed: Cell::new(false),
        }
    }

    /// The data ids of the rows.
    pub(super) fn parts(&self) -> Ref<'_, DataParts> {
        self.parts.borrow()
    }

    /// Sets the data ids of the rows; a rewrite that is under way ends.
    pub(super) fn set(&self, parts: DataParts) {
        self.parts.replace(parts);
        self.give_up();
    }

    /// Takes note of a row that apply writes.
    pub(super) fn written(&self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
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

    /// Notes that a flush covers this entry.
    pub(super) fn durable(&self, applied: Option<LogId>) {
        if applied > self.replaced_at.get() {
            self.replaced.take();
        }
    }

    /// Ends a rewrite that is under way.
    pub(super) fn give_up(&self) {
        self.rewrites_to.set(None);
        self.new_rows.take();
        self.new_len.set(0);
    }
}
