//! Election safety: in each term at most one replica leads. At any moment at most one replica of a
//! range has a lease, so that it may read without asking others.

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
        for Look { status, .. } in looks.iter().filter(|look| look.status.leads) {
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
            }
        }
        for (range, replicas) in leases {
            if replicas.len() > 1 {
                seen.violation(format!("range {range}: {replicas:?} may all read alone"));
            }
        }
    }
}
