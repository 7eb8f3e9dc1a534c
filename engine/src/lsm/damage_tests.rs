//! Bits are flipped in the files of real tables. A read must return the right rows or an error,
//! never a wrong value, and never report an existing key as absent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::types::DataId;

const DATA_ID: DataId = DataId(3);
const MEMTABLE_BYTES: usize = 1 << 20;
const KEYS: u64 = 60;
/// One byte in this many is damaged. The number is odd, so that all positions of a bit are tried.
/// Each try opens the tables anew.
const STEP: usize = 7;
/// The first flush holds versions up to this one.
const FIRST: u64 = 1_000;

fn open(folder: &Path) -> Result<Lsm<LsmTables>, LsmError> {
    let options = TableOptions {
        folder: folder.to_owned(),
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: 1 << 20,
        on_start: Arc::new(|_| ()),
        push_out: |_| (),
        read_fault: no_read_fault,
        free_bytes: unbounded(),
    };
    Ok(Lsm::new(LsmTables::open(options)?, 0))
}

fn key(number: u64) -> Vec<u8> {
    let mut key = Vec::new();
    keys::user_key(DATA_ID, format!("key {number:04}").as_bytes(), &mut key);
    key
}

fn flush(lsm: &mut Lsm<LsmTables>) {
    let frozen = lsm.freeze();
    let since = Instant::now();
    while lsm.poll().expect("nothing fails") != Some(frozen) {
        assert!(since.elapsed() < Duration::from_secs(20), "no flush");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Writes two overlapping tables with values, newer values, tombstones, and keys that are in one
/// table only.
fn fill(folder: &Path) {
    let mut lsm = open(folder).expect("opens");
    for number in 0..KEYS {
        let value = format!("value {number} {}", number * number);
        lsm.insert(&key(number), Timestamp(1 + number), Some(value.as_bytes()));
    }
    flush(&mut lsm);
    for number in (KEYS / 2..KEYS * 3 / 2).step_by(2) {
        let value = format!("newer value {number}");
        let value = (!number.is_multiple_of(6)).then_some(value.as_bytes());
        lsm.insert(&key(number), Timestamp(FIRST + 1 + number), value);
    }
    flush(&mut lsm);
}

type Row = (Vec<u8>, Timestamp, Option<Vec<u8>>);

/// All rows as of two timestamps, read one by one and by scans.
fn read(lsm: &Lsm<LsmTables>) -> Result<Vec<Vec<Row>>, LsmError> {
    let mut all = Vec::new();
    for at in [Timestamp(FIRST), Timestamp(u64::MAX >> 1)] {
        let mut rows = Vec::new();
        for number in 0..KEYS * 2 {
            let key = key(number);
            if let Some(found) = lsm.get(&key, at)? {
                let value = found.value().map(<[u8]>::to_vec);
                rows.push((key, found.version(), value));
            }
        }
        all.push(rows);
        let bounds = (Bound::Unbounded, Bound::Unbounded);
        let mut scan = lsm.scan(bounds, at).map_err(ScanStop::of_waiting)?;
        let mut rows = Vec::new();
        while let Some(row) = scan.next_row().map_err(ScanStop::of_waiting)? {
            rows.push((
                row.key().to_vec(),
                row.version(),
                Some(row.value().to_vec()),
            ));
        }
        all.push(rows);
    }
    Ok(all)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for place in [folder.to_owned(), folder.join("tables")] {
        for entry in fs::read_dir(place).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Whether damage at this offset ends the process before it can report an error: `lsm-tree` would
/// reserve more memory than there is for a list of sections.
fn is_beyond_memory(bytes: &[u8], at: usize) -> bool {
    let list = bytes.windows(4).rposition(|magic| magic == b"TOC!");
    list.is_some_and(|list| (list + 6..list + 8).contains(&at))
}

#[test]
fn a_flipped_bit_in_any_file_is_an_error_or_harmless() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fill(folder.path());
    let expected = read(&open(folder.path()).expect("opens")).expect("readable");
    assert!(expected.iter().all(|rows| rows.len() > 40), "all is there");
    let (mut errors, mut harmless) = (0, 0);
    for path in files(folder.path()) {
        let good = fs::read(&path).expect("readable");
        for at in (0..good.len()).step_by(STEP) {
            if is_beyond_memory(&good, at) {
                continue;
            }
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).expect("written");
            match open(folder.path()).and_then(|lsm| read(&lsm)) {
                Ok(found) => {
                    assert!(found == expected, "{} at {at}: other rows", path.display());
                    harmless += 1;
                }
                Err(_) => errors += 1,
            }
            assert!(
                path.exists(),
                "{} is removed for its damage",
                path.display()
            );
        }
        fs::write(&path, &good).expect("written");
    }
    assert!(
        errors > 1_000 / STEP && harmless < errors / 2,
        "{errors}, {harmless}"
    );
    let again = read(&open(folder.path()).expect("opens")).expect("readable");
    assert!(again == expected, "nothing is lost");
}

#[test]
fn a_compaction_that_meets_a_flipped_bit_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fill(folder.path());
    let expected = read(&open(folder.path()).expect("opens")).expect("readable");
    let mut refused = 0;
    let tables = folder.path().join("tables");
    for path in files(folder.path()) {
        if !path.starts_with(&tables) {
            continue;
        }
        let good = fs::read(&path).expect("readable");
        for at in (0..good.len()).step_by(97) {
            let copy = tempfile::tempdir().expect("a temporary folder");
            fs::create_dir(copy.path().join("tables")).expect("a folder");
            for file in files(folder.path()) {
                let name = file.strip_prefix(folder.path()).expect("within");
                fs::copy(&file, copy.path().join(name)).expect("copied");
            }
            // The store is opened before the file is damaged, so that only the compaction meets the
            // damage.
            let mut lsm = open(copy.path()).expect("opens");
            let file = copy
                .path()
                .join(path.strip_prefix(folder.path()).expect("within"));
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&file, &bad).expect("written");
            lsm.collect_garbage();
            let since = Instant::now();
            let has_failed = loop {
                // It changes nothing, and does not end the process.
                lsm.poll().expect("nothing is told");
                let stats = lsm.stats().tables;
                if stats.compactions + stats.compactions_failed > 0 {
                    break stats.compactions_failed > 0;
                }
                assert!(since.elapsed() < Duration::from_secs(20), "no compaction");
                std::thread::sleep(Duration::from_millis(1));
            };
            if has_failed {
                refused += 1;
                fs::write(&file, &good).expect("written");
            }
            // With the first of them, a compaction that has failed is seen to be tried again.
            while refused == 1 && lsm.stats().tables.compactions == 0 {
                lsm.poll().expect("nothing is told");
                assert!(since.elapsed() < Duration::from_secs(20), "not tried again");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(lsm);
            let found = read(&open(copy.path()).expect("opens")).expect("readable");
            assert!(found == expected, "{} at {at}", path.display());
        }
    }
    assert!(refused > 5, "{refused}");
}
