//! The list of tables that reads use: the runs of the tree, newest first, with a [`TableReader`] for
//! each table.
//!
//! The background threads make a new list after each flush and compaction. A table that was in the
//! list before keeps its reader, so a new list costs a read of the index of each new table, and
//! nothing for the others. The list never changes, so any thread may hold it; the files stay on disk
//! as long as somebody does.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::index::Ends;
use super::levels::compaction_pending_bytes;
use super::table_reader::{ReadFault, TableReader};
use super::{AbstractTree, AnyTree, Interval, Samples, Size, TreeError};

/// Tables whose intervals of keys do not overlap, in the order of their keys.
pub(super) struct Run {
    ends: Ends,
    pub(super) tables: Vec<Arc<TableReader>>,
    /// The size of all tables before each, and of all.
    before: Vec<Size>,
}

impl Run {
    fn new(tables: Vec<Arc<TableReader>>) -> Run {
        let ranges = || tables.iter().map(|reader| &reader.table.metadata.key_range);
        let lowest = ranges().next().map_or(&[][..], |range| range.min());
        let highest = ranges().next_back().map_or(&[][..], |range| range.max());
        let mut ends = Ends::new(lowest, highest);
        for range in ranges() {
            let within = ends.push(range.max());
            debug_assert!(within, "the tables of a run are in order");
        }
        let mut before = vec![Size::default()];
        for reader in &tables {
            let last = before.last().copied().unwrap_or_default();
            before.push(last.plus(reader.size()));
        }
        Run {
            ends,
            tables,
            before,
        }
    }

    /// The size of the rows before a key.
    fn size_before(&self, key: &[u8]) -> Size {
        let at = self.first_at_or_after(key);
        let before = self.before.get(at).copied().unwrap_or_default();
        let within = self.tables.get(at).map(|reader| reader.size_before(key));
        before.plus(within.unwrap_or_default())
    }

    /// The index of the only table that may hold `key`.
    pub(super) fn table_of(&self, key: &[u8]) -> Option<usize> {
        let rest = self.ends.rest(key)?;
        let table = self.ends.first_at_or_after(rest);
        (table < self.tables.len()).then_some(table)
    }

    /// The index of the first table that ends at or after `key`.
    pub(super) fn first_at_or_after(&self, key: &[u8]) -> usize {
        self.tables
            .partition_point(|reader| reader.table.metadata.key_range.max().as_ref() < key)
    }

    /// The index of the first table that begins after `key`.
    pub(super) fn first_after(&self, key: &[u8]) -> usize {
        self.tables
            .partition_point(|reader| reader.table.metadata.key_range.min().as_ref() <= key)
    }
}

/// The runs of tables, newest first.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) runs: Vec<Run>,
    pub(super) level0_runs: usize,
    /// Number of all tables. It is computed once because every write asks for the pressure.
    pub(super) count: usize,
    /// Bytes of their files.
    pub(super) bytes: u64,
    /// Bytes that compactions have yet to move down.
    pub(super) compaction_pending_bytes: u64,
}

impl Tables {
    /// The size of the rows of an interval.
    pub(super) fn size_of(&self, (low, high): Interval<'_>) -> Size {
        let runs = self.runs.iter();
        let sizes = runs.map(|run| run.size_before(high).minus(run.size_before(low)));
        sizes.fold(Size::default(), Size::plus)
    }

    /// Passes on keys of the rows in the interval of `samples`.
    pub(super) fn sample(&self, samples: &mut Samples<'_>) {
        let (low, high) = samples.interval();
        for run in &self.runs {
            let tables = run
                .tables
                .get(run.first_at_or_after(low)..)
                .unwrap_or_default();
            let within =
                |reader: &&Arc<TableReader>| reader.table.metadata.key_range.min().as_ref() < high;
            tables
                .iter()
                .take_while(within)
                .for_each(|reader| reader.sample(samples));
        }
    }

    /// The tree's current tables. Readers are taken over from the list `before`.
    ///
    /// # Errors
    /// A new table cannot be opened, or its index is damaged.
    pub(super) fn of(
        tree: &AnyTree,
        before: &Tables,
        read_fault: ReadFault,
    ) -> Result<Tables, TreeError> {
        let known = before.runs.iter().flat_map(|run| &run.tables);
        let known: FxHashMap<_, _> = known.map(|reader| (reader.table.id(), reader)).collect();
        let version = tree.current_version();
        let level0_runs = version
            .iter_levels()
            .next()
            .map_or(0, |level| level.iter().count());
        let mut tables = Tables {
            level0_runs,
            ..Tables::default()
        };
        let mut levels = Vec::new();
        for level in version.iter_levels() {
            let before = tables.bytes;
            for run in level.iter() {
                let mut readers = Vec::with_capacity(run.len());
                for table in run.iter() {
                    readers.push(match known.get(&table.id()) {
                        Some(reader) => Arc::clone(reader),
                        None => Arc::new(TableReader::open(tree, table, read_fault)?),
                    });
                    tables.count += 1;
                    tables.bytes += table.metadata.file_size;
                }
                tables.runs.push(Run::new(readers));
            }
            levels.push(tables.bytes - before);
        }
        tables.compaction_pending_bytes = compaction_pending_bytes(&levels, level0_runs);
        Ok(tables)
    }
}
