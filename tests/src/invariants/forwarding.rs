//! Only the shard that got a request from a client forwards it, as often as it takes until the range has
//! a leader: a shard that got a forwarded one answers it.

use std::collections::BTreeSet;

use rangedb_engine::request::RequestId;
use rangedb_engine::types::{ClientId, Location};

/// The writes that each shard may forward.
#[derive(Default)]
pub struct Forwarding(BTreeSet<(Location, ClientId, u64)>);

impl Forwarding {
    /// Notes that a client has sent a write to a shard, which may forward it.
    pub fn asked(&mut self, at: Location, session: &RequestId) {
        self.0.insert((at, session.client, session.sequence));
    }

    /// Checks a write that a shard forwards to another.
    ///
    /// # Errors
    /// No client has sent it there.
    pub fn forwarded(
        &self,
        (from, to): (Location, Location),
        session: &RequestId,
    ) -> Result<(), String> {
        let name = (from, session.client, session.sequence);
        match self.0.contains(&name) {
            true => Ok(()),
            false => Err(format!(
                "shard {from} forwards write {} of client {} to {to}, which no client sent there",
                session.sequence, session.client.0
            )),
        }
    }
}
