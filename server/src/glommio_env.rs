//! The engine's environment on a real node: the runtime, clock and disk, the tables of the LSM library, and
//! the links to other nodes.

use std::time::Duration;

use rangedb_engine::env::Env;
use rangedb_engine::limits::TIME_SLICE;
use rangedb_engine::lsm::LsmTables;
use rangedb_engine::types::NodeStats;

use crate::env::{GlommioRuntime, RingDisk, SystemClock, node_stats, process, reactor};
use crate::peers::link::Links;

/// The environment of a real node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GlommioEnv;

impl Env for GlommioEnv {
    type Runtime = GlommioRuntime;
    type Clock = SystemClock;
    type Disk = RingDisk;
    type Tables = LsmTables;
    type Transport = Links;

    fn time_slice() -> Duration {
        TIME_SLICE.saturating_sub(reactor::worked_in_pass())
    }

    fn has_worked(time: Duration) {
        reactor::has_worked(time);
    }

    fn thread_cpu_time() -> Option<Duration> {
        Some(process::thread_cpu_time())
    }

    fn node_stats() -> NodeStats {
        node_stats::last()
    }

    async fn beside<R: Send + 'static>(
        work: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<R> {
        reactor::blocking(move || Ok(work())).await
    }

    fn cross_thread<F: Future>(future: F) -> impl Future<Output = F::Output> {
        reactor::cross_thread(future)
    }
}
