//! Both table stores are tested against a model. Every read is compared, through flushes,
//! compactions, reopenings, crashes and moving thresholds. Both stores pass the same tests, so
//! these also show that the simulator's tables behave like the real ones.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::range::digest::Rows;
use crate::types::{DataId, KeyRange, ReplicaId};

const DATA_ID: DataId = DataId(3);
const MEMTABLE_BYTES: usize = 16 << 10;
/// Room for fewer rows than the tests have.
const ROW_CACHE_BYTES: usize = 8 << 10;

/// A seeded source of numbers (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

type Versions = BTreeMap<u64, Option<Vec<u8>>>;

/// A row that a scan yields: key, version, value.
type ScannedRow = (Vec<u8>, u64, Vec<u8>);

/// The next rows of a scan, at most `most`.
fn rows<T: TableStore>(scan: &mut Scan<'_, T>, most: usize) -> Vec<ScannedRow> {
    let mut rows = Vec::new();
    while rows.len() < most
        && let Some(row) = scan.next_row().expect("readable")
    {
        rows.push((row.key().to_vec(), row.version().0, row.value().to_vec()));
    }
    rows
}

/// A scan in either direction that may wait for the disk.
pub(super) fn scan_in<'a, T: TableStore>(
    lsm: &'a Lsm<T>,
    direction: Direction,
    bounds: Bounds<'a>,
    at: Timestamp,
) -> Scan<'a, T> {
    let scan = lsm.scan_by(BlockReads::Wait(lsm), direction, bounds, at);
    scan.expect("readable")
}

/// Has blocks fetched, and waits for them.
fn fetch<T: TableStore>(lsm: &mut Lsm<T>, blocks: &[ColdBlock]) -> Vec<Fetched<T::Block>> {
    lsm.fetch(blocks);
    let mut fetched = Vec::new();
    while fetched.len() < blocks.len() {
        fetched.extend(lsm.fetched());
        std::thread::yield_now();
    }
    fetched
}

/// All rows of a scan that never waits, and in how many turns it came to its end.
fn cold_rows<T: TableStore>(
    lsm: &mut Lsm<T>,
    direction: Direction,
    (start, end): (&[u8], &[u8]),
    at: u64,
) -> (Vec<ScannedRow>, usize) {
    let (mut found, mut held) = (Vec::new(), HeldBlocks::default());
    let (mut low, mut high) = (
        Bound::Included(start.to_vec()),
        Bound::Excluded(end.to_vec()),
    );
    let mut stopped_at = None;
    for turns in 1.. {
        let bounds = (
            low.as_ref().map(Vec::as_slice),
            high.as_ref().map(Vec::as_slice),
        );
        let scan = lsm.try_scan(direction, bounds, Timestamp(at), &held);
        let turn = scan.and_then(|mut scan| {
            while let Some(row) = scan.next_row()? {
                found.push((row.key().to_vec(), row.version().0, row.value().to_vec()));
            }
            Ok(())
        });
        let stop = match turn {
            Ok(()) => return (found, turns),
            Err(ScanStop::Cold(stop)) => *stop,
            Err(ScanStop::Failed(error)) => panic!("{error}"),
        };
        if stop.next.is_some() && stop.next != stopped_at {
            held.end_turn();
            stopped_at.clone_from(&stop.next);
        }
        let wanted = [&[stop.block][..], &stop.ahead].concat();
        for (block, content) in fetch(lsm, &wanted) {
            let content = content.expect("readable").expect("its table is there");
            if block == stop.block && stop.is_cached {
                lsm.cache(block, content.clone());
            }
            held.insert(block, content);
        }
        match (direction, stop.next) {
            (Direction::Forward, Some(next)) => low = Bound::Included(next),
            (Direction::Reverse, Some(next)) => high = Bound::Included(next),
            (_, None) => {}
        }
    }
    unreachable!("a scan ends")
}

/// Lets every read that may not wait fail, as if the page cache held nothing.
fn not_in_page_cache(_: &std::path::Path, _: u64, may_wait: bool) -> std::io::Result<()> {
    match may_wait {
        true => Ok(()),
        false => Err(std::io::ErrorKind::WouldBlock.into()),
    }
}

/// An insert: the memtable it went to, key, version, value.
type Logged = (MemtableId, Vec<u8>, u64, Option<Vec<u8>>);

