//! Orders to merge ranges, from operators and from the manager itself. The manager moves replicas until
//! those of the right range are on the shards of the left one, and then asks the left leader to merge
//! (`shard/split_merge/merge.rs`). Runs on the shard that hosts the manager.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::cluster::ClusterResponse;
use crate::cluster::backoff::{Backoff, Limits};
use crate::cluster::manager::planning_state::Why;
use crate::cluster::split_merge::merge::MergeStep;
use crate::env::{AsyncRuntime, Clock, Env};
use crate::error::OrderError;
use crate::shard::ShardInner;
use crate::shard::manager_orders::auto_splits::Splits;
use crate::shard::split_merge::changes::is_changing;
use crate::types::RangeId;

/// Time limit of one merge at its leader: it waits for all replicas to be frozen.
pub(super) const MERGE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an order may take with the moves that it needs.
pub(in crate::shard) const ORDER_TIMEOUT: Duration = Duration::from_mins(2);
/// How long nothing may go on before an order is given up: a leader is elected, a replica moves.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the next look.
/// By time, as with the orders of splits ([`super::split_orders`]).
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// How long a merge whose end is not known may take until a report tells that it was made.
const UNKNOWN_FATE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pauses before the manager tries a merge of its own again.
const PAUSES: Limits = Limits {
    first: Duration::from_mins(1),
    longest: Duration::from_hours(1),
};

/// Why ranges are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum MergeReason {
    /// An operator ordered it.
    Manual,
    /// They are small and have little load.
    Cold,
}

/// What has become of a step of a merge.
enum Tried {
    /// The order has ended so.
    Ended(ClusterResponse),
    /// A replica moves.
    Moves,
    /// It was refused, perhaps only for now.
    Refused(OrderError),
}

/// The changes of bounds that the manager has under way.
#[derive(Default)]
pub(in crate::shard) struct BoundsOrders {
    pub splits: Splits,
    pub merges: Merges,
}

/// The merges of the manager's own.
#[derive(Default)]
pub(in crate::shard) struct Merges {
    /// The ranges that are being merged, with their right neighbours.
    under_way: RefCell<Vec<(RangeId, RangeId)>>,
    /// Ranges that were not merged, and are not tried again for a while.
    paused: RefCell<BTreeMap<RangeId, Backoff>>,
}

impl<E: Env> ShardInner<E> {
    /// Merges a range with its right neighbour. From the first step on it is one of the manager's decisions.
    pub(super) async fn merge_by_order(
        self: &Rc<Self>,
        range: RangeId,
        reason: MergeReason,
    ) -> ClusterResponse {
        let right = match self.ask_own_manager(|manager| manager.right_neighbour(range)) {
            Ok(right) => right,
            Err(refusal) => return *refusal,
        };
        let mut decision = None;
        let begins = || decision = self.note_merge(range, right, reason);
        // Balance would take apart what is being brought together.
        self.of_manager(|manager| manager.begin_merge([range, right]));
        let response = self.merge_pair([range, right], begins).await;
        self.of_manager(|manager| manager.end_merge([range, right]));
        self.note_end(decision, &response);
        response
    }

    /// Moves replicas of the right range and has the left one take it over. Calls `begins` once, before the
    /// first step.
    async fn merge_pair(
        self: &Rc<Self>,
        [range, right]: [RangeId; 2],
        begins: impl FnOnce(),
    ) -> ClusterResponse {
        let begun = E::now();
        let mut begins = Some(begins);
        let mut last_progress = begun;
        let mut refusal = None;
        loop {
            let now = E::now();
            let step = match self.of_manager(|manager| manager.merge_step([range, right], now)) {
                None => return self.not_here(),
                Some(step) => step,
            };
            if step.is_ok()
                && let Some(begins) = begins.take()
            {
                begins();
            }
            let mut pause = RETRY_INTERVAL;
            let why = match step {
                Ok(step) => match self.take_merge_step(step, range, right).await {
                    Tried::Ended(response) => return response,
                    Tried::Moves => {
                        last_progress = E::now();
                        refusal = None;
                        OrderError::busy("a replica moves")
                    }
                    Tried::Refused(why) => {
                        pause = pause_after(&why);
                        note_refusal(&mut refusal, &why, [range, right]);
                        why
                    }
                },
                Err(why) => why,
            };
            // A move takes a while, and reports come after it.
            let may_pass = matches!(why, OrderError::Busy { .. } | OrderError::Conflict(_));
            if !may_pass {
                return ClusterResponse::Refused(why);
            }
            if now >= last_progress + PROGRESS_TIMEOUT || now >= begun + ORDER_TIMEOUT {
                return ClusterResponse::Refused(refusal.unwrap_or(why));
            }
            E::Runtime::sleep(pause).await;
        }
    }

