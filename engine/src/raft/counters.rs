//! Counters of the groups of one shard: elections, changes of leaders and members, snapshots. The groups
//! write them and the shard's status reads them, both on the shard's thread.

use std::cell::Cell;

/// Counts since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStats {
    /// Elections that replicas here began.
    pub elections: u64,
    /// How often a replica here learnt of another leader of its range.
    pub leader_changes: u64,
    /// Changes of members that a leader here has carried out.
    pub changes_done: u64,
    /// Changes of members that a leader here has given up.
    pub changes_failed: u64,
    /// Snapshots of replicas here that another replica has installed.
    pub snapshots_sent: u64,
    /// Snapshots of replicas here that were begun and did not arrive.
    pub snapshots_failed: u64,
    /// Bytes of keys and values in the parts of snapshots that were sent.
    pub snapshot_bytes_sent: u64,
    /// Snapshots that replicas here have installed.
    pub snapshots_installed: u64,
    /// Replicas here that were given up because of a block that cannot be read or is damaged.
    pub given_up: u64,
}

/// The counters of one shard's groups.
#[derive(Default)]
pub struct RaftCounters(Cell<RaftStats>);

impl RaftCounters {
    /// Counts something.
    pub fn count(&self, add: impl FnOnce(&mut RaftStats)) {
        let mut stats = self.0.get();
        add(&mut stats);
        self.0.set(stats);
    }

    /// The counts so far.
    pub fn stats(&self) -> RaftStats {
        self.0.get()
    }
}
