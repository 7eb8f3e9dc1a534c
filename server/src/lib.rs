//! The node: threads, sockets and files around the engine.
//!
//! The way of a request: [`net`] reads it from a socket and decodes its frame, [`handler`] finds
//! the shard that owns the key, [`shard`] knows the ranges of this shard and the lanes to the
//! others, and the engine's shard answers. [`peers`] links this node with the others. [`mod@env`]
//! implements the engine's traits of the machine. [`node`] starts it all by the settings of
//! [`config`] on the folder of [`env::data_dir`]; [`admin`] shows its state.

// These macros panic if they cannot print; see `logging`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod admin;
pub mod config;
pub mod descriptors;

pub mod env;
mod fatal;
pub mod handler;
pub mod logging;
pub mod net;
pub mod node;
pub mod peers;
pub mod probe;
pub mod shard;
#[cfg(test)]
mod test_node;
pub mod world;
