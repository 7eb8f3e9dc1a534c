//! Routing: which shard answers a request. Either the shard that received it does, or the request goes
//! to the leader of the key's range, or the caller gets the route and sends the request there.

use std::rc::Rc;

use super::Gateway;
use super::directory::Directory;
use super::message::Body;
use super::request::{Call, Caller};
use super::responder::Responder;
use crate::env::Env;
use crate::error::Error;
use crate::request::Target;
use crate::types::{Location, RangeId, Route};

/// Where the leader of a key's range is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// On this shard, as far as the directory knows.
    Here,
    /// On another shard, of this node or another, or not known.
    Elsewhere(Route),
    /// The directory has no range for the key.
    Unknown,
}

/// Looks a key up. An empty key gets a range, too: the engine refuses it and says why.
fn look_up(directory: &Directory, here: Location, key: &[u8]) -> Lookup {
    let Some(route) = directory.find(key) else {
        return Lookup::Unknown;
    };
    match route.leader {
        Some(leader) if leader == here => Lookup::Here,
        _ => Lookup::Elsewhere(route.clone()),
    }
}

impl<E: Env> Gateway<E> {
    /// Where the directory says that a key's range is led.
    pub(super) fn look_up(&self, key: &[u8]) -> Lookup {
        look_up(&self.inner.directory.borrow(), self.inner.here, key)
    }

    /// The range that has a key by the directory: what a request takes of what ranges share counts for it.
    pub(super) fn range_of(&self, key: &[u8]) -> Option<RangeId> {
        let directory = self.inner.directory.borrow();
        directory.find(key).map(|route| route.range)
    }

    /// The place that answers a request for a key. If the caller follows routes, the replica on this
    /// shard answers, if there is one, even if it does not lead: it knows best why not. Otherwise the
    /// request goes to the leader. The directory may be stale: where it names this shard, and the
    /// replica here knows a leader elsewhere,
    /// [`Shard::led_elsewhere`](crate::shard::Shard::led_elsewhere) gives the right route.
    pub(super) fn look_up_for(&self, caller: Caller, key: &[u8]) -> Lookup {
        let shard = &self.inner.shard;
        if caller.follows_routes && shard.holds(key) {
            return Lookup::Here;
        }
        let lookup = self.look_up(key);
        if !matches!(lookup, Lookup::Here) || caller.follows_routes {
            return lookup;
        }
        shard
            .led_elsewhere(key)
            .map_or(Lookup::Here, Lookup::Elsewhere)
    }

    /// The refusal of a key that is not on this shard, with what the directory says.
    pub(super) fn moved(&self, target: Option<Target>, lookup: &Lookup, key: &[u8]) -> Error {
        let directory = self.inner.directory.borrow();
        Error::Moved(match lookup {
            Lookup::Elsewhere(_) => directory.routes_near(key, target),
            Lookup::Here | Lookup::Unknown => Vec::new(),
        })
    }

    /// Handles a request for a key that this shard does not answer: carries it to the leader, or refuses
    /// it with the route.
    pub(super) fn elsewhere<R: Responder>(
        &self,
        responder: &Rc<R>,
        call: &Call,
        ticket: R::Ticket,
        (lookup, key): (Lookup, &[u8]),
        body: Body,
    ) -> Result<(), R::Refusal> {
        if call.caller.follows_routes {
            return Err(self.moved(call.target, &lookup, key).into());
        }
        let first = leader_in(lookup, self.inner.here);
        self.carry(responder, call, ticket, body, first)
    }
}

/// The shard that leads a key's range by the directory.
///
/// # Errors
/// Why there is none.
pub(super) fn leader_in(lookup: Lookup, here: Location) -> Result<Location, Error> {
    match lookup {
        Lookup::Here => Ok(here),
        Lookup::Elsewhere(route) => match route.leader {
            Some(leader) => Ok(leader),
            None => Err(Error::NotLeader(Some(Box::new(route)))),
        },
        Lookup::Unknown => Err(Error::Moved(Vec::new())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, KeyRange, NodeId, ShardId};

    #[test]
    fn a_key_is_here_beside_or_away() {
        let at = |node, shard| Location {
            node: NodeId(node),
            shard: ShardId(shard),
        };
        let route = |range, start: &str, end: &str, leader| Route {
            range: RangeId(range),
            epoch: Epoch {
                version: 1,
                conf: 1,
            },
            keys: KeyRange {
                start: start.into(),
                end: Some(end.into()),
            },
            leader,
        };
        let beside = route(2, "b", "c", Some(at(1, 3)));
        let away = route(3, "c", "d", Some(at(2, 0)));
        let unled = route(4, "d", "e", None);
        let directory = Directory::new(&[
            route(1, "a", "b", Some(at(1, 0))),
            beside.clone(),
            away.clone(),
            unled.clone(),
        ]);
        let lookup = |key: &str| look_up(&directory, at(1, 0), key.as_bytes());
        assert_eq!(lookup("a1"), Lookup::Here);
        assert_eq!(lookup("b1"), Lookup::Elsewhere(beside));
        assert_eq!(lookup("c1"), Lookup::Elsewhere(away));
        assert_eq!(lookup("d1"), Lookup::Elsewhere(unled));
        assert_eq!(lookup("e1"), Lookup::Unknown);
    }
}
