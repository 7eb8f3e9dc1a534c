//! The node: threads, sockets and files around the engine.
//!
//! The way of a request: [`net`] takes it from a socket and cuts it out of its frame, [`handler`]
//! decides where it belongs, [`shard`] knows the ranges of this shard and the ways to others, and
//! the engine's shard answers. [`mod@env`] is what the engine sees of the machine. [`node`] starts it
//! all by the settings of [`config`] on the folder of [`env::data_dir`]; [`admin`] shows it.

// They panic when they cannot print: see `logging`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod admin;
pub mod config;
pub mod descriptors;

pub mod env;
pub mod handler;
pub mod logging;
pub mod net;
pub mod node;
pub mod peers;
pub mod probe;
pub mod shard;
#[cfg(test)]
mod test_node;
