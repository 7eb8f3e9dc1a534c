//! A request is forwarded once: a shard forwards only the writes that clients have sent to it, each as
//! often as they have sent it to a shard of its node, and as often to another node.

use std::collections::BTreeMap;

use rangedb_engine::request::RequestId;
use rangedb_engine::types::{ClientId, Location};

/// How often a write may yet be forwarded.
#[derive(Default)]
struct Left {
    on_the_node: u64,
    to_others: u64,
}

/// How often each shard may yet forward each write.
#[derive(Default)]
pub struct Forwarding(BTreeMap<(Location, ClientId, u64), Left>);

impl Forwarding {
    /// Notes that a client has sent a write to a shard, which may forward it.
    pub fn asked(&mut self, at: Location, session: &RequestId) {
        let name = (at, session.client, session.sequence);
        let left = self.0.entry(name).or_default();
        left.on_the_node += 1;
        left.to_others += 1;
    }

    /// Checks a write that a shard forwards to another.
    ///
    /// # Errors
    /// No client has sent it there, or not as often.
    pub fn forwarded(
        &mut self,
        (from, to): (Location, Location),
        session: &RequestId,
    ) -> Result<(), String> {
        let name = (from, session.client, session.sequence);
        let left = self
            .0
            .get_mut(&name)
            .map(|left| match to.node == from.node {
                true => &mut left.on_the_node,
                false => &mut left.to_others,
            });
        match left.filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Err(format!(
                "shard {from} forwards write {} of client {} to {to}, which no client sent there \
                 as often",
                session.sequence, session.client.0
            )),
        }
    }
}