#[derive(Default)]
struct Model {
    rows: BTreeMap<Vec<u8>, Versions>,
    /// The inserts into memtables that are not known to be flushed.
    log: Vec<Logged>,
}

impl Model {
    fn get(&self, key: &[u8], at: u64) -> Option<(u64, Option<&[u8]>)> {
        let (version, value) = self.rows.get(key)?.range(..=at).next_back()?;
        Some((*version, value.as_deref()))
    }

    fn scan(&self, start: &[u8], end: &[u8], at: u64) -> Vec<ScannedRow> {
        let keys = self
            .rows
            .range(start.to_vec()..end.to_vec())
            .map(|(key, _)| key);
        let rows = keys.filter_map(|key| {
            let (version, value) = self.get(key, at)?;
            Some((key.clone(), version, value?.to_vec()))
        });
        rows.collect()
    }
}

struct Run<T: TableStore> {
    open: Box<dyn Fn() -> T>,
    lsm: Lsm<T>,
    model: Model,
    random: Random,
    now: u64,
    threshold: u64,
    current: MemtableId,
}

impl<T: TableStore> Run<T> {
    fn new(seed: u64, open: impl Fn() -> T + 'static) -> Run<T> {
        let lsm = Lsm::new(open(), ROW_CACHE_BYTES);
        let mut run = Run {
            open: Box::new(open),
            lsm,
            model: Model::default(),
            random: Random::new(seed),
            now: 1 << 40,
            threshold: 0,
            current: MemtableId(1),
        };
        run.tell_rules();
        run
    }

    fn tell_rules(&mut self) {
        let live = LiveData {
            replica: ReplicaId(1),
            data_id: DATA_ID,
            keys: KeyRange::all(),
            threshold: Timestamp(self.threshold),
        };
        self.lsm.set_gc(GcRules { live: vec![live] });
    }

    fn key(&mut self) -> Vec<u8> {
        let user = format!("k{:03}", self.random.below(120));
        let mut key = Vec::new();
        keys::user_key(DATA_ID, user.as_bytes(), &mut key);
        key
    }

    fn insert(&mut self) {
        let key = self.key();
        self.now += 1 + self.random.below(5);
        let len = self.random.below(100) as usize;
        let value = (self.random.below(5) > 0).then(|| vec![self.now as u8; len]);
        if !self.lsm.has_room(1, key.len() + len) {
            self.freeze();
        }
        self.lsm.insert(&key, Timestamp(self.now), value.as_deref());
        self.model
            .rows
            .entry(key.clone())
            .or_default()
            .insert(self.now, value.clone());
        self.model.log.push((self.current, key, self.now, value));
    }

    fn freeze(&mut self) {
        let waiting_since = Instant::now();
        while self.lsm.pressure().stopped {
            self.poll();
            assert!(
                waiting_since.elapsed() < Duration::from_secs(60),
                "the flusher hangs"
            );
            std::thread::yield_now();
        }
        let id = self.lsm.freeze();
        assert_eq!(id, self.current);
        self.current = MemtableId(id.0 + 1);
    }

    fn poll(&mut self) {
        if let Some(installed) = self.lsm.poll().expect("nothing fails") {
            self.model
                .log
                .retain(|(memtable, ..)| *memtable > installed);
        }
    }

    /// A timestamp at which reads are served: one above the threshold.
    fn time(&mut self) -> u64 {
        match self.random.below(3) {
            0 => self.now,
            _ => self.threshold + 1 + self.random.below(self.now - self.threshold),
        }
    }

    /// What a read gives when the blocks that it needs have come.
    fn waited<R>(&mut self, read: impl Fn(&Lsm<T>) -> Result<Result<R, ColdBlock>, LsmError>) -> R {
        loop {
            match read(&self.lsm).expect("readable") {
                Ok(seen) => return seen,
                Err(block) => {
                    for (block, content) in fetch(&mut self.lsm, &[block]) {
                        if let Some(content) = content.expect("readable") {
                            self.lsm.cache(block, content);
                        }
                    }
                }
            }
        }
    }

