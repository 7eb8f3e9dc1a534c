//! openraft's log storage on the shard's WAL.
//!
//! The entries of all groups go into one totally ordered stream that becomes durable as a prefix.
//! So completions come in order, and truncations, purges and commit hints need no write of their
//! own: any later durable record implies them.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::RaftLogReader;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};

use crate::limits::LOG_READ_LEN_MAX;
use crate::raft::convert;
use crate::raft::machine::Machine;
use crate::raft::type_config::{RaftEntry, RaftLogId, RaftVote, TypeConfig};
use crate::wal::{GroupLog, WalError};

/// The log of one group. Clones are the same log.
pub struct LogStore<M: Machine> {
    log: GroupLog<M::Env>,
}

impl<M: Machine> Clone for LogStore<M> {
    fn clone(&self) -> LogStore<M> {
        LogStore {
            log: self.log.clone(),
        }
    }
}

impl<M: Machine> LogStore<M> {
    /// The store on a group's log.
    pub fn new(log: GroupLog<M::Env>) -> LogStore<M> {
        LogStore { log }
    }

    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<RaftEntry>> {
        let entries = match self.log.read_cached(from, to, bytes_max) {
            Some(entries) => entries,
            None => self.log.read(from, to, bytes_max).await.map_err(other)?,
        };
        // An empty answer would not do here: openraft would take the entries for applied.
        if self.log.is_removed() {
            return Err(io::Error::other("the log has gone with its replica"));
        }
        entries.into_iter().map(convert::raft_entry).collect()
    }
}

fn other(error: WalError) -> io::Error {
    io::Error::other(error)
}

impl<M: Machine> RaftLogReader<TypeConfig<M>> for LogStore<M> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug>(
        &mut self,
        range: R,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start, end, LOG_READ_LEN_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.log.state().vote.map(convert::raft_vote))
    }
}

impl<M: Machine> RaftLogStorage<TypeConfig<M>> for LogStore<M> {
    type LogReader = LogStore<M>;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<M>>, io::Error> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(convert::raft_log_id),
            last_log_id: state.last.map(convert::raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore<M> {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        self.log.save_vote(convert::vote(vote)).await.map_err(other)
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.log.save_committed(convert::log_id(&id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(self.log.state().committed.map(convert::raft_log_id))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig<M>>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry>,
    {
        let entries = entries
            .into_iter()
            .map(convert::entry)
            .collect::<io::Result<Vec<_>>>()?;
        self.log.append(
            entries,
            Box::new(move |result: Result<(), WalError>| {
                callback.io_completed(result.map_err(other));
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        self.log.truncate_after(last.as_ref().map(convert::log_id));
        Ok(())
    }

    async fn purge(&mut self, id: RaftLogId) -> Result<(), io::Error> {
        self.log.purge(convert::log_id(&id));
        Ok(())
    }
}
