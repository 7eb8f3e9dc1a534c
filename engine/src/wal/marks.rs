//! What the log says of itself as a whole: whose it is, how far it is, and which replicas it has seen.

use crate::env::Env;
use crate::types::ReplicaId;
use crate::wal::record::Record;
use crate::wal::writer::Wal;
use crate::wal::{LogMark, Position, WalError};

impl<E: Env> Wal<E> {
    /// Says whose log it is; durable when this returns.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn mark(&self, mark: LogMark) -> Result<(), WalError> {
        self.core.mark.set(Some(mark));
        self.core.append_durably(&Record::Mark(mark)).await
    }

    /// The tables have durably taken this many flushes. Whatever is purged from the log because of
    /// them is purged by a later record, so a log that lacks entries also knows which tables have
    /// them.
    pub fn flushed(&self, flushes: u64) {
        let Some(mark) = self.core.mark.get() else {
            return;
        };
        let mark = LogMark { flushes, ..mark };
        self.core.mark.set(Some(mark));
        self.core.append_lazily(&Record::Mark(mark));
    }

    /// The number of the last batch that is durable; 0: there is none.
    pub fn last_batch(&self) -> u64 {
        self.core.head.borrow().number.saturating_sub(1)
    }

    /// Where the next record goes in the stream of written bytes.
    pub fn position(&self) -> Position {
        Position(self.core.written.get() + self.core.pending_bytes.get() as u64)
    }

    /// Bytes written since a position, padding included.
    pub fn bytes_since(&self, position: Position) -> u64 {
        self.position().0.saturating_sub(position.0)
    }

    /// The highest id of all replicas that are or were here.
    pub fn highest_replica(&self) -> ReplicaId {
        self.core.highest_replica.get()
    }

    /// Whether a replica of this id, or of a higher one that has gone, was here before, of whatever
    /// range: ids are given once, in rising order.
    pub fn is_replica_used(&self, replica: ReplicaId) -> bool {
        let (logs, removed) = (self.core.logs.borrow(), self.core.removed.borrow());
        let is_here = logs.keys().any(|group| group.replica == replica);
        is_here || removed.iter().any(|group| group.replica >= replica)
    }
}
