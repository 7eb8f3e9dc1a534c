//! The simulator: a whole cluster of one node or several, with its clients, disks, clocks and
//! network, in one thread and in virtual time, from one seed.
//!
//! The engine that runs here is the one that runs in the server; only its world is another
//! ([`world`]): tasks are picked by the seed ([`executor`]), disks lose and tear what was in flight
//! when the node crashed ([`disk`]), messages are late, lost and cut off ([`network`]), the wall
//! clock jumps. A [`node`] crashes and restarts, [`cluster`] holds them together, [`workload`] is
//! what the clients do, and [`run`] puts a seed's run together, with its faults, and checks it by
//! the [`crate::invariants`]. The same seed gives the same trace.

pub mod cluster;
pub mod disk;
pub mod executor;
pub mod network;
pub mod node;
pub mod random;
pub mod run;
pub mod runtime;
pub mod workload;
pub mod world;
