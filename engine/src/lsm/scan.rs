//! A scan merges memtables and tables in ascending or descending order of keys, and yields the
//! version of each key that is visible at a timestamp.
//!
//! Each source stands at its next item, its head. The sources are few, and mostly the one that gave an
//! item gives the next one too. So their order is a sorted list of small entries, which an item
//! re-enters from the end where the next one stands. An entry holds sixteen bytes of its head's key,
//! taken behind what all keys of the interval have in common, so that few whole keys are compared.
//! Keys and values are not copied.
//!
//! Versions of a key that are not visible are passed over one by one. A key may have very many: past
//! [`VERSIONS_PASSED_MAX`], a scan reads the visible one as a get does, and opens its tables again behind
//! the key. What is looked at is counted ([`Scan::next_row_until`]), whether it is given or not, because
//! tombstones and old versions take time too. How it handles a block that is not in memory is in [`cold`].
//! Pure; lives on the thread that reads.

mod cold;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::ops::{Bound, Range};

use crate::lsm::memtable::{self, Entry, Memtable};
use crate::lsm::{Bounds, Found, Lsm, LsmError, TableRow, TableStore, row};
use crate::types::Timestamp;
pub use cold::{BlockReads, ColdStop, HeldBlocks, ScanStop};

/// Versions of one key that are passed over one by one; long values count for more than one.
const VERSIONS_PASSED_MAX: usize = 128;
/// Bytes of a value that count for a version.
const VALUE_LEN_OF_VERSION: usize = 512;
/// What it counts for, in versions, to pass over the rest of them at once.
const SEEK_WORK: usize = 128;

/// The order in which a scan yields keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending. Of each key, the newest version comes first.
    Forward,
    /// Descending. Of each key, the oldest version comes first.
    Reverse,
}

impl Direction {
    /// Takes the next number of a range in this direction.
    pub(super) fn take(self, range: &mut Range<usize>) -> Option<usize> {
        match self {
            Direction::Forward => range.next(),
            Direction::Reverse => range.next_back(),
        }
    }
}

/// The next thing in a scan.
pub enum Step<R> {
    /// A row.
    Row(R),
    /// There is no row yet, and the caller wanted no more work to be done. The scan can go on.
    Stopped,
    /// There are no more rows.
    End,
}

/// A row that a scan yields.
pub struct ScanRow<'a, S>(Item<'a, S>);

/// The key of an item, where it lies.
enum Key<'a, S> {
    Memtable(&'a [u8]),
    Table(S),
}

impl<S: AsRef<[u8]>> Key<'_, S> {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Key::Memtable(key) => key,
            Key::Table(key) => key.as_ref(),
        }
    }
}

/// The value of an item, where it lies.
enum Value<'a, S> {
    Memtable(Option<&'a [u8]>),
    Table(S),
}

/// A version of a row.
struct Item<'a, S> {
    key: Key<'a, S>,
    version: Timestamp,
    value: Value<'a, S>,
}

impl<'a, S: AsRef<[u8]>> Item<'a, S> {
    #[inline]
    fn of_memtable(entry: Entry<'a>) -> Item<'a, S> {
        Item {
            key: Key::Memtable(entry.key),
            version: entry.version,
            value: Value::Memtable(entry.value),
        }
    }

    #[inline]
    fn of_table(row: TableRow<S>) -> Item<'a, S> {
        Item {
            key: Key::Table(row.key),
            version: row.version,
            value: Value::Table(row.row),
        }
    }

    /// Bytes of the value, about.
    fn value_len(&self) -> usize {
        match &self.value {
            Value::Memtable(value) => value.map_or(0, <[u8]>::len),
            Value::Table(bytes) => bytes.as_ref().len(),
        }
    }

