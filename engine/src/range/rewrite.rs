//! A replica that writes its rows anew under one data id, in place: merges have left them under many
//! ([`super::data_parts`]).
//!
//! The replica works on meanwhile, and its entries go where they always went. All versions up to a moment are
//! copied under a new data id; what apply writes after that moment is kept in memory as well, and is copied
//! when the older versions have been: versions of a key must reach the tree in rising order. When nothing is
//! left to copy, the replica switches to the new data id, in one turn. The new parts are in its next state row,
//! that of an entry applied after the switch: two state rows of one entry would have the same version, and a
//! compaction could keep the older one. So the flush of that entry makes the new parts and all copied rows durable. A
//! crash before that leaves the replica with the rows that it had, so nobody may collect those until then
//! ([`Replica::replaced_rows`]), and copies without an owner, which compactions drop.
//!
//! Whatever else changes the parts or the bounds of the replica ends a rewrite that is under way. Lives on the
//! shard's thread; `shard/rewrites.rs` does the copying.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::env::Env;
use crate::error::Fatal;
use crate::range::data_parts::DataParts;
use crate::range::replica::Replica;
use crate::range::snapshot_export::Export;
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
    rewrites_to: Cell<Option<DataId>>,
    /// What apply has written since that began and is not copied yet, oldest first.
    new_rows: RefCell<VecDeque<NewRow>>,
    /// The bytes of that.
    new_len: Cell<usize>,
    /// Where the rows lay before rewrites, until a flush covers an entry after the last one.
    replaced: RefCell<Vec<(DataId, KeyRange)>>,
    /// The last entry before that.
    replaced_at: Cell<Option<LogId>>,
    /// Whether a task rewrites the replica.
    is_claimed: Cell<bool>,
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

impl<E: Env> Replica<E> {
    /// Claims the replica for a task that rewrites it; `false` if another one has.
    pub fn claim_rewrite(&self) -> bool {
        !self.rows.is_claimed.replace(true)
    }

    /// Ends what [`Replica::claim_rewrite`] began, and a rewrite that is not done.
    pub fn unclaim_rewrite(&self) {
        self.rows.give_up();
        self.rows.is_claimed.set(false);
    }

    /// Begins to write the rows anew under a data id that was never used. Gives the export of the rows that
    /// there are.
    ///
    /// # Errors
    /// Nothing is applied yet.
    pub fn begin_rewrite(self: &Rc<Self>, data_id: DataId) -> Result<Export<E>, Fatal> {
        let export = Export::of_rows(self.clone())?;
        self.rows.give_up();
        self.rows.rewrites_to.set(Some(data_id));
        Ok(export)
    }

    /// The data id under which the rows are being written anew, if they are.
    pub fn rewrites_to(&self) -> Option<DataId> {
        self.rows.rewrites_to.get()
    }

    /// The next row that apply has written since the rewrite began.
    pub fn next_new_row(&self) -> Option<NewRow> {
        let (key, version, value) = self.rows.new_rows.borrow_mut().pop_front()?;
        let len = key.len() + value.as_ref().map_or(0, |value| value.len());
        self.rows.new_len.set(self.rows.new_len.get() - len);
        Some((key, version, value))
    }

    /// Switches to the new data id, under which all rows are now. The caller lets the collector know in the same
    /// turn.
    pub fn end_rewrite(&self, data_id: DataId) {
        let before = self.intervals();
        let start = self.with_state(|state| state.descriptor.keys.start.clone());
        let parts = self.rows.parts().rewritten(&start, data_id);
        self.rows.set(parts);
        self.rows.replaced.borrow_mut().extend(before);
        {
            let mut state = self.state.borrow_mut();
            self.rows.replaced_at.set(state.applied);
            state.sessions.rewrite_requests();
            self.count_unsaved(&state);
        }
        self.digesting.set(None);
    }

    /// Where the rows lay before rewrites that no flush covers yet.
    pub fn replaced_rows(&self) -> Vec<(DataId, KeyRange)> {
        self.rows.replaced.borrow().clone()
    }
}
