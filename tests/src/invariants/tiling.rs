//! Descriptors tile the key space: the newest descriptors of all ranges, over all running replicas,
//! do not overlap, but for a range whose running replicas have all not come to its split yet: then what
//! was split off has a higher version, and for a range that is frozen: it may be a part of another one by
//! now, which has a higher version. If every range has a running replica, they leave no gap either. The replicas of one
//! shard do not overlap at all, except those that have neither a snapshot nor an entry yet.

use std::collections::BTreeMap;

use rangedb_engine::range::Route;
use rangedb_engine::types::RangeId;

use crate::sim::cluster::Look;
use crate::sim::seen::Seen;

/// Checks the replicas of each shard at one moment.
fn check_shards(seen: &Seen, looks: &[Look]) {
    let holds = |look: &&Look| !look.status.system && look.status.applied > 0;
    for (place, one) in looks.iter().enumerate().filter(|(_, look)| holds(look)) {
        let later = looks.iter().skip(place + 1).filter(holds);
        for other in later.filter(|other| (other.host, other.at) == (one.host, one.at)) {
            let (one, other) = (&one.status.route, &other.status.route);
            if one.keys.overlaps(&other.keys) {
                seen.violation(format!("on one shard overlap {one:?} and {other:?}"));
            }
        }
    }
}

/// Checks all replicas at one moment.
pub fn check(seen: &Seen, looks: &[Look]) {
    check_shards(seen, looks);
    let mut newest: BTreeMap<RangeId, &Route> = BTreeMap::new();
    // One that is no member any more, and has not heard of that, was not asked when the range was frozen.
    let is_out = |look: &Look| super::is_out(look.status.route.range, look.status.replica);
    let is_merged = |look: &Look| {
        let (keys, version) = (&look.status.route.keys, look.status.route.epoch.version);
        (look.status.frozen.is_some() || is_out(look))
            && looks.iter().any(|other| {
                let route = &other.status.route;
                route.keys.overlaps(keys) && route.epoch.version > version && !other.status.system
            })
    };
    let users = looks.iter().filter(|look| !look.status.system);
    for Look { status, .. } in users.filter(|look| !is_merged(look)) {
        let route = newest.entry(status.route.range).or_insert(&status.route);
        let epoch = |route: &Route| (route.epoch.version, route.epoch.conf);
        if epoch(&status.route) > epoch(route) {
            *route = &status.route;
        }
        if epoch(&status.route) == epoch(route) && status.route.keys != route.keys {
            seen.violation(format!(
                "range {} is {:?} and {:?} in one epoch",
                route.range, route.keys, status.route.keys
            ));
        }
    }
    let mut routes: Vec<&Route> = newest.into_values().collect();
    routes.sort_by(|a, b| a.keys.start.cmp(&b.keys.start));
    for two in routes.windows(2) {
        let [left, right] = two else { continue };
        let is_split_later = left.epoch.version < right.epoch.version;
        if left.keys.overlaps(&right.keys) && !is_split_later {
            seen.violation(format!("ranges overlap: {left:?}, {right:?}"));
        }
    }
}

/// Checks the same and that there is no gap. Every range must have a running replica.
pub fn check_whole(seen: &Seen, looks: &[Look]) {
    check(seen, looks);
    let routes = looks.iter().filter(|look| !look.status.system);
    let mut keys: Vec<_> = routes.map(|look| look.status.route.keys.clone()).collect();
    keys.sort_by(|a, b| a.start.cmp(&b.start).then(a.end.cmp(&b.end)));
    keys.dedup();
    let mut expected = Some(Vec::new());
    for interval in &keys {
        if expected.as_ref() != Some(&interval.start) {
            seen.violation(format!("there is a gap before {interval:?}"));
        }
        expected = interval.end.clone();
    }
    if expected.is_some() {
        seen.violation(format!("nothing lies after {expected:?}"));
    }
}