    fn check_get(&mut self) {
        let (key, at) = (self.key(), self.time());
        let owned = |row: Row<'_>| (row.version.0, row.value.map(<[u8]>::to_vec));
        let tried =
            self.waited(|lsm| lsm.try_newest(&key, Timestamp(at), |found| found.map(owned)));
        let found = self.lsm.get(&key, Timestamp(at)).expect("readable");
        let found = found.as_ref().map(|found| owned(found.row()));
        let expected = self.model.get(&key, at);
        let expected = expected.map(|(version, value)| (version, value.map(<[u8]>::to_vec)));
        // A tombstone at or below the threshold may have been dropped.
        let may_be_gone = (expected.as_ref())
            .is_some_and(|(version, value)| value.is_none() && *version <= self.threshold);
        for found in [found, tried] {
            assert!(
                found == expected || may_be_gone && found.is_none(),
                "get at {at}, threshold {}: {found:?}, not {expected:?}",
                self.threshold
            );
        }
    }

    fn check_newest(&mut self) {
        let key = self.key();
        let expected = self.model.get(&key, u64::MAX).map(|(version, value)| Row {
            version: Timestamp(version),
            value,
        });
        let threshold = Timestamp(self.threshold);
        let compared = self.lsm.newest(&key, |found| {
            // A tombstone at or below the threshold may have been dropped.
            match expected.filter(|row| row.value.is_none() && row.version <= threshold) {
                Some(_) => assert!(found.is_none() || found == expected),
                None => assert_eq!(found, expected),
            }
        });
        compared.expect("readable");
    }

    fn check_scan(&mut self) {
        let (a, b, at) = (self.key(), self.key(), self.time());
        let (start, end) = if a < b { (a, b) } else { (b, a) };
        let bounds = (
            Bound::Included(start.as_slice()),
            Bound::Excluded(end.as_slice()),
        );
        let at_once = |direction| {
            let mut scan = scan_in(&self.lsm, direction, bounds, Timestamp(at));
            rows(&mut scan, usize::MAX)
        };
        let found = at_once(Direction::Forward);
        assert_eq!(found, self.model.scan(&start, &end, at));
        let mut found = at_once(Direction::Reverse);
        found.reverse();
        assert_eq!(found, self.model.scan(&start, &end, at));
        for direction in [Direction::Forward, Direction::Reverse] {
            let (mut found, _) = cold_rows(&mut self.lsm, direction, (&start, &end), at);
            if direction == Direction::Reverse {
                found.reverse();
            }
            assert_eq!(found, self.model.scan(&start, &end, at), "{direction:?}");
        }
    }

    /// A scan in pages, with writes, freezes and flushes between them.
    fn check_pages(&mut self) {
        let (a, b, at) = (self.key(), self.key(), self.time());
        let (start, end) = if a < b { (a, b) } else { (b, a) };
        let direction = match self.random.below(2) {
            0 => Direction::Forward,
            _ => Direction::Reverse,
        };
        let mut found: Vec<ScannedRow> = Vec::new();
        let (mut low, mut high) = (Bound::Included(start.clone()), Bound::Excluded(end.clone()));
        loop {
            let bounds = (low.as_ref(), high.as_ref());
            let bounds = (bounds.0.map(Vec::as_slice), bounds.1.map(Vec::as_slice));
            let most = 1 + self.random.below(5) as usize;
            let page = rows(
                &mut scan_in(&self.lsm, direction, bounds, Timestamp(at)),
                most,
            );
            let Some((last, ..)) = page.last() else { break };
            match direction {
                Direction::Forward => low = Bound::Excluded(last.clone()),
                Direction::Reverse => high = Bound::Excluded(last.clone()),
            }
            found.extend(page);
            match self.random.below(8) {
                0 => self.freeze(),
                1..4 => self.poll(),
                _ => self.insert(),
            }
        }
        if direction == Direction::Reverse {
            found.reverse();
        }
        assert_eq!(found, self.model.scan(&start, &end, at), "{direction:?}");
    }

    /// Compares digests. Versions that were dropped from tables already do not count in a digest.
    fn check_digest(&mut self) {
        self.freeze();
        let (at, threshold) = (Timestamp(self.now), Timestamp(self.threshold));
        let mut expected = Rows::new(at, threshold);
        for (key, versions) in &self.model.rows {
            for (version, value) in versions.iter().rev() {
                expected.take(keys::user_part(key), Timestamp(*version), value.as_deref());
            }
        }
        let (mut from, mut end) = (Vec::new(), Vec::new());
        keys::users_of(DATA_ID, (&[], None), &mut from, &mut end);
        let mut found = Rows::new(at, threshold);
        let mut next = Some(from);
        while let Some(from) = next {
            let bounds = (
                Bound::Included(from.as_slice()),
                Bound::Excluded(end.as_slice()),
            );
            let part = self.lsm.part(bounds);
            next = found.read(part, bounds, 700).expect("readable").1;
        }
        assert_eq!(found.value(), expected.value(), "threshold {threshold}");
    }

