//! How long reads wait for blocks of tables: mostly a moment, and now and then longer than
//! a leader's lease lasts, so that another replica may lead and write before the read goes on.

use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::lsm::SlowDisk;

use super::random::Random;
use super::runtime::SimRuntime;

/// A block that was used leaves the memory once in so many times.
const EVICTED_ONCE_IN: u64 = 4;
/// One in so many reads of the disk is very slow.
const VERY_SLOW_ONCE_IN: u64 = 16;

/// The disk from which a shard reads blocks.
pub struct ColdBlocks {
    /// Where its times come from.
    pub random: Random,
    /// Whether some reads are very slow.
    pub has_very_slow: bool,
}

impl ColdBlocks {
    /// How long the disk takes this time.
    pub fn read_time(&self) -> Duration {
        let is_very_slow = self.random.once_in(VERY_SLOW_ONCE_IN) && self.has_very_slow;
        let micros = match is_very_slow {
            false => self.random.between(50, 2_000),
            true => self.random.between(100_000, 1_400_000),
        };
        Duration::from_micros(micros)
    }
}

impl SlowDisk for ColdBlocks {
    fn evicts(&self) -> bool {
        self.random.once_in(EVICTED_ONCE_IN)
    }

    fn read(&self, done: Box<dyn FnOnce()>) {
        let took = self.read_time();
        drop(SimRuntime::spawn(async move {
            SimRuntime::sleep(took).await;
            done();
        }));
    }
}
