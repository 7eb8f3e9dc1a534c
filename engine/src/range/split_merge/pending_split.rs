//! The state of a split that is under way at one replica: which keys its leader has closed, and the log of
//! the child that is about to be born. Only data: `range/replica/split.rs` has the steps. Lives on the
//! shard's thread.

use std::cell::{Cell, Ref, RefCell};

use crate::env::Env;
use crate::range::command;
use crate::wal::{Group, GroupLog, LogEntry, Payload};

/// The split that is under way at a replica.
pub(in crate::range) struct PendingSplit<E: Env> {
    /// The first of the keys that are closed, if any are.
    closed_from: RefCell<Option<Vec<u8>>>,
    /// The child that is about to be born.
    pub(in crate::range) bearing: Cell<Option<Group>>,
    /// Its log, once the birth is durable, and whether it existed before a restart.
    pub(in crate::range) prepared: RefCell<Option<(GroupLog<E>, bool)>>,
    /// Whether this replica is being removed: then it gives birth to none.
    pub(in crate::range) is_leaving: Cell<bool>,
}

impl<E: Env> Default for PendingSplit<E> {
    fn default() -> PendingSplit<E> {
        PendingSplit {
            closed_from: RefCell::default(),
            bearing: Cell::new(None),
            prepared: RefCell::default(),
            is_leaving: Cell::new(false),
        }
    }
}

impl<E: Env> PendingSplit<E> {
    /// Whether an entry is a split.
    pub(in crate::range) fn is_of(entry: &LogEntry) -> bool {
        matches!(&entry.payload, Payload::Commands(bytes) if command::is_split(bytes))
    }

    /// Closes the keys from this one on.
    pub(in crate::range) fn close_from(&self, key: &[u8]) {
        self.closed_from.replace(Some(key.to_vec()));
    }

    /// Opens the keys again.
    pub(in crate::range) fn end(&self) {
        self.closed_from.replace(None);
    }

    /// The first key that is closed, if any is.
    pub(in crate::range) fn closed_from(&self) -> Option<Ref<'_, [u8]>> {
        Ref::filter_map(self.closed_from.borrow(), Option::as_deref).ok()
    }

    /// The child's replica that is born now, its log, and whether it existed before. `None` if none is.
    pub(in crate::range) fn take_prepared(&self) -> Option<(Group, (GroupLog<E>, bool))> {
        let prepared = self.bearing.take().zip(self.prepared.take());
        prepared.filter(|_| !self.is_leaving.get())
    }
}
