//! The load generator and consistency check of RangeDB. The binary `loadgen` is a thin shell over
//! it.
//!
//! ```text
//! main -> args -> driver (threads, slots in flight)  -> pace (when), workload (what) -> database
//!                 check (history, search, shrink; clients)                           -> report
//! ```
//!
//! `driver`, `pace`, `client`, `etcd` and `check::clients` touch the network, clocks or threads;
//! everything else is pure. The simulator uses `check`, too.

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
