//! The pace at which one shard sends snapshots. Pauses between parts add up over all of the shard's
//! snapshots: however many are under way, together they take no more of the links, disks and
//! processors than one of them would.
//!
//! Pure: the caller says what time it is.

use std::cell::Cell;
use std::time::Duration;

use crate::boot_time::BootTime;

/// When the next part of any snapshot of the shard may leave.
#[derive(Default)]
pub struct SnapshotPace {
    free_from: Cell<Option<BootTime>>,
}

impl SnapshotPace {
    /// How long a snapshot whose part has just arrived waits before its next one: until the pauses of
    /// parts that arrived earlier are over, and then for its own `pause`.
    pub fn wait_for(&self, now: BootTime, pause: Duration) -> Duration {
        let begins = self.free_from.get().filter(|from| *from > now);
        let ends = begins.unwrap_or(now) + pause;
        self.free_from.set(Some(ends));
        ends - now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::SnapshotPace;
    use crate::boot_time::test_clock;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_lone_snapshot_waits_for_its_own_pauses() {
        let (pace, now) = (SnapshotPace::default(), test_clock::now());
        assert_eq!(pace.wait_for(now, 4 * MS), 4 * MS);
        assert_eq!(pace.wait_for(now + 6 * MS, 4 * MS), 4 * MS);
    }

    #[test]
    fn pauses_of_several_snapshots_add_up() {
        let (pace, now) = (SnapshotPace::default(), test_clock::now());
        assert_eq!(pace.wait_for(now, 4 * MS), 4 * MS);
        assert_eq!(pace.wait_for(now, 10 * MS), 14 * MS);
        assert_eq!(pace.wait_for(now + 4 * MS, 4 * MS), 14 * MS);
    }
}
