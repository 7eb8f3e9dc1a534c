//! Election safety: in each term at most one replica leads. At any moment at most one replica of a
//! range has a lease, so that it may read without asking others; and no key is served under a lease by
//! two ranges.

use std::collections::BTreeMap;

use rangedb_engine::types::{KeyRange, RangeId, ReplicaId};

use crate::sim::cluster::Look;
use crate::sim::seen::Seen;

/// The leader of each term of each range.
#[derive(Default)]
pub struct Leadership(BTreeMap<(RangeId, u64), ReplicaId>);

impl Leadership {
    /// Checks all replicas at one moment.
    pub fn check(&mut self, seen: &Seen, looks: &[Look]) {
        let mut leases: BTreeMap<RangeId, Vec<ReplicaId>> = BTreeMap::new();
        let mut serving: Vec<(&KeyRange, RangeId)> = Vec::new();
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
            if let Some(leased) = &status.leased {
                leases.entry(range).or_default().push(replica);
                serving.extend((!status.system).then_some((leased, range)));
            }
        }
        serving.sort_by(|(one, _), (other, _)| one.start.cmp(&other.start));
        for two in serving.windows(2) {
            let [(left, of_left), (right, of_right)] = two else {
                continue;
            };
            if of_left != of_right && left.overlaps(right) {
                seen.violation(format!(
                    "both may be read alone: {left:?} of range {of_left} and {right:?} of range {of_right}"
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
