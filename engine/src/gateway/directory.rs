//! The directory: which range holds a user's key, as far as this shard knows, and where its leader
//! is.
//!
//! A [`Directory`] is an immutable snapshot; new knowledge makes a new one. It has only ranges of the
//! users' key space, so no key that a user sends can reach the cluster's own records. It is built from
//! [`Routes`]: those of the replicas on this node, and those in the last view of the cluster's manager.
//! What it knows of a key never goes back to an older epoch.
//!
//! After a split the directory learns of the two halves in any order, and of the second one maybe much
//! later. The route of the first half takes its keys from the route of the range that was split, and the
//! rest of that route stays until the second half is known: a request that follows it reaches a shard that
//! knows the new route.
//!
//! The client's cache of routes (`client/src/core/directory.rs`) is a type of its own: it learns one route
//! at a time, forgets one that was wrong, and has addresses and a lock, while this one is made anew of all
//! that the node knows. Pure.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::cluster::View;
use crate::mutant::{self, Mutant};
use crate::range::Keyspace;
use crate::request::Target;
use crate::types::{KeyRange, Location, NodeId, Route, ShardId};

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

    /// The directory that these routes and the one before them make. For one epoch of a range a replica
    /// on this node counts before the manager, and the directory before counts last.
    pub fn directory(&self, before: &Directory) -> Directory {
        let learnt = self.here.values().flatten().chain(&self.view);
        Directory::new(learnt.chain(before.routes()))
    }
}

/// Routes, sorted by their first key. They never overlap; there may be gaps. A range may have several
/// routes, if ranges that were split from it are not all known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    routes: Vec<Route>,
}

impl Directory {
    /// Builds a directory from routes. A route has those of its keys that no newer route has, and no
    /// other of the same epoch that comes before it. Newer is what has the higher version, since a
    /// split or merge gives its results a higher one, and of one version what has the higher `conf`.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Directory {
        let mut newest_first: Vec<&Route> = routes.into_iter().collect();
        newest_first.sort_by(|a, b| match mutant::is(Mutant::OlderRoutePreferred) {
            true => a.epoch.cmp(&b.epoch),
            false => b.epoch.cmp(&a.epoch),
        });
        let mut taken = Taken::new();
        for route in newest_first {
            for (start, end) in gaps(&taken, &route.keys) {
                taken.insert(start, (end, route));
            }
        }
        let part = |(start, (end, route)): (&[u8], (Option<&[u8]>, &Route))| Route {
            range: route.range,
            epoch: route.epoch,
            keys: KeyRange {
                start: start.to_vec(),
                end: end.map(<[u8]>::to_vec),
            },
            leader: route.leader,
        };
        Directory {
            routes: taken.into_iter().map(part).collect(),
        }
    }

    /// The routes of the ranges that may hold the keys which a caller looks for in `target`; the first
    /// is that of the range which holds `key`. Without a target it is the only one.
    pub fn routes_near(&self, key: &[u8], target: Option<Target>) -> Vec<Route> {
        let Some(own) = self.find(key) else {
            return Vec::new();
        };
        let Some(target) = target else {
            return vec![own.clone()];
        };
        let (before, after) = self.routes.split_at(self.starts_up_to(key));
        let near = target.successors(before.iter().rev(), after.iter(), |route| route.epoch);
        near.cloned().collect()
    }

    /// How many routes begin at a key or before it.
    fn starts_up_to(&self, key: &[u8]) -> usize {
        self.routes
            .partition_point(|route| route.keys.begins_up_to(key))
    }

    /// The range that holds a key.
    pub fn find(&self, key: &[u8]) -> Option<&Route> {
        let route = self.routes.get(self.starts_up_to(key).checked_sub(1)?)?;
        route.keys.contains(key).then_some(route)
    }

    /// All routes, sorted by their first key.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

/// The first key of each interval that has a route, with its end and the route.
type Taken<'a> = BTreeMap<&'a [u8], (Option<&'a [u8]>, &'a Route)>;

