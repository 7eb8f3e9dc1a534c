//! The directory: which range holds a user's key, as far as this shard knows, and where its leader
//! is.
//!
//! A [`Directory`] is an immutable snapshot; new knowledge makes a new one. It has only ranges of the
//! users' key space, so no key that a user sends can name the cluster's own records. What it is made
//! of are [`Routes`]: those of the replicas on this node, and the last view of the cluster's manager.
//! What it knows of a range never goes back to an older epoch. Pure.

use std::collections::BTreeMap;

use crate::cluster::View;
use crate::mutant::{self, Mutant};
use crate::range::Keyspace;
use crate::types::{Location, NodeId, RangeId, Route, ShardId};

/// The routes of which a directory is made.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// Those of the replicas on each shard of this node.
    here: BTreeMap<ShardId, Vec<Route>>,
    /// Those of all ranges in the last view of the manager.
    view: Vec<Route>,
}

impl Routes {
    /// Takes the routes of a shard of this node. If a replica there knows no leader, requests go to
    /// that shard anyway: it can tell why there is none.
    pub fn learn_shard(&mut self, node: NodeId, shard: ShardId, mut routes: Vec<Route>) {
        for route in &mut routes {
            route.leader.get_or_insert(Location { node, shard });
        }
        self.here.insert(shard, routes);
    }

    /// Takes the routes of a view.
    pub fn learn_view(&mut self, view: &View) {
        let users = view.ranges.iter();
        let users = users.filter(|range| range.descriptor.keyspace == Keyspace::User);
        let routes = users.map(|range| Route {
            leader: range.leader,
            ..range.descriptor.route(None)
        });
        self.view = routes.collect();
    }

    /// The directory that these routes and the one before them make. Of two routes of a range the one
    /// of the newer epoch counts. For one epoch a replica on this node counts before the manager, if it
    /// is known where the leader is, and the directory before counts last.
    pub fn directory(&self, before: &Directory) -> Directory {
        let mut newest: BTreeMap<RangeId, &Route> = BTreeMap::new();
        let learnt = self.here.values().flatten().chain(&self.view);
        for route in learnt {
            let known = newest.get(&route.range).copied();
            let counts = known.is_none_or(|known| {
                let names_leader = known.leader.is_none() && route.leader.is_some();
                is_newer(route, known) || (route.epoch == known.epoch && names_leader)
            });
            if counts {
                newest.insert(route.range, route);
            }
        }
        for route in before.routes() {
            let known = newest.get(&route.range).copied();
            if known.is_none_or(|known| is_newer(route, known)) {
                newest.insert(route.range, route);
            }
        }
        Directory::new(newest.into_values().cloned().collect())
    }
}

/// Routes, sorted by their first key. They never overlap; there may be gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    routes: Vec<Route>,
}

impl Directory {
    /// Builds a directory from routes in any order. Of two that overlap, the one with the higher
    /// epoch stays: a split or merge gives its results a higher one.
    pub fn new(mut routes: Vec<Route>) -> Directory {
        routes.sort_by(|a, b| {
            let newest = b.epoch.cmp(&a.epoch);
            a.keys.start.cmp(&b.keys.start).then(newest)
        });
        let mut kept: Vec<Route> = Vec::with_capacity(routes.len());
        for route in routes {
            match kept.last() {
                Some(last) if last.keys.overlaps(&route.keys) => {
                    if is_newer(&route, last) {
                        kept.pop();
                        kept.push(route);
                    }
                }
                _ => kept.push(route),
            }
        }
        Directory { routes: kept }
    }

    /// The range that holds a key.
    pub fn find(&self, key: &[u8]) -> Option<&Route> {
        let after = self
            .routes
            .partition_point(|route| route.keys.start.as_slice() <= key);
        let route = self.routes.get(after.checked_sub(1)?)?;
        route.keys.contains(key).then_some(route)
    }

