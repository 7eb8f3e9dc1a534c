//! The client's cache of routes: filled at the start, corrected by replies.

use std::sync::{Arc, PoisonError, RwLock};

use rangedb_protocol::{Route, Target};

/// A cached route.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    target: Target,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    endpoint: Endpoint,
}

/// Where to send a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The node's address, HOST:PORT.
    pub address: Arc<str>,
    /// The shard, if known.
    pub shard: Option<u16>,
}

/// The range that a try names, and the address to which it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The range that the client believes to be there, if it knows one.
    pub target: Option<Target>,
    /// The address to connect to, and the shard there if it is known.
    pub endpoint: Endpoint,
}

/// The cached routes of a client.
#[derive(Debug, Default)]
pub struct Directory {
    /// Sorted by first key, without overlaps.
    ranges: RwLock<Vec<Known>>,
}

/// Whether a route begins at a key or before it. An empty start is not compared: its address is not mapped,
/// which some implementations of `memcmp` pay for with a hundred cycles.
fn begins_up_to(known: &Known, key: &[u8]) -> bool {
    known.start.is_empty() || known.start.as_slice() <= key
}

fn holds(known: &Known, key: &[u8]) -> bool {
    begins_up_to(known, key) && known.end.as_deref().is_none_or(|end| key < end)
}

fn overlap(a: &Known, b: &Known) -> bool {
    let before = |x: &Known, y: &Known| x.end.as_ref().is_some_and(|end| *end <= y.start);
    !before(a, b) && !before(b, a)
}

/// What is left of a route beside a newer one: nothing, one part or two.
fn beside(known: Known, new: &Known) -> Vec<Known> {
    if !overlap(&known, new) {
        return vec![known];
    }
    let mut left = Vec::new();
    if known.start < new.start {
        left.push(Known {
            end: Some(new.start.clone()),
            ..known.clone()
        });
    }
    match &new.end {
        Some(end) if known.end.as_ref().is_none_or(|last| end < last) => left.push(Known {
            start: end.clone(),
            ..known
        }),
        _ => {}
    }
    left
}

impl Directory {
    /// The cached route of a key.
    pub fn find(&self, key: &[u8]) -> Option<Destination> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let after = ranges.partition_point(|known| begins_up_to(known, key));
        let known = ranges
            .get(after.checked_sub(1)?)
            .filter(|known| holds(known, key))?;
        Some(Destination {
            target: Some(known.target),
            endpoint: known.endpoint.clone(),
        })
    }

    /// Adds a route that the node `node` at `from` has sent. Of routes that overlap it and are not
    /// newer, only what lies beside it is kept: after a split the older range still has the other keys.
    /// If that node leads the range itself, its address is the one at which it was reached: the address
    /// that it gives itself need not work from everywhere.
    pub fn learn(&self, route: Route, (node, from): (u64, &Arc<str>)) {
        let leads_itself = route.leader.is_some_and(|(leader, _)| leader == node);
        let address = if leads_itself || route.address.is_empty() {
            from.clone()
        } else {
            Arc::from(route.address.as_str())
        };
        let new = Known {
            target: Target {
                range: route.range,
                version: route.version,
                conf: route.conf,
            },
            start: route.start,
            end: route.end,
            endpoint: Endpoint {
                address,
                shard: route.leader.map(|(_, shard)| shard),
            },
        };
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if ranges.contains(&new) {
            return;
        }
        let epoch = |known: &Known| (known.target.version, known.target.conf);
        if ranges
            .iter()
            .any(|known| overlap(known, &new) && epoch(known) > epoch(&new))
        {
            return;
        }
        let before = std::mem::take(&mut *ranges);
        ranges.extend(before.into_iter().flat_map(|known| beside(known, &new)));
        let (target, endpoint) = (new.target, &new.endpoint);
        tracing::debug!(
            range = target.range,
            version = target.version,
            conf = target.conf,
            address = %endpoint.address,
            shard = endpoint.shard,
            "a route is learned"
        );
        let at = ranges.partition_point(|known| known.start < new.start);
        ranges.insert(at, new);
    }

    /// Learns the routes with which a node has refused a try for a key. If the directory still says what
    /// the try went by, the next try asks for a new route.
    pub fn correct(
        &self,
        key: &[u8],
        tried: &Destination,
        routes: &[Route],
        (node, from): (u64, &Arc<str>),
    ) {
        for route in routes {
            self.learn(route.clone(), (node, from));
        }
        self.forget(key, tried);
    }

    /// Drops the route of a key if it is still the one by which a try failed, so that the next try
    /// asks for a new one.
    pub fn forget(&self, key: &[u8], tried: &Destination) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.retain(|known| {
            !holds(known, key)
                || Some(known.target) != tried.target
                || known.endpoint != tried.endpoint
        });
    }
}

