//! Runs are compared with all rows that `lsm-tree` gives, over random trees of all forms, and over
//! damaged blocks.

use std::fs;
use std::ops::RangeBounds;
use std::os::unix::fs::FileExt;

use super::*;
use crate::lsm::tables::list::Run;
use crate::lsm::tables::reader::Reader;
use crate::lsm::tables::test_fixture::{FORMS, Fixture, Form, all, places};
use crate::lsm::{BlockReads, HeldBlocks};

/// Key, version and value.
type Row = (Vec<u8>, u64, Vec<u8>);
type Model = Vec<Vec<Row>>;

const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Reverse];

fn owned(row: InternalValue) -> Row {
    let key = row.key.user_key.to_vec();
    (key, row.key.seqno, row.value.to_vec())
}

/// All rows of each run, as `lsm-tree` gives them.
fn model(tables: &Tables) -> Model {
    let of_run = |run: &Run| {
        let rows = run.tables.iter().flat_map(|reader| reader.table.iter());
        rows.map(|row| owned(row.expect("readable"))).collect()
    };
    tables.runs.iter().map(of_run).collect()
}

/// What the runs must give.
fn wanted(model: &Model, bounds: Bounds<'_>, direction: Direction) -> Vec<Vec<Row>> {
    let of_run = |run: &Vec<Row>| {
        let rows = run
            .iter()
            .filter(|(key, _, _)| RangeBounds::<[u8]>::contains(&bounds, key.as_slice()));
        let mut rows: Vec<Row> = rows.cloned().collect();
        if direction == Direction::Reverse {
            rows.reverse();
        }
        rows
    };
    model
        .iter()
        .map(of_run)
        .filter(|rows| !rows.is_empty())
        .collect()
}

fn open(tables: &Arc<Tables>, bounds: Bounds<'_>, direction: Direction) -> Vec<RunIter> {
    runs(tables, bounds, direction)
}

/// All rows of a run up to its end or an error.
fn read(run: &mut RunIter, reads: Reads<'_>) -> (Vec<Row>, Option<ScanStop>) {
    let mut rows = Vec::new();
    loop {
        match run.next(reads) {
            Ok(Some(row)) => rows.push(owned(row)),
            Ok(None) => return (rows, None),
            Err(error) => return (rows, Some(error)),
        }
    }
}

/// All rows of a run that never waits. It begins anew after each of them.
fn read_cold(reader: &Reader, place: usize, bounds: Bounds<'_>, direction: Direction) -> Vec<Row> {
    let mut held = HeldBlocks::default();
    loop {
        let mut runs = open(&reader.tables, bounds, direction);
        let run = runs.get_mut(place).expect("the same runs");
        match read(run, BlockReads::NoWait(reader, &held)) {
            (rows, None) => return rows,
            (_, Some(ScanStop::Failed(error))) => panic!("{error}"),
            (_, Some(ScanStop::Cold(stop))) => {
                let table = reader.table_of(stop.block).expect("it is in the list");
                let wanted = [&[stop.block][..], &stop.ahead].concat();
                for (block, content) in wanted.iter().zip(table.read_blocks(&wanted)) {
                    held.insert(*block, content.expect("readable"));
                }
            }
        }
    }
}

fn bound(fixture: &mut Fixture) -> Bound<Vec<u8>> {
    let key = match fixture.random.below(3) {
        0 => fixture.random_key(),
        _ => {
            let at = fixture.random.below(fixture.keys.len() as u64);
            fixture.keys[at as usize].clone()
        }
    };
    match fixture.random.below(5) {
        0 => Bound::Unbounded,
        1 | 2 => Bound::Included(key),
        _ => Bound::Excluded(key),
    }
}

/// Compares random scans of the newest list.
fn check_scans(fixture: &mut Fixture, reader: &Reader, seen: &mut [usize; 3]) {
    let model = model(&reader.tables);
    for _ in 0..40 {
        let (low, high) = (bound(fixture), bound(fixture));
        let bounds = (
            low.as_ref().map(Vec::as_slice),
            high.as_ref().map(Vec::as_slice),
        );
        for direction in DIRECTIONS {
            let way = fixture.random.below(3);
            let before = reader.cache_use();
            let found = open(&reader.tables, bounds, direction)
                .into_iter()
                .enumerate();
            let found = found.map(|(place, mut run)| match way {
                0 => read(&mut run, BlockReads::Wait(reader)),
                1 => (read_cold(reader, place, bounds, direction), None),
                _ => {
                    let reading = std::thread::spawn(move || read(&mut run, BlockReads::Beside));
                    reading.join().expect("no panic")
                }
            });
            let found = found.map(|(rows, error)| {
                assert!(error.is_none(), "{error:?}");
                rows
            });
            let found: Vec<_> = found.filter(|rows| !rows.is_empty()).collect();
            let wanted = wanted(&model, bounds, direction);
            assert_eq!(found, wanted, "{bounds:?} {direction:?}");
            let now = reader.cache_use();
            assert!(way < 2 || now == before, "another thread has no cache");
            seen[0] += found.iter().map(Vec::len).sum::<usize>();
            seen[1] += (now[2] - before[2]) as usize;
            seen[2] += (now[3] - before[3]) as usize;
        }
    }
}

