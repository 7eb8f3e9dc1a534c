//! The bound on the logs that a shard keeps for replicas that receive a snapshot.
//!
//! The bound depends on the space on the disk, not on entries or segments: a snapshot of a large
//! range takes minutes, and the log of those minutes saves the next snapshot. Pins beyond the bound
//! are given up, the longest log first. The snapshot under way then ends in vain, and another is
//! sent.

use crate::boot_time::BootTime;
use crate::env::Env;
use crate::limits::{
    LOG_FULL_TIMEOUT, PINNED_DISK_PART, PINNED_ENTRIES_MAX, PINNED_LEN_MAX, WAL_SEGMENTS_FULL,
};
use crate::raft::{Pinned, placed};
use crate::shard::{RangeHandle, ShardInner};
use crate::words::listed;

/// How many bytes one shard may pin, with this many bytes free on a disk that `shards` shards
/// share.
fn allowed(free: u64, shards: u16) -> u64 {
    let share = free / PINNED_DISK_PART / u64::from(shards.max(1));
    share.min(PINNED_LEN_MAX)
}

/// Whether this is more than may be pinned.
fn is_too_much(pinned: &[(RangeHandle<impl Env>, Pinned)], allowed: u64) -> bool {
    let bytes: u64 = pinned.iter().map(|(_, pinned)| pinned.bytes).sum();
    let entries: usize = pinned.iter().map(|(_, pinned)| pinned.entries).sum();
    bytes > allowed || entries > PINNED_ENTRIES_MAX
}

impl<E: Env> ShardInner<E> {
    /// The groups whose logs are pinned for snapshots.
    fn all_pinned(&self) -> Vec<(RangeHandle<E>, Pinned)> {
        let mut all = Vec::new();
        self.ranges.for_each(|running| {
            all.extend(
                running
                    .raft
                    .pinned()
                    .map(|pinned| (running.clone(), pinned)),
            );
        });
        all
    }

    /// How many bytes of log are pinned for snapshots.
    pub(in crate::shard) fn pinned_bytes(&self) -> u64 {
        self.all_pinned()
            .iter()
            .map(|(_, pinned)| pinned.bytes)
            .sum()
    }

    /// Gives up pins beyond the bound.
    pub(in crate::shard) async fn bound_pinned(&self) {
        let mut pinned = self.all_pinned();
        if pinned.is_empty() {
            return;
        }
        let free = match self.wal.free_bytes().await {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(%error, "how much space is free for the log cannot be told");
                return;
            }
        };
        let allowed = allowed(free, self.agent.node.shards);
        while is_too_much(&pinned, allowed) {
            let longest = (0..pinned.len()).max_by_key(|at| pinned.get(*at).map(|p| p.1.bytes));
            let Some(longest) = longest else { return };
            let (
                RangeHandle { replica, raft },
                Pinned {
                    replicas,
                    entries,
                    bytes,
                },
            ) = pinned.swap_remove(longest);
            let placed = |id| {
                placed(
                    id,
                    replica.with_state(|state| state.descriptor.location(id)),
                )
            };
            tracing::warn!(
                range = %raft.range(),
                replicas = listed(replicas.into_iter().map(placed)),
                entries,
                bytes,
                allowed,
                "the log that is kept for replicas that install a snapshot takes too much space and is \
                 given up: they will need another snapshot; free space on the disk of the log, or write \
                 less until they have caught up"
            );
            raft.give_up_pins();
        }
    }
}

/// Whether the log is so long that nothing can be kept for replicas that are a little behind.
#[derive(Default)]
pub(in crate::shard) struct Fullness {
    since: Option<BootTime>,
}

impl Fullness {
    /// Checks the length of the log. The pinned part has its own bound and does not count. What was
    /// just purged gets time to disappear.
    pub(in crate::shard) fn look<E: Env>(&mut self, inner: &ShardInner<E>, now: BootTime) -> bool {
        let log = inner.wal.space();
        let kept = log.live_bytes.saturating_sub(inner.pinned_bytes());
        let is_long = log.segments > WAL_SEGMENTS_FULL
            && kept * 2 > WAL_SEGMENTS_FULL as u64 * log.segment_bytes;
        if !is_long {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now - since >= LOG_FULL_TIMEOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_a_part_of_what_is_free() {
        const GIB: u64 = 1 << 30;
        assert_eq!(allowed(40 * GIB, 1), 10 * GIB);
        assert_eq!(allowed(40 * GIB, 2), 5 * GIB);
        assert_eq!(allowed(0, 2), 0);
        assert_eq!(allowed(u64::MAX, 1), PINNED_LEN_MAX);
    }
}
