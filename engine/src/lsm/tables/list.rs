//! The list of tables that reads use: the runs of the tree, newest first, with a [`TableReader`] for
//! each table.
//!
//! The background threads make a new list after each flush and compaction. A table that was in the
//! list before keeps its reader, so a new list costs a read of the index of each new table, and
//! nothing for the others. The list never changes, so any thread may hold it; the files stay on disk
//! as long as somebody does.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::background::TABLE_BYTES;
use super::index::Ends;
use super::table_reader::TableReader;
use super::{AbstractTree, AnyTree, TreeError};

/// With this many runs in level 0, the leveled strategy merges them into the next level.
const LEVEL0_RUNS: usize = 4;
/// By this factor each level may be larger than the one above it, from the first below level 0 on.
const LEVEL_RATIO: u64 = 10;

/// Tables whose intervals of keys do not overlap, in the order of their keys.
pub(super) struct Run {
    ends: Ends,
    pub(super) tables: Vec<Arc<TableReader>>,
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
        Run { ends, tables }
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
    /// See [`compaction_pending_bytes`].
    pub(super) compaction_pending_bytes: u64,
}

impl Tables {
    /// The tree's current tables. Readers are taken over from the list `before`.
    ///
    /// # Errors
    /// A new table cannot be opened, or its index is damaged.
    pub(super) fn of(tree: &AnyTree, before: &Tables) -> Result<Tables, TreeError> {
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
                        None => Arc::new(TableReader::open(tree, table)?),
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

/// How many bytes compactions have yet to move down, by the bytes of each level: all of level 0 once it
/// is to be merged, and what every other level but the last holds beyond its target. As in the
/// strategy, the first level below level 0 that holds anything has the smallest target.
fn compaction_pending_bytes(levels: &[u64], level0_runs: usize) -> u64 {
    let Some((level0, [others @ .., _])) = levels.split_first() else {
        return 0;
    };
    let mut pending = if level0_runs >= LEVEL0_RUNS {
        *level0
    } else {
        0
    };
    let mut target = TABLE_BYTES * LEVEL0_RUNS as u64;
    for bytes in others.iter().skip_while(|bytes| **bytes == 0) {
        pending += bytes.saturating_sub(target);
        target = target.saturating_mul(LEVEL_RATIO);
    }
    pending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_targets_is_pending() {
        let mib = |sizes: [u64; 7]| sizes.map(|mib| mib << 20);
        for (sizes, level0_runs, pending) in [
            ([0; 7], 0, 0),
            ([30, 0, 0, 0, 0, 0, 9000], 3, 0),
            ([30, 0, 0, 0, 0, 0, 9000], 4, 30),
            ([30, 130, 0, 0, 0, 0, 0], 1, 2),
            ([0, 0, 0, 0, 200, 1290, 9000], 0, 72 + 10),
            ([40, 0, 0, 0, 0, 1280, 9000], 5, 40 + 1152),
        ] {
            let found = compaction_pending_bytes(&mib(sizes), level0_runs);
            assert_eq!(found, pending << 20, "{sizes:?}");
        }
    }
}
