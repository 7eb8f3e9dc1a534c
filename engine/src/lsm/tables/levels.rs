//! The sizes of levels, as the leveled strategy of `lsm-tree` wants them. Pure.

use super::compaction::Leveled;

/// Target size of the tables that a compaction writes.
pub(super) const TABLE_BYTES: u64 = 32 << 20;
/// With this many runs in level 0, the leveled strategy merges them into the next level.
const LEVEL0_RUNS: usize = 4;
/// The same while nothing is flushed: each run costs every scan its part, and the disk has nothing else to do.
const LEVEL0_RUNS_IDLE: usize = 2;
/// By this factor each level may be larger than the one above it, from the first below level 0 on.
const LEVEL_RATIO: u64 = 10;

/// The strategy that chooses compactions.
pub(super) fn strategy(is_idle: bool) -> Leveled {
    let runs = match is_idle {
        true => LEVEL0_RUNS_IDLE,
        false => LEVEL0_RUNS,
    };
    // The first level below level 0 may hold as many bytes as so many tables have. That must stay the same.
    let table_bytes = TABLE_BYTES * (LEVEL0_RUNS / runs) as u64;
    Leveled::default()
        .with_l0_threshold(runs as u8)
        .with_table_target_size(table_bytes)
}

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
    use super::super::compaction::CompactionStrategy;
    use super::super::list::Tables;
    use super::super::test_fixture::{Fixture, Form};
    use super::*;

    #[test]
    fn an_idle_store_merges_earlier_and_wants_levels_of_the_same_sizes() {
        let mut fixture = Fixture::new(Form::Ours, 1);
        let runs = |fixture: &Fixture| fixture.tables(&Tables::default()).level0_runs;
        // The first run is moved to the last level, which is empty.
        fixture.flush();
        fixture.compact_by(strategy(true));
        for _ in 0..LEVEL0_RUNS_IDLE {
            fixture.compact_by(strategy(true));
            fixture.flush();
        }
        assert_eq!(runs(&fixture), LEVEL0_RUNS_IDLE);
        fixture.compact_by(strategy(false));
        assert_eq!(runs(&fixture), LEVEL0_RUNS_IDLE);
        fixture.compact_by(strategy(true));
        assert_eq!(runs(&fixture), 0);

        let value = |is_idle, name: &[u8]| {
            let mut config = strategy(is_idle).get_config().into_iter();
            let value = config.find(|(key, _)| **key == *name);
            value.expect("it is set").1.to_vec()
        };
        let level1_bytes = |is_idle| {
            let table_bytes = value(is_idle, b"leveled_target_size");
            let table_bytes = u64::from_le_bytes(table_bytes.try_into().expect("eight bytes"));
            table_bytes * u64::from(value(is_idle, b"leveled_l0_threshold")[0])
        };
        assert_eq!(level1_bytes(true), level1_bytes(false));
    }

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
