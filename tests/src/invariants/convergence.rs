//! After all faults the cluster converges: each range has one leader, no entry is in flight, and
//! all replicas of a range have applied the same entries.

use std::collections::BTreeMap;

use rangedb_engine::types::RangeId;

use crate::sim::cluster::Look;

/// The first range that has not converged; `None` if there is none.
pub fn missing(looks: &[Look]) -> Option<String> {
    let mut ranges: BTreeMap<RangeId, Vec<&Look>> = BTreeMap::new();
    for look in looks {
        ranges
            .entry(look.status.route.range)
            .or_default()
            .push(look);
    }
    for (range, replicas) in ranges {
        if let Some(frozen) = replicas.iter().find(|look| look.status.frozen.is_some()) {
            let replica = frozen.status.replica;
            return Some(format!("replica {replica} of range {range} is frozen"));
        }
        let leaders = replicas.iter().filter(|look| look.status.leads).count();
        if leaders != 1 {
            return Some(format!("range {range} has {leaders} leaders"));
        }
        let applied: Vec<u64> = replicas.iter().map(|look| look.status.applied).collect();
        if applied.windows(2).any(|two| two[0] != two[1]) {
            return Some(format!("the replicas of range {range} are at {applied:?}"));
        }
        if let Some(busy) = replicas.iter().find(|look| look.status.load.in_flight > 0) {
            let status = &busy.status;
            return Some(format!("range {range}: {status:?} has entries in flight"));
        }
    }
    None
}