    /// The value, or `None` for a tombstone.
    fn value(&self) -> Result<Option<&[u8]>, LsmError> {
        match &self.value {
            Value::Memtable(value) => Ok(*value),
            Value::Table(bytes) => match row::decode(bytes.as_ref()) {
                Some(row) => Ok(row.value),
                None => Err(LsmError::UnknownRow),
            },
        }
    }
}

impl<S: AsRef<[u8]>> ScanRow<'_, S> {
    /// The row's key.
    pub fn key(&self) -> &[u8] {
        self.0.key.bytes()
    }

    /// Its version.
    pub fn version(&self) -> Timestamp {
        self.0.version
    }

    /// Its value.
    pub fn value(&self) -> &[u8] {
        // The scan yields only rows that it could decode and that have a value.
        self.0.value().ok().flatten().unwrap_or(&[])
    }
}

/// How a scan of a tree reads blocks.
type ScanReads<'a, T> = BlockReads<'a, Lsm<T>, <T as TableStore>::Block>;

/// The items of a memtable or of a run of tables.
enum Items<'a, T: TableStore> {
    Memtable(memtable::Range<'a>),
    Run(T::Iter),
}

impl<'a, T: TableStore> Items<'a, T> {
    fn next(
        &mut self,
        direction: Direction,
        reads: ScanReads<'_, T>,
    ) -> Result<Option<Item<'a, T::Slice>>, ScanStop> {
        Ok(match self {
            Items::Memtable(rows) => match direction {
                Direction::Forward => rows.next().map(Item::of_memtable),
                Direction::Reverse => rows.next_back().map(Item::of_memtable),
            },
            Items::Run(rows) => {
                let row = T::next(rows, reads.of(|tree| &tree.store))?;
                row.map(Item::of_table)
            }
        })
    }
}

/// A source of the merge. It has a head while the order names it.
struct Source<'a, T: TableStore> {
    head: Option<Item<'a, T::Slice>>,
    items: Items<'a, T>,
}

/// A source's entry in the order.
#[derive(Clone, Copy)]
struct Place {
    /// Sixteen bytes of the head's key.
    prefix: u128,
    source: usize,
}

/// A scan in progress. It borrows the memtables.
pub struct Scan<'a, T: TableStore> {
    sources: Vec<Source<'a, T>>,
    /// The sources that have a head. The last one comes next in the scan's order.
    order: Vec<Place>,
    bounds: Bounds<'a>,
    /// How many bytes all keys of the interval have in common at least.
    common: usize,
    at: Timestamp,
    direction: Direction,
    /// How the scan reads blocks, and the tree in which it opens its tables again. A [`Part`] of a tree
    /// has none: it reads from the files, and passes over all versions one by one.
    ///
    /// [`Part`]: crate::lsm::Part
    reads: ScanReads<'a, T>,
    /// Versions that were looked at.
    looked: usize,
}

