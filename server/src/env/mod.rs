//! The parts of the engine's environment on glommio and io_uring, which [`crate::glommio_env`] puts
//! together, and all other code that needs system calls. The only folder of the workspace with
//! `unsafe` code.

pub mod cgroup;
pub mod channels;
mod clock;
pub mod discipline;
mod disk;
pub mod huge_pages;
pub mod kernel;
pub mod node_stats;
pub mod notify;
pub mod process;
mod queue;
pub mod reactor;
pub mod root;
mod runtime;
pub mod signals;
#[cfg(debug_assertions)]
pub mod test_disk;
pub mod threads;
mod watch;

pub use clock::{SystemClock, now};
pub use disk::{RingDisk, Room, push_out, read_fault, room};
pub use runtime::GlommioRuntime;
