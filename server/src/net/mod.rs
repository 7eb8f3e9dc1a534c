//! Clients' connections: the port, the preamble, frames in and out.

pub mod port;
