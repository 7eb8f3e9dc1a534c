//! Links to other nodes: none. A cluster of one has no peers to talk to.

use std::io;

use bytes::Bytes;
use rangedb_engine::env::Transport;
use rangedb_engine::types::Location;

/// The links of a node that is alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    async fn call(&self, to: Location, _: Bytes) -> io::Result<Bytes> {
        let message = format!("there is no link to {to}: this node is a cluster of one");
        Err(io::Error::new(io::ErrorKind::NotConnected, message))
    }
}
