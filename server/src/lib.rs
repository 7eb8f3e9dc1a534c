//! The node: threads, sockets and files around the engine.
//!
//! The path of a request: [`net`] reads it from a socket, [`handler`] turns its frame into a call of the
//! engine's gateway, and [`net`] the answer into a frame. [`shard`] runs an engine's shard on its thread,
//! where all tasks share a [`context`]; [`mesh`] has the channels to the others of this node, and [`peers`]
//! links it with other nodes. [`mod@env`] implements the engine's traits of the machine. [`node`] starts it
//! all by the settings of [`config`], which [`node_settings`] reloads, on the folder of [`data_dir`];
//! [`admin`] shows its state. [`check`] says whether the machine is fit for a node. [`history`] records the
//! node's work and its events.

// These macros panic if they cannot print; see `logging`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod admin;
pub mod check;
pub mod config;
pub mod context;
pub mod data_dir;
pub mod descriptors;

pub mod env;
mod fatal;
pub mod glommio_env;
pub mod handler;
pub mod history;
pub mod logging;
pub mod mesh;
pub mod net;
pub mod node;
pub mod node_settings;
pub mod operation;
pub mod peers;
pub mod probe;
pub mod shard;
#[cfg(test)]
mod test_node;
