//! A replica that does not hear its leader deposes nobody as long as a majority does: neither while
//! it is cut off nor when it is back.

use std::collections::BTreeMap;

use rangedb_engine::types::{RangeId, ReplicaId};

use crate::sim::cluster::Look;
use crate::sim::seen::Seen;

/// What a node leads, and in which terms.
pub type Led = BTreeMap<RangeId, (ReplicaId, u64)>;

/// What a node leads.
pub fn led(looks: &[Look], node: u16) -> Led {
    let led = looks
        .iter()
        .filter(|look| look.status.leads && look.host.machine() == node);
    led.map(|Look { status, .. }| (status.route.range, (status.replica, status.term)))
        .collect()
}

/// Compares what a node leads with what it has led before.
pub fn check(seen: &Seen, before: &Led, after: &Led) {
    for (range, leader) in before {
        let now = after.get(range);
        if now != Some(leader) {
            seen.violation(format!(
                "range {range}: {leader:?} was deposed by one that did not hear it; now {now:?}"
            ));
        }
    }
}
