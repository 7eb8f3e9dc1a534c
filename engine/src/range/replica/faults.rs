//! What keeps a replica from serving: its rows differ from those of the other replicas and no majority says
//! which are right, or a block of a table with its rows cannot be read or is damaged. [`super::fitness`]
//! says what such a replica may still do. Lives on the shard's thread.

use std::cell::Cell;

/// What keeps a replica from serving.
#[derive(Default)]
pub(super) struct Faults {
    /// Whether its rows differ from other replicas', and no one knows which are right.
    pub(super) halted: Cell<bool>,
    /// Whether a block of a table with its rows cannot be read or is damaged.
    pub(super) unreadable: Cell<bool>,
    /// Whether the shard takes a step to give it up now.
    pub(super) is_leaving: Cell<bool>,
}

impl Faults {
    /// Notes that the replica has other rows now.
    pub(super) fn clear(&self) {
        self.halted.set(false);
        self.unreadable.set(false);
    }
}
