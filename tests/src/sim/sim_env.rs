//! The engine's environment in the simulation.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Clock, Env};
use rangedb_engine::limits::TIME_SLICE;
use rangedb_engine::lsm::MemoryTables;

use super::cold_blocks::ColdBlocks;
use super::disk::SimDisk;
use super::executor;
use super::network::SimLink;
use super::random::Random;
use super::runtime::SimRuntime;

/// The simulated environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimEnv;

impl Env for SimEnv {
    type Runtime = SimRuntime;
    type Clock = SimClock;
    type Disk = SimDisk;
    type Tables = MemoryTables;
    type Transport = SimLink;

    /// On every second machine work is cut as soon as it may be.
    fn time_slice() -> Duration {
        match executor::current().machine() % 2 {
            0 => TIME_SLICE,
            _ => Duration::ZERO,
        }
    }

    /// There is one thread: the work is done at once, after the time for which another one would have waited
    /// for the disk.
    async fn beside<R: Send + 'static>(
        work: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<R> {
        let executor = executor::current();
        let now = executor.now().as_nanos() as u64;
        let random = Random::new(now, executor.machine().into());
        let disk = ColdBlocks {
            random,
            has_very_slow: true,
        };
        SimRuntime::sleep(disk.read_time()).await;
        Ok(work())
    }

    fn leases_are_valid() -> bool {
        let machine = executor::current().machine();
        !LEASELESS.with_borrow(|leaseless| leaseless.contains(&machine))
    }
}

thread_local! {
    /// Machines on which no lease is valid.
    static LEASELESS: RefCell<BTreeSet<u16>> = RefCell::default();
}

/// Makes leases valid on all machines.
pub fn make_all_leases_valid() {
    LEASELESS.take();
}

/// Sets whether leases are valid on a machine: whether a leader there may read without asking others.
pub fn set_leases_valid(machine: u16, valid: bool) {
    LEASELESS.with_borrow_mut(|leaseless| match valid {
        true => leaseless.remove(&machine),
        false => leaseless.insert(machine),
    });
}

/// The wall clock's start: a day in 2026.
const WALL_START_MS: u64 = 1_790_000_000_000;

/// A wall clock that can be set, in contrast to the host's boot-time clock.
#[derive(Clone)]
pub struct SimClock {
    offset_ms: Rc<Cell<i64>>,
    random: Random,
}

impl SimClock {
    /// A clock that shows the right time.
    pub fn new(random: Random) -> SimClock {
        SimClock {
            offset_ms: Rc::default(),
            random,
        }
    }

    /// Sets the clock forward or back.
    pub fn jump(&self, by_ms: i64) {
        self.offset_ms.set(self.offset_ms.get() + by_ms);
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let now = executor::current().local_now().as_millis() as u64;
        (WALL_START_MS + now).saturating_add_signed(self.offset_ms.get())
    }

    fn random_u64(&self) -> u64 {
        self.random.next()
    }
}
