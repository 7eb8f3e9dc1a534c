//! Load generator and consistency check of RangeDB. The binary `loadgen` is a thin shell over it.
//!
//! ```text
//! main -> args -> driver (threads, places in flight) -> pace (when), workload (what) -> database
//!                 check (history, search, shrink; clients)                           -> report
//! ```
//!
//! Everything but `driver`, `check::clients` and `client` is pure. `check` is also the simulator's.

pub mod args;
pub mod check;
pub mod client;
pub mod database;
pub mod distribution;
pub mod driver;
pub mod etcd;
pub mod keys;
#[cfg(test)]
mod memory;
pub mod pace;
pub mod probe;
pub mod report;
pub mod workload;
