//! How `--memory` is divided: the one place that says what each use may take.
//!
//! Every shard gets an equal share. The uses below have a budget each, and the sum of the budgets
//! stays within the share. What has no budget lives in what is left: Raft groups, tasks, session
//! tables, the indexes and filters of tables (4 MiB for each million rows of 150 bytes), and writes
//! under way (`SHARD_WRITES_LEN_MAX`).
//!
//! | use | part of the share | at least | at most |
//! |---|---|---|---|
//! | memtables, seven and their filters | 0.23 | 14.4 MiB | 231 MiB |
//! | log entries | 1/16 | 4 MiB | 64 MiB |
//! | requests that arrived in part | 1/16 | 12 MiB | 256 MiB |
//! | replies that clients have not received | 1/8 | 16 MiB | 256 MiB |
//! | row cache | 1/4, or half of what both caches have if that is less; as given by `--row-cache` | | |
//! | row cache and block cache | 1/2, or what the others leave if that is less | | |

use rangedb_engine::lsm::memtables_len_max;

/// One shard's budgets, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMemory {
    /// One memtable.
    pub memtable: usize,
    /// Cached rows.
    pub row_cache: usize,
    /// Cached blocks of tables.
    pub block_cache: u64,
    /// Cached entries of the log.
    pub entry_cache: usize,
    /// Requests of clients that have arrived only in part.
    pub frames: usize,
    /// Replies that clients have not yet received.
    pub unsent: usize,
}

impl ShardMemory {
    /// A shard needs at least this much memory, in bytes.
    pub const SHARE_MIN: u64 = 64 << 20;

    /// Divides a shard's share of the memory. `row_cache` is what the row cache gets; by default it
    /// gets as much as the block cache. It leaves a quarter of what both have to the block cache.
    pub fn of(share: u64, row_cache: Option<u64>) -> ShardMemory {
        let part = |divisor: u64, least: u64, most: u64| {
            (share / divisor).clamp(least << 20, most << 20) as usize
        };
        let memtable = part(32, 2, 32);
        let entry_cache = part(16, 4, 64);
        // There must be room for at least one frame of the maximum length.
        let frames = part(16, 12, 256);
        let unsent = part(8, 16, 256);
        let others = memtables_len_max(memtable) + entry_cache + frames + unsent;
        let caches = (share / 2).min(share.saturating_sub(others as u64));
        let row_cache = row_cache.unwrap_or(caches / 2).min(caches / 4 * 3);
        ShardMemory {
            memtable,
            row_cache: row_cache as usize,
            block_cache: caches - row_cache,
            entry_cache,
            frames,
            unsent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budgets_stay_within_the_share_and_leave_a_block_cache() {
        for mib in (64..=1 << 16).step_by(37) {
            let share = mib << 20;
            for rows in [None, Some(0), Some(share / 16), Some(share)] {
                let memory = ShardMemory::of(share, rows);
                let others = memtables_len_max(memory.memtable)
                    + memory.row_cache
                    + memory.entry_cache
                    + memory.frames
                    + memory.unsent;
                let sum = others as u64 + memory.block_cache;
                assert!(sum <= share, "{mib} MiB: {memory:?}");
                assert!(memory.block_cache >= share / 16, "{mib} MiB: {memory:?}");
            }
            let memory = ShardMemory::of(share, None);
            assert!(
                memory.row_cache as u64 >= share / 8,
                "{mib} MiB: {memory:?}"
            );
        }
    }
}
