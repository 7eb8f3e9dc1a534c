//! What needs more than one crate: the simulator, and tests against real processes.

pub mod invariants;
pub mod process;
pub mod sim;
