//! The node: threads, sockets and files around the engine.

pub mod env;
pub mod net;
