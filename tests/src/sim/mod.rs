//! The simulator: a whole cluster of one node or several, with its clients, disks, clocks and
//! network, in one thread and in virtual time, from one seed.
//!
//! The engine that runs here is the one that runs in the server; only its world is another
//! ([`world`]): tasks are picked by the seed, and clocks drift ([`executor`]), disks lose and tear
//! what was in flight when the node crashed ([`disk`]), messages are late, lost and cut off
//! ([`network`]), the wall clock jumps. A [`node`] crashes, restarts and is paused, [`cluster`] holds
//! them together, a [`client`] does its [`workload`] over a [`road`], an [`operator`] gives orders and replaces a node
//! that has lost its disk, and [`seen`] is what clients saw. [`faults`] are drawn before a [`run`] begins,
//! and the run is checked by the [`crate::invariants`], much of it at its [`ending`]. The same seed gives the same trace; of a seed that
//! fails [`shrink`] tells which of its faults are enough.

pub mod catch_up;
pub mod client;
pub mod clocks;
pub mod cluster;
pub mod digests;
pub mod disk;
pub mod ending;
pub mod executor;
pub mod faults;
pub mod install;
pub mod network;
pub mod node;
pub mod operator;
pub mod put_back;
pub mod random;
pub mod road;
pub mod run;
pub mod runtime;
pub mod seen;
pub mod shrink;
pub mod workload;
pub mod world;
