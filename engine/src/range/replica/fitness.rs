//! Whether a replica may serve. One that differs from the others serves nothing. One with an unreadable block
//! serves what does not need the block, until the shard gives the replica up (`shard/replicas/unreadable.rs`):
//! first its leadership, then the replica. An entry of the log that needs such a block is not applied; it is
//! tried again until the replica ends, or the block can be read. Lives on the shard's thread.

use crate::env::Env;
use crate::error::Error;
use crate::lsm::LsmError;
use crate::range::replica::Replica;

impl<E: Env> Replica<E> {
    /// Serves nothing from now on, until the process ends or a snapshot is installed: the replicas
    /// differ, and no majority of them holds the same.
    pub fn halt(&self) {
        self.faults.halted.set(true);
        self.proposer.refuse_all(&Error::Diverged(self.group.range));
    }

    /// Whether it serves nothing because the replicas differ.
    pub fn is_halted(&self) -> bool {
        self.faults.halted.get()
    }

    /// Notes that a read of its rows has met a block that cannot be read or is damaged; logs the first.
    pub fn found_unreadable(&self, error: &LsmError) {
        self.store.count_unreadable();
        if self.faults.unreadable.replace(true) {
            return;
        }
        let (range, shard) = (self.group.range, self.home.location);
        match self.with_state(|state| state.descriptor.replicas.len() > 1) {
            true => tracing::error!(
                event = "block_unreadable",
                %range,
                replica = %self.group.replica,
                "shard {shard}: {error}. It has rows of range {range}: the replica here is given up, and made \
                 anew from the others. Check the disk of this node (dmesg, smartctl)"
            ),
            false => tracing::error!(
                event = "block_unreadable",
                %range,
                replica = %self.group.replica,
                "shard {shard}: {error}. It has rows of range {range}, of which there is no other replica: \
                 reads and conditional writes that need the block are refused as unreadable, others go on. \
                 Check the disk (dmesg, smartctl). If the file stays unreadable, write the lost rows anew, or \
                 start from a copy of the whole folder that was made while the node was stopped"
            ),
        }
    }

    /// Whether a block with its rows cannot be read or is damaged, as far as reads have met it.
    pub fn is_unreadable(&self) -> bool {
        self.faults.unreadable.get()
    }

    /// Begins a step of giving this replica up. `false`: it is not to be given up, or a step is under way.
    pub(crate) fn begin_leaving(&self) -> bool {
        self.is_unreadable() && !self.faults.is_leaving.replace(true)
    }

    /// Ends that step.
    pub(crate) fn end_leaving(&self) {
        self.faults.is_leaving.set(false);
    }
}
