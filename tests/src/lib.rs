//! Tests that need more than one crate: the simulator, and tests of the real processes.

pub mod cluster;
pub mod console;
pub mod host;
pub mod http;
pub mod invariants;
pub mod load;
pub mod model;
pub mod net;
pub mod operator;
pub mod process;
pub mod raw;
pub mod sim;