/// The parts of an interval of keys that no route has taken.
fn gaps<'a>(taken: &Taken<'a>, keys: &'a KeyRange) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
    let (start, end) = keys.interval();
    let mut gaps = Vec::new();
    let before = taken
        .range::<[u8], _>((Bound::Unbounded, Bound::Included(start)))
        .next_back();
    let reaches = |to: Option<&[u8]>| to.is_none_or(|to| start < to);
    let mut next = match before {
        Some((_, (to, _))) if reaches(*to) => *to,
        _ => Some(start),
    };
    for (first, (to, _)) in taken.range::<[u8], _>((Bound::Excluded(start), Bound::Unbounded)) {
        let Some(from) = next else { break };
        if end.is_some_and(|end| end <= *first) {
            break;
        }
        if from < *first {
            gaps.push((from, Some(*first)));
        }
        next = *to;
    }
    if let Some(from) = next
        && end.is_none_or(|end| from < end)
    {
        gaps.push((from, end));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MOVED_ROUTES_MAX;
    use crate::types::{Epoch, RangeId};

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
        let directory = Directory::new(&[
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
        let directory = Directory::new(&[route(1, 1, "a", Some("c")), route(2, 1, "d", None)]);
        assert!(!is_complete(&directory));
        assert_eq!(found(&directory, "A"), None);
        assert_eq!(found(&directory, "b"), Some(1));
        assert_eq!(found(&directory, "c"), None);
        assert!(!is_complete(&Directory::default()));
    }

    #[test]
    fn of_two_that_overlap_the_newer_has_the_keys_and_the_rest_of_the_older_stays() {
        let directory = Directory::new(&[route(1, 1, "", None), route(2, 2, "m", None)]);
        assert_eq!(found(&directory, "z"), Some(2));
        assert_eq!(found(&directory, "a"), Some(1));
        let directory = Directory::new(&[route(1, 3, "", None), route(2, 2, "m", None)]);
        assert_eq!(found(&directory, "z"), Some(1));
        let directory = Directory::new(&[route(1, 1, "", None), route(2, 2, "", Some("m"))]);
        assert_eq!(found(&directory, "a"), Some(2));
        assert_eq!(found(&directory, "z"), Some(1));
        let inside = Directory::new(&[route(1, 1, "b", Some("y")), route(2, 2, "g", Some("m"))]);
        let found = ["a", "b", "f", "g", "l", "m", "x", "y"].map(|key| found(&inside, key));
        let (outside, older, newer) = (None, Some(1), Some(2));
        assert_eq!(
            found,
            [outside, older, older, newer, newer, older, older, outside]
        );
    }

    #[test]
    fn half_of_a_split_leaves_the_other_half_to_the_range_that_was_split() {
        let parent = route(1, 1, "", None);
        let before = Directory::new([&parent]);
        for half in [route(1, 2, "", Some("m")), route(2, 2, "m", None)] {
            let routes = Routes {
                view: vec![half.clone()],
                ..Routes::default()
            };
            let after = routes.directory(&before);
            assert!(is_complete(&after), "{after:?}");
            let kept = after.find(if half.range.0 == 1 { b"z" } else { b"a" });
            let kept = kept.map(|route| (route.range, route.epoch.version));
            assert_eq!(kept, Some((RangeId(1), 1)));
            assert_eq!(routes.directory(&after), after, "it stays so");
        }
    }

    #[test]
    fn the_routes_near_a_key_are_those_that_are_newer_than_the_target() {
        let directory = Directory::new(&[
            route(1, 1, "", Some("c")),
            route(2, 3, "c", Some("h")),
            route(3, 4, "h", Some("p")),
            route(4, 4, "p", Some("t")),
            route(5, 2, "t", None),
        ]);
        let near = |key: &str, version: Option<u32>| {
            let target = version.map(|version| Target {
                range: RangeId(2),
                epoch: Epoch { version, conf: 1 },
            });
            let routes = directory.routes_near(key.as_bytes(), target);
            let ids = routes.iter().map(|route| route.range.0);
            ids.collect::<Vec<u64>>()
        };
        assert_eq!(near("d", Some(2)), [2, 3, 4]);
        assert_eq!(near("i", Some(2)), [3, 4, 2]);
        assert_eq!(near("q", Some(2)), [4, 3, 2]);
        assert_eq!(near("q", Some(3)), [4, 3]);
        assert_eq!(near("q", None), [4]);
        assert_eq!(near("a", Some(9)), [1]);
        let many: Vec<Route> = (0..40_u8)
            .map(|at| Route {
                keys: KeyRange {
                    start: vec![at],
                    end: Some(vec![at + 1]),
                },
                ..route(at.into(), 9, "", None)
            })
            .collect();
        let target = Target {
            range: RangeId(0),
            epoch: Epoch::default(),
        };
        let near = Directory::new(&many).routes_near(&[30], Some(target));
        assert_eq!(near.len(), MOVED_ROUTES_MAX);
        assert_eq!(near.first(), many.get(30));
        assert!(Directory::default().routes_near(b"a", None).is_empty());
    }

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
        }
    }

    /// Ranges that were split one after the other, from one that holds all keys: every route that there
    /// ever was, and those that there are now.
    fn chain_of_splits(random: &mut Random) -> (Vec<Route>, Vec<Route>) {
        let mut now = vec![route(1, 1, "", None)];
        let mut ever = now.clone();
        for range in 2..=12 {
            let at = format!("{:02}", random.below(100));
            let parent = now.iter_mut().find(|route| {
                route.keys.contains(at.as_bytes()) && route.keys.start != at.as_bytes()
            });
            let Some(parent) = parent else { continue };
            let child = Route {
                range: RangeId(range),
                epoch: Epoch {
                    version: parent.epoch.version + 1,
                    conf: parent.epoch.conf,
                },
                keys: KeyRange {
                    start: at.clone().into_bytes(),
                    end: parent.keys.end.replace(at.into_bytes()),
                },
                leader: parent.leader,
            };
            parent.epoch = child.epoch;
            ever.extend([parent.clone(), child.clone()]);
            now.push(child);
        }
        now.sort_by(|a, b| a.keys.start.cmp(&b.keys.start));
        (ever, now)
    }

    #[test]
    fn a_chain_of_splits_told_in_any_order_ends_as_the_newest_ranges_and_never_has_a_gap() {
        for seed in 0..500 {
            let mut random = Random(seed);
            let (ever, now) = chain_of_splits(&mut random);
            let mut untold = ever.clone();
            let first = untold.remove(0);
            let mut directory = Directory::new([&first]);
            while !untold.is_empty() {
                let told = untold.swap_remove(random.below(untold.len()));
                let before = directory.clone();
                let routes = Routes {
                    view: vec![told],
                    ..Routes::default()
                };
                directory = routes.directory(&before);
                assert!(is_complete(&directory), "seed {seed}: {directory:?}");
                for route in &ever {
                    let key = &route.keys.start;
                    let version = |directory: &Directory| {
                        let known = directory.find(key);
                        known.map(|known| known.epoch.version)
                    };
                    assert!(version(&before) <= version(&directory), "seed {seed}");
                }
            }
            assert_eq!(directory.routes(), now, "seed {seed}");
            // All at once.
            let view = Routes {
                view: ever,
                ..Routes::default()
            };
            assert_eq!(view.directory(&Directory::default()).routes(), now);
        }
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
