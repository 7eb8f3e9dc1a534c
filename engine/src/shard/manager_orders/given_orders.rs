//! Balance beside the manager's own decisions: answers to operators, and counts of the moves that were
//! begun, for metrics. Runs on the shard that hosts the manager.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::Manager;
use crate::cluster::{ClusterRequest, ClusterResponse, DecisionKind, NewDecision, SplitReason};
use crate::env::Env;
use crate::shard::ShardInner;
use crate::shard::manager_orders::merge_orders::MergeReason;
use crate::types::{KeyRange, RangeId};

/// How many moves of each kind were begun.
#[derive(Debug, Default)]
pub(in crate::shard) struct MoveCounts([Cell<u64>; DecisionKind::MOVES.len()]);

impl MoveCounts {
    fn count(&self, kind: DecisionKind) {
        let place = DecisionKind::MOVES.iter().position(|known| *known == kind);
        if let Some(count) = place.and_then(|place| self.0.get(place)) {
            count.set(count.get() + 1);
        }
    }

    /// The counts now.
    pub(in crate::shard) fn stats(&self) -> MoveStats {
        let counts = self.0.each_ref().map(Cell::get);
        MoveStats(std::array::from_fn(|place| {
            (DecisionKind::MOVES[place], counts[place])
        }))
    }
}

/// How many moves of each kind the manager had begun while it was on a shard.
#[derive(Clone, Copy, Debug)]
pub struct MoveStats(pub [(DecisionKind, u64); DecisionKind::MOVES.len()]);

impl Default for MoveStats {
    fn default() -> MoveStats {
        MoveCounts::default().stats()
    }
}

/// Least time from one log line to the next with the same words about a range.
const SAME_WORDS_INTERVAL: Duration = Duration::from_mins(1);

/// What was logged last about ranges, and when. What happens again and again is logged once in a while.
#[derive(Default)]
pub(in crate::shard) struct Told(RefCell<BTreeMap<RangeId, (String, BootTime)>>);

impl Told {
    /// Whether these words about a range are to be logged: other ones were logged last, or these long ago. Counts
    /// them as logged then.
    pub fn is_news(&self, range: RangeId, words: &str, now: BootTime) -> bool {
        let mut told = self.0.borrow_mut();
        told.retain(|_, (_, when)| now < *when + SAME_WORDS_INTERVAL);
        if told.get(&range).is_some_and(|before| before.0 == words) {
            return false;
        }
        told.insert(range, (words.to_owned(), now));
        true
    }
}

/// The orders that the manager has given while it was on a shard.
#[derive(Default)]
pub(in crate::shard) struct GivenOrders {
    /// What was logged of the last order to each range.
    pub told: Told,
    /// The moves that leaders have begun.
    pub moves: MoveCounts,
}

impl<E: Env> ShardInner<E> {
    /// The last decisions of the manager here.
    pub(in crate::shard) fn decisions(&self) -> ClusterResponse {
        self.with_manager(|manager| ClusterResponse::Decisions(manager.planning.decisions.last()))
    }

    /// Has ranges scattered; the manager here gives the orders one after the other.
    pub(super) fn scatter(&self, keys: &KeyRange) -> ClusterResponse {
        let now = E::now();
        self.with_manager(|manager| match manager.scatter(keys, now) {
            Ok(orders) => {
                tracing::info!(
                    "{orders} orders spread the ranges of an interval, as an operator wants it"
                );
                ClusterResponse::Scattered(orders)
            }
            Err(why) => ClusterResponse::Refused(why),
        })
    }

    /// Notes the decision to split a range at so many keys; gives its id.
    pub(super) fn note_split(
        &self,
        range: RangeId,
        keys: usize,
        reason: SplitReason,
    ) -> Option<u64> {
        let reason = match reason {
            SplitReason::Manual => "an operator ordered it",
            SplitReason::Size => "it is larger than `range-size-max`",
            SplitReason::Load => "it has more load than the others",
        };
        let expected = format!("the range becomes {}", keys + 1);
        self.note_change(range, DecisionKind::Split, reason, expected)
    }

    /// Notes the decision that a range takes over its right neighbour; gives its id.
    pub(super) fn note_merge(
        &self,
        range: RangeId,
        right: RangeId,
        reason: MergeReason,
    ) -> Option<u64> {
        let reason = match reason {
            MergeReason::Manual => "an operator ordered it",
            MergeReason::Cold => "it and its right neighbour are small and have little load",
        };
        let expected = format!("it has the keys of range {right}, too, which is no more");
        self.note_change(range, DecisionKind::Merge, reason, expected)
    }

    /// Notes the decision to change a range's bounds; gives its id.
    fn note_change(
        &self,
        range: RangeId,
        kind: DecisionKind,
        reason: &str,
        expected: String,
    ) -> Option<u64> {
        let mut manager = self.agent.manager.borrow_mut();
        let manager = manager.as_mut()?;
        let now = E::now();
        let new = NewDecision {
            range,
            kind,
            reason: reason.to_owned(),
            from: manager.leader_of(range, now),
            to: None,
            expected,
        };
        Some(manager.planning.decisions.note(new, now))
    }

    /// Notes what became of a decision to split a range or to merge it.
    pub(super) fn note_end(&self, decision: Option<u64>, response: &ClusterResponse) {
        let result = match response {
            ClusterResponse::Done | ClusterResponse::Split { failed: None, .. } => Ok(()),
            ClusterResponse::Split {
                failed: Some(why), ..
            }
            | ClusterResponse::Refused(why) => Err(why.to_string()),
            _ => Err("another shard manages the cluster by now".to_owned()),
        };
        let mut manager = self.agent.manager.borrow_mut();
        if let Some((manager, decision)) = manager.as_mut().zip(decision) {
            manager.planning.decisions.ended(decision, result);
        }
    }

    /// Counts an order that a leader has begun to carry out. A leadership that follows a replica is no move
    /// of its own.
    pub(super) fn count_move(&self, manager: &Manager, request: &ClusterRequest) {
        let leads = match request {
            ClusterRequest::TransferLeadership { .. } => true,
            ClusterRequest::Change { .. } => false,
            _ => return,
        };
        let range = request.range();
        let kind = range.and_then(|range| manager.planning.kind_of(range));
        if let Some(kind) = kind.filter(|kind| leads == (*kind == DecisionKind::MoveLeader)) {
            self.agent.given_orders.moves.count(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_counted_by_their_kinds() {
        let counts = MoveCounts::default();
        counts.count(DecisionKind::MoveLeader);
        counts.count(DecisionKind::MoveLeader);
        counts.count(DecisionKind::RemoveReplica);
        counts.count(DecisionKind::Split);
        let MoveStats(stats) = counts.stats();
        let stats = stats.map(|(kind, count)| (kind.name(), count));
        let wanted = [
            ("move_leader", 2),
            ("move_replica", 0),
            ("add_replica", 0),
            ("remove_replica", 1),
        ];
        assert_eq!(stats, wanted);
    }
}
