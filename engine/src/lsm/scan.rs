//! One ordered look through memtables and tables: of each key the version that a timestamp sees.

use std::cmp::Reverse;
use std::ops::Bound;

use crate::lsm::memtable::{Entry, Memtable, Place};
use crate::lsm::{Bounds, LsmError, TableRow, TableStore, row};
use crate::types::Timestamp;

/// A row that a scan shows.
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

    /// The value, or `None` for a delete mark.
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
        // A row that is shown has a value.
        self.0.value().ok().flatten().unwrap_or(&[])
    }
}

enum Source<'a, T: TableStore> {
    Memtable {
        memtable: &'a Memtable,
        next: Place,
        end: Bound<Vec<u8>>,
    },
    Run(T::Iter),
}

impl<'a, T: TableStore> Source<'a, T> {
    fn next(&mut self) -> Result<Option<Item<'a, T::Slice>>, LsmError> {
        match self {
            Source::Memtable {
                memtable,
                next,
                end,
            } => {
                let Some(entry) = memtable.entry(*next) else {
                    return Ok(None);
                };
                let inside = match end {
                    Bound::Unbounded => true,
                    Bound::Included(end) => entry.key <= end.as_slice(),
                    Bound::Excluded(end) => entry.key < end.as_slice(),
                };
                *next = memtable.after(*next);
                Ok(inside.then_some(Item::Memtable(entry)))
            }
            Source::Run(rows) => Ok(rows.next().transpose()?.map(Item::Table)),
        }
    }
}

/// A scan under way. It borrows the tree.
pub struct Scan<'a, T: TableStore> {
    /// What each source has next; the one to take stands last.
    heads: Vec<(Item<'a, T::Slice>, Source<'a, T>)>,
    at: Timestamp,
}

impl<'a, T: TableStore> Scan<'a, T> {
    pub(super) fn new(
        memtables: impl Iterator<Item = &'a Memtable>,
        runs: Vec<T::Iter>,
        bounds: Bounds<'_>,
        at: Timestamp,
    ) -> Result<Scan<'a, T>, LsmError> {
        let mut scan = Scan {
            heads: Vec::with_capacity(runs.len() + 2),
            at,
        };
        for memtable in memtables {
            let next = match bounds.0 {
                Bound::Unbounded => memtable.seek(&[], Timestamp::MAX),
                Bound::Included(start) => memtable.seek(start, Timestamp::MAX),
                // After the oldest version that the key can have.
                Bound::Excluded(start) => memtable.seek(&[start, &[0]].concat(), Timestamp::MAX),
            };
            let end = bounds.1.map(<[u8]>::to_vec);
            scan.add(Source::Memtable {
                memtable,
                next,
                end,
            })?;
        }
        for run in runs {
            scan.add(Source::Run(run))?;
        }
        Ok(scan)
    }

    /// Puts a source in its place by what it has next.
    fn add(&mut self, mut source: Source<'a, T>) -> Result<(), LsmError> {
        let Some(item) = source.next()? else {
            return Ok(());
        };
        let order = |x: &Item<'a, T::Slice>| {
            (x.key(), Reverse(x.version())) > (item.key(), Reverse(item.version()))
        };
        let at = self
            .heads
            .iter()
            .rposition(|(head, _)| order(head))
            .map_or(0, |i| i + 1);
        self.heads.insert(at, (item, source));
        Ok(())
    }

    fn take(&mut self) -> Result<Option<Item<'a, T::Slice>>, LsmError> {
        let Some((item, source)) = self.heads.pop() else {
            return Ok(None);
        };
        self.add(source)?;
        Ok(Some(item))
    }

    /// The next version at or below the timestamp, newest of a key first, handed to `look`: key,
    /// version, and value unless it is a delete mark. `None` at the end.
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

    /// The next row that the timestamp sees.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn next_row(&mut self) -> Result<Option<ScanRow<'a, T::Slice>>, LsmError> {
        while let Some(item) = self.take()? {
            if item.version() > self.at {
                continue;
            }
            // Newest first: this is the version that counts; older ones of the key are passed.
            while self
                .heads
                .last()
                .is_some_and(|(head, _)| head.key() == item.key())
            {
                self.take()?;
            }
            if item.value()?.is_some() {
                return Ok(Some(ScanRow(item)));
            }
        }
        Ok(None)
    }
}
