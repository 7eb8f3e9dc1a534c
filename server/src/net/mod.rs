//! Client connections: the port, the handshake, TLS, frames in and replies out.

pub mod buffers;
pub mod connection;
pub mod handshake;
pub mod input;
pub mod listener;
pub mod pending_handshakes;
pub mod port;
#[cfg(test)]
mod tests;
pub mod tls;
