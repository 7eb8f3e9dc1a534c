//! The row cache against a map, over long random runs with several sizes.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::lsm::keys::row_hash;
use crate::lsm::tests::Random;
use crate::types::Timestamp;

type Map = BTreeMap<Vec<u8>, (u64, Option<Vec<u8>>)>;

/// A cache beside a map of all rows.
struct Run {
    cache: RowCache,
    map: Map,
    random: Random,
    version: u64,
    /// The hash of a key.
    hash: fn(&[u8]) -> u64,
}

impl Run {
    fn new(bytes: usize, seed: u64, hash: fn(&[u8]) -> u64) -> Run {
        Run {
            cache: RowCache::new(bytes),
            map: Map::new(),
            random: Random::new(seed),
            version: 0,
            hash,
        }
    }

    /// A key of a user's row. Few of them are asked for often.
    fn key(&mut self) -> Vec<u8> {
        let most = [20, 200, 4000][self.random.below(3) as usize];
        let number = self.random.below(most);
        let mut key = Vec::new();
        let user = format!("{number:0width$}", width = 1 + (number % 30) as usize);
        keys::user_key(crate::types::DataId(7), user.as_bytes(), &mut key);
        key
    }

    fn write(&mut self) {
        let key = self.key();
        self.version += 1;
        let len = match self.random.below(50) {
            0 => 3000 + self.random.below(3000),
            _ => self.random.below(300),
        };
        let value = (self.random.below(8) > 0).then(|| vec![self.version as u8; len as usize]);
        let row = Row {
            version: Timestamp(self.version),
            value: value.as_deref(),
        };
        self.cache.update((self.hash)(&key), &key, row);
        self.map.insert(key, (self.version, value));
    }

    /// Reads a row as the tree does: from the cache, or else from the map, and then it is filled in.
    fn read(&mut self) {
        let key = self.key();
        let hash = (self.hash)(&key);
        let there = self.map.get(&key).map(|(version, value)| Row {
            version: Timestamp(*version),
            value: value.as_deref(),
        });
        match self.cache.get(hash, &key) {
            Some(cached) => assert_eq!(Some(cached), there),
            None => {
                let Some(row) = there else { return };
                match self.random.below(3) {
                    0 => {
                        let evictions = self.cache.evictions();
                        self.cache.fill_spare(hash, &key, row);
                        assert_eq!(self.cache.evictions(), evictions, "none leaves for it");
                    }
                    _ => self.cache.fill(hash, &key, row),
                }
            }
        }
    }

    /// The index and the rings name the same rows, each once.
    fn check(&mut self) {
        let mut named = BTreeSet::new();
        for (hash, place) in self.cache.slots.all() {
            let ring = self.cache.ring(place.queue());
            let header = ring.header(place.at());
            assert!(!header.is_dead() && header.hash == hash, "{place:?}");
            let key = ring.key(place.at()).to_vec();
            assert_eq!((self.hash)(&key) as u32, hash, "{place:?}");
            assert!(named.insert(key), "{place:?}: a row is there twice");
        }
        let mut rows = 0;
        for queue in [Queue::Small, Queue::Main] {
            let ring = self.cache.ring(queue);
            rows += ring.headers().filter(|header| !header.is_dead()).count();
        }
        assert_eq!(rows, named.len());
    }

    fn go(&mut self, steps: usize) {
        for step in 0..steps {
            match self.random.below(3) {
                0 => self.write(),
                _ => self.read(),
            }
            if step % 997 == 0 {
                self.check();
            }
        }
        self.check();
    }
}

