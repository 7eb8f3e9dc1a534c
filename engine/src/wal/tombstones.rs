//! Replica tombstones: the replicas that were removed for good, as one number per range. Pure.
//!
//! The replicas of a range have rising ids, and a shard has one of them at a time, so the highest id
//! that was removed stands for all before it. A log that has seen thousands of replicas of a range go
//! begins each segment with one tombstone of it, not with thousands.

use std::collections::BTreeMap;

use crate::types::{RangeId, ReplicaId};
use crate::wal::Group;

/// The highest removed replica id of each range; see the module's chapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tombstones(BTreeMap<RangeId, ReplicaId>);

impl Tombstones {
    /// Notes that a replica was removed.
    pub(super) fn add(&mut self, Group { range, replica }: Group) {
        let highest = self.0.entry(range).or_insert(replica);
        *highest = replica.max(*highest);
    }

    /// Whether this replica, or a later one of its range, was removed.
    pub(super) fn has(&self, Group { range, replica }: Group) -> bool {
        self.0
            .get(&range)
            .is_some_and(|highest| replica <= *highest)
    }

    /// The last removed replica of each range.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group> {
        let all = self.0.iter();
        all.map(|(range, replica)| Group {
            range: *range,
            replica: *replica,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn group(range: u64, replica: u64) -> Group {
        Group {
            range: RangeId(range),
            replica: ReplicaId(replica),
        }
    }

    #[test]
    fn a_range_has_one_tombstone_that_stands_for_its_earlier_replicas() {
        let mut removed = Tombstones::default();
        for replica in [3, 9, 5] {
            removed.add(group(1, replica));
        }
        removed.add(group(2, 4));
        let all: Vec<Group> = removed.groups().collect();
        assert_eq!(all, [group(1, 9), group(2, 4)]);
        let has = |range, replica| removed.has(group(range, replica));
        assert!(has(1, 3) && has(1, 9) && has(2, 4));
        assert!(!has(1, 10) && !has(2, 5) && !has(3, 1));
    }
}
