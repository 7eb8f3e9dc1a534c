//! The form in which tables are written: blocks, indexes, filters, compression.
//!
//! A table keeps its form until a compaction writes its rows again, and a reader asks each table for
//! its own. So a folder that was made with other settings opens, and takes the form below over time.
//! The settings were chosen by measuring gets over one and ten million rows.
//!
//! - **Every index and filter is in one piece and stays in memory.** `lsm-tree` would cut those of
//!   level 3 and below into parts, which go through the block cache: gets then cost 1.7 times as much,
//!   and gets of absent keys six times. In one piece they take 2.6 MiB for each million rows of 150
//!   bytes.
//! - **Blocks have a hash index, and every row has its whole key.** The hash index leads to the row
//!   itself, so no rows before it are decoded. Each of the two gains nothing without the other.
//!   Tables are 5 % larger.
//! - **Levels 0 and 1 are not compressed.** Their blocks do not live long, so compression there costs
//!   more than its space is worth.

use super::config::{
    CompressionPolicy, HashRatioPolicy, PartitioningPolicy, PinningPolicy, RestartIntervalPolicy,
};
use super::{CompressionType, Config};

/// Entries of a block's hash index for each row.
const HASH_RATIO: f32 = 1.0;
/// One in this many rows of a block has its whole key.
const RESTART_INTERVAL: u8 = 1;

/// The compression of level 0, of level 1, and of all deeper levels.
const COMPRESSION: [CompressionType; 3] = [
    CompressionType::None,
    CompressionType::None,
    CompressionType::Lz4,
];

/// Sets the form of the tables that will be written.
pub(super) fn set(config: Config) -> Config {
    config
        .data_block_compression_policy(CompressionPolicy::new(COMPRESSION))
        .data_block_hash_ratio_policy(HashRatioPolicy::all(HASH_RATIO))
        .data_block_restart_interval_policy(RestartIntervalPolicy::all(RESTART_INTERVAL))
        .filter_block_partitioning_policy(PartitioningPolicy::all(false))
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .index_block_partitioning_policy(PartitioningPolicy::all(false))
        .index_block_pinning_policy(PinningPolicy::all(true))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::lsm::tables::levels::TABLE_BYTES;
    use crate::lsm::tables::{
        AbstractTree, AnyTree, InternalValue, SequenceNumberCounter, ValueType,
    };
    use crate::lsm::{Lsm, LsmTables, TableOptions, keys, no_read_fault, row, unbounded};
    use crate::types::{DataId, Timestamp};

    const ROWS: u64 = 20_000;
    const VERSION: Timestamp = Timestamp(1 << 50);

    fn key(number: u64) -> Vec<u8> {
        let mut key = Vec::new();
        keys::user_key(DataId(3), format!("key {number:07}").as_bytes(), &mut key);
        key
    }

    /// Writes one run of tables, to the last level.
    fn fill(config: Config, counter: &SequenceNumberCounter) -> AnyTree {
        let tree = config.open().expect("opens");
        let rows = (0..ROWS).map(|number| {
            let row = row::encode(VERSION, Some(&number.to_be_bytes()));
            let kind = ValueType::Value;
            let row = InternalValue::from_components(key(number), row, VERSION.0, kind);
            Ok(row)
        });
        let (tables, _) = (tree.flush_to_tables(rows).expect("written")).expect("there are rows");
        (tree.register_tables(&tables, None, None, &[], counter.get() + 1)).expect("installed");
        (tree.major_compact(TABLE_BYTES, counter.get() + 1)).expect("compacted");
        tree
    }

    fn config(folder: &Path, counter: &SequenceNumberCounter) -> Config {
        Config::new(folder, counter.clone(), SequenceNumberCounter::default())
    }

    /// Whether the index or the filter of any table is in parts.
    fn has_parts(tree: &AnyTree) -> bool {
        let version = tree.current_version();
        let mut regions = version.iter_tables().map(|table| table.regions);
        regions.any(|regions| regions.index.is_some() || regions.filter_tli.is_some())
    }

    #[test]
    fn the_last_level_has_whole_indexes_and_filters() {
        let counter = SequenceNumberCounter::default();
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let [ours, theirs] = folders.each_ref().map(|f| config(f.path(), &counter));
        assert!(!has_parts(&fill(set(ours), &counter)));
        assert!(has_parts(&fill(theirs, &counter)), "the test sees parts");
    }

    fn check_rows(lsm: &Lsm<LsmTables>) {
        for number in 0..ROWS {
            let found = lsm.get(&key(number), Timestamp::MAX).expect("readable");
            let found = found.expect("is there");
            assert_eq!(found.version(), VERSION);
            assert_eq!(found.value(), Some(&number.to_be_bytes()[..]));
            let absent = [&key(number)[..], b"x"].concat();
            assert!((lsm.get(&absent, VERSION).expect("readable")).is_none());
        }
    }

    fn open(folder: &Path) -> Lsm<LsmTables> {
        let options = TableOptions {
            folder: folder.to_owned(),
            memtable_bytes: 1 << 20,
            cache_bytes: 1 << 20,
            on_start: Arc::new(|_| ()),
            push_out: |_| (),
            read_fault: no_read_fault,
            free_bytes: unbounded(),
        };
        Lsm::new(LsmTables::open(options).expect("opens"), 0)
    }

    #[test]
    fn a_folder_of_another_form_is_read_and_written_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let counter = SequenceNumberCounter::default();
        drop(fill(config(folder.path(), &counter), &counter));
        let mut lsm = open(folder.path());
        assert!(has_parts(&lsm.store.shared.tree));
        check_rows(&lsm);
        lsm.collect_garbage();
        let since = Instant::now();
        while lsm.stats().tables.compactions == 0 {
            assert!(since.elapsed() < Duration::from_secs(30), "no compaction");
            std::thread::yield_now();
        }
        drop(lsm);
        let lsm = open(folder.path());
        assert!(!has_parts(&lsm.store.shared.tree));
        check_rows(&lsm);
    }
}
