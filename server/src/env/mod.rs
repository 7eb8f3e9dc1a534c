//! The engine's environment on glommio and io_uring, and all other code that needs system calls.
//! The only folder of the workspace with `unsafe` code.

pub mod channels;
mod clock;
pub mod data_dir;
mod disk;
pub mod kernel;
mod queue;
pub mod reactor;
mod runtime;
pub mod signals;
pub mod threads;
mod watch;

use rangedb_engine::env::Env;
use rangedb_engine::lsm::LsmTables;

use crate::peers::link::Links;

pub use clock::{BootInstant, SystemClock};
pub use disk::{RingDisk, push_out};
pub use runtime::GlommioRuntime;

/// The environment of a real node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GlommioEnv;

/// A point in time of the boot-time clock.
pub type Now = BootInstant;

impl Env for GlommioEnv {
    type Runtime = GlommioRuntime;
    type Clock = SystemClock;
    type Disk = RingDisk;
    type Tables = LsmTables;
    type Transport = Links;

    async fn beside<R: Send + 'static>(
        work: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<R> {
        reactor::blocking(move || Ok(work())).await
    }
}
