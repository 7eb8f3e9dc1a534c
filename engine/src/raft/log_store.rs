//! openraft's log storage on the shard's WAL.
//!
//! The entries of all groups go into one totally ordered stream that becomes durable as a prefix.
//! So completions come in order, and truncations, purges and commit hints need no write of their
//! own: any later durable record implies them.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::RaftLogReader;
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};

use crate::env::Env;
use crate::limits::LOG_READ_LEN_MAX;
use crate::raft::convert;
use crate::raft::type_config::TypeConfig;
use crate::wal::{GroupLog, WalError};

/// The log of one group. Clones are the same log.
pub struct LogStore<E: Env> {
    log: GroupLog<E>,
}

impl<E: Env> Clone for LogStore<E> {
    fn clone(&self) -> LogStore<E> {
        LogStore {
            log: self.log.clone(),
        }
    }
}

impl<E: Env> LogStore<E> {
    /// The store on a group's log.
    pub fn new(log: GroupLog<E>) -> LogStore<E> {
        LogStore { log }
    }

    async fn read(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> io::Result<Vec<EntryOf<TypeConfig<E>>>> {
        let entries = match self.log.read_cached(from, to, bytes_max) {
            Some(entries) => entries,
            None => self.log.read(from, to, bytes_max).await.map_err(other)?,
        };
        // An empty answer would not do here: openraft would take the entries for applied.
        if self.log.is_removed() {
            return Err(io::Error::other("the log has gone with its replica"));
        }
        entries.into_iter().map(convert::raft_entry::<E>).collect()
    }
}

fn other(error: WalError) -> io::Error {
    io::Error::other(error)
}

impl<E: Env> RaftLogReader<TypeConfig<E>> for LogStore<E> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug>(
        &mut self,
        range: R,
    ) -> Result<Vec<EntryOf<TypeConfig<E>>>, io::Error> {
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
    ) -> Result<Vec<EntryOf<TypeConfig<E>>>, io::Error> {
        self.read(start, end, LOG_READ_LEN_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<TypeConfig<E>>>, io::Error> {
        Ok(self.log.state().vote.map(convert::raft_vote::<E>))
    }
}

impl<E: Env> RaftLogStorage<TypeConfig<E>> for LogStore<E> {
    type LogReader = LogStore<E>;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<E>>, io::Error> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(convert::raft_log_id::<E>),
            last_log_id: state.last.map(convert::raft_log_id::<E>),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore<E> {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig<E>>) -> Result<(), io::Error> {
        self.log
            .save_vote(convert::vote::<E>(vote))
            .await
            .map_err(other)
    }

    async fn save_committed(
        &mut self,
        committed: Option<LogIdOf<TypeConfig<E>>>,
    ) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.log.save_committed(convert::log_id::<E>(&id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<TypeConfig<E>>>, io::Error> {
        Ok(self.log.state().committed.map(convert::raft_log_id::<E>))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig<E>>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<TypeConfig<E>>>,
    {
        let entries = entries
            .into_iter()
            .map(convert::entry::<E>)
            .collect::<io::Result<Vec<_>>>()?;
        self.log.append(
            entries,
            Box::new(move |result: Result<(), WalError>| {
                callback.io_completed(result.map_err(other));
            }),
        );
        Ok(())
    }

    async fn truncate_after(
        &mut self,
        last: Option<LogIdOf<TypeConfig<E>>>,
    ) -> Result<(), io::Error> {
        self.log
            .truncate_after(last.as_ref().map(convert::log_id::<E>));
        Ok(())
    }

    async fn purge(&mut self, id: LogIdOf<TypeConfig<E>>) -> Result<(), io::Error> {
        self.log.purge(convert::log_id::<E>(&id));
        Ok(())
    }
}
