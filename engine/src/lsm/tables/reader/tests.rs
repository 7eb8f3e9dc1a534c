//! The reader against [`Table::get`], over random trees of all forms, and over damaged blocks.

use std::fs;
use std::os::unix::fs::FileExt;

use super::*;
use crate::lsm::keys::row_hash;
use crate::lsm::tables::test_fixture::{FORMS, Fixture, Form, all, places};
use crate::lsm::tests::Random;
use crate::lsm::{LsmTables, TableOptions, TableStore, no_read_fault, unbounded};

/// What `lsm-tree` finds in the tables of a list.
fn expected(tables: &Tables, key: &[u8], at: Timestamp) -> Option<Slice> {
    tables.runs.iter().find_map(|run| {
        let reader = run.tables.get(run.first_at_or_after(key))?;
        let found = reader.table.get(key, at.0 + 1, row_hash(key));
        found.expect("readable").map(|row| row.value)
    })
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
                let expected = expected(&reader.tables, &key, at);
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
        read_fault: no_read_fault,
        free_bytes: unbounded(),
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
    store.fetch(&[cold]);
    tells.recv().expect("told");
    let fetched = store.fetched().pop();
    let Some((fetched, Ok(Some(content)))) = fetched else {
        panic!("it was not read");
    };
    assert_eq!(fetched, cold);
    store.cache(cold, content);
    let before = store.block_cache();
    assert!(matches!(get(&store, low), Ok(Lookup::Found(Some(_)))));
    let after = store.block_cache();
    assert_eq!((after.hits, after.misses), (before.hits + 1, before.misses));

    let gone = ColdBlock { table: 999, ..cold };
    store.fetch(&[gone]);
    tells.recv().expect("told");
    assert!(matches!(store.fetched()[..], [(block, Ok(None))] if block == gone));
    assert_eq!(store.block_cache(), after);

    let cold = cold_block(&store, high);
    store.fetch(&[cold]);
    tells.recv().expect("told");
    let fetched = store.fetched();
    let [(failed, Err(error))] = fetched.as_slice() else {
        panic!("the file is cut");
    };
    let named = path.display().to_string();
    assert_eq!(*failed, cold);
    assert!(error.to_string().contains(&named), "{error}");
}
