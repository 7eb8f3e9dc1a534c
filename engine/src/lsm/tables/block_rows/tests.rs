//! Blocks are compared with the rows that they were made of, whole and damaged.

use super::*;
use crate::lsm::tables::table::DataBlock;
use crate::lsm::tests::Random;

/// Key, version, kind and value.
type Row = (Vec<u8>, u64, ValueType, Vec<u8>);

/// Whether a key comes before the first one that is wanted.
type IsBefore<'a> = &'a dyn Fn(&[u8]) -> bool;

fn owned(row: &InternalValue) -> Row {
    let key = &row.key;
    (
        key.user_key.to_vec(),
        key.seqno,
        key.value_type,
        row.value.to_vec(),
    )
}

/// The rows of a block, in ascending order.
fn rows(random: &mut Random) -> Vec<InternalValue> {
    let count = 1 + random.below(60);
    let mut keys: Vec<Vec<u8>> = (0..count)
        .map(|_| {
            let mut key = vec![b'k'; random.below(30) as usize];
            key.extend((0..1 + random.below(3)).map(|_| random.below(4) as u8));
            key
        })
        .collect();
    keys.sort();
    let rows = keys.into_iter().enumerate().map(|(at, key)| {
        let (value, kind) = match random.below(4) {
            0 => (Vec::new(), ValueType::Tombstone),
            _ => (vec![7; random.below(300) as usize], ValueType::Value),
        };
        let version = u64::MAX >> random.below(60) >> 1;
        InternalValue::from_components(key, value, version - (at as u64).min(version), kind)
    });
    rows.collect()
}

fn encode(random: &mut Random, rows: &[InternalValue]) -> Vec<u8> {
    let interval = [1, 2, 7, 16][random.below(4) as usize];
    let hash_ratio = [0.0, 1.0][random.below(2) as usize];
    DataBlock::encode_into_vec(rows, interval, hash_ratio).expect("encoded")
}

fn read(
    bytes: &[u8],
    direction: Direction,
    is_before: Option<IsBefore<'_>>,
) -> Result<Vec<Row>, TreeError> {
    let mut rows = BlockRows::new(Slice::new(bytes), direction)?;
    if let Some(is_before) = is_before {
        rows.seek(is_before)?;
    }
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(owned(&row));
    }
    Ok(found)
}

#[test]
fn a_block_gives_the_rows_that_it_was_made_of() {
    let mut random = Random::new(1);
    for _ in 0..500 {
        let rows = rows(&mut random);
        let bytes = encode(&mut random, &rows);
        let forward: Vec<_> = rows.iter().map(owned).collect();
        let reversed: Vec<_> = rows.iter().rev().map(owned).collect();
        let at = random.below(rows.len() as u64) as usize;
        let wanted = rows[at].key.user_key.clone();
        for (direction, rows) in [
            (Direction::Forward, forward),
            (Direction::Reverse, reversed),
        ] {
            let found = read(&bytes, direction, None).expect("well formed");
            assert_eq!(found, rows);
            let is_before = |key: &[u8]| match direction {
                Direction::Forward => key < &*wanted,
                Direction::Reverse => key > &*wanted,
            };
            let found = read(&bytes, direction, Some(&is_before)).expect("well formed");
            assert!(rows.ends_with(&found));
            let passed = rows.iter().filter(|row| is_before(&row.0)).count();
            let most = passed.saturating_sub(16)..=passed;
            assert!(most.contains(&(rows.len() - found.len())));
        }
    }
}

#[test]
fn a_block_that_is_not_well_formed_is_an_error_or_gives_other_rows() {
    let mut random = Random::new(2);
    let (mut errors, mut others) = (0, 0);
    for _ in 0..5_000 {
        let rows = rows(&mut random);
        let mut bytes = encode(&mut random, &rows);
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(8) {
            0 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << random.below(8),
        }
        let is_before = |key: &[u8]| key < &b"kkkkk"[..];
        for direction in [Direction::Forward, Direction::Reverse] {
            for is_before in [None, Some(&is_before as IsBefore<'_>)] {
                match read(&bytes, direction, is_before) {
                    Ok(_) => others += 1,
                    Err(_) => errors += 1,
                }
            }
        }
    }
    assert!(errors > 1_000 && others > 1_000, "{errors} {others}");
}
