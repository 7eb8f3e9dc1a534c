//! The directory: which range holds a user's key, as far as this shard knows.
//!
//! An immutable snapshot; new knowledge makes a new one. It has only ranges of the users' key
//! space, so no key that a user sends can name the cluster's own records. Pure.

use rangedb_engine::range::Route;

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
            let newest = (b.epoch.version, b.epoch.conf).cmp(&(a.epoch.version, a.epoch.conf));
            a.keys.start.cmp(&b.keys.start).then(newest)
        });
        let mut kept: Vec<Route> = Vec::with_capacity(routes.len());
        for route in routes {
            match kept.last() {
                Some(last) if overlap(last, &route) => {
                    if newer(&route, last) {
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

/// Whether two routes have a key in common; `low` must not start after `high`.
fn overlap(low: &Route, high: &Route) -> bool {
    low.keys
        .end
        .as_deref()
        .is_none_or(|end| high.keys.start.as_slice() < end)
}

fn newer(a: &Route, b: &Route) -> bool {
    (a.epoch.version, a.epoch.conf) > (b.epoch.version, b.epoch.conf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rangedb_engine::types::{Epoch, KeyRange, RangeId};

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
}
