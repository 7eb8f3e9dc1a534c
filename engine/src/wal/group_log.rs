//! The log of one group as its replica uses it. Each change is made in the index in memory and appended to
//! the shard's log.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;

use crate::env::Env;
use crate::mutant::{self, Mutant};
use crate::types::DataId;
use crate::wal::log::{Log, NextEntries};
use crate::wal::record::Record;
use crate::wal::shared::{Done, SharedWal};
use crate::wal::{Group, InstalledSnapshot, LogEntry, LogId, LogState, Vote, WalError};

/// The log of one group. Clones are the same log.
pub struct GroupLog<E: Env> {
    group: Group,
    log: Rc<RefCell<Log>>,
    shared: Rc<SharedWal<E>>,
    /// Whether a vote is being made durable.
    saves_vote: Rc<Cell<bool>>,
}

impl<E: Env> Clone for GroupLog<E> {
    fn clone(&self) -> GroupLog<E> {
        GroupLog {
            group: self.group,
            log: self.log.clone(),
            shared: self.shared.clone(),
            saves_vote: self.saves_vote.clone(),
        }
    }
}

impl<E: Env> GroupLog<E> {
    pub(super) fn new(
        group: Group,
        log: Rc<RefCell<Log>>,
        shared: Rc<SharedWal<E>>,
    ) -> GroupLog<E> {
        GroupLog {
            group,
            log,
            shared,
            saves_vote: Rc::default(),
        }
    }

    /// The Raft state of the log, including what is not yet durable.
    pub fn state(&self) -> LogState {
        self.log.borrow().state()
    }

    /// How many entries are not purged, and how many bytes their records take on disk.
    pub fn size(&self) -> (usize, u64) {
        self.log.borrow().size()
    }

    /// Whether the log has an entry; not one that is purged.
    pub fn has(&self, id: LogId) -> bool {
        self.log.borrow().has(id)
    }

    /// Whether the replica was removed, and its log with it.
    pub fn is_removed(&self) -> bool {
        self.shared.contents.removed.borrow().has(self.group)
    }

    /// Appends entries: readable at once, durable when `done` is called, in the order of all calls.
    pub fn append(&self, entries: Vec<LogEntry>, done: Box<dyn FnOnce(Result<(), WalError>)>) {
        let appended = entries.iter().map(|entry| entry.payload.len()).sum();
        for entry in entries {
            self.shared.append_entry(self.group, &entry);
            self.log.borrow_mut().push(entry);
        }
        if mutant::is(Mutant::AcknowledgeBeforeDurable) {
            self.shared.complete(Done::Call(Box::new(|_| ())));
            return done(Ok(()));
        }
        self.shared.complete(Done::Call(done));
        self.shared.trim_cache(appended);
    }

    /// Saves the vote; it is durable when this returns.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn save_vote(&self, vote: Vote) -> Result<(), WalError> {
        self.log.borrow_mut().set_vote(vote);
        if mutant::is(Mutant::VoteBeforeDurable) {
            self.shared.append_lazily(&Record::Vote(self.group, vote));
            return Ok(());
        }
        self.saves_vote.set(true);
        let vote = Record::Vote(self.group, vote);
        let saved = self.shared.append_durably(&vote).await;
        self.saves_vote.set(false);
        saved
    }

    /// Whether this handle or a clone of it is making a vote durable.
    pub fn is_saving_vote(&self) -> bool {
        self.saves_vote.get()
    }

    /// Notes the last committed entry. That becomes durable with the next write, and causes none.
    pub fn save_committed(&self, id: LogId) {
        self.log.borrow_mut().set_committed(id);
        self.shared.append_lazily(&Record::Commit(self.group, id));
    }

    /// Notes that an entry which the log has is committed; that, the entry and those before it are durable when
    /// this returns.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn commit_durably(&self, id: LogId) -> Result<(), WalError> {
        self.log.borrow_mut().set_committed(id);
        let committed = Record::Commit(self.group, id);
        self.shared.append_durably(&committed).await
    }

    /// Drops the entries after `after`, or all of them. Becomes durable in order with what follows.
    pub fn truncate_after(&self, after: Option<LogId>) {
        let after = after.map(|id| id.index);
        let left = self.log.borrow_mut().truncate(after);
        if !mutant::is(Mutant::TruncationNotLogged) {
            self.shared
                .append_lazily(&Record::Truncate(self.group, after));
        }
        self.shared.complete(Done::Leave(left));
    }

    /// Starts the log after a snapshot with durable rows; that is durable when this returns.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn install_snapshot(
        &self,
        data_id: DataId,
        last: LogId,
        state: Bytes,
    ) -> Result<(), WalError> {
        let installed = InstalledSnapshot {
            data_id,
            last,
            keeps_later: self.log.borrow().has(last),
            state,
        };
        let record = Record::InstalledSnapshot(self.group, installed.clone());
        self.shared.append_lazily(&record);
        let left = self.log.borrow_mut().install_snapshot(installed);
        self.shared.complete(Done::Leave(left));
        if !mutant::is(Mutant::SnapshotInstallWithoutLog) {
            self.shared.flush().await?;
        }
        // Entries appended after this record stay, even if the record is repeated by a checkpoint.
        self.log.borrow_mut().keep_later();
        Ok(())
    }

    /// The snapshot that the replica installed last.
    pub fn installed_snapshot(&self) -> Option<InstalledSnapshot> {
        self.log.borrow().installed_snapshot().cloned()
    }

    /// Drops the entries up to `id`. Becomes durable in order with what follows.
    pub fn purge(&self, id: LogId) {
        let left = self.log.borrow_mut().purge(id);
        self.shared.append_lazily(&Record::Purge(self.group, id));
        self.shared.complete(Done::Leave(left));
    }

    /// The entries as [`GroupLog::read`] gives them, if memory has all that exist of them.
    pub fn read_cached(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<LogEntry>> {
        let entries = self.log.borrow().cached(from, to, bytes_max)?;
        self.shared.counters.borrow_mut().found(entries.len());
        Some(entries)
    }

    /// The entries from `from` to before `to`: as many as exist and fit into `bytes_max`, at least
    /// one. Those that are no longer in memory are read from disk in pages.
    ///
    /// # Errors
    /// The disk refuses, or what it has is no longer what was written.
    pub async fn read(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, WalError> {
        let (mut index, to) = self.log.borrow().within(from, to);
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut bytes = 0usize;
        while index < to {
            let found = self.log.borrow().next_entries(index, to);
            let page = match found {
                NextEntries::Memory(entry) => {
                    self.shared.counters.borrow_mut().found(1);
                    vec![entry]
                }
                NextEntries::Disk(locations) => {
                    self.shared.counters.borrow_mut().missed(locations.len());
                    let of = (self.group, &*self.log);
                    match self.shared.read_page(of, &locations).await? {
                        Some(page) => page,
                        None => continue,
                    }
                }
                // The rest was purged or truncated meanwhile.
                NextEntries::Gone => break,
            };
            for entry in page {
                bytes = bytes.saturating_add(entry.payload.len());
                if bytes > bytes_max && !entries.is_empty() {
                    return Ok(entries);
                }
                index = entry.id.index + 1;
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}