    /// Has a replica moved, or the left leader merge the ranges.
    async fn take_merge_step(
        self: &Rc<Self>,
        step: MergeStep,
        range: RangeId,
        right: RangeId,
    ) -> Tried {
        match step {
            MergeStep::Done => Tried::Ended(ClusterResponse::Done),
            MergeStep::Move {
                range: moved,
                from,
                to,
            } => {
                let to = (to.node, Some(to.shard));
                let why = why_moved(range, right);
                match self.move_replica(moved, from, to, why).await {
                    ClusterResponse::Done => Tried::Moves,
                    ClusterResponse::Refused(why) => Tried::Refused(why),
                    other => Tried::Ended(other),
                }
            }
            MergeStep::Merge(at, request) => match self.give_order(at, range, &request).await {
                ClusterResponse::Done => {
                    // Whoever looks after the answer does not find the right range any more.
                    self.is_gone(right).await;
                    Tried::Ended(ClusterResponse::Done)
                }
                ClusterResponse::Refused(why @ OrderError::Unknown(_)) => {
                    Tried::Ended(match self.is_gone(right).await {
                        true => ClusterResponse::Done,
                        false => ClusterResponse::Refused(why),
                    })
                }
                ClusterResponse::Refused(why @ OrderError::Busy { .. }) => Tried::Refused(why),
                // What else a leader or a replica finds in the way stays.
                other => Tried::Ended(other),
            },
        }
    }

    /// Waits a moment until a range is known to be no more.
    async fn is_gone(&self, range: RangeId) -> bool {
        let until = E::now() + UNKNOWN_FATE_TIMEOUT;
        loop {
            match self.of_manager(|manager| manager.knows(range)) {
                Some(true) if E::now() < until => {}
                known => return known == Some(false),
            }
            E::Runtime::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Begins to merge ranges that are small and cold, as many as may be merged at a time.
    pub(in crate::shard) fn merge_cold(self: &Rc<Self>) {
        let now = E::now();
        let wall_ms = self.around.clock.wall_ms();
        let Merges { under_way, paused } = &self.agent.bounds_orders.merges;
        let due = match self.agent.manager.borrow().as_ref() {
            Some(manager) => {
                let paused = paused.borrow();
                let is_paused =
                    |range: RangeId| paused.get(&range).is_some_and(|pause| pause.lasts(now));
                manager.mergeable((now, wall_ms), &under_way.borrow(), is_paused)
            }
            None => return,
        };
        under_way.borrow_mut().extend(&due);
        for pair in due {
            let inner = self.clone();
            drop(E::Runtime::spawn(async move {
                inner.merge_one(pair.0).await;
                let Merges { under_way, .. } = &inner.agent.bounds_orders.merges;
                under_way.borrow_mut().retain(|other| *other != pair);
                // The next one need not wait for the manager's next round.
                if !inner.closing.get() {
                    inner.merge_cold();
                }
            }));
        }
    }

    async fn merge_one(self: &Rc<Self>, range: RangeId) {
        let response = self.merge_by_order(range, MergeReason::Cold).await;
        let mut paused = self.agent.bounds_orders.merges.paused.borrow_mut();
        match response {
            ClusterResponse::Refused(why) => {
                let pause = Backoff::after(paused.get(&range), PAUSES, E::now());
                paused.insert(range, pause);
                tracing::warn!(
                    %range,
                    "a range that is small and cold was not merged with its right neighbour, and is tried \
                     again after {} s: {why}",
                    pause.length().as_secs()
                );
            }
            _ => drop(paused.remove(&range)),
        }
    }
}

/// How long to wait after a refusal before the next look.
fn pause_after(why: &OrderError) -> Duration {
    match why {
        OrderError::Busy { retry_after_ms, .. } => Duration::from_millis((*retry_after_ms).into()),
        _ => RETRY_INTERVAL,
    }
}

/// Notes why a step of a merge was refused; the order's answer gives that reason. A change of one of the ranges
/// that is under way replaces no other reason: it may be what is left of the last try.
fn note_refusal(noted: &mut Option<OrderError>, why: &OrderError, ranges: [RangeId; 2]) {
    if noted.is_none() || !ranges.map(is_changing).contains(why) {
        *noted = Some(why.clone());
    }
}

/// Why a replica of the right range moves before two are merged.
fn why_moved(range: RangeId, right: RangeId) -> Why {
    let reason = format!("range {range} is to take it over, and has a replica there");
    let expected = format!("the replicas of ranges {range} and {right} are on the same shards");
    Why::necessary(reason, expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_leader_finds_in_the_way_is_told_rather_than_what_is_left_of_its_last_try() {
        let ranges = [RangeId(7), RangeId(8)];
        let silent = OrderError::busy("shard 3/0 does not answer");
        let slow = OrderError::busy("shard 2/0 has not flushed");
        let mut noted = None;
        for (why, told) in [
            (is_changing(RangeId(7)), is_changing(RangeId(7))),
            (silent.clone(), silent.clone()),
            (is_changing(RangeId(8)), silent),
            (slow.clone(), slow.clone()),
            (is_changing(RangeId(7)), slow),
        ] {
            note_refusal(&mut noted, &why, ranges);
            assert_eq!(noted, Some(told));
        }
    }

    #[test]
    fn a_merge_is_tried_again_when_its_leader_says() {
        let why = OrderError::busy_for("it waits", Duration::from_millis(700));
        assert_eq!(pause_after(&why), Duration::from_millis(700));
        let why = OrderError::Conflict("a change is under way".to_owned());
        assert_eq!(pause_after(&why), RETRY_INTERVAL);
    }
}