#[test]
fn agrees_with_a_map() {
    for (bytes, seed) in [
        (2 << 10, 1),
        (5_000, 2),
        (20_000, 3),
        (1 << 17, 4),
        (8 << 20, 5),
    ] {
        let mut run = Run::new(bytes, seed, row_hash);
        run.go(60_000);
        let memory = run.cache.memory();
        assert!(memory.hits > 0 && memory.misses > 0, "{memory:?}");
        assert!(memory.used <= bytes as u64, "{memory:?}");
        let evictions = run.cache.evictions();
        // The largest has room for all rows; in the others the rings have gone round many times.
        assert_eq!(evictions > 1000, bytes < 8 << 20, "{bytes}: {evictions}");
    }
}

#[test]
fn keys_whose_hashes_collide_are_told_apart() {
    let few: fn(&[u8]) -> u64 = |key| row_hash(key) % 7;
    let last: fn(&[u8]) -> u64 = |key| u64::from(u32::MAX) - row_hash(key) % 3;
    for hash in [few, last, |_| 0] {
        let mut run = Run::new(1 << 18, 9, hash);
        run.go(10_000);
        assert!(run.cache.memory().hits > 0);
    }
}

fn row(value: &[u8]) -> Row<'_> {
    Row {
        version: Timestamp(1),
        value: Some(value),
    }
}

#[test]
fn a_cache_without_bytes_holds_nothing() {
    for bytes in [0, 1, 2000] {
        let mut cache = RowCache::new(bytes);
        cache.fill(1, b"key", row(b"value"));
        assert_eq!(cache.get(1, b"key"), None);
        cache.update(1, b"key", row(b"value"));
        let memory = cache.memory();
        assert_eq!((memory.used, memory.hits, memory.misses), (0, 0, 0));
    }
}

#[test]
fn long_rows_stay_outside() {
    let mut cache = RowCache::new(1 << 20);
    let value = vec![1; ROW_LEN_MAX];
    cache.fill(1, b"key", row(&value[3..]));
    assert_eq!(cache.get(1, b"key"), Some(row(&value[3..])));
    cache.fill(2, b"kex", row(&value[2..]));
    assert_eq!(cache.get(2, b"kex"), None);
    // A cached row that becomes too long leaves.
    cache.update(1, b"key", row(&value));
    assert_eq!(cache.get(1, b"key"), None);
    // In a small cache no row takes more than a quarter of the small ring.
    let mut cache = RowCache::new(1 << 12);
    cache.fill(1, b"key", row(&[1; 200]));
    assert_eq!(cache.get(1, b"key"), None);
}

#[test]
fn spare_rows_fill_most_of_an_empty_cache() {
    let mut cache = RowCache::new(1 << 20);
    let keys = || (0..10_000_u64).map(u64::to_be_bytes);
    for key in keys() {
        cache.fill_spare(row_hash(&key), &key, row(&[0; 100]));
    }
    cache.prefetch(&keys().map(|key| row_hash(&key)).collect::<Vec<_>>());
    let hits = keys().filter(|key| cache.get(row_hash(key), key).is_some());
    assert!(hits.count() * 128 > 700_000);
    assert_eq!(cache.evictions(), 0);
}

#[test]
fn an_older_version_changes_nothing() {
    let mut cache = RowCache::new(1 << 14);
    let newer = Row {
        version: Timestamp(2),
        value: Some(b"newer"),
    };
    cache.fill(1, b"key", newer);
    cache.update(1, b"key", row(b"older"));
    assert_eq!(cache.get(1, b"key"), Some(newer));
}

#[test]
fn rows_that_are_asked_for_once_push_out_none_that_are_asked_for_often() {
    let mut cache = RowCache::new(1 << 16);
    let mut ask = |number: u64| {
        let key = number.to_be_bytes();
        let hash = row_hash(&key);
        let is_there = cache.get(hash, &key).is_some();
        if !is_there {
            cache.fill(hash, &key, row(&[0; 100]));
        }
        is_there
    };
    let mut hits = 0;
    for number in 1..=20_000 {
        ask(1_000_000 + number);
        hits += u64::from(ask(number % 100));
    }
    assert!(hits > 19_000, "{hits} of 20,000");
}
