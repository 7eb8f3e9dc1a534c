//! The reader against [`Table::get`], over random trees of all forms, and over damaged blocks.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::*;
use crate::lsm::keys::row_hash;
use crate::lsm::tables::config::{
    BlockSizePolicy, CompressionPolicy, HashRatioPolicy, PartitioningPolicy, PinningPolicy,
    RestartIntervalPolicy,
};
use crate::lsm::tables::{
    AbstractTree, AnyTree, CompressionType, Config, InternalValue, SequenceNumberCounter,
    ValueType, form,
};
use crate::lsm::tests::Random;
use crate::lsm::{LsmError, LsmTables, TableOptions, TableStore};

/// The forms of tables that are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The one that is written today.
    Ours,
    /// In one piece, compressed, with shortened keys and without a hash index.
    Compressed,
    /// That of `lsm-tree`, in which the deeper levels are in parts.
    Default,
    /// Indexes and filters are in parts on every level.
    Parts,
}

const FORMS: [Form; 4] = [Form::Ours, Form::Compressed, Form::Default, Form::Parts];

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
struct Fixture {
    folder: TempDir,
    tree: AnyTree,
    counter: SequenceNumberCounter,
    random: Random,
    /// The keys that were written, some of them several times.
    keys: Vec<Vec<u8>>,
    version: u64,
}

