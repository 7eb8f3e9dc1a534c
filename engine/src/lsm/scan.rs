//! A scan merges memtables and tables in ascending or descending order of keys, and yields the
//! version of each key that is visible at a timestamp.

use std::cmp::Reverse;

use crate::lsm::memtable::{self, Entry, Memtable};
use crate::lsm::{Bounds, LsmError, TableRow, TableStore, row};
use crate::types::Timestamp;

/// The order in which a scan yields keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending. Of each key, the newest version comes first.
    Forward,
    /// Descending. Of each key, the oldest version comes first.
    Reverse,
}

/// A row that a scan yields.
pub struct ScanRow<'a, S>(Item<'a, S>);

enum Item<'a, S> {
    Memtable(Entry<'a>),
    Table(TableRow<S>),
}

impl<S: AsRef<[u8]>> Item<'_, S> {
    fn key(&self) -> &[u8] {
        match self {
            Item::Memtable(entry) => entry.key,
            Item::Table(item) => item.key.as_ref(),
        }
    }

    fn version(&self) -> Timestamp {
        match self {
            Item::Memtable(entry) => entry.version,
            Item::Table(item) => item.version,
        }
    }

    /// The value, or `None` for a tombstone.
    fn value(&self) -> Result<Option<&[u8]>, LsmError> {
        match self {
            Item::Memtable(entry) => Ok(entry.value),
            Item::Table(item) => match row::decode(item.row.as_ref()) {
                Some(row) => Ok(row.value),
                None => Err(LsmError::UnknownRow),
            },
        }
    }
}

impl<S: AsRef<[u8]>> ScanRow<'_, S> {
    /// The row's key.
    pub fn key(&self) -> &[u8] {
        self.0.key()
    }

    /// Its version.
    pub fn version(&self) -> Timestamp {
        self.0.version()
    }

    /// Its value.
    pub fn value(&self) -> &[u8] {
        // The scan yields only rows that it could decode and that have a value.
        self.0.value().ok().flatten().unwrap_or(&[])
    }
}

enum Source<'a, T: TableStore> {
    Memtable(memtable::Range<'a>),
    Run(T::Iter),
}

impl<'a, T: TableStore> Source<'a, T> {
    fn next(&mut self, direction: Direction) -> Result<Option<Item<'a, T::Slice>>, LsmError> {
        Ok(match (self, direction) {
            (Source::Memtable(rows), Direction::Forward) => rows.next().map(Item::Memtable),
            (Source::Memtable(rows), Direction::Reverse) => rows.next_back().map(Item::Memtable),
            (Source::Run(rows), Direction::Forward) => rows.next().transpose()?.map(Item::Table),
            (Source::Run(rows), Direction::Reverse) => {
                rows.next_back().transpose()?.map(Item::Table)
            }
        })
    }
}

/// A scan in progress. It borrows the memtables.
pub struct Scan<'a, T: TableStore> {
    /// The next item of each source, with the source. The last one comes next in the scan's order.
    heads: Vec<(Item<'a, T::Slice>, Source<'a, T>)>,
    at: Timestamp,
    direction: Direction,
}

impl<'a, T: TableStore> Scan<'a, T> {
    pub(super) fn new(
        memtables: impl Iterator<Item = &'a Memtable>,
        runs: Vec<T::Iter>,
        bounds: Bounds<'_>,
        at: Timestamp,
        direction: Direction,
    ) -> Result<Scan<'a, T>, LsmError> {
        let mut scan = Scan {
            heads: Vec::with_capacity(runs.len() + 2),
            at,
            direction,
        };
        for memtable in memtables {
            scan.add(Source::Memtable(memtable.range(bounds)))?;
        }
        for run in runs {
            scan.add(Source::Run(run))?;
        }
        Ok(scan)
    }

    /// Inserts a source into `heads` by its next item. A source without one is dropped.
    fn add(&mut self, mut source: Source<'a, T>) -> Result<(), LsmError> {
        let Some(item) = source.next(self.direction)? else {
            return Ok(());
        };
        let comes_later = |x: &Item<'a, T::Slice>| {
            let (x, item) = (
                (x.key(), Reverse(x.version())),
                (item.key(), Reverse(item.version())),
            );
            match self.direction {
                Direction::Forward => x > item,
                Direction::Reverse => x < item,
            }
        };
        let at = self
            .heads
            .iter()
            .rposition(|(head, _)| comes_later(head))
            .map_or(0, |i| i + 1);
        self.heads.insert(at, (item, source));
        Ok(())
    }

    /// Takes the next item of all sources.
    fn take(&mut self) -> Result<Option<Item<'a, T::Slice>>, LsmError> {
        let Some((item, source)) = self.heads.pop() else {
            return Ok(None);
        };
        self.add(source)?;
        Ok(Some(item))
    }

    /// Passes the next version at or below the timestamp to `look`, in the scan's [`Direction`]:
    /// key, version, and value, which is `None` for a tombstone. Returns `None` at the end.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn next_version<R>(
        &mut self,
        look: impl FnOnce(&[u8], Timestamp, Option<&[u8]>) -> R,
    ) -> Result<Option<R>, LsmError> {
        while let Some(item) = self.take()? {
            if item.version() <= self.at {
                return Ok(Some(look(item.key(), item.version(), item.value()?)));
            }
        }
        Ok(None)
    }

    /// The next row that is visible at the timestamp. Deleted rows are skipped.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn next_row(&mut self) -> Result<Option<ScanRow<'a, T::Slice>>, LsmError> {
        match self.direction {
            Direction::Forward => self.next_row_forward(),
            Direction::Reverse => self.next_row_reverse(),
        }
    }

    fn next_row_forward(&mut self) -> Result<Option<ScanRow<'a, T::Slice>>, LsmError> {
        while let Some(item) = self.take()? {
            if item.version() > self.at {
                continue;
            }
            // Versions come newest first, so this one is visible; skip the older ones of its key.
            while self.is_next(item.key()) {
                self.take()?;
            }
            if item.value()?.is_some() {
                return Ok(Some(ScanRow(item)));
            }
        }
        Ok(None)
    }

    fn next_row_reverse(&mut self) -> Result<Option<ScanRow<'a, T::Slice>>, LsmError> {
        while let Some(mut newest) = self.take()? {
            // Versions come oldest first; the last one at or below the timestamp is visible.
            while self.is_next(newest.key()) {
                match self.take()? {
                    Some(item) if item.version() <= self.at => newest = item,
                    _ => {}
                }
            }
            if newest.version() <= self.at && newest.value()?.is_some() {
                return Ok(Some(ScanRow(newest)));
            }
        }
        Ok(None)
    }

    /// Whether the next item is a version of this key.
    fn is_next(&self, key: &[u8]) -> bool {
        self.heads.last().is_some_and(|(head, _)| head.key() == key)
    }
}
