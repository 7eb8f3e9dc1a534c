//! In each term at most one replica leads (election safety), at any moment at most one replica of
//! a range may read alone, and replicas that have applied the same entries have the same state.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rangedb_engine::shard::ShardStatus;
use rangedb_engine::types::{RangeId, ReplicaId, Timestamp};

use crate::sim::workload::Seen;

/// What was seen of all ranges so far.
#[derive(Default)]
pub struct Leadership {
    /// Who led in a term.
    leaders: RefCell<BTreeMap<(RangeId, u64), ReplicaId>>,
    /// The time of a range when it had applied so many entries.
    times: RefCell<BTreeMap<(RangeId, u64), Timestamp>>,
}

impl Leadership {
    /// Looks at all shards that run, at one moment.
    pub fn check(&self, seen: &Seen, statuses: &[ShardStatus]) {
        let mut leases: BTreeMap<RangeId, Vec<ReplicaId>> = BTreeMap::new();
        for status in statuses.iter().flat_map(|shard| &shard.ranges) {
            let range = status.route.range;
            if status.leads {
                let mut leaders = self.leaders.borrow_mut();
                let first = leaders
                    .entry((range, status.term))
                    .or_insert(status.replica);
                if *first != status.replica {
                    seen.violation(format!(
                        "range {range}: {first} and {} lead in term {}",
                        status.replica, status.term
                    ));
                }
                if status.has_lease {
                    leases.entry(range).or_default().push(status.replica);
                }
            }
            let mut times = self.times.borrow_mut();
            let time = times
                .entry((range, status.applied))
                .or_insert(status.last_ts);
            if *time != status.last_ts {
                seen.violation(format!(
                    "range {range}: after entry {} its time is {time} on one replica and {} on {}",
                    status.applied, status.last_ts, status.replica
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
