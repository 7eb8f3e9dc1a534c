//! Reads of one row, and scans, on a tree of the engine with real tables in a temporary folder. The
//! block cache holds all of them.

use std::ops::Bound;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rangedb_engine::lsm::row::Row;
use rangedb_engine::lsm::{Lsm, LsmTables, TableOptions, keys, no_read_fault, unbounded};
use rangedb_engine::types::{DataId, Timestamp};

use crate::{KEY_LEN, SAMPLE, SEED, VALUE_LEN};

const ROWS: u64 = 200_000;
const DATA_ID: DataId = DataId(3);
/// Rows of a short scan.
const SCAN_ROWS: usize = 50;
const MEMTABLE_BYTES: usize = 64 << 20;
const CACHE_BYTES: usize = 256 << 20;
/// Short scans of one sample.
const SCAN_SAMPLE: u32 = 50;
/// Scans of everything take long, so few are measured.
const LONG_SAMPLES: u32 = 10;

/// A tree that holds all rows.
struct Tree {
    lsm: Lsm<LsmTables>,
    /// The rows' keys, in random order.
    keys: Vec<Vec<u8>>,
    _folder: tempfile::TempDir,
}

impl Tree {
    /// A tree with its rows in so many runs of tables, or in the active memtable if that is 0.
    fn new(runs: usize, row_cache_bytes: usize) -> Tree {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tables = LsmTables::open(TableOptions {
            folder: folder.path().to_owned(),
            memtable_bytes: MEMTABLE_BYTES,
            cache_bytes: CACHE_BYTES as u64,
            on_start: Arc::new(|_| {}),
            push_out: |_| (),
            read_fault: no_read_fault,
            free_bytes: unbounded(),
        });
        let mut tree = Tree {
            lsm: Lsm::new(tables.expect("tables open"), row_cache_bytes),
            keys: (0..ROWS).map(row_key).collect(),
            _folder: folder,
        };
        let mut random = StdRng::seed_from_u64(SEED);
        tree.keys.shuffle(&mut random);
        let (tell, told) = mpsc::channel();
        tree.lsm.on_install(Arc::new(move || {
            // The tree may outlive the receiver.
            let _ = tell.send(());
        }));
        let mut value = [0; VALUE_LEN];
        for keys in tree.keys.chunks(tree.keys.len() / runs.max(1)) {
            for key in keys {
                random.fill_bytes(&mut value);
                tree.lsm.insert(key, Timestamp(1), Some(&value));
            }
            if runs > 0 {
                tree.lsm.freeze();
                while tree.lsm.poll().expect("nothing fails").is_none() {
                    // The tables' lock may be taken just then, so it is tried again.
                    let _ = told.recv_timeout(Duration::from_millis(10));
                }
            }
        }
        tree.keys.shuffle(&mut random);
        tree
    }

    /// Reads the newest version of a row; gives the length of its value.
    fn get(&self, key: &[u8]) -> Option<usize> {
        let value_len = |row: Option<Row<'_>>| Some(row?.value?.len());
        self.lsm.newest(key, value_len).expect("readable")
    }

    /// Scans from a key on; gives how many rows there were.
    fn scan(&self, from: &[u8], rows_max: usize) -> usize {
        let bounds = (Bound::Included(from), Bound::Unbounded);
        let mut scan = self.lsm.scan(bounds, Timestamp::MAX).expect("readable");
        let mut rows = 0;
        while rows < rows_max
            && let Some(row) = scan.next_row().expect("readable")
        {
            divan::black_box((row.key(), row.value()));
            rows += 1;
        }
        rows
    }

    fn bench_gets(&self, bencher: Bencher<'_, '_>) {
        // What is read for the first time comes from the disk.
        let lens = self.keys.iter().map(|key| self.get(key));
        assert!(lens.eq(self.keys.iter().map(|_| Some(VALUE_LEN))));
        let mut keys = self.keys.iter().cycle();
        bencher.bench_local(|| keys.next().and_then(|key| self.get(key)));
    }
}

fn row_key(number: u64) -> Vec<u8> {
    let mut key = Vec::new();
    keys::user_key(DATA_ID, format!("{number:0KEY_LEN$x}").as_bytes(), &mut key);
    key
}

/// A get that the row cache answers.
#[divan::bench(sample_size = SAMPLE)]
fn get_in_row_cache(bencher: Bencher<'_, '_>) {
    let tree = Tree::new(1, CACHE_BYTES);
    // The second read is the first that the cache answers.
    for key in &tree.keys {
        tree.get(key);
    }
    tree.bench_gets(bencher);
}

/// A get of a row in the active memtable.
#[divan::bench(sample_size = SAMPLE)]
fn get_in_memtable(bencher: Bencher<'_, '_>) {
    Tree::new(0, 0).bench_gets(bencher);
}

/// A get of a row in one of so many runs of tables, without a row cache.
#[divan::bench(args = [1, 3], sample_size = SAMPLE)]
fn get_in_tables(bencher: Bencher<'_, '_>, runs: usize) {
    Tree::new(runs, 0).bench_gets(bencher);
}

/// A get of a key that has no row.
#[divan::bench(sample_size = SAMPLE)]
fn get_of_absent(bencher: Bencher<'_, '_>) {
    let tree = Tree::new(3, 0);
    let mut absent: Vec<_> = tree.keys.clone();
    absent.iter_mut().for_each(|key| key.push(b'x'));
    let mut keys = absent.iter().cycle();
    bencher.bench_local(|| keys.next().and_then(|key| tree.get(key)));
}

/// A scan of 50 rows in so many runs of tables, or in the memtable.
#[divan::bench(args = [0, 1, 3], sample_size = SCAN_SAMPLE)]
fn scan_short(bencher: Bencher<'_, '_>, runs: usize) {
    let tree = Tree::new(runs, 0);
    tree.scan(&[], usize::MAX);
    let mut keys = tree.keys.iter().cycle();
    let bencher = bencher.counter(ItemsCount::new(SCAN_ROWS));
    bencher.bench_local(|| keys.next().map(|key| tree.scan(key, SCAN_ROWS)));
}

/// A scan of all rows in so many runs of tables, or in the memtable.
#[divan::bench(args = [0, 1, 3], sample_count = LONG_SAMPLES, sample_size = 1)]
fn scan_everything(bencher: Bencher<'_, '_>, runs: usize) {
    let tree = Tree::new(runs, 0);
    assert_eq!(tree.scan(&[], usize::MAX) as u64, ROWS);
    let bencher = bencher.counter(ItemsCount::new(ROWS));
    let bencher = bencher.counter(BytesCount::new(ROWS as usize * (KEY_LEN + VALUE_LEN)));
    bencher.bench_local(|| tree.scan(&[], usize::MAX));
}
