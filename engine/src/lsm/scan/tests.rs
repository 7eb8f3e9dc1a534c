//! The merge of memtables and runs is compared with a map of all versions.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;
use crate::lsm::tests::{Random, scan_in};
use crate::lsm::{MemoryDisk, MemoryTables};

type Versions = BTreeMap<u64, Option<Vec<u8>>>;
type Model = BTreeMap<Vec<u8>, Versions>;
/// Key, version and value.
type Row = (Vec<u8>, u64, Vec<u8>);
type Interval = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// A key that may be hot, a prefix of others, or longer than what the order of the merge holds.
fn key(random: &mut Random) -> Vec<u8> {
    match random.below(6) {
        0 => b"hot".to_vec(),
        1 => b"hot\0".to_vec(),
        2 => format!("a-key-with-a-long-prefix-{:02}", random.below(40)).into_bytes(),
        3 => vec![b'z'; random.below(20) as usize],
        _ => format!("k{}", random.below(200)).into_bytes(),
    }
}

/// A tree of several memtables and runs, with its rows.
fn tree(random: &mut Random) -> (Lsm<MemoryTables>, Model) {
    let disk = Rc::new(MemoryDisk::default());
    let mut lsm = Lsm::new(MemoryTables::open(disk, 1 << 20), 0);
    let mut model = Model::new();
    for version in 1..=4000 {
        let key = key(random);
        let len = if random.below(40) == 0 { 3000 } else { 10 };
        let value = (random.below(3) > 0).then(|| vec![version as u8; len]);
        lsm.insert(&key, Timestamp(version), value.as_deref());
        model.entry(key).or_default().insert(version, value);
        if random.below(500) == 0 {
            lsm.freeze();
        }
        if random.below(800) == 0 {
            lsm.poll().expect("nothing fails");
        }
    }
    (lsm, model)
}

fn bound(random: &mut Random) -> Bound<Vec<u8>> {
    match random.below(5) {
        0 => Bound::Unbounded,
        1 | 2 => Bound::Included(key(random)),
        _ => Bound::Excluded(key(random)),
    }
}

fn borrowed((low, high): &Interval) -> Bounds<'_> {
    (
        low.as_ref().map(Vec::as_slice),
        high.as_ref().map(Vec::as_slice),
    )
}

/// What a scan must give.
fn wanted(model: &Model, interval: &Interval, at: u64, direction: Direction) -> Vec<Row> {
    let is_inside = |key: &[u8]| {
        let is_above = match &interval.0 {
            Bound::Unbounded => true,
            Bound::Included(low) => key >= low.as_slice(),
            Bound::Excluded(low) => key > low.as_slice(),
        };
        is_above
            && match &interval.1 {
                Bound::Unbounded => true,
                Bound::Included(high) => key <= high.as_slice(),
                Bound::Excluded(high) => key < high.as_slice(),
            }
    };
    let keys = model.iter().filter(|(key, _)| is_inside(key));
    let rows = keys.filter_map(|(key, versions)| {
        let (version, value) = versions.range(..=at).next_back()?;
        Some((key.clone(), *version, value.clone()?))
    });
    let mut rows: Vec<Row> = rows.collect();
    if direction == Direction::Reverse {
        rows.reverse();
    }
    rows
}

fn owned<S: AsRef<[u8]>>(row: &ScanRow<'_, S>) -> Row {
    (row.key().to_vec(), row.version().0, row.value().to_vec())
}

/// All rows of a scan that is stopped as often as can be, and goes on each time as another scan.
fn in_steps(
    lsm: &Lsm<MemoryTables>,
    interval: &Interval,
    at: u64,
    direction: Direction,
) -> Vec<Row> {
    let (mut rows, mut interval) = (Vec::new(), interval.clone());
    loop {
        let bounds = borrowed(&interval);
        let mut scan = scan_in(lsm, direction, bounds, Timestamp(at));
        match scan.next_row_until(|_| true).expect("readable") {
            Step::Row(row) => rows.push(owned(&row)),
            Step::Stopped => {}
            Step::End => return rows,
        }
        let Some(next) = scan.next_key().map(<[u8]>::to_vec) else {
            return rows;
        };
        match direction {
            Direction::Forward => interval.0 = Bound::Included(next),
            Direction::Reverse => interval.1 = Bound::Included(next),
        }
    }
}

