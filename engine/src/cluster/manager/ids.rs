//! The ids of nodes, ranges and replicas. They rise, and none is given out twice.
//!
//! An id is written down before it is used. The system range might come back with fewer rows than were
//! written. Therefore every id that is named anywhere counts as given: in rows, in descriptors, and in the
//! reports of shards ([`HighestIds`]). Besides, a shard refuses a replica whose id it has seen before. Pure.

use std::collections::BTreeMap;

use crate::cluster::message::HighestIds;
use crate::cluster::placement::Slot;
use crate::cluster::record::{self, Row};
use crate::range::ReplicaPlace;
use crate::types::{NodeId, RangeId, ReplicaId};

/// All ids are below this.
const ID_MAX: u64 = 1 << 62;
/// The id of the first node that joins; the node that bootstraps a cluster has the one before.
const FIRST_JOINED: u64 = 2;

/// The ids that were given out; see the module's chapter.
pub struct Ids {
    /// The lowest ids that were never given.
    next_node: u64,
    next_range: u64,
    next_replica: u64,
    /// The id that each token's node got.
    tokens: BTreeMap<u128, NodeId>,
    /// Ids whose rows are being made durable, by token: a node may ask at several addresses at
    /// once.
    offered: BTreeMap<u128, u64>,
}

impl Ids {
    /// The ids of a cluster that has given out none.
    pub fn new() -> Ids {
        Ids {
            next_node: FIRST_JOINED,
            next_range: record::FIRST_NEW_RANGE,
            next_replica: record::FIRST_NEW_REPLICA,
            tokens: BTreeMap::new(),
            offered: BTreeMap::new(),
        }
    }

    /// Takes a row of the system range. Gives whether it is one about ids.
    pub fn learn(&mut self, key: &[u8], value: &[u8]) -> bool {
        let Some(number) = record::decode::<u64>(value) else {
            return false;
        };
        if let Some(token) = record::token_of(key) {
            self.gave_node(token, NodeId(number));
        } else if key == record::NEXT_NODE.as_bytes() {
            self.next_node = self.next_node.max(number);
        } else if key == record::NEXT_RANGE.as_bytes() {
            self.next_range = self.next_range.max(number);
        } else if key == record::NEXT_REPLICA.as_bytes() {
            self.next_replica = self.next_replica.max(number);
        } else {
            return false;
        }
        true
    }

    /// Makes sure that no id up to these is given again. Ids above [`ID_MAX`] are ignored: no
    /// cluster gets there, and a damaged report must not use all ids up.
    pub fn raise(&mut self, seen: HighestIds) {
        if seen.node.0 < ID_MAX {
            self.next_node = self.next_node.max(seen.node.0 + 1);
        }
        if seen.range.0 < ID_MAX {
            self.next_range = self.next_range.max(seen.range.0 + 1);
        }
        if seen.replica.0 < ID_MAX {
            self.next_replica = self.next_replica.max(seen.replica.0 + 1);
        }
    }

    /// The id for the node with this token, and the rows that must be durable before the node may
    /// have it. A node that has run has its id in its folder. If it asks again, its folder has lost
    /// everything it had acknowledged, so it comes back as a new node.
    pub fn give_node(
        &mut self,
        token: u128,
        has_run: impl FnOnce(NodeId) -> bool,
    ) -> (NodeId, Vec<Row>) {
        if let Some(node) = self.tokens.get(&token)
            && !has_run(*node)
        {
            return (*node, Vec::new());
        }
        let id = self.offered.get(&token).copied().unwrap_or_else(|| {
            let id = self.next_node;
            self.next_node += 1;
            self.offered.insert(token, id);
            id
        });
        let rows = vec![
            (record::NEXT_NODE.into(), record::encode(&self.next_node)),
            (record::token_key(token), record::encode(&id)),
        ];
        (NodeId(id), rows)
    }

    /// Notes that a token's row is durable.
    pub fn gave_node(&mut self, token: u128, node: NodeId) {
        self.offered.remove(&token);
        self.tokens.insert(token, node);
        self.raise(HighestIds {
            node,
            ..HighestIds::default()
        });
    }

    /// Gives the id of a new range. [`Ids::next_rows`] must be durable before it is used.
    pub fn range(&mut self) -> RangeId {
        let range = RangeId(self.next_range);
        self.next_range += 1;
        range
    }

