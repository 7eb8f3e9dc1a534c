//! Iterates over an interval of one run of tables, in either direction.
//!
//! It opens a table when it reaches it: by a [`TableIter`], or, if the table has a form that the reader
//! does not know, by `lsm-tree`'s own iterator. Those find the place of the first row; rows that lie
//! before the interval or beyond it are left out here.
//!
//! It holds nothing of the shard but the list of tables, so it may be moved to another thread. On the
//! shard's thread each call gets the shard's [`Reader`], whose block cache only that thread may touch.
//! Tables of a form that the reader does not know may wait for the disk in any case.

#[cfg(test)]
mod tests;

use std::ops::{Bound, Range};
use std::sync::Arc;

use super::failure::unreadable;
use super::interval::Interval;
use super::list::Tables;
use super::reader::TablePlace;
use super::table_iter::{IterStop, Reads, TableIter};
use super::table_reader::TableReader;
use super::{InternalValue, Slice, TreeError};
use crate::lsm::{Bounds, Direction, ScanStop};

type ForeignIter = Box<dyn DoubleEndedIterator<Item = Result<InternalValue, TreeError>> + Send>;

/// The rows of an open table.
enum Rows {
    Ours(TableIter),
    /// Those of a table that `lsm-tree` reads.
    Foreign(Arc<TableReader>, ForeignIter),
}

/// Iterates over an interval of one run of tables.
pub struct RunIter {
    /// The list that keeps the tables' files.
    held: Arc<Tables>,
    run: usize,
    interval: Arc<Interval>,
    /// Indexes of the tables that were not opened yet.
    left: Range<usize>,
    open: Option<Rows>,
    /// Whether a row was met that does not lie before the interval. Then none comes any more.
    has_begun: bool,
}

/// An iterator for each run of the list that may have keys in the interval.
pub(super) fn runs(held: &Arc<Tables>, bounds: Bounds<'_>, direction: Direction) -> Vec<RunIter> {
    let interval = Arc::new(Interval::new(bounds, direction));
    let runs = held.runs.iter().enumerate().filter_map(|(at, run)| {
        // Only the tables from `low` to `high` can have keys in the interval.
        let low = match bounds.0 {
            Bound::Unbounded => 0,
            Bound::Included(start) | Bound::Excluded(start) => run.first_at_or_after(start),
        };
        let high = match bounds.1 {
            Bound::Unbounded => run.tables.len(),
            Bound::Included(end) | Bound::Excluded(end) => run.first_after(end),
        };
        (low < high).then(|| RunIter {
            held: held.clone(),
            run: at,
            interval: interval.clone(),
            left: low..high,
            open: None,
            has_begun: false,
        })
    });
    runs.collect()
}

impl RunIter {
    /// The next row.
    ///
    /// # Errors
    /// A block cannot be read or is damaged, or is not in memory and `reads` does not wait.
    pub(super) fn next(&mut self, reads: Reads<'_>) -> Result<Option<InternalValue>, ScanStop> {
        loop {
            let (row, may_be_beyond) = match &mut self.open {
                Some(Rows::Ours(rows)) => {
                    let row = rows.next(&self.interval, reads, &self.held);
                    let row = row.map_err(|stop| match stop {
                        IterStop::Cold(stop) => stop,
                        IterStop::Failed(error) => unreadable(rows.table(), &error).into(),
                    })?;
                    (row, rows.is_in_last_block())
                }
                Some(Rows::Foreign(reader, rows)) => {
                    let row = match self.interval.direction {
                        Direction::Forward => rows.next(),
                        Direction::Reverse => rows.next_back(),
                    };
                    let row = row.transpose();
                    let row = row.map_err(|error| unreadable(&reader.table, &error))?;
                    (row, true)
                }
                None => (None, false),
            };
            let Some(row) = row else {
                self.open = self.open_next();
                if self.open.is_none() {
                    return Ok(None);
                }
                continue;
            };
            let key = row.key.user_key.as_slice();
            if !self.has_begun && self.interval.is_before(key) {
                continue;
            }
            self.has_begun = true;
            if may_be_beyond && self.interval.is_beyond(key) {
                (self.open, self.left) = (None, 0..0);
                return Ok(None);
            }
            return Ok(Some(row));
        }
    }

    /// Opens the next table.
    fn open_next(&mut self) -> Option<Rows> {
        let table = self.interval.direction.take(&mut self.left)?;
        let reader = self.held.runs.get(self.run)?.tables.get(table)?;
        if let Some(index) = &reader.index {
            let run = self.run;
            let place = TablePlace { run, table };
            let rows = TableIter::new(reader, index, place, &self.interval);
            return Some(Rows::Ours(rows));
        }
        // A bound costs `lsm-tree` a seek in every block that it reads. So only the table where the
        // interval begins gets one.
        let begin = |bound: &Bound<Slice>| match self.has_begun {
            true => Bound::Unbounded,
            false => bound.clone(),
        };
        let bounds = match self.interval.direction {
            Direction::Forward => (begin(&self.interval.low), Bound::Unbounded),
            Direction::Reverse => (Bound::Unbounded, begin(&self.interval.high)),
        };
        let rows = Box::new(reader.table.range(bounds));
        Some(Rows::Foreign(reader.clone(), rows))
    }
}
