//! Leader completeness: a replica that leads and has a lease has applied every entry of earlier
//! terms that any replica is known to have applied.

use super::log_matching::Log;
use crate::sim::cluster::Look;
use crate::sim::seen::Seen;

/// Checks all leaders at one moment.
pub fn check(log: &Log, seen: &Seen, looks: &[Look]) {
    for Look { status, .. } in looks {
        if !status.leads || status.leased.is_none() {
            continue;
        }
        let range = status.route.range;
        let committed = log.committed_before(range, status.term);
        if let Some(committed) = committed.filter(|id| id.index > status.applied) {
            seen.violation(format!(
                "range {range}: {} serves in term {} with entry {} applied, without {committed:?}",
                status.replica, status.term, status.applied
            ));
        }
    }
}
