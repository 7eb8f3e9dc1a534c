//! Reads of one row: its newest version, or the newest at or below a timestamp.
//!
//! There are two kinds of reads. [`Lsm::newest`] and [`Lsm::get`] may wait for the disk: apply and recovery
//! use them. [`Lsm::try_newest`] never waits. If a block that it needs is not in memory, it gives the
//! [`ColdBlock`]: the caller has it fetched ([`Lsm::fetch`]), lets others run until it is there, and reads
//! again from the beginning. Nothing of the first try is kept, so a write that comes in between is seen,
//! and the row cache takes in only what is still the newest version.
//!
//! Lives on its shard's thread.

use std::convert::Infallible;

use super::row::{self, Row};
use super::{Entry, Found, Lsm, LsmError, TableStore, hash_in_cache, keys};
use crate::mutant::{self, Mutant};
use crate::types::{ColdBlock, Timestamp};

/// What tables give for a row without waiting for the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<S> {
    /// The row's header and value, if there is one.
    Found(Option<S>),
    /// The lookup needs this block, which is not in memory.
    Cold(ColdBlock),
}

impl<S> Lookup<S> {
    /// What was found.
    ///
    /// # Errors
    /// The block that is not in memory.
    pub fn found(self) -> Result<Option<S>, ColdBlock> {
        match self {
            Lookup::Found(found) => Ok(found),
            Lookup::Cold(block) => Err(block),
        }
    }
}

/// What a read gives, or why it gives nothing yet.
type Tried<R, C> = Result<Result<R, C>, LsmError>;

impl<T: TableStore> Lsm<T> {
    /// Passes the newest version of a row to `look`, which must not call back into the tree. The row
    /// cache answers if it can; otherwise it takes in what is found in the tables. May wait for the
    /// disk.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn newest<R>(
        &self,
        key: &[u8],
        look: impl FnOnce(Option<Row<'_>>) -> R,
    ) -> Result<R, LsmError> {
        let in_tables = |hash| {
            let found = self.store.get(key, hash, Timestamp::MAX)?;
            Ok(Ok::<_, Infallible>(found))
        };
        let Ok(seen) = self.newest_by(key, in_tables, look)?;
        Ok(seen)
    }

    /// Passes the newest version of a row at or below `at` to `look`, which must not call back into
    /// the tree. It looks for the newest version of all first, which mostly is the one, and which the
    /// row cache may have. Never waits for the disk.
    ///
    /// # Errors
    /// A table cannot be read. The inner error is a block that the read needs.
    pub fn try_newest<R>(
        &self,
        key: &[u8],
        at: Timestamp,
        look: impl FnOnce(Option<Row<'_>>) -> R,
    ) -> Tried<R, ColdBlock> {
        let in_tables = |hash| self.try_tables(key, hash, Timestamp::MAX);
        let newest = self.newest_by(key, in_tables, |newest| match newest {
            Some(row) if row.version > at => Err(look),
            newest => Ok(look(newest)),
        })?;
        let look = match newest {
            Ok(Ok(seen)) => return Ok(Ok(seen)),
            Ok(Err(look)) => look,
            Err(block) => return Ok(Err(block)),
        };
        let found = self.try_get(key, at)?;
        Ok(found.map(|found| look(found.as_ref().map(Found::row))))
    }

    /// Brings what reads of the newest versions of these rows need soon into the processor's caches: the
    /// rows with these hashes in the row cache.
    pub fn prefetch(&self, hashes: &[u64]) {
        self.row_cache.borrow().prefetch(hashes);
    }

    /// The newest version of a row in the tables at or below `at`.
    fn try_tables(
        &self,
        key: &[u8],
        hash: u64,
        at: Timestamp,
    ) -> Tried<Option<T::Slice>, ColdBlock> {
        match self.store.try_get(key, hash, at) {
            Err(LsmError::Unreadable { .. }) if mutant::is(Mutant::UnreadableIsAbsent) => {
                Ok(Ok(None))
            }
            tried => Ok(tried?.found()),
        }
    }

    /// The newest version of a row at or below `at`. May wait for the disk.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn get(&self, key: &[u8], at: Timestamp) -> Result<Option<Found<'_, T::Slice>>, LsmError> {
        let in_tables = |hash| {
            let found = self.store.get(key, hash, at)?;
            Ok(Ok::<_, Infallible>(found))
        };
        let Ok(found) = self.get_by(key, at, in_tables)?;
        Ok(found)
    }

    /// As [`Lsm::get`], but never waits for the disk.
    ///
    /// # Errors
    /// A table cannot be read. The inner error is a block that the read needs.
    pub(super) fn try_get(
        &self,
        key: &[u8],
        at: Timestamp,
    ) -> Tried<Option<Found<'_, T::Slice>>, ColdBlock> {
        self.get_by(key, at, |hash| self.try_tables(key, hash, at))
    }

    /// Reads the newest version; `in_tables` looks for the row with this hash in the tables.
    fn newest_by<R, C>(
        &self,
        key: &[u8],
        in_tables: impl FnOnce(u64) -> Tried<Option<T::Slice>, C>,
        look: impl FnOnce(Option<Row<'_>>) -> R,
    ) -> Tried<R, C> {
        let hash = keys::row_hash(key);
        let in_cache = hash_in_cache(key, hash);
        let mut row_cache = self.row_cache.borrow_mut();
        if let Some(cached) = row_cache.get(in_cache, key) {
            let tree = || self.get(key, Timestamp::MAX);
            self.store.cache_answered(key, cached, tree)?;
            return Ok(Ok(look(Some(cached))));
        }
        let in_memtable = self
            .in_memtables(key, hash, Timestamp::MAX)
            .map(|entry| Row {
                version: entry.version,
                value: entry.value,
            });
        // With the deliberate bug, the tables are read before a write that the memtable has already.
        if let Some(row) = in_memtable
            && !mutant::is(Mutant::OvertakenReadCached)
        {
            row_cache.fill_spare(in_cache, key, row);
            return Ok(Ok(look(in_memtable)));
        }
        let found = match in_tables(hash)? {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Ok(look(in_memtable))),
            Err(cold) => return Ok(Err(cold)),
        };
        let row = row::decode(found.as_ref()).ok_or(LsmError::UnknownRow)?;
        row_cache.fill(in_cache, key, row);
        Ok(Ok(look(in_memtable.or(Some(row)))))
    }

    /// Reads the newest version at or below `at`; `in_tables` looks for the row with this hash in the
    /// tables.
    fn get_by<C>(
        &self,
        key: &[u8],
        at: Timestamp,
        in_tables: impl FnOnce(u64) -> Tried<Option<T::Slice>, C>,
    ) -> Tried<Option<Found<'_, T::Slice>>, C> {
        let hash = keys::row_hash(key);
        if let Some(entry) = self.in_memtables(key, hash, at) {
            return Ok(Ok(Some(Found::Memtable(entry))));
        }
        let found = match in_tables(hash)? {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Ok(None)),
            Err(cold) => return Ok(Err(cold)),
        };
        let (version, is_value) = match row::decode(found.as_ref()) {
            Some(row) => (row.version, row.value.is_some()),
            None => return Err(LsmError::UnknownRow),
        };
        Ok(Ok(Some(Found::Table(version, is_value, found))))
    }

    /// The newest version of a row at or below `at`, if a memtable has one.
    fn in_memtables(&self, key: &[u8], hash: u64, at: Timestamp) -> Option<Entry<'_>> {
        self.memtables()
            .find_map(|memtable| memtable.get(key, hash, at))
    }
}
