//! A replica that does not hear its leader deposes nobody as long as a majority does.

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

/// Leaves out what a third node leads meanwhile.
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

/// What a node led `before` a cut and no third one has led since, a deaf one must not lead while the
/// cut lasts. A leader may well hand over to a third, which may do so to the deaf one, which hears it.
pub fn check(seen: &Seen, before: &Led, deaf: &Led) {
    for (range, leader) in before {
        if let Some(now) = deaf.get(range) {
            seen.violation(format!(
                "range {range}: {leader:?} was deposed by {now:?}, which did not hear it"
            ));
        }
    }
}
