//! Election safety: in each term at most one replica leads. At any moment at most one replica of a
//! range has a lease, so that it may read without asking others; and no key is served under a lease by
//! two ranges.

use std::collections::BTreeMap;

use rangedb_engine::types::{RangeId, ReplicaId};

use crate::sim::cluster::Look;
use crate::sim::seen::Seen;

/// The leader of each term of each range.
#[derive(Default)]
pub struct Leadership(BTreeMap<(RangeId, u64), ReplicaId>);

impl Leadership {
    /// Checks all replicas at one moment.
    pub fn check(&mut self, seen: &Seen, looks: &[Look]) {
        let mut leases: BTreeMap<RangeId, Vec<ReplicaId>> = BTreeMap::new();
        let mut serving: Vec<&Look> = Vec::new();
        for look in looks.iter().filter(|look| look.status.leads) {
            let status = &look.status;
            let (range, replica) = (status.route.range, status.replica);
            let first = *self.0.entry((range, status.term)).or_insert(replica);
            if first != replica {
                seen.violation(format!(
                    "range {range}: {first} and {replica} lead in term {}",
                    status.term
                ));
            }
            if status.has_lease {
                leases.entry(range).or_default().push(replica);
                serving.extend(Some(look).filter(|look| !look.status.system));
            }
        }
        serving.sort_by(|one, other| one.status.open.start.cmp(&other.status.open.start));
        for two in serving.windows(2) {
            let [left, right] = two else { continue };
            let (left, right) = (&left.status, &right.status);
            if left.route.range != right.route.range && left.open.overlaps(&right.open) {
                seen.violation(format!(
                    "both may be read alone: {:?} of range {} and {:?} of range {}",
                    left.open, left.route.range, right.open, right.route.range
                ));
            }
        }
        for (range, replicas) in leases {
            if replicas.len() > 1 {
                seen.violation(format!("range {range}: {replicas:?} may all read alone"));
            }
        }
    }
}