    /// Drops the memtables, opens the store again and inserts what was not in tables, as a replay
    /// of the log does.
    fn crash(&mut self) {
        self.poll();
        let fresh = {
            let open = &self.open;
            // The old store is closed before the new one is opened, as when a process ends.
            let old = std::mem::replace(&mut self.lsm, Lsm::new(open(), ROW_CACHE_BYTES));
            drop(old);
            Lsm::new(open(), ROW_CACHE_BYTES)
        };
        self.lsm = fresh;
        self.tell_rules();
        self.current = MemtableId(1);
        let log = std::mem::take(&mut self.model.log);
        for (_, key, version, value) in log {
            let there = self.lsm.get(&key, Timestamp(version)).expect("readable");
            let there = there.is_some_and(|found| found.version() == Timestamp(version));
            if there {
                continue; // its flush was installed just before the crash
            }
            if !self.lsm.has_room(1, key.len() + 100) {
                self.freeze();
            }
            self.lsm.insert(&key, Timestamp(version), value.as_deref());
            self.model.log.push((self.current, key, version, value));
        }
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..550 => self.insert(),
            550..700 => self.check_get(),
            700..850 => self.check_newest(),
            850..885 => self.check_scan(),
            885..900 => self.check_pages(),
            900..970 => self.poll(),
            970..976 => self.freeze(),
            976..980 => self.check_digest(),
            980..988 => {
                self.threshold += self.random.below((self.now - self.threshold) / 2 + 1);
                self.tell_rules();
            }
            988..994 => self.lsm.collect_garbage(),
            _ => self.crash(),
        }
    }
}

/// A disk that reads at once, and whose blocks leave the memory after every second use.
#[derive(Default)]
struct ColdAgain(std::cell::Cell<bool>);

impl SlowDisk for ColdAgain {
    fn evicts(&self) -> bool {
        self.0.replace(!self.0.get())
    }

    fn read(&self, done: Box<dyn FnOnce()>) {
        done();
    }
}

/// A disk that reads when it is told to; its blocks stay in memory.
#[derive(Clone, Default)]
struct Held(Rc<RefCell<Vec<Done>>>);

type Done = Box<dyn FnOnce()>;

impl Held {
    fn finish(&self) {
        self.0.take().into_iter().for_each(|done| done());
    }
}

impl SlowDisk for Held {
    fn evicts(&self) -> bool {
        false
    }

    fn read(&self, done: Done) {
        self.0.borrow_mut().push(done);
    }
}

#[test]
fn memory_tables_agree_with_the_model() {
    for seed in 1..30 {
        let disk = Rc::new(MemoryDisk::default());
        let mut run = Run::new(seed, move || {
            let mut tables = MemoryTables::open(disk.clone(), MEMTABLE_BYTES);
            if seed % 2 == 0 {
                tables.read_from(Box::new(ColdAgain::default()));
            }
            tables
        });
        (0..4000).for_each(|_| run.step());
    }
}

pub(super) fn table_options(folder: &std::path::Path) -> TableOptions {
    TableOptions {
        folder: folder.to_owned(),
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: 1 << 20,
        on_start: Arc::new(|_| ()),
        push_out: |_| (),
        read_fault: no_read_fault,
        free_bytes: unbounded(),
    }
}

fn lsm_tables(folder: &std::path::Path) -> LsmTables {
    LsmTables::open(table_options(folder)).expect("opens")
}

/// Tables of which few blocks are in memory: not fewer than a get of a key in all runs needs at once.
fn cold_tables(folder: &std::path::Path) -> LsmTables {
    let options = TableOptions {
        cache_bytes: 64 << 10,
        read_fault: not_in_page_cache,
        ..table_options(folder)
    };
    LsmTables::open(options).expect("opens")
}

#[test]
fn tables_on_disk_agree_with_the_model() {
    for seed in 1..7 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().to_owned();
        // Two stores must not be open in one folder at once. crash() opens a placeholder in a
        // folder of its own, drops the old store, and then opens the new one.
        let generation = std::cell::Cell::new(0);
        let placeholder = tempfile::tempdir().expect("a temporary folder");
        let mut run = Run::new(seed, move || {
            generation.set(generation.get() + 1);
            if generation.get() % 2 == 0 {
                lsm_tables(&placeholder.path().join(generation.get().to_string()))
            } else if seed % 2 == 0 {
                cold_tables(&path)
            } else {
                lsm_tables(&path)
            }
        });
        (0..2500).for_each(|_| run.step());
    }
}