    /// Gives the id of a new replica. [`Ids::next_rows`] must be durable before it is used.
    pub fn replica(&mut self) -> ReplicaId {
        let replica = ReplicaId(self.next_replica);
        self.next_replica += 1;
        replica
    }

    /// Gives each new slot an id. [`Ids::next_rows`] must be durable before they are used.
    pub fn place(&mut self, slots: &[Slot]) -> Vec<ReplicaPlace> {
        let place = |slot: &Slot| match slot {
            Slot::Here(place) => *place,
            Slot::New(location) => ReplicaPlace {
                replica: self.replica(),
                location: *location,
            },
        };
        slots.iter().map(place).collect()
    }

    /// The rows that keep the ids of ranges and replicas from being given again.
    pub fn next_rows(&self) -> Vec<Row> {
        let row = |key: &str, next: u64| (key.into(), record::encode(&next));
        vec![
            row(record::NEXT_RANGE, self.next_range),
            row(record::NEXT_REPLICA, self.next_replica),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Location, ShardId};

    fn new_replica(ids: &mut Ids) -> u64 {
        let location = Location {
            node: NodeId(1),
            shard: ShardId(0),
        };
        let placed = ids.place(&[Slot::New(location)]);
        placed[0].replica.0
    }

    #[test]
    fn a_manager_that_knows_less_gives_no_id_again() {
        let mut before = Ids::new();
        let mut rows = Vec::new();
        for token in 1..4 {
            let (node, new) = before.give_node(token, |_| false);
            before.gave_node(token, node);
            rows.push(new);
        }
        let given: Vec<u64> = (0..5).map(|_| new_replica(&mut before)).collect();
        // Only the rows of the first node came back.
        let mut after = Ids::new();
        for (key, value) in &rows[0] {
            assert!(after.learn(key, value));
        }
        assert_eq!(after.give_node(1, |_| false).0, NodeId(2), "the same token");
        let seen = |node, replica| HighestIds {
            node: NodeId(node),
            range: RangeId(0),
            replica: ReplicaId(replica),
        };
        after.raise(seen(4, given[4]));
        // A report of lower ids changes nothing.
        after.raise(seen(1, 0));
        assert_eq!(after.give_node(9, |_| false).0, NodeId(5));
        assert!(!given.contains(&new_replica(&mut after)));
        // A report from a node with bad memory uses up no ids.
        let next = new_replica(&mut after) + 1;
        after.raise(seen(u64::MAX, u64::MAX));
        assert_eq!(new_replica(&mut after), next);
    }

    #[test]
    fn an_id_of_a_range_is_above_all_that_rows_reports_and_the_bootstrap_name() {
        let mut ids = Ids::new();
        let first = ids.range();
        assert_eq!(first, RangeId(record::FIRST_NEW_RANGE));
        let second = ids.range();
        assert!(second > first);
        let mut of_rows = Ids::new();
        for (key, value) in ids.next_rows() {
            assert!(of_rows.learn(&key, &value));
        }
        assert!(of_rows.range() > second);
        // The rows were lost, and a shard has a replica of the range.
        let mut of_reports = Ids::new();
        let seen = |range| HighestIds {
            range,
            ..HighestIds::default()
        };
        of_reports.raise(seen(second));
        of_reports.raise(seen(first));
        assert!(of_reports.range() > second);
        let next = RangeId(of_reports.range().0 + 1);
        of_reports.raise(seen(RangeId(u64::MAX)));
        assert_eq!(of_reports.range(), next, "a damaged report uses up no ids");
    }

    #[test]
    fn a_token_of_a_node_that_has_run_is_given_another_id() {
        let mut ids = Ids::new();
        let (first, _) = ids.give_node(7, |_| false);
        ids.gave_node(7, first);
        assert_eq!(ids.give_node(7, |_| false).0, first, "the answer was lost");
        let (second, rows) = ids.give_node(7, |node| node == first);
        assert!(second > first);
        ids.gave_node(7, second);
        let mut again = Ids::new();
        for (key, value) in &rows {
            again.learn(key, value);
        }
        assert_eq!(again.give_node(7, |_| false).0, second);
    }
}
