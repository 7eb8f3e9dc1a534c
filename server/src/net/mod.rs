//! Client connections: the port, the handshake, TLS, frames in and replies out. What handles a frame is
//! given to the accepting side ([`connection::Handle`]): nothing here knows [`crate::handler`].

pub mod buffers;
pub mod connection;
pub mod frames;
pub mod handshake;
pub mod input;
pub mod listener;
pub mod pending_handshakes;
pub mod port;
pub mod refusal;
pub mod reply;
pub mod scan;
#[cfg(test)]
mod tests;
pub mod tls;