/// Whether a refusal with these routes, by `node` at `endpoint`, says that the range has no leader yet:
/// it names none, or itself, which is about to lead.
pub(super) fn names_no_leader(routes: &[Route], node: u64, endpoint: &Endpoint) -> bool {
    let itself = endpoint.shard.map(|shard| (node, shard));
    (routes.first()).is_some_and(|route| route.leader.is_none() || route.leader == itself)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(range: u64, version: u32, start: &str, end: Option<&str>, shard: u16) -> Route {
        Route {
            range,
            version,
            conf: 1,
            start: start.into(),
            end: end.map(Into::into),
            leader: Some((1, shard)),
            address: String::new(),
        }
    }

    fn shard_of(directory: &Directory, key: &str) -> Option<u16> {
        directory
            .find(key.as_bytes())
            .and_then(|found| found.endpoint.shard)
    }

    #[test]
    fn a_leader_is_reached_where_it_was_reached_or_where_it_says() {
        let directory = Directory::default();
        let from: Arc<str> = Arc::from("mapped:1");
        let named = Route {
            address: "inside:1".to_owned(),
            ..route(1, 1, "", None, 0)
        };
        let address = || {
            directory
                .find(b"k")
                .map(|found| found.endpoint.address.to_string())
        };
        directory.learn(named.clone(), (1, &from));
        assert_eq!(address().as_deref(), Some("mapped:1"));
        directory.learn(named.clone(), (2, &from));
        assert_eq!(address().as_deref(), Some("inside:1"));
        let unnamed = Route {
            address: String::new(),
            ..named
        };
        directory.learn(unnamed, (2, &from));
        assert_eq!(address().as_deref(), Some("mapped:1"));
    }

    #[test]
    fn a_range_that_was_cut_out_leaves_both_sides_of_the_older_one() {
        let directory = Directory::default();
        let from: Arc<str> = Arc::from("here:1");
        let from = (1, &from);
        directory.learn(route(1, 1, "b", Some("y"), 0), from);
        directory.learn(route(2, 2, "g", Some("m"), 1), from);
        let shards = ["a", "b", "f", "g", "l", "m", "x", "y"].map(|key| shard_of(&directory, key));
        let (outside, older, newer) = (None, Some(0), Some(1));
        assert_eq!(
            shards,
            [outside, older, older, newer, newer, older, older, outside]
        );
        // The whole of it, at last.
        directory.learn(route(1, 3, "a", None, 2), from);
        let shards = ["a", "f", "g", "m", "z"].map(|key| shard_of(&directory, key));
        assert_eq!(shards, [Some(2); 5]);
    }

    #[test]
    fn newer_routes_replace_what_they_overlap() {
        let directory = Directory::default();
        let from: Arc<str> = Arc::from("here:1");
        let from = (1, &from);
        directory.learn(route(1, 1, "", None, 0), from);
        assert_eq!(shard_of(&directory, "z"), Some(0));
        directory.learn(route(2, 2, "m", None, 1), from);
        assert_eq!(
            (shard_of(&directory, "z"), shard_of(&directory, "a")),
            (Some(1), Some(0)),
            "what is left of the older range is kept"
        );
        directory.learn(route(1, 1, "", None, 0), from);
        assert_eq!(
            shard_of(&directory, "z"),
            Some(1),
            "an old route changes nothing"
        );
        directory.learn(route(1, 2, "", Some("m"), 0), from);
        assert_eq!(shard_of(&directory, "a"), Some(0));
        let there = directory.find(b"z").expect("known");
        let tried = |shard| Destination {
            target: there.target,
            endpoint: Endpoint {
                address: there.endpoint.address.clone(),
                shard: Some(shard),
            },
        };
        directory.forget(b"z", &tried(7));
        assert_eq!(shard_of(&directory, "z"), Some(1), "healed meanwhile");
        directory.forget(b"z", &tried(1));
        assert_eq!(
            (shard_of(&directory, "z"), shard_of(&directory, "a")),
            (None, Some(0))
        );
    }
}