impl<'a, T: TableStore> Scan<'a, T> {
    pub(super) fn new(
        memtables: impl Iterator<Item = &'a Memtable>,
        runs: Vec<T::Iter>,
        bounds: Bounds<'a>,
        at: Timestamp,
        direction: Direction,
        reads: ScanReads<'a, T>,
    ) -> Result<Scan<'a, T>, ScanStop> {
        let sources_about = runs.len() + 2;
        let mut scan = Scan {
            sources: Vec::with_capacity(sources_about),
            order: Vec::with_capacity(sources_about),
            bounds,
            common: common_len(bounds),
            at,
            direction,
            reads,
            looked: 0,
        };
        for memtable in memtables {
            scan.add(Items::Memtable(memtable.range(bounds)))?;
        }
        for run in runs {
            scan.add(Items::Run(run))?;
        }
        Ok(scan)
    }

    /// Adds a source. One without an item is dropped.
    fn add(&mut self, mut items: Items<'a, T>) -> Result<(), ScanStop> {
        if let Some(head) = items.next(self.direction, self.reads)? {
            self.place(self.sources.len(), &head);
            let head = Some(head);
            self.sources.push(Source { head, items });
        }
        Ok(())
    }

    /// Enters a source into the order by its head.
    fn place(&mut self, source: usize, head: &Item<'a, T::Slice>) {
        let key = head.key.bytes();
        let prefix = memtable::prefix(key.get(self.common..).unwrap_or_default());
        let comes_later = |place: &Place| {
            let other = self.head(place);
            let order = place.prefix.cmp(&prefix).then_with(|| {
                let other = other.map(|other| (other.key.bytes(), Reverse(other.version)));
                other.cmp(&Some((key, Reverse(head.version))))
            });
            match self.direction {
                Direction::Forward => order.is_gt(),
                Direction::Reverse => order.is_lt(),
            }
        };
        let at = self.order.iter().rposition(comes_later);
        let at = at.map_or(0, |at| at + 1);
        self.order.insert(at, Place { prefix, source });
    }

    fn head(&self, place: &Place) -> Option<&Item<'a, T::Slice>> {
        self.sources.get(place.source)?.head.as_ref()
    }

    /// Takes the next item of all sources. If it needs a block, the scan goes on at the item's key.
    fn take(&mut self) -> Result<Option<Item<'a, T::Slice>>, ScanStop> {
        let Some(Place { source: at, .. }) = self.order.pop() else {
            return Ok(None);
        };
        let Some(source) = self.sources.get_mut(at) else {
            return Ok(None);
        };
        self.looked += 1;
        let item = source.head.take();
        let next = source.items.next(self.direction, self.reads);
        let next = next.map_err(|stop| match &item {
            Some(item) => stop.at(item.key.bytes()),
            None => stop,
        })?;
        if let Some(next) = next {
            self.place(at, &next);
            if let Some(source) = self.sources.get_mut(at) {
                source.head = Some(next);
            }
        }
        Ok(item)
    }

    /// Passes the next version at or below the timestamp to `look`, in the scan's [`Direction`]:
    /// key, version, and value, which is `None` for a tombstone. Returns `None` at the end.
    ///
    /// # Errors
    /// A table cannot be read, or a block is not in memory and the scan does not wait.
    pub fn next_version<R>(
        &mut self,
        look: impl FnOnce(&[u8], Timestamp, Option<&[u8]>) -> R,
    ) -> Result<Option<R>, ScanStop> {
        while let Some(item) = self.take()? {
            if item.version <= self.at {
                return Ok(Some(look(item.key.bytes(), item.version, item.value()?)));
            }
        }
        Ok(None)
    }

    /// The next row that is visible at the timestamp. Deleted rows are skipped.
    ///
    /// # Errors
    /// A table cannot be read, or a block is not in memory and the scan does not wait.
    pub fn next_row(&mut self) -> Result<Option<ScanRow<'a, T::Slice>>, ScanStop> {
        Ok(match self.next_row_until(|_| false)? {
            Step::Row(row) => Some(row),
            Step::Stopped | Step::End => None,
        })
    }

    /// Like [`Scan::next_row`], but asks `is_enough` after each key that has no visible row whether to
    /// stop there, and tells it how many versions the scan has looked at since it was opened.
    ///
    /// # Errors
    /// A table cannot be read, or a block is not in memory and the scan does not wait.
    pub fn next_row_until(
        &mut self,
        mut is_enough: impl FnMut(usize) -> bool,
    ) -> Result<Step<ScanRow<'a, T::Slice>>, ScanStop> {
        while let Some(item) = self.take()? {
            if let Some(visible) = self.visible(item)? {
                return Ok(Step::Row(ScanRow(visible)));
            }
            if is_enough(self.looked) {
                return Ok(Step::Stopped);
            }
        }
        Ok(Step::End)
    }

    /// How many versions the scan has looked at since it was opened.
    pub fn looked(&self) -> usize {
        self.looked
    }

    /// The key at which the scan goes on, if there is one: that of the next version.
    pub fn next_key(&self) -> Option<&[u8]> {
        Some(self.head(self.order.last()?)?.key.bytes())
    }

    /// The version of a key that is visible, unless that is a tombstone. `first` is the key's first
    /// version in the scan's order; the others are passed over.
    fn visible(
        &mut self,
        first: Item<'a, T::Slice>,
    ) -> Result<Option<Item<'a, T::Slice>>, ScanStop> {
        let mut best = first;
        let mut passed = 0;
        while self.next_key() == Some(best.key.bytes()) {
            if passed >= VERSIONS_PASSED_MAX
                && let Some(tree) = self.reads.shard()
            {
                return self.seek_past(tree, best);
            }
            let Some(item) = self.take()? else { break };
            passed += 1 + item.value_len() / VALUE_LEN_OF_VERSION;
            let is_better = match self.direction {
                // Versions come newest first: the first one at or below the timestamp is visible.
                Direction::Forward => best.version > self.at,
                // They come oldest first: the last one at or below the timestamp is visible.
                Direction::Reverse => item.version <= self.at,
            };
            if is_better {
                best = item;
            }
        }
        let is_visible = best.version <= self.at && best.value()?.is_some();
        Ok(is_visible.then_some(best))
    }

    /// Passes over all versions of an item's key at once, and reads the visible one, unless that is a
    /// tombstone.
    fn seek_past(
        &mut self,
        tree: &'a Lsm<T>,
        item: Item<'a, T::Slice>,
    ) -> Result<Option<Item<'a, T::Slice>>, ScanStop> {
        self.looked += SEEK_WORK;
        let key = item.key.bytes();
        self.open_past(tree, key).map_err(|stop| stop.at(key))?;
        let found = self.get(tree, key).map_err(|stop| stop.at(key))?;
        let found = found.filter(|found| found.value().is_some());
        Ok(found.map(|found| Item {
            key: item.key,
            version: found.version(),
            value: match found {
                Found::Memtable(entry) => Value::Memtable(entry.value),
                Found::Table(_, _, row) => Value::Table(row),
            },
        }))
    }

    /// Opens all sources again behind a key.
    fn open_past(&mut self, tree: &'a Lsm<T>, key: &[u8]) -> Result<(), ScanStop> {
        let bounds = match self.direction {
            Direction::Forward => (Bound::Excluded(key), self.bounds.1),
            Direction::Reverse => (self.bounds.0, Bound::Excluded(key)),
        };
        self.order.clear();
        for mut source in std::mem::take(&mut self.sources) {
            if let Items::Memtable(rows) = &mut source.items {
                match self.direction {
                    Direction::Forward => rows.start_after(key),
                    Direction::Reverse => rows.end_before(key),
                }
                self.add(source.items)?;
            }
        }
        for run in tree.store.runs(bounds, self.direction) {
            self.add(Items::Run(run))?;
        }
        Ok(())
    }

    /// The version of a key that is visible.
    fn get(&self, tree: &'a Lsm<T>, key: &[u8]) -> Result<Option<Found<'a, T::Slice>>, ScanStop> {
        let BlockReads::NoWait(..) = self.reads else {
            return Ok(tree.get(key, self.at)?);
        };
        // As for a get of a client, the block goes into the cache.
        tree.try_get(key, self.at)?.map_err(|block| {
            let (is_cached, ahead, next) = (true, Vec::new(), None);
            ScanStop::Cold(Box::new(ColdStop {
                block,
                is_cached,
                ahead,
                next,
            }))
        })
    }
}

/// How many bytes all keys of an interval have in common at least: those that its bounds share.
fn common_len((low, high): Bounds<'_>) -> usize {
    let (Bound::Included(low) | Bound::Excluded(low)) = low else {
        return 0;
    };
    let (Bound::Included(high) | Bound::Excluded(high)) = high else {
        return 0;
    };
    low.iter().zip(high).take_while(|(a, b)| a == b).count()
}
