//! The first ranges of a new cluster.

use rangedb_engine::range::Keyspace;
use rangedb_engine::shard::InitialRange;
use rangedb_engine::types::{KeyRange, RangeId, ReplicaId, SYSTEM_RANGE};

/// A range of a new cluster, with its only replica on this shard.
fn initial_range(id: u64, keyspace: Keyspace, keys: KeyRange) -> InitialRange {
    InitialRange {
        range: RangeId(id),
        replica: ReplicaId(id),
        others: Vec::new(),
        leads: true,
        keyspace,
        keys,
    }
}

/// The ranges that a founder's shard starts with, if the cluster began with this many shards. User ranges
/// are divided evenly among the shards in key order; the system range is on the first shard. A shard that
/// was added later starts with none.
pub(super) fn initial_ranges(split_at: &[Vec<u8>], shards: u16, shard: u16) -> Vec<InitialRange> {
    let count = split_at.len() + 1;
    let border = |at: usize| split_at.get(at).cloned();
    let mut ranges = Vec::new();
    if shard == 0 {
        ranges.push(initial_range(
            SYSTEM_RANGE.0,
            Keyspace::System,
            KeyRange::all(),
        ));
    }
    for at in 0..count {
        if at * usize::from(shards) / count.max(usize::from(shards)) != usize::from(shard) {
            continue;
        }
        let id = SYSTEM_RANGE.0 + 1 + at as u64;
        let start = at.checked_sub(1).and_then(border).unwrap_or_default();
        let keys = KeyRange {
            start,
            end: border(at),
        };
        ranges.push(initial_range(id, Keyspace::User, keys));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_ranges_tile_the_key_space_over_all_shards() {
        for (borders, shards) in [(0, 1), (0, 4), (1, 2), (3, 4), (7, 3), (2, 5)] {
            let split_at: Vec<Vec<u8>> = (1..=borders).map(|i| vec![i as u8]).collect();
            let mut ranges = Vec::new();
            let mut used = 0;
            for shard in 0..shards {
                let of_shard = initial_ranges(&split_at, shards, shard);
                used += usize::from(of_shard.iter().any(|r| r.keyspace == Keyspace::User));
                ranges.extend(
                    of_shard
                        .into_iter()
                        .filter(|r| r.keyspace == Keyspace::User),
                );
            }
            assert_eq!(used, usize::from(shards).min(borders + 1));
            assert!(initial_ranges(&split_at, shards, shards).is_empty());
            ranges.sort_by_key(|r| r.keys.start.clone());
            let mut next = Some(Vec::new());
            for range in ranges {
                assert_eq!(Some(range.keys.start), next);
                next = range.keys.end;
            }
            assert_eq!(next, None);
        }
    }
}
