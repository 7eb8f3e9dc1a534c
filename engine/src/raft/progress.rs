//! What a leader learns of the other replicas from their answers. The links to them
//! ([`super::network`]) write it, the group reads it; both on the shard's thread.

use std::cell::Cell;

use crate::boot_time::BootTime;
use crate::raft::acknowledged::Acknowledged;
use crate::raft::followers::Followers;

/// The progress of the other replicas, as the leader knows it.
pub struct Progress {
    /// The appends that they have accepted lately.
    pub acknowledged: Acknowledged,
    /// What they have acknowledged, and which of them have lost it.
    pub followers: Followers,
    /// When one of them last took a part of a snapshot.
    pub part_taken: Cell<Option<BootTime>>,
}

impl Progress {
    /// Nothing is known yet.
    pub fn new() -> Progress {
        Progress {
            acknowledged: Acknowledged::new(),
            followers: Followers::default(),
            part_taken: Cell::new(None),
        }
    }
}
