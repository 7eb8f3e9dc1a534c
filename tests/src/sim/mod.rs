//! The simulator: a whole cluster with its clients, disks, clocks and network, on one thread, in
//! virtual time, all determined by one seed.
//!
//! The engine is the same as in the server; only its environment differs ([`sim_env`]):
//! - [`executor`]: the seed picks the next task, and clocks drift; [`runtime`] is openraft's
//!   interface to it, [`random`] the seed's numbers;
//! - [`disk`]: a crash loses or tears writes in flight;
//! - [`network`]: messages are late, lost, repeated, and cut off;
//! - [`node`] and [`cluster`]: nodes start, stop, crash, pause, and lose their disks;
//! - [`client`], [`workload`] and [`client_network`]: clients, what they do, and the faults between them and
//!   the nodes; [`seen`] records what they observe;
//! - [`operator`]: orders of a person.
//!
//! A [`run`] draws its [`faults`] before it begins. The [`crate::invariants`] check it, many of
//! them at its [`ending`]. The same seed always gives the same trace; for a failing seed,
//! [`shrink`] finds a few faults that suffice. [`catch_up`], [`change_of_bounds`], [`clocks`],
//! [`digests`], [`directed`], [`install`], [`known_faults`], [`merge`], [`put_back`], [`scans`] and [`split`] are
//! fixed scenarios.

pub mod catch_up;
pub mod change_of_bounds;
pub mod client;
pub mod client_network;
pub mod clocks;
pub mod cluster;
pub mod cold_blocks;
pub mod digests;
pub mod directed;
pub mod disk;
pub mod ending;
pub mod executor;
pub mod faults;
pub mod install;
pub mod known_faults;
pub mod merge;
pub mod network;
pub mod node;
pub mod operator;
pub mod put_back;
pub mod random;
mod range_faults;
pub mod run;
pub mod runtime;
pub mod scans;
pub mod seen;
pub mod shrink;
pub mod sim_env;
pub mod split;
pub mod workload;