#[test]
fn a_merge_gives_what_a_map_of_all_versions_gives() {
    for seed in 1..=6 {
        let mut random = Random::new(seed);
        let (lsm, model) = tree(&mut random);
        for _ in 0..150 {
            let interval = (bound(&mut random), bound(&mut random));
            let at = random.below(4200);
            for direction in [Direction::Forward, Direction::Reverse] {
                let wanted = wanted(&model, &interval, at, direction);
                let mut scan = scan_in(&lsm, direction, borrowed(&interval), Timestamp(at));
                let mut rows = Vec::new();
                while let Some(row) = scan.next_row().expect("readable") {
                    rows.push(owned(&row));
                }
                assert_eq!(rows, wanted, "{interval:?} at {at}, {direction:?}");
                let rows = in_steps(&lsm, &interval, at, direction);
                assert_eq!(rows, wanted, "{interval:?} at {at}, {direction:?}");
            }
        }
    }
}

#[test]
fn versions_come_in_the_order_of_the_scan() {
    let mut random = Random::new(77);
    let (lsm, model) = tree(&mut random);
    let all = (Bound::Unbounded, Bound::Unbounded);
    for direction in [Direction::Forward, Direction::Reverse] {
        let mut scan = scan_in(&lsm, direction, all, Timestamp(3000));
        let mut found = Vec::new();
        while let Some(version) = scan
            .next_version(|key, version, value| {
                (key.to_vec(), version.0, value.map(<[u8]>::to_vec))
            })
            .expect("readable")
        {
            found.push(version);
        }
        let of_key = |(key, versions): (&Vec<u8>, &Versions)| {
            let of_version =
                |(version, value): (&u64, &Option<Vec<u8>>)| (key.clone(), *version, value.clone());
            let versions = versions.range(..=3000).rev().map(of_version);
            versions.collect::<Vec<_>>()
        };
        let mut wanted: Vec<_> = model.iter().flat_map(of_key).collect();
        if direction == Direction::Reverse {
            wanted.reverse();
        }
        assert_eq!(found, wanted, "{direction:?}");
    }
}

#[test]
fn very_many_versions_of_a_key_are_not_looked_at_one_by_one() {
    const VERSIONS: u64 = 50_000;
    let disk = Rc::new(MemoryDisk::default());
    let mut lsm = Lsm::new(MemoryTables::open(disk, 4 << 20), 0);
    lsm.insert(b"a", Timestamp(1), Some(b"first"));
    lsm.insert(b"z", Timestamp(2), Some(b"last"));
    for version in 3..=VERSIONS {
        lsm.insert(b"hot", Timestamp(version), Some(&version.to_be_bytes()));
        if version == VERSIONS / 2 {
            lsm.freeze();
            lsm.poll().expect("nothing fails");
        }
    }
    let all = (Bound::Unbounded, Bound::Unbounded);
    for at in [3, 1000, VERSIONS / 2, VERSIONS / 2 + 1, VERSIONS] {
        for direction in [Direction::Forward, Direction::Reverse] {
            let mut scan = scan_in(&lsm, direction, all, Timestamp(at));
            let mut rows = Vec::new();
            while let Some(row) = scan.next_row().expect("readable") {
                rows.push(owned(&row));
            }
            let mut wanted = [
                (b"a".to_vec(), 1, b"first".to_vec()),
                (b"hot".to_vec(), at, at.to_be_bytes().to_vec()),
                (b"z".to_vec(), 2, b"last".to_vec()),
            ];
            if direction == Direction::Reverse {
                wanted.reverse();
            }
            assert_eq!(rows, wanted, "at {at}, {direction:?}");
            let bound = VERSIONS_PASSED_MAX + SEEK_WORK + wanted.len();
            assert!(scan.looked() <= bound, "{} at {at}", scan.looked());
        }
    }
}