/// Versions of one key fill many blocks of a table, and several tables of a run.
#[test]
fn keys_with_very_many_versions_are_scanned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = TableOptions {
        memtable_bytes: 8 << 20,
        cache_bytes: 64 << 10,
        read_fault: not_in_page_cache,
        ..table_options(folder.path())
    };
    let tables = LsmTables::open(options).expect("opens");
    let mut lsm = Lsm::new(tables, 0);
    let user_keys = [&b"a"[..], b"b", b"b\0", b"c", b"\xff\xff"];
    let mut random = Random(9);
    let mut model = Model::default();
    let mut key = Vec::new();
    for round in 0..3 {
        for number in 1..=3000u64 {
            let version = round * 3000 + number;
            let user_key = user_keys[random.below(user_keys.len() as u64) as usize];
            keys::user_key(DATA_ID, user_key, &mut key);
            let value = (random.below(4) > 0).then(|| version.to_be_bytes().repeat(20));
            lsm.insert(&key, Timestamp(version), value.as_deref());
            let versions = model.rows.entry(key.clone()).or_default();
            versions.insert(version, value);
        }
        lsm.freeze();
        let since = Instant::now();
        while lsm.poll().expect("nothing fails").is_none() {
            assert!(since.elapsed() < Duration::from_secs(20), "no flush");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut turns_max = 0;
    for _ in 0..200 {
        let at = random.below(9100);
        let mut bound = || {
            let user_key = user_keys[random.below(user_keys.len() as u64) as usize];
            keys::user_key(DATA_ID, user_key, &mut key);
            key.clone()
        };
        let (start, end) = (bound(), bound());
        let bounds = (
            Bound::Included(start.as_slice()),
            Bound::Excluded(end.as_slice()),
        );
        let mut scan = scan_in(&lsm, Direction::Reverse, bounds, Timestamp(at));
        let mut found = rows(&mut scan, usize::MAX);
        drop(scan);
        found.reverse();
        let wanted = match start <= end {
            true => model.scan(&start, &end, at),
            false => Vec::new(),
        };
        assert_eq!(found, wanted, "at {at}");
        for direction in [Direction::Forward, Direction::Reverse] {
            let (mut found, turns) = cold_rows(&mut lsm, direction, (&start, &end), at);
            if direction == Direction::Reverse {
                found.reverse();
            }
            assert_eq!(found, wanted, "at {at}, {direction:?}");
            turns_max = turns_max.max(turns);
        }
    }
    assert!(turns_max > 3, "{turns_max}");
}

#[test]
fn a_table_goes_to_the_disk_while_it_is_made() {
    static LENGTHS: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = TableOptions {
        push_out: |file| {
            let len = file.metadata().expect("it is open").len();
            LENGTHS.lock().expect("nobody panics").push(len);
        },
        ..table_options(folder.path())
    };
    let tables = LsmTables::open(options).expect("opens");
    let mut lsm = Lsm::new(tables, 0);
    // Values that do not compress.
    let mut random = Random(7);
    let mut key = Vec::new();
    for number in 0..4000u32 {
        keys::user_key(DATA_ID, &number.to_be_bytes(), &mut key);
        let value: Vec<u8> = (0..1000).map(|_| random.below(256) as u8).collect();
        lsm.insert(&key, Timestamp(1), Some(&value));
    }
    lsm.freeze();
    let since = Instant::now();
    while lsm.poll().expect("nothing fails").is_none() {
        assert!(since.elapsed() < Duration::from_secs(20), "no flush");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Four megabytes are written back in pieces of half a megabyte, except for the last piece.
    let lengths = LENGTHS.lock().expect("nobody panics").clone();
    assert_eq!(lengths.len(), 7, "{lengths:?}");
    assert!(lengths.is_sorted() && lengths[6] > 3 << 20, "{lengths:?}");
}

#[test]
fn old_versions_go_where_nobody_writes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_owned();
    let mut run = Run::new(1, move || lsm_tables(&path));
    let mut key = Vec::new();
    keys::user_key(DATA_ID, b"k", &mut key);
    for version in 1..=100u64 {
        run.lsm.insert(&key, Timestamp(version), Some(&[7; 100]));
    }
    run.threshold = 1000;
    run.lsm.freeze();
    run.tell_rules();
    run.lsm.collect_garbage();
    let since = Instant::now();
    loop {
        run.lsm.poll().expect("nothing fails");
        let versions = versions_in_tables(&run.lsm);
        if versions == 1 {
            break;
        }
        assert!(
            since.elapsed() < Duration::from_secs(30),
            "{versions} versions are left"
        );
        run.lsm.collect_garbage();
        std::thread::sleep(Duration::from_millis(10));
    }
    let newest = run
        .lsm
        .get(&key, Timestamp::MAX)
        .expect("readable")
        .expect("is there");
    assert_eq!(newest.version(), Timestamp(100));
}

/// All rows of all tables.
pub(super) fn rows_in_tables<T: TableStore>(store: &T) -> Vec<TableRow<T::Slice>> {
    let all = (Bound::Unbounded, Bound::Unbounded);
    let mut rows = Vec::new();
    for mut run in store.runs(all, Direction::Forward) {
        while let Some(row) = T::next(&mut run, BlockReads::Wait(store)).expect("readable") {
            rows.push(row);
        }
    }
    rows
}

fn versions_in_tables<T: TableStore>(lsm: &Lsm<T>) -> usize {
    rows_in_tables(&lsm.store).len()
}

#[test]
fn a_full_disk_keeps_rows_readable_and_heals() {
    let disk = Rc::new(MemoryDisk::default());
    let of_store = disk.clone();
    let mut run = Run::new(5, move || {
        MemoryTables::open(of_store.clone(), MEMTABLE_BYTES)
    });
    disk.full.set(true);
    for _ in 0..3 {
        (0..20).for_each(|_| run.insert());
        run.freeze();
        run.poll();
    }
    assert!(run.lsm.pressure().disk_full && run.lsm.pressure().level > 0.0);
    (0..200).for_each(|_| run.check_get());
    disk.full.set(false);
    (0..10).for_each(|_| run.poll());
    assert_eq!(run.lsm.pressure(), Pressure::default());
    (0..200).for_each(|_| run.check_get());
}

#[test]
fn a_disk_without_room_for_what_memory_holds_is_full_before_a_flush_has_tried() {
    static FREE: AtomicU64 = AtomicU64::new(u64::MAX);
    let folder = tempfile::tempdir().expect("a temporary folder");
    // The flusher has not got to its first flush.
    let gate = Arc::new(Mutex::new(()));
    let (closed, of_flusher) = (gate.lock().expect("nobody panics"), gate.clone());
    let options = TableOptions {
        on_start: Arc::new(move |work| {
            if work == "flush" {
                drop(of_flusher.lock());
            }
        }),
        free_bytes: Arc::new(|_| Ok(FREE.load(Ordering::SeqCst))),
        ..table_options(folder.path())
    };
    let mut lsm = Lsm::new(LsmTables::open(options).expect("opens"), 0);
    let mut key = Vec::new();
    let mut write = |lsm: &mut Lsm<LsmTables>, number: u64| {
        keys::user_key(DATA_ID, b"k", &mut key);
        lsm.insert(&key, Timestamp(number), Some(&[7; MEMTABLE_BYTES / 2]));
        lsm.freeze();
    };
    write(&mut lsm, 1);
    assert!(!lsm.pressure().disk_full && !lsm.is_short_of_room());
    assert!(lsm.room_left(0) > 3.9, "{}", lsm.room_left(0));
    // Not enough for all that memory can hold.
    FREE.store(6 * MEMTABLE_BYTES as u64, Ordering::SeqCst);
    write(&mut lsm, 2);
    assert!(!lsm.pressure().disk_full && lsm.is_short_of_room());
    // Room for one memtable, but not for the one that is being filled, too.
    FREE.store(MEMTABLE_BYTES as u64, Ordering::SeqCst);
    write(&mut lsm, 3);
    assert!(lsm.pressure().disk_full);
    assert!(lsm.room_left(0) > 1.9, "{}", lsm.room_left(0));
    FREE.store(u64::MAX, Ordering::SeqCst);
    let mut until = |done: &dyn Fn(&Lsm<LsmTables>) -> bool| {
        let since = Instant::now();
        while !done(&lsm) {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "{:?}",
                lsm.stats()
            );
            lsm.poll().expect("nothing fails");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until(&|lsm| !lsm.pressure().disk_full);
    // What was flushed needs no room any more.
    FREE.store(2 * MEMTABLE_BYTES as u64, Ordering::SeqCst);
    until(&|lsm| lsm.pressure().disk_full);
    drop(closed);
    until(&|lsm| lsm.stats().frozen == 0 && !lsm.pressure().disk_full);
    until(&|lsm| lsm.is_short_of_room());
    FREE.store(u64::MAX, Ordering::SeqCst);
    until(&|lsm| !lsm.is_short_of_room());
}

#[test]
fn tables_are_stuck_while_level_0_is_full_and_compactions_fail() {
    let disk = Rc::new(MemoryDisk::default());
    let of_store = disk.clone();
    let mut run = Run::new(5, move || {
        MemoryTables::open(of_store.clone(), MEMTABLE_BYTES)
    });
    disk.compactions_fail.set(true);
    for _ in 0..RUNS_MAX {
        assert!(!run.lsm.pressure().stuck, "there is room yet");
        run.insert();
        run.freeze();
        // A flush, and a compaction.
        (0..2).for_each(|_| run.poll());
    }
    let full = run.lsm.pressure();
    assert!(full.stuck && full.stopped, "{full:?}");
    (0..200).for_each(|_| run.check_get());
    disk.compactions_fail.set(false);
    run.poll();
    assert_eq!(run.lsm.pressure(), Pressure::default());
    assert!(!run.lsm.stats().tables.compaction_fails);
}

#[test]
fn a_failed_write_is_told() {
    let disk = Rc::new(MemoryDisk::default());
    let of_store = disk.clone();
    let mut run = Run::new(5, move || {
        MemoryTables::open(of_store.clone(), MEMTABLE_BYTES)
    });
    run.insert();
    run.freeze();
    disk.failing.set(true);
    assert!(matches!(run.lsm.poll(), Err(LsmError::Failed { .. })));
}

#[test]
fn a_read_that_a_write_overtakes_while_it_waits_for_a_block_sees_the_write() {
    let disk = Held::default();
    let mut tables = MemoryTables::open(Rc::default(), MEMTABLE_BYTES);
    tables.read_from(Box::new(disk.clone()));
    let mut lsm = Lsm::new(tables, ROW_CACHE_BYTES);
    let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let tells = told.clone();
    lsm.on_fetched(Arc::new(move || {
        tells.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let mut key = Vec::new();
    keys::user_key(DATA_ID, b"k", &mut key);
    let flush = |lsm: &mut Lsm<MemoryTables>| {
        lsm.freeze();
        lsm.poll().expect("nothing fails");
    };
    lsm.insert(&key, Timestamp(1), Some(b"one"));
    flush(&mut lsm);
    let newest_at = |lsm: &Lsm<MemoryTables>, at| {
        let owned = |row: Row<'_>| (row.version.0, row.value.map(<[u8]>::to_vec));
        let look = |found: Option<Row<'_>>| found.map(owned);
        lsm.try_newest(&key, at, look).expect("readable")
    };
    let block = newest_at(&lsm, Timestamp::MAX).expect_err("not in memory");
    lsm.fetch(&[block]);
    assert_eq!(lsm.fetched(), []);
    assert_eq!(newest_at(&lsm, Timestamp::MAX), Err(block));
    lsm.insert(&key, Timestamp(2), Some(b"two"));
    disk.finish();
    assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(lsm.fetched(), [(block, Ok(Some(())))]);
    lsm.cache(block, ());
    let (one, two) = (
        Some((1, Some(b"one".to_vec()))),
        Some((2, Some(b"two".to_vec()))),
    );
    // The earlier version is read beside the newest one, and the row cache takes in the newest.
    assert_eq!(newest_at(&lsm, Timestamp(1)), Ok(one));
    assert_eq!(newest_at(&lsm, Timestamp::MAX), Ok(two.clone()));
    flush(&mut lsm);
    assert_eq!(
        newest_at(&lsm, Timestamp::MAX),
        Ok(two),
        "the row cache has it"
    );
}

#[test]
fn a_row_that_was_read_is_cached_and_follows_writes() {
    let tables = MemoryTables::open(Rc::default(), MEMTABLE_BYTES);
    let mut lsm = Lsm::new(tables, ROW_CACHE_BYTES);
    let mut key = Vec::new();
    keys::user_key(DATA_ID, b"k", &mut key);
    let newest = |lsm: &Lsm<MemoryTables>| {
        let owned = |row: Row<'_>| (row.version.0, row.value.map(<[u8]>::to_vec));
        lsm.newest(&key, |found| found.map(owned))
            .expect("readable")
    };
    let counts = |lsm: &Lsm<MemoryTables>| {
        let memory = lsm.row_cache.borrow().memory();
        (memory.hits, memory.misses)
    };
    assert_eq!(newest(&lsm), None);
    lsm.insert(&key, Timestamp(1), Some(b"one"));
    let one = Some((1, Some(b"one".to_vec())));
    assert_eq!((newest(&lsm), newest(&lsm)), (one.clone(), one.clone()));
    assert_eq!(counts(&lsm), (1, 2), "a row in a memtable is filled in");
    lsm.freeze();
    lsm.poll().expect("nothing fails");
    assert_eq!((newest(&lsm), newest(&lsm)), (one.clone(), one));
    assert_eq!(counts(&lsm), (3, 2));
    lsm.insert(&key, Timestamp(2), None);
    assert_eq!(newest(&lsm), Some((2, None)));
    lsm.insert(&key, Timestamp(3), Some(b"a longer value"));
    assert_eq!(newest(&lsm), Some((3, Some(b"a longer value".to_vec()))));
    assert_eq!(counts(&lsm), (5, 2));
    let too_long = vec![7; 5000];
    lsm.insert(&key, Timestamp(4), Some(&too_long));
    assert_eq!(newest(&lsm), Some((4, Some(too_long))));
    assert_eq!(counts(&lsm), (5, 3));
}

#[test]
fn a_bad_block_is_an_error_of_every_read_until_the_disk_is_mended() {
    const ROWS: u8 = 40;
    let (medium, disk) = (Rc::<MemoryDisk>::default(), Held::default());
    let mut tables = MemoryTables::open(medium.clone(), MEMTABLE_BYTES);
    tables.read_from(Box::new(disk.clone()));
    let mut lsm = Lsm::new(tables, 0);
    let key = |number: u8| {
        let mut key = Vec::new();
        keys::user_key(DATA_ID, &[b'k', number], &mut key);
        key
    };
    for number in 0..ROWS {
        lsm.insert(&key(number), Timestamp(1), Some(b"value"));
    }
    lsm.freeze();
    lsm.poll().expect("nothing fails");
    medium.damage(|| u8::MAX);
    let (mut at_once, mut fetched) = (0, 0);
    for number in 0..ROWS {
        let key = key(number);
        match lsm.try_newest(&key, Timestamp::MAX, |found| found.is_some()) {
            Ok(Ok(found)) => panic!("row {number} was read, or is absent: {found}"),
            Ok(Err(block)) => {
                lsm.fetch(&[block]);
                disk.finish();
                let ended = lsm.fetched();
                assert!(matches!(
                    ended.as_slice(),
                    [(_, Err(LsmError::Unreadable { .. }))]
                ));
                fetched += 1;
            }
            Err(LsmError::Unreadable { .. }) => at_once += 1,
            Err(error) => panic!("{error}"),
        }
        let read = lsm.get(&key, Timestamp::MAX);
        assert!(matches!(read, Err(LsmError::Unreadable { .. })));
    }
    assert!(at_once > 0 && fetched > 0, "{at_once}, {fetched}");
    let bounds = (Bound::Unbounded, Bound::Unbounded);
    assert!(lsm.scan(bounds, Timestamp::MAX).is_err());
    // A newer version in a memtable needs no block.
    lsm.insert(&key(0), Timestamp(2), Some(b"newer"));
    let newest = lsm.try_newest(&key(0), Timestamp::MAX, |found| {
        found.map(|row| row.version)
    });
    assert_eq!(newest, Ok(Ok(Some(Timestamp(2)))));
    // Compactions change nothing.
    lsm.collect_garbage();
    lsm.poll().expect("nothing fails");
    let stats = lsm.stats().tables;
    assert_eq!((stats.compactions, stats.compactions_failed), (0, 1));

    medium.mend();
    lsm.poll().expect("nothing fails");
    assert_eq!(lsm.stats().tables.compactions, 1);
    let read = lsm.get(&key(1), Timestamp::MAX).expect("readable");
    assert!(read.is_some_and(|found| found.value() == Some(b"value")));
}
