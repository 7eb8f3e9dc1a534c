//! Sizes of intervals and split keys, compared with a scan of all rows.

use std::time::{Duration, Instant};

use super::*;
use crate::lsm::tests::{Random, rows_in_tables, table_options};
use crate::lsm::{LsmTables, MemoryDisk, MemoryTables, TableOptions, keys, row};
use crate::types::{DataId, Timestamp};

const DATA_ID: DataId = DataId(3);

fn row_key(user_key: &[u8]) -> Vec<u8> {
    let mut key = Vec::new();
    keys::user_key(DATA_ID, user_key, &mut key);
    key
}

/// The kind of rows that a test writes.
#[derive(Clone, Copy, Debug)]
enum Values {
    /// Of one length, compressible or not.
    Small(bool),
    /// Of lengths from none to a few blocks, which compress or do not.
    Mixed,
    /// Small ones in the first half of the keys and long ones in the other.
    Halves,
}

impl Values {
    fn of(self, random: &mut Random, user_key: u64) -> Vec<u8> {
        let (len, is_text) = match self {
            Values::Small(is_text) => (100, is_text),
            Values::Mixed => (random.below(9000), random.below(2) == 0),
            Values::Halves if user_key < 500_000 => (60, false),
            Values::Halves => (3000 + random.below(20_000), false),
        };
        let byte = |random: &mut Random| match is_text {
            true => b'a' + random.below(2) as u8,
            false => random.below(256) as u8,
        };
        (0..len).map(|_| byte(random)).collect()
    }
}

fn user_key(number: u64) -> Vec<u8> {
    format!("user{number:07}").into_bytes()
}

/// Writes about `bytes` of rows with keys below a million, some of them several times.
fn fill<T: TableStore>(lsm: &mut Lsm<T>, random: &mut Random, values: Values, bytes: usize) {
    let (mut written, mut version) = (0, 1 << 50);
    while written < bytes {
        let number = match values {
            // Both halves of the keys get about the same bytes.
            Values::Halves => match random.below(80) {
                0 => 500_000 + random.below(500_000),
                _ => random.below(500_000),
            },
            _ => random.below(1_000_000),
        };
        let key = row_key(&user_key(number));
        let value = values.of(random, number);
        for _ in 0..if random.below(10) == 0 { 4 } else { 1 } {
            version += 1;
            if !lsm.has_room(1, key.len() + value.len() + 9) {
                freeze(lsm);
            }
            lsm.insert(&key, Timestamp(version), Some(&value));
            written += key.len() + 9 + value.len();
        }
    }
}