#[test]
fn every_run_gives_the_rows_of_lsm_tree() {
    let mut seen = [0; 3];
    for seed in 1..=16 {
        let mut fixture = Fixture::new(FORMS[seed as usize % FORMS.len()], seed);
        // From less than one block to more than there are.
        let budget = [100, 6 << 10, 40 << 10, 16 << 20][fixture.random.below(4) as usize];
        let mut reader = Reader::new(fixture.tables(&Tables::default()), budget);
        for step in 0..5 {
            match step {
                3 => fixture.compact(),
                _ => fixture.flush(),
            }
            let tables = fixture.tables(&reader.tables);
            reader.set_tables(tables).expect("the list is new");
            check_scans(&mut fixture, &reader, &mut seen);
        }
    }
    let [rows, hits, misses] = seen;
    assert!(
        rows > 500_000 && hits > 1_000 && misses > 1_000,
        "{rows} {hits} {misses}"
    );
}

#[test]
fn a_scan_adds_at_most_one_block_of_a_table_to_the_cache() {
    let mut fixture = Fixture::new(Form::Ours, 5);
    fixture.flush();
    let reader = Reader::new(fixture.tables(&Tables::default()), 16 << 20);
    let table = all(&reader.tables).next().expect("a table").clone();
    let blocks = places(&table);
    assert!(blocks.len() > 20, "{}", blocks.len());
    let longest = blocks.iter().map(|block| u64::from(block.len)).max();
    let everything = (Bound::Unbounded, Bound::Unbounded);
    for (scans, direction) in DIRECTIONS.into_iter().enumerate() {
        for mut run in open(&reader.tables, everything, direction) {
            assert!(read(&mut run, BlockReads::Wait(&reader)).1.is_none());
        }
        let [used, ..] = reader.cache_use();
        let most = (scans as u64 + 1) * 2 * longest.expect("a block");
        assert!(used > 0 && used < most, "{used} {most}");
    }
    // What gets have cached is found, and no other list's blocks are.
    for block in &blocks {
        reader.insert(*block, table.read_block(*block).expect("readable"));
    }
    let [_, _, hits, _] = reader.cache_use();
    for mut run in open(&reader.tables, everything, Direction::Forward) {
        read(&mut run, BlockReads::Wait(&reader));
    }
    let full = reader.cache_use();
    assert_eq!(full[2] - hits, blocks.len() as u64);
    fixture.flush();
    let newer = fixture.tables(&reader.tables);
    for mut run in open(&newer, everything, Direction::Forward) {
        read(&mut run, BlockReads::Wait(&reader));
    }
    assert_eq!(reader.cache_use(), full);
}

#[test]
fn a_damaged_block_is_an_error_and_hides_no_row_before_it() {
    for (form, seed) in [(Form::Ours, 1), (Form::Compressed, 2)] {
        let mut fixture = Fixture::new(form, seed);
        fixture.flush();
        let tables = fixture.tables(&Tables::default());
        let model = model(&tables);
        let reader = all(&tables).next().expect("a table").clone();
        let path = &**reader.table.path;
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).open(path).expect("opens");
        let good = fs::read(path).expect("readable");
        let everything = (Bound::Unbounded, Bound::Unbounded);
        let check = |what: &str| {
            for direction in DIRECTIONS {
                let shard = Reader::new(tables.clone(), 16 << 20);
                let nothing = HeldBlocks::default();
                for reads in [
                    BlockReads::Beside,
                    BlockReads::Wait(&shard),
                    BlockReads::NoWait(&shard, &nothing),
                ] {
                    let wanted = wanted(&model, everything, direction).concat();
                    let mut runs = open(&tables, everything, direction);
                    let run = runs.first_mut().expect("a run");
                    let (rows, error) = read(run, reads);
                    assert!(error.is_some(), "{what} {direction:?}");
                    assert!(rows.len() < wanted.len() && wanted.starts_with(&rows));
                }
            }
        };
        for (number, block) in places(&reader).into_iter().enumerate() {
            // Each part of a block in turn: the header, and the content.
            let at_byte = block.offset as usize + number * 7 % block.len as usize;
            (file.write_all_at(&[good[at_byte] ^ 4], at_byte as u64)).expect("written");
            check(&format!("{form:?} {number}"));
            (file.write_all_at(&good[at_byte..=at_byte], at_byte as u64)).expect("written");
        }
        file.set_len(good.len() as u64 / 8).expect("cut");
        check("cut");
    }
}
