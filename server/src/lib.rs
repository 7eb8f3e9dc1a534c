//! The node: threads, sockets and files around the engine.

pub mod env;
pub mod handler;
pub mod net;
pub mod shard;
#[cfg(test)]
mod test_node;