/// Freezes the memtable and waits until it is flushed.
fn freeze<T: TableStore>(lsm: &mut Lsm<T>) {
    lsm.freeze();
    let since = Instant::now();
    while lsm.stats().frozen > 0 {
        lsm.poll().expect("nothing fails");
        assert!(since.elapsed() < Duration::from_secs(60), "no flush");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Every row of the tables: its key and bytes, in ascending order.
fn scanned<T: TableStore>(lsm: &Lsm<T>) -> Vec<(Vec<u8>, u64)> {
    let rows = rows_in_tables(&lsm.store).into_iter();
    let rows = rows.map(|row| {
        let (key, row) = (row.key.as_ref(), row.row.as_ref());
        (key.to_vec(), (key.len() + row.len()) as u64)
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

fn bytes_in(rows: &[(Vec<u8>, u64)], (low, high): Interval<'_>) -> u64 {
    let within = rows
        .iter()
        .filter(|(key, _)| low <= key.as_slice() && key.as_slice() < high);
    within.map(|(_, bytes)| bytes).sum()
}

/// Whether a size is right within 15 % and so many bytes.
fn is_near(found: u64, wanted: u64, slack: u64) -> bool {
    found.abs_diff(wanted) <= wanted * 15 / 100 + slack
}

/// Compares random intervals, and cuts of all, with the rows of the tables.
fn check<T: TableStore>(lsm: &Lsm<T>, random: &mut Random, slack: u64, name: &str) {
    check_against(lsm, &scanned(lsm), random, slack, name);
}

/// Compares random intervals, and cuts of all, with the rows that are there. Sizes may be wrong by
/// 15 % and `slack` bytes.
fn check_against<T: TableStore>(
    lsm: &Lsm<T>,
    rows: &[(Vec<u8>, u64)],
    random: &mut Random,
    slack: u64,
    name: &str,
) {
    let all = (row_key(b""), row_key(b"\xff"));
    for _ in 0..50 {
        let mut bound = || row_key(&user_key(random.below(1_000_000)));
        let (low, high) = (bound(), bound());
        let found = lsm.size_of((&low, &high));
        let wanted = bytes_in(rows, (&low, &high));
        assert!(
            is_near(found.bytes, wanted, slack),
            "{name}: {found:?}, not {wanted}"
        );
        assert!(found.live_bytes <= found.bytes, "{name}: {found:?}");
        // Intervals that meet have the size of both together.
        if low < high {
            let whole = lsm.size_of((&all.0, &all.1));
            let parts = [(&all.0, &low), (&low, &high), (&high, &all.1)];
            let sum = parts.map(|(low, high)| lsm.size_of((low, high)).bytes);
            assert!(
                sum.iter().sum::<u64>().abs_diff(whole.bytes) < 100,
                "{name}"
            );
        }
    }
    let total = bytes_in(rows, (&all.0, &all.1));
    for pieces in [2, 3, 8] {
        let cuts = lsm.split_keys((&all.0, &all.1), pieces);
        assert_eq!(cuts.len(), pieces - 1, "{name}");
        let mut low = all.0.clone();
        for cut in cuts.into_iter().chain([all.1.clone()]) {
            let part = bytes_in(rows, (&low, &cut));
            assert!(
                part > 0 && keys::user_part(&cut) > &b"user"[..],
                "{name}: {cut:?}"
            );
            let wanted = total / pieces as u64;
            assert!(
                is_near(part, wanted, slack),
                "{name}, {pieces}: {part}, not {wanted}"
            );
            low = cut;
        }
    }
}

fn on_disk(folder: &std::path::Path) -> Lsm<LsmTables> {
    let options = TableOptions {
        memtable_bytes: 8 << 20,
        ..table_options(folder)
    };
    Lsm::new(LsmTables::open(options).expect("opens"), 0)
}

fn compact(lsm: &mut Lsm<LsmTables>) {
    let before = lsm.stats().tables.compactions;
    lsm.collect_garbage();
    let since = Instant::now();
    while lsm.stats().tables.compactions == before || lsm.stats().tables.tables == 0 {
        lsm.poll().expect("nothing fails");
        assert!(since.elapsed() < Duration::from_secs(60), "no compaction");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    lsm.poll().expect("nothing fails");
}

#[test]
fn sizes_of_tables_on_disk_are_near_those_of_a_scan() {
    let kinds = [
        Values::Small(false),
        Values::Small(true),
        Values::Mixed,
        Values::Halves,
    ];
    for (seed, values) in kinds.into_iter().enumerate() {
        let mut random = Random::new(seed as u64 + 1);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut lsm = on_disk(folder.path());
        fill(&mut lsm, &mut random, values, 24 << 20);
        freeze(&mut lsm);
        check(&lsm, &mut random, 150_000, &format!("{values:?}, flushed"));
        compact(&mut lsm);
        check(
            &lsm,
            &mut random,
            150_000,
            &format!("{values:?}, compacted"),
        );
        drop(lsm);
        let lsm = on_disk(folder.path());
        check(&lsm, &mut random, 150_000, &format!("{values:?}, opened"));
    }
}

#[test]
fn live_bytes_are_those_of_one_version_of_each_key() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut lsm = on_disk(folder.path());
    for version in 1..=4 {
        for number in 0..2000 {
            lsm.insert(
                &row_key(&user_key(number)),
                Timestamp(version),
                Some(&[7; 200]),
            );
        }
    }
    freeze(&mut lsm);
    let (low, high) = (row_key(b""), row_key(b"\xff"));
    let size = lsm.size_of((&low, &high));
    assert!(is_near(size.bytes, 4 * size.live_bytes, 1), "{size:?}");
}

#[test]
fn sizes_in_memory_are_near_those_of_a_scan() {
    for seed in 1..5 {
        let mut random = Random::new(seed);
        let disk = std::rc::Rc::new(MemoryDisk::default());
        let mut lsm = Lsm::new(MemoryTables::open(disk, 1 << 20), 0);
        fill(&mut lsm, &mut random, Values::Mixed, 3 << 20);
        freeze(&mut lsm);
        check(&lsm, &mut random, 200_000, "in memory");
    }
}

#[test]
fn sizes_of_memtables_are_near_what_was_inserted() {
    for values in [Values::Small(false), Values::Mixed] {
        let mut random = Random::new(3);
        let disk = std::rc::Rc::new(MemoryDisk::default());
        let mut lsm = Lsm::new(MemoryTables::open(disk, 64 << 20), 0);
        fill(&mut lsm, &mut random, values, 24 << 20);
        let entries = lsm.active.iter();
        let rows = entries.map(|entry| {
            let bytes = row::len(entry.key, entry.value.unwrap_or_default());
            (entry.key.to_vec(), u64::from(bytes))
        });
        check_against(
            &lsm,
            &rows.collect::<Vec<_>>(),
            &mut random,
            300_000,
            "memtable",
        );
    }
}

#[test]
fn one_key_with_all_bytes_is_not_cut() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut lsm = on_disk(folder.path());
    let (low, high) = (row_key(b""), row_key(b"\xff"));
    assert_eq!(lsm.split_keys((&low, &high), 2), Vec::<Vec<u8>>::new());
    for version in 1..2000 {
        lsm.insert(&row_key(b"hot"), Timestamp(version), Some(&[7; 1000]));
    }
    assert_eq!(lsm.split_keys((&low, &high), 2), Vec::<Vec<u8>>::new());
    freeze(&mut lsm);
    assert_eq!(lsm.split_keys((&low, &high), 2), Vec::<Vec<u8>>::new());
    // Whatever comes after it can be cut off.
    for number in 0..2000 {
        lsm.insert(&row_key(&user_key(number)), Timestamp(1), Some(&[7; 40]));
    }
    let in_memory = lsm.split_keys((&low, &high), 2);
    freeze(&mut lsm);
    for cuts in [in_memory, lsm.split_keys((&low, &high), 2)] {
        assert!(
            matches!(cuts.as_slice(), [cut] if *cut > row_key(b"hot")),
            "{cuts:?}"
        );
    }
    assert_eq!(lsm.size_of((&high, &low)), Size::default());
}
