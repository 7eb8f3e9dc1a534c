//! Routing: where the leader of a user's key is, seen from one shard. Pure.

use super::directory::Directory;
use crate::types::{Location, Route};

/// Where the leader of a key's range is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this shard, as far as the directory knows.
    Here,
    /// On another shard, of this node or another, or not known.
    Elsewhere(Route),
    /// The directory has no range for the key.
    Unknown,
}

/// Looks a key up. An empty key gets a range, too: the engine refuses it and says why.
pub fn place(directory: &Directory, here: Location, key: &[u8]) -> Place {
    let Some(route) = directory.find(key) else {
        return Place::Unknown;
    };
    match route.leader {
        Some(leader) if leader == here => Place::Here,
        _ => Place::Elsewhere(route.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, KeyRange, NodeId, RangeId, ShardId};

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
        let directory = Directory::new(vec![
            route(1, "a", "b", Some(at(1, 0))),
            beside.clone(),
            away.clone(),
            unled.clone(),
        ]);
        let place = |key: &str| place(&directory, at(1, 0), key.as_bytes());
        assert_eq!(place("a1"), Place::Here);
        assert_eq!(place("b1"), Place::Elsewhere(beside));
        assert_eq!(place("c1"), Place::Elsewhere(away));
        assert_eq!(place("d1"), Place::Elsewhere(unled));
        assert_eq!(place("e1"), Place::Unknown);
    }
}
