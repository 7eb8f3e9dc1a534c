//! A replica that does not hear its leader deposes nobody while a majority hears the leader.

use std::collections::BTreeMap;

use rangedb_engine::types::{RangeId, ReplicaId};

use crate::sim::cluster::Look;
use crate::sim::seen::Seen;

/// The ranges that a node leads, with its replica and the term.
pub type Led = BTreeMap<RangeId, (ReplicaId, u64)>;

/// The ranges that a node leads now.
pub fn led(looks: &[Look], node: u16) -> Led {
    let led = looks
        .iter()
        .filter(|look| look.status.leads && look.host.machine() == node);
    led.map(|Look { status, .. }| (status.route.range, (status.replica, status.term)))
        .collect()
}

/// Removes the ranges that a third node leads meanwhile.
pub fn leave_out_handed_on(before: &mut Led, looks: &[Look], two: [u16; 2]) {
    let third = |look: &&Look| look.status.leads && !two.contains(&look.host.machine());
    for Look { status, .. } in looks.iter().filter(third) {
        let range = status.route.range;
        if before
            .get(&range)
            .is_some_and(|(_, term)| status.term >= *term)
        {
            before.remove(&range);
        }
    }
}

/// Checks that the deaf node does not lead, while the cut lasts, a range that the other node led
/// `before` and no third node has led since. A leader may transfer to a third node, and that one
/// to the deaf node, which hears it.
pub fn check(seen: &Seen, before: &Led, deaf: &Led) {
    for (range, leader) in before {
        if let Some(now) = deaf.get(range) {
            seen.violation(format!(
                "range {range}: {leader:?} was deposed by {now:?}, which did not hear it"
            ));
        }
    }
}
