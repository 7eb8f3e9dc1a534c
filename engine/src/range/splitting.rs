//! The split that is under way at one replica: which keys its leader has closed, and the log of the child
//! that is about to be born. [`super::birth`] uses it. Lives on the shard's thread.

use std::cell::{Cell, Ref, RefCell};

use crate::env::Env;
use crate::range::command;
use crate::wal::{GroupLog, LogEntry, Payload};

/// The split that is under way at a replica.
pub(super) struct Splitting<E: Env> {
    /// Whether keys are closed.
    is_closed: Cell<bool>,
    /// The first of them.
    from: RefCell<Vec<u8>>,
    /// The log of the child, whose birth is durable, and whether it existed before a restart.
    pub(super) prepared: RefCell<Option<(GroupLog<E>, bool)>>,
}

impl<E: Env> Default for Splitting<E> {
    fn default() -> Splitting<E> {
        Splitting {
            is_closed: Cell::new(false),
            from: RefCell::default(),
            prepared: RefCell::default(),
        }
    }
}

impl<E: Env> Splitting<E> {
    /// Whether an entry is a split.
    pub(super) fn is_of(entry: &LogEntry) -> bool {
        matches!(&entry.payload, Payload::Commands(bytes) if command::is_split(bytes))
    }

    /// Closes the keys from this one on.
    pub(super) fn close_from(&self, key: &[u8]) {
        self.from.replace(key.to_vec());
        self.is_closed.set(true);
    }

    /// Opens the keys again.
    pub(super) fn end(&self) {
        self.is_closed.set(false);
    }

    /// The first key that is closed, if any is.
    pub(super) fn closed_from(&self) -> Option<Ref<'_, [u8]>> {
        let is_closed = self.is_closed.get();
        is_closed.then(|| Ref::map(self.from.borrow(), Vec::as_slice))
    }
}
