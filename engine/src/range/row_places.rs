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

/// Rows that a start may need, because it applies again what is not durable in the tree.
pub(super) struct Outlived {
    /// A state of the range that is durable in the tree needs them no more from this entry on.
    until: u64,
    data_id: DataId,
    keys: KeyRange,
}

/// Where the rows of a replica lie, and what is known of a rewrite.
pub(super) struct RowPlaces {
    parts: RefCell<DataParts>,
    /// The data id of the rewrite that is under way, if one is.
    pub(super) rewrites_to: Cell<Option<DataId>>,
    /// What apply has written since that began and is not copied yet, oldest first.
    pub(super) new_rows: RefCell<VecDeque<NewRow>>,
    /// The bytes of that.
    pub(super) new_len: Cell<usize>,
    /// Where rows lay before rewrites, and the rows of keys that splits have taken away.
    outlived: RefCell<Vec<Outlived>>,
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
            outlived: RefCell::default(),
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

    /// Notes that these rows are this replica's no more, but needed by a start until a flush covers the entry
    /// with this index.
    pub(super) fn outlive(&self, rows: Vec<(DataId, KeyRange)>, until: u64) {
        let outlived = rows.into_iter().map(|(data_id, keys)| Outlived {
            until,
            data_id,
            keys,
        });
        self.outlived.borrow_mut().extend(outlived);
    }

    /// The rows that only a start would need.
    pub(super) fn outlived(&self) -> Vec<(DataId, KeyRange)> {
        let outlived = self.outlived.borrow();
        let rows = outlived
            .iter()
            .map(|rows| (rows.data_id, rows.keys.clone()));
        rows.collect()
    }

    /// How many intervals of such rows there are.
    pub(super) fn outlived_count(&self) -> usize {
        self.outlived.borrow().len()
    }

    /// Notes that a flush covers this entry.
    pub(super) fn durable(&self, applied: Option<LogId>) {
        let applied = applied.map_or(0, |id| id.index);
        self.outlived
            .borrow_mut()
            .retain(|rows| rows.until > applied);
    }

    /// Ends a rewrite that is under way.
    pub(super) fn give_up(&self) {
        self.rewrites_to.set(None);
        self.new_rows.take();
        self.new_len.set(0);
    }
}
