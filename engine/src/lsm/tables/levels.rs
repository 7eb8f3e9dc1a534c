//! The sizes of levels, as the leveled strategy of `lsm-tree` wants them. Pure.

/// Target size of the tables that a compaction writes.
pub(super) const TABLE_BYTES: u64 = 32 << 20;
/// With this many runs in level 0, the leveled strategy merges them into the next level.
const LEVEL0_RUNS: usize = 4;
/// By this factor each level may be larger than the one above it, from the first below level 0 on.
const LEVEL_RATIO: u64 = 10;

/// How many bytes compactions have yet to move down, by the bytes of each level: all of level 0 once it
/// is to be merged, and what every other level but the last holds beyond its target. As in the
/// strategy, the first level below level 0 that holds anything has the smallest target.
pub(super) fn compaction_pending_bytes(levels: &[u64], level0_runs: usize) -> u64 {
    let Some((level0, [others @ .., _])) = levels.split_first() else {
        return 0;
    };
    let mut pending = if level0_runs >= LEVEL0_RUNS {
        *level0
    } else {
        0
    };
    let mut target = TABLE_BYTES * LEVEL0_RUNS as u64;
    for bytes in others.iter().skip_while(|bytes| **bytes == 0) {
        pending += bytes.saturating_sub(target);
        target = target.saturating_mul(LEVEL_RATIO);
    }
    pending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_targets_is_pending() {
        let mib = |sizes: [u64; 7]| sizes.map(|mib| mib << 20);
        for (sizes, level0_runs, pending) in [
            ([0; 7], 0, 0),
            ([30, 0, 0, 0, 0, 0, 9000], 3, 0),
            ([30, 0, 0, 0, 0, 0, 9000], 4, 30),
            ([30, 130, 0, 0, 0, 0, 0], 1, 2),
            ([0, 0, 0, 0, 200, 1290, 9000], 0, 72 + 10),
            ([40, 0, 0, 0, 0, 1280, 9000], 5, 40 + 1152),
        ] {
            let found = compaction_pending_bytes(&mib(sizes), level0_runs);
            assert_eq!(found, pending << 20, "{sizes:?}");
        }
    }
}
