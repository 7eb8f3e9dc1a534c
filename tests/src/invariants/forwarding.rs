//! A request is forwarded once: a shard forwards only the writes that clients have sent to it, and
//! each as often as they have sent it.

use std::collections::BTreeMap;

use rangedb_engine::request::SessionPair;
use rangedb_engine::types::{ClientId, Location};

/// How often each shard may yet forward each write.
#[derive(Default)]
pub struct Forwarding(BTreeMap<(Location, ClientId, u64), u64>);

impl Forwarding {
    /// Notes that a client has sent a write to a shard, which may forward it.
    pub fn asked(&mut self, at: Location, session: &SessionPair) {
        let name = (at, session.client, session.sequence);
        *self.0.entry(name).or_default() += 1;
    }

    /// Checks a write that a shard forwards.
    ///
    /// # Errors
    /// No client has sent it there, or not as often.
    pub fn forwarded(&mut self, from: Location, session: &SessionPair) -> Result<(), String> {
        let name = (from, session.client, session.sequence);
        let left = self.0.get_mut(&name).filter(|left| **left > 0);
        match left {
            Some(left) => *left -= 1,
            None => {
                return Err(format!(
                    "shard {from} forwards write {} of client {}, which no client sent there",
                    session.sequence, session.client.0
                ));
            }
        }
        Ok(())
    }
}
