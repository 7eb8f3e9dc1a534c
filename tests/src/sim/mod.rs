//! The simulator: a whole node, with its clients, its disks and its clocks, in one thread and in
//! virtual time, from one seed.
//!
//! The engine that runs here is the one that runs in the server; only its world is another
//! ([`world`]): tasks are picked by the seed ([`executor`]), disks lose and tear what was in flight
//! when the node crashed ([`disk`]), the wall clock jumps. [`cluster`] crashes and restarts the
//! node and injects faults, [`workload`] is what its clients do, and [`run`] puts a seed's run
//! together and checks it by the [`crate::invariants`]. The same seed gives the same trace.

pub mod cluster;
pub mod disk;
pub mod executor;
pub mod random;
pub mod run;
pub mod runtime;
pub mod workload;
pub mod world;
