//! Trees of tables for tests, filled at random.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use tempfile::TempDir;

use super::compaction::Leveled;
use super::config::{
    BlockSizePolicy, CompressionPolicy, HashRatioPolicy, PartitioningPolicy, PinningPolicy,
    RestartIntervalPolicy,
};
use super::index::Index;
use super::list::Tables;
use super::table_reader::{TableReader, no_read_fault};
use super::{
    AbstractTree, AnyTree, CompressionType, Config, InternalValue, SequenceNumberCounter,
    ValueType, form,
};
use crate::lsm::tests::Random;
use crate::types::ColdBlock;

/// The forms of tables that are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The one that is written today.
    Ours,
    /// In one piece, compressed, with shortened keys and without a hash index.
    Compressed,
    /// That of `lsm-tree`, in which the deeper levels are in parts.
    Default,
    /// Indexes and filters are in parts on every level.
    Parts,
}

pub(super) const FORMS: [Form; 4] = [Form::Ours, Form::Compressed, Form::Default, Form::Parts];

impl Form {
    fn set(self, config: Config) -> Config {
        let lz4 = || CompressionPolicy::all(CompressionType::Lz4);
        let parts = || PartitioningPolicy::all(true);
        let config = config.data_block_size_policy(BlockSizePolicy::all(1 << 10));
        match self {
            Form::Ours => form::set(config),
            Form::Compressed => form::set(config)
                .data_block_compression_policy(lz4())
                .index_block_compression_policy(lz4())
                .data_block_hash_ratio_policy(HashRatioPolicy::all(0.0))
                .data_block_restart_interval_policy(RestartIntervalPolicy::all(7)),
            Form::Default => config,
            Form::Parts => config
                .filter_block_partitioning_policy(parts())
                .index_block_partitioning_policy(parts())
                .filter_block_pinning_policy(PinningPolicy::all(true)),
        }
    }
}

type Rows = BTreeMap<(Vec<u8>, Reverse<u64>), Vec<u8>>;

/// A tree that is filled at random.
pub(super) struct Fixture {
    pub(super) folder: TempDir,
    pub(super) tree: AnyTree,
    counter: SequenceNumberCounter,
    pub(super) random: Random,
    /// The keys that were written, some of them several times.
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) version: u64,
}

impl Fixture {
    pub(super) fn new(form: Form, seed: u64) -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let counter = SequenceNumberCounter::default();
        let config = Config::new(
            folder.path(),
            counter.clone(),
            SequenceNumberCounter::default(),
        );
        Fixture {
            tree: form.set(config).open().expect("opens"),
            folder,
            counter,
            random: Random::new(seed),
            keys: Vec::new(),
            version: 1 << 50,
        }
    }

    /// A key that may be short, and may be equal to others in its first bytes.
    pub(super) fn random_key(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let group = random.below(8);
        let mut key = match group {
            0 => Vec::new(),
            1 => b"a".to_vec(),
            2 => b"all the same at the beginning ".to_vec(),
            _ => format!("data {group} ").into_bytes(),
        };
        let len = 1 + random.below(9);
        key.extend((0..len).map(|_| [0, 1, b'a', b'b', b'c', 255][random.below(6) as usize]));
        key
    }

    /// Flushes a run of tables with new versions, most of keys with few, some of keys with so many
    /// that they fill several blocks.
    pub(super) fn flush(&mut self) {
        let mut rows = Rows::new();
        for _ in 0..200 + self.random.below(400) {
            let key = self.random_key();
            let versions = match self.random.below(60) {
                0 => 60,
                1..=9 => 6,
                _ => 1,
            };
            for _ in 0..versions {
                self.version += 1 + self.random.below(3);
                let value = vec![self.random.below(256) as u8; self.random.below(150) as usize];
                rows.insert((key.clone(), Reverse(self.version)), value);
            }
            self.keys.push(key);
        }
        let rows = rows.into_iter().map(|((key, Reverse(version)), value)| {
            let kind = ValueType::Value;
            Ok(InternalValue::from_components(key, value, version, kind))
        });
        let (tables, _) = (self.tree.flush_to_tables(rows))
            .expect("written")
            .expect("there are rows");
        let threshold = self.counter.get() + 1;
        (self
            .tree
            .register_tables(&tables, None, None, &[], threshold))
        .expect("installed");
    }

    /// Does the compaction that a strategy chooses, if it chooses one.
    pub(super) fn compact_by(&mut self, strategy: Leveled) {
        let threshold = self.counter.get() + 1;
        (self.tree.compact(Arc::new(strategy), threshold)).expect("compacted");
    }

    /// Merges all tables into one run of small ones.
    pub(super) fn compact(&mut self) {
        let threshold = self.counter.get() + 1;
        (self.tree.major_compact(4 << 10, threshold)).expect("compacted");
    }

    pub(super) fn tables(&self, before: &Tables) -> Arc<Tables> {
        Arc::new(Tables::of(&self.tree, before, no_read_fault).expect("opens"))
    }
}

/// All tables of a list.
pub(super) fn all(tables: &Tables) -> impl Iterator<Item = &Arc<TableReader>> {
    tables.runs.iter().flat_map(|run| &run.tables)
}

/// All places of blocks of a table.
pub(super) fn places(reader: &TableReader) -> Vec<ColdBlock> {
    let index = reader.index.as_ref();
    let place = |index: &Index, at| index.place(reader.table.id(), at).expect("a block");
    let places = index.map(|index| (0..index.len()).map(|at| place(index, at)).collect());
    places.unwrap_or_default()
}