    /// All routes, sorted by their first key.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

fn is_newer(route: &Route, than: &Route) -> bool {
    match mutant::is(Mutant::OlderRoutePreferred) {
        true => route.epoch < than.epoch,
        false => route.epoch > than.epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, KeyRange};

    fn route(range: u64, version: u32, start: &str, end: Option<&str>) -> Route {
        Route {
            range: RangeId(range),
            epoch: Epoch { version, conf: 1 },
            keys: KeyRange {
                start: start.into(),
                end: end.map(Into::into),
            },
            leader: None,
        }
    }

    /// Whether every key has its range.
    fn is_complete(directory: &Directory) -> bool {
        let mut next: Option<&[u8]> = Some(&[]);
        for route in directory.routes() {
            if next != Some(route.keys.start.as_slice()) {
                return false;
            }
            next = route.keys.end.as_deref();
        }
        !directory.routes().is_empty() && next.is_none()
    }

    fn found(directory: &Directory, key: &str) -> Option<u64> {
        directory.find(key.as_bytes()).map(|route| route.range.0)
    }

    #[test]
    fn finds_the_range_of_each_key() {
        let directory = Directory::new(vec![
            route(3, 1, "t", None),
            route(1, 1, "", Some("g")),
            route(2, 1, "g", Some("t")),
        ]);
        assert!(is_complete(&directory));
        for (key, range) in [
            ("", 1),
            ("a", 1),
            ("fzz", 1),
            ("g", 2),
            ("s", 2),
            ("t", 3),
            ("z", 3),
        ] {
            assert_eq!(found(&directory, key), Some(range), "{key}");
        }
    }

    #[test]
    fn a_gap_belongs_to_nobody() {
        let directory = Directory::new(vec![route(1, 1, "a", Some("c")), route(2, 1, "d", None)]);
        assert!(!is_complete(&directory));
        assert_eq!(found(&directory, "A"), None);
        assert_eq!(found(&directory, "b"), Some(1));
        assert_eq!(found(&directory, "c"), None);
        assert!(!is_complete(&Directory::default()));
    }

    #[test]
    fn of_two_that_overlap_the_newer_stays() {
        let old_first = Directory::new(vec![route(1, 1, "", None), route(2, 2, "m", None)]);
        assert_eq!(found(&old_first, "z"), Some(2));
        assert_eq!(found(&old_first, "a"), None);
        let new_first = Directory::new(vec![route(1, 3, "", None), route(2, 2, "m", None)]);
        assert_eq!(found(&new_first, "z"), Some(1));
        let same_start = Directory::new(vec![route(1, 1, "", None), route(2, 2, "", Some("m"))]);
        assert_eq!(found(&same_start, "a"), Some(2));
        assert_eq!(found(&same_start, "z"), None);
    }

    const HERE: Location = at(1, 0);

    const fn at(node: u64, shard: u16) -> Location {
        Location {
            node: NodeId(node),
            shard: ShardId(shard),
        }
    }

    /// Routes of one range: those of this shard's replica, and those of the manager.
    fn routes(here: &[(u32, Option<Location>)], view: &[(u32, Option<Location>)]) -> Routes {
        let all = |of: &[(u32, Option<Location>)]| {
            let each = of.iter().map(|(conf, leader)| Route {
                epoch: Epoch {
                    version: 1,
                    conf: *conf,
                },
                leader: *leader,
                ..route(1, 1, "", None)
            });
            each.collect::<Vec<Route>>()
        };
        let mut routes = Routes {
            view: all(view),
            ..Routes::default()
        };
        routes.learn_shard(HERE.node, HERE.shard, all(here));
        routes
    }

    fn leader(directory: &Directory) -> Option<Location> {
        directory.find(b"k").and_then(|route| route.leader)
    }

    #[test]
    fn of_one_range_the_newest_epoch_counts_and_then_the_replica_on_this_node() {
        let made = |here: &[_], view: &[_]| routes(here, view).directory(&Directory::default());
        let (old, new) = (Some(at(2, 0)), Some(at(3, 0)));
        assert_eq!(leader(&made(&[(1, old)], &[(2, new)])), new);
        assert_eq!(leader(&made(&[(2, new)], &[(1, old)])), new);
        assert_eq!(leader(&made(&[(2, new)], &[(2, old)])), new);
        assert_eq!(leader(&made(&[], &[(2, None)])), None);
        // A replica that knows no leader is asked itself.
        assert_eq!(leader(&made(&[(2, None)], &[(2, old)])), Some(HERE));
        assert_eq!(leader(&made(&[(1, None)], &[(2, old)])), old);
    }

    #[test]
    fn a_directory_does_not_go_back_when_the_replica_is_gone() {
        let (old, new) = (Some(at(2, 0)), Some(at(3, 0)));
        let before = routes(&[(2, new)], &[(1, old)]).directory(&Directory::default());
        let after = routes(&[], &[(1, old)]).directory(&before);
        assert_eq!(leader(&after), new);
        // The manager says the last word of an epoch that it knows.
        let after = routes(&[], &[(2, None)]).directory(&after);
        assert_eq!(leader(&after), None);
    }
}
