//! The load generator and consistency check of RangeDB. The binary `loadgen` is a thin shell over
//! it.
//!
//! ```text
//! main -> args -> driver (threads, slots in flight)  -> pace (when), workload (what) -> database
//!                 series (each second)                                               -> hdr
//!                 check (history, search, shrink; clients)                           -> report, compare
//! ```
//!
//! `driver`, `pace`, `stop`, `client`, `etcd` and `check::clients` touch the network, clocks, signals or
//! threads, `hdr` and `compare` files; everything else is pure. The simulator uses `check`, too.

pub mod args;
pub mod check;
pub mod client;
pub mod compare;
pub mod database;
pub mod distribution;
pub mod driver;
pub mod etcd;
pub mod hdr;
pub mod keys;
#[cfg(test)]
mod memory;
pub mod pace;
pub mod probe;
pub mod report;
pub mod series;
pub mod stop;
pub mod workload;
