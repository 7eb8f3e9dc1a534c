//! When all faults are over the cluster converges: each range has one leader with a lease, nothing
//! waits, and all replicas have applied and remember the same.

use std::collections::BTreeMap;

use rangedb_engine::types::RangeId;

use crate::sim::cluster::Look;

/// Why the cluster has not converged; `None` if it has.
pub fn missing(looks: &[Look]) -> Option<String> {
    let mut ranges: BTreeMap<RangeId, Vec<&Look>> = BTreeMap::new();
    for look in looks {
        ranges
            .entry(look.status.route.range)
            .or_default()
            .push(look);
    }
    for (range, replicas) in ranges {
        let leaders = replicas.iter().filter(|look| look.status.leads).count();
        if leaders != 1 {
            return Some(format!("range {range} has {leaders} leaders"));
        }
        let of = |look: &&Look| {
            let status = &look.status;
            (status.applied, status.last_ts, status.session_clients)
        };
        let states: Vec<_> = replicas.iter().map(of).collect();
        if states.windows(2).any(|two| two[0] != two[1]) {
            return Some(format!("the replicas of range {range} are at {states:?}"));
        }
        if let Some(busy) = replicas.iter().find(|look| look.status.in_flight > 0) {
            let status = &busy.status;
            return Some(format!("range {range}: {status:?} has entries in flight"));
        }
    }
    None
}