impl Fixture {
    fn new(form: Form, seed: u64) -> Fixture {
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
    fn random_key(&mut self) -> Vec<u8> {
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
    fn flush(&mut self) {
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

    /// Merges all tables into one run of small ones.
    fn compact(&mut self) {
        let threshold = self.counter.get() + 1;
        (self.tree.major_compact(4 << 10, threshold)).expect("compacted");
    }

    fn tables(&self, before: &Tables) -> Arc<Tables> {
        Arc::new(Tables::of(&self.tree, before).expect("opens"))
    }

    /// What `lsm-tree` finds in the tables of a list.
    fn expected(tables: &Tables, key: &[u8], at: Timestamp) -> Option<Slice> {
        tables.runs.iter().find_map(|run| {
            let reader = run.tables.get(run.first_at_or_after(key))?;
            let found = reader.table.get(key, at.0 + 1, row_hash(key));
            found.expect("readable").map(|row| row.value)
        })
    }
}

fn all(tables: &Tables) -> impl Iterator<Item = &Arc<TableReader>> {
    tables.runs.iter().flat_map(|run| &run.tables)
}

/// All places of blocks of a table.
fn places(reader: &TableReader) -> Vec<ColdBlock> {
    let index = reader.index.as_ref();
    let place = |index: &Index, at| index.place(reader.table.id(), at).expect("a block");
    let places = index.map(|index| (0..index.len()).map(|at| place(index, at)).collect());
    places.unwrap_or_default()
}

/// Looks a key up in a random mode. A cold block is read as another thread would.
fn look(reader: &Reader, random: &mut Random, key: &[u8], at: Timestamp) -> Option<Slice> {
    let mode = [Mode::Wait, Mode::NoWait][random.below(2) as usize];
    loop {
        match reader.get(key, row_hash(key), at, mode).expect("readable") {
            Lookup::Found(found) => return found,
            Lookup::Cold(cold) => {
                assert_eq!(mode, Mode::NoWait);
                let table = reader.table_of(cold).expect("it is in the list");
                reader.insert(cold, table.read_block(cold).expect("readable"));
            }
        }
    }
}

#[test]
fn every_answer_is_that_of_lsm_tree() {
    let (mut found, mut absent, mut spread) = (0, 0, 0);
    let (mut hits, mut misses) = (0, 0);
    for seed in 1..=16 {
        let form = FORMS[seed as usize % FORMS.len()];
        let mut fixture = Fixture::new(form, seed);
        // From less than one block to more than there are.
        let budget = [100, 6 << 10, 40 << 10, 16 << 20][fixture.random.below(4) as usize];
        let mut reader = Reader::new(fixture.tables(&Tables::default()), budget);
        for step in 0..6 {
            match step {
                3 => fixture.compact(),
                _ => fixture.flush(),
            }
            let tables = fixture.tables(&reader.tables);
            reader.set_tables(tables).expect("the list is new");
            for _ in 0..600 {
                let key = match fixture.random.below(4) {
                    0 => fixture.random_key(),
                    _ => {
                        let at = fixture.random.below(fixture.keys.len() as u64);
                        fixture.keys[at as usize].clone()
                    }
                };
                let first = (1 << 50) - 2;
                let at = match fixture.random.below(3) {
                    0 => Timestamp::MAX,
                    _ => Timestamp(first + fixture.random.below(fixture.version + 4 - first)),
                };
                let expected = Fixture::expected(&reader.tables, &key, at);
                let answer = look(&reader, &mut fixture.random, &key, at);
                assert_eq!(answer, expected, "{form:?} {seed} {key:?} {at:?}");
                *(if answer.is_some() {
                    &mut found
                } else {
                    &mut absent
                }) += 1;
                let indexes = all(&reader.tables).filter_map(|reader| reader.index.as_ref());
                let blocks = indexes.map(|index| index.blocks_of(&key, at.0 + 1).len());
                spread += usize::from(blocks.max() > Some(1));
                let [used, budget, ..] = reader.cache_use();
                assert!(used <= budget.max(4 << 10), "{used} of {budget}");
            }
        }
        let indexed = all(&reader.tables).filter(|reader| reader.index.is_some());
        let (indexed, count) = (indexed.count(), all(&reader.tables).count());
        assert!(count > 10, "the compaction has made many tables");
        match form {
            Form::Ours | Form::Compressed => assert_eq!(indexed, count),
            Form::Default => assert!((1..count).contains(&indexed), "{indexed} of {count}"),
            Form::Parts => assert_eq!(indexed, 0),
        }
        let [_, _, hits_now, misses_now] = reader.cache_use();
        hits += hits_now;
        misses += misses_now;
    }
    assert!(found > 10_000 && absent > 3_000, "{found} {absent}");
    assert!(
        spread > 500 && hits > 1_000 && misses > 1_000,
        "{spread} {hits} {misses}"
    );
}

#[test]
fn a_damaged_block_is_an_error_and_never_an_absent_row() {
    for (form, seed) in [(Form::Ours, 1), (Form::Compressed, 2)] {
        let mut fixture = Fixture::new(form, seed);
        fixture.flush();
        let tables = fixture.tables(&Tables::default());
        let reader = all(&tables).next().expect("a table").clone();
        let keys: Vec<_> = fixture
            .keys
            .iter()
            .map(|key| (key, row_hash(key)))
            .collect();
        let whole = Reader::new(tables.clone(), 16 << 20);
        let at = Timestamp::MAX;
        let mut look = |key: &[u8]| look(&whole, &mut fixture.random, key, at);
        let expected: Vec<_> = keys.iter().map(|(key, _)| look(key)).collect();
        assert!(expected.iter().all(Option::is_some));
        let path = &**reader.table.path;
        let file = fs::OpenOptions::new()
            .write(true)
            .open(path)
            .expect("opens");
        let good = fs::read(path).expect("readable");
        for (number, block) in places(&reader).into_iter().enumerate() {
            // Each part of a block in turn: the header, and the content.
            let at_byte = block.offset as usize + number * 7 % block.len as usize;
            file.write_all_at(&[good[at_byte] ^ 4], at_byte as u64)
                .expect("written");
            assert!(reader.read_block(block).is_err());
            for mode in [Mode::Wait, Mode::NoWait] {
                let fresh = Reader::new(tables.clone(), 16 << 20);
                let mut errors = 0;
                for ((key, hash), expected) in keys.iter().zip(&expected) {
                    match fresh.get(key, *hash, at, mode) {
                        Ok(Lookup::Found(found)) => assert_eq!(found, *expected),
                        Ok(Lookup::Cold(cold)) => match reader.read_block(cold) {
                            Ok(read) => fresh.insert(cold, read),
                            Err(_) => errors += 1,
                        },
                        Err(_) => errors += 1,
                    }
                }
                // A block in the middle of a key's versions is not needed for the newest ones.
                let is_needed = keys.iter().any(|(key, _)| {
                    let index = reader.index.as_ref().expect("indexed");
                    index.blocks_of(key, u64::MAX).start == number
                });
                assert_eq!(errors > 0, is_needed, "{form:?} {number}");
            }
            file.write_all_at(&good[at_byte..=at_byte], at_byte as u64)
                .expect("written");
        }
        file.set_len(good.len() as u64 / 8).expect("cut");
        let (key, hash) = keys.iter().max().expect("a key");
        let cut = Reader::new(tables, 16 << 20);
        let Ok(Lookup::Cold(cold)) = cut.get(key, *hash, at, Mode::NoWait) else {
            panic!("what is not there cannot be read without waiting");
        };
        assert!(reader.read_block(cold).is_err());
        assert!(cut.get(key, *hash, at, Mode::Wait).is_err());
    }
}

#[test]
fn blocks_come_in_from_outside_and_leave_with_their_table() {
    let mut fixture = Fixture::new(Form::Ours, 3);
    fixture.flush();
    let mut reader = Reader::new(fixture.tables(&Tables::default()), 16 << 20);
    let first = all(&reader.tables).next().expect("a table").clone();
    for block in places(&first) {
        let from = reader.table_of(block).expect("it is in the list");
        reader.insert(block, from.read_block(block).expect("readable"));
    }
    let [full, ..] = reader.cache_use();
    for key in &fixture.keys {
        let found = reader.get(key, row_hash(key), Timestamp::MAX, Mode::NoWait);
        assert!(matches!(found, Ok(Lookup::Found(Some(_)))));
    }
    let [used, _, hits, misses] = reader.cache_use();
    assert!(used == full && hits >= fixture.keys.len() as u64 && misses == 0);
    fixture.compact();
    let tables = fixture.tables(&reader.tables);
    drop(reader.set_tables(tables));
    let block = places(&first).pop().expect("a block");
    assert!(reader.table_of(block).is_none());
    reader.insert(block, first.read_block(block).expect("still open"));
    assert_eq!(
        reader.cache_use()[0],
        full,
        "nothing is added for a table that is gone"
    );
    let path = first.table.path.clone();
    assert!(path.exists());
    drop(first);
    assert!(!path.exists(), "cached blocks do not keep a file");
}

#[test]
fn a_cold_block_is_fetched_beside_the_shard() {
    let mut fixture = Fixture::new(Form::Ours, 4);
    fixture.flush();
    let Fixture {
        folder, tree, keys, ..
    } = fixture;
    drop(tree);
    let options = TableOptions {
        folder: folder.path().to_owned(),
        memtable_bytes: 1 << 20,
        cache_bytes: 16 << 20,
        on_start: Arc::new(|_| ()),
        push_out: |_| (),
    };
    let mut store = LsmTables::open(options).expect("opens");
    let (told, tells) = std::sync::mpsc::channel();
    store.on_fetched(Arc::new(move || told.send(()).expect("the test waits")));
    let path = all(&store.reader.tables).next().expect("a table");
    let path = path.table.path.clone();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&**path)
        .expect("opens");
    let content = fs::read(&**path).expect("readable");
    let get = |store: &LsmTables, key: &[u8]| store.try_get(key, row_hash(key), Timestamp::MAX);
    let cold_block = |store: &LsmTables, key: &[u8]| {
        // What the file does not have is not in the page cache either.
        file.set_len(0).expect("cut");
        let Ok(Lookup::Cold(cold)) = get(store, key) else {
            panic!("the block is not in memory");
        };
        cold
    };
    let (low, high) = (keys.iter().min(), keys.iter().max());
    let (low, high) = (low.expect("a key"), high.expect("a key"));

    let cold = cold_block(&store, low);
    file.write_all_at(&content, 0).expect("written");
    store.fetch(cold);
    tells.recv().expect("told");
    assert_eq!(store.fetched().expect("readable"), [cold]);
    let before = store.block_cache();
    assert!(matches!(get(&store, low), Ok(Lookup::Found(Some(_)))));
    let after = store.block_cache();
    assert_eq!((after.hits, after.misses), (before.hits + 1, before.misses));

    let gone = ColdBlock { table: 999, ..cold };
    store.fetch(gone);
    tells.recv().expect("told");
    assert_eq!(store.fetched().expect("nothing is read"), [gone]);
    assert_eq!(store.block_cache(), after);

    let cold = cold_block(&store, high);
    store.fetch(cold);
    tells.recv().expect("told");
    let error = store.fetched().expect_err("the file is cut");
    assert!(
        matches!(error, LsmError::Failed { damaged: true, .. }),
        "{error}"
    );
}
