//! Client connections: the port, the preamble, frames in and replies out.

pub mod buffers;
pub mod connection;
pub mod greetings;
pub mod input;
pub mod listener;
pub mod port;
pub mod preamble;
#[cfg(test)]
mod tests;
