//! Records about the log as a whole: its identity, its length, and the replicas it has seen.

use crate::env::Env;
use crate::types::ReplicaId;
use crate::wal::record::Record;
use crate::wal::{LogMark, Position, Wal, WalError};

impl<E: Env> Wal<E> {
    /// Writes the log's identity; it is durable when this returns.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn mark(&self, mark: LogMark) -> Result<(), WalError> {
        self.shared.contents.mark.set(Some(mark));
        self.shared.append_durably(&Record::Mark(mark)).await
    }

    /// Notes that the tables have durably taken this many flushes. Whatever the flushes allow to be
    /// purged is purged by a later record. So a log that lacks entries also says which flush has
    /// them.
    pub fn flushed(&self, flushes: u64) {
        let Some(mark) = self.shared.contents.mark.get() else {
            return;
        };
        let mark = LogMark { flushes, ..mark };
        self.shared.contents.mark.set(Some(mark));
        self.shared.append_lazily(&Record::Mark(mark));
    }

    /// The number of the last durable batch; 0 if there is none.
    pub fn last_batch(&self) -> u64 {
        self.shared.head.borrow().number.saturating_sub(1)
    }

    /// The position of the next record in the stream of written bytes.
    pub fn position(&self) -> Position {
        Position(self.shared.written.get() + self.shared.pending.bytes.get() as u64)
    }

    /// Bytes written since a position, padding included.
    pub fn bytes_since(&self, position: Position) -> u64 {
        self.position().0.saturating_sub(position.0)
    }

    /// The highest id of all replicas that are or were in this log.
    pub fn highest_replica(&self) -> ReplicaId {
        self.shared.contents.highest_replica.get()
    }

    /// Whether this replica id is used, or it or a higher one was used by a replica that is gone.
    /// The range does not matter: ids are given out once, in rising order.
    pub fn is_replica_used(&self, replica: ReplicaId) -> bool {
        let (logs, removed) = (
            self.shared.contents.logs.borrow(),
            self.shared.contents.removed.borrow(),
        );
        let is_here = logs.keys().any(|group| group.replica == replica);
        is_here || removed.groups().any(|group| group.replica >= replica)
    }
}
