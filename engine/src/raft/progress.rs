//! What a leader learns of the other replicas from their answers. The links to them
//! ([`super::network`]) write it, the group reads it; both on the shard's thread.

use std::cell::Cell;

use crate::env::Instant;
use crate::raft::acknowledged::Acknowledged;
use crate::raft::followers::Followers;

/// The progress of the other replicas, as the leader knows it.
pub struct Progress<T: Instant> {
    /// The appends that they have accepted lately.
    pub acknowledged: Acknowledged<T>,
    /// What they have acknowledged, and which of them have lost it.
    pub followers: Followers,
    /// When one of them last took a part of a snapshot.
    pub part_taken: Cell<Option<T>>,
}

impl<T: Instant> Progress<T> {
    /// Nothing is known yet.
    pub fn new() -> Progress<T> {
        Progress {
            acknowledged: Acknowledged::new(),
            followers: Followers::default(),
            part_taken: Cell::new(None),
        }
    }
}
