//! Copies all rows of a replica under one new data id, because merges have left them under many
//! ([`crate::range::rows::data_parts`]).
//!
//! Meanwhile the replica serves and applies entries as before, under the old data ids. All versions up to a
//! moment are copied under a new data id; what apply writes after that moment is kept in memory as well,
//! and is copied when the older versions have been: versions of a key must reach the tree in rising order.
//! When nothing is left to copy, the replica switches to the new data id, in one turn. The new parts are in
//! its next state row, that of an entry applied after the switch: two state rows of one entry would have
//! the same version, and a compaction could keep the older one. So the flush of that entry makes the new
//! parts and all copied rows durable. A crash before that leaves the replica with the rows that it had, so
//! no compaction may drop these until then ([`Replica::outlived_rows`]), and copies without an owner, which
//! compactions drop.
//!
//! Whatever else changes the parts or the bounds of the replica ends a rewrite that is under way. Lives on the
//! shard's thread; `shard/split_merge/rewrites.rs` does the copying.

use std::rc::Rc;

use crate::env::Env;
use crate::error::Fatal;
use crate::range::replica::Replica;
use crate::range::rows::places::NewRow;
use crate::range::storage::snapshot_export::Export;
use crate::types::{DataId, KeyRange};

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
        {
            let mut state = self.state.borrow_mut();
            let applied = state.applied.map_or(0, |id| id.index);
            self.rows.outlive(before, applied + 1);
            state.sessions.rewrite_requests();
            self.count_unsaved(&state);
        }
        self.digesting.set(None);
    }

    /// The rows that a start would need, because no flush covers the rewrite or the split by which they became
    /// another's. After a split its writes may depend on keys that are gone from here: a batch has conditions.
    pub fn outlived_rows(&self) -> Vec<(DataId, KeyRange)> {
        self.rows.outlived()
    }

    /// How many intervals of such rows there are.
    pub fn outlived_count(&self) -> usize {
        self.rows.outlived_count()
    }
}
