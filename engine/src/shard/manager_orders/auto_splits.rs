//! Splits that the manager decides on its own: of ranges that have become larger than `range-size-max`, and of
//! ranges that are too hot for their shard ([`crate::cluster::split_merge::load_splits`]). Runs on the shard
//! that hosts the manager, which knows sizes and loads from the reports of leaders.
//!
//! The leader names the keys: from the indexes of its tables, or from its samples of requests. A part that
//! is split off because of load then gets its leader on a shard that uses less of its core. A range that
//! cannot be split is tried again after a pause that doubles each time, and the view of the cluster says
//! what stands in the way.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::manager::planning_state::Why;
use crate::cluster::split_merge::load_splits::{TooHot, Way};
use crate::cluster::split_merge::split::{TooLarge, shown};
use crate::cluster::{BlockReason, ClusterRequest, ClusterResponse, SplitPart, SplitReason};
use crate::env::{AsyncRuntime, Clock, Env};
use crate::error::OrderError;
use crate::notify::Count;
use crate::shard::ShardInner;
use crate::types::{Location, RangeId};

/// Time limit of the question for keys.
const KEYS_TIMEOUT: Duration = Duration::from_secs(2);
/// How many ranges the manager may split by its own decision at a time.
const RANGES_MAX: usize = 8;
/// How long a shard that has given or taken a part gives and takes no other: its reported load is a mean
/// over 10 s.
const SETTLING: Duration = Duration::from_secs(20);
/// How long the move of a new part is ordered again and again: the part must first elect a leader.
const MOVE_ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the move may take.
const MOVE_TIMEOUT: Duration = Duration::from_mins(2);
/// Pause before the move is ordered again, or looked at again.
/// By time: what is waited for happens on other shards, whose reports come every 500 ms.
const MOVE_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// At most one log line in this time for each reason why a range was not split.
const SAME_REASON_INTERVAL: Duration = Duration::from_hours(1);

/// The splits that the manager has under way.
#[derive(Default)]
pub(in crate::shard) struct Splits {
    /// How many there are, of all orders.
    pub under_way: Count,
    /// The ranges that the manager splits by its own decision.
    decided: RefCell<BTreeSet<RangeId>>,
    /// The shards that have given or taken a part because of load, and until when they are left alone.
    settling: RefCell<BTreeMap<Location, BootTime>>,
    /// When the log was last told of a reason why a range was not split.
    told: RefCell<BTreeMap<BlockReason, BootTime>>,
}

/// Why a range was not split.
struct Blocked {
    reason: BlockReason,
    /// The key that is too hot or too large, if it is one.
    key: Option<Vec<u8>>,
    /// What happened, in words.
    why: String,
}

impl<E: Env> ShardInner<E> {
    /// Begins to split ranges that are too large or too hot, as many as may be split at a time.
    pub(in crate::shard) fn begin_splits(self: &Rc<Self>) {
        let now = E::now();
        let splits = &self.agent.bounds_orders.splits;
        splits.settling.borrow_mut().retain(|_, until| now < *until);
        let (mut large, mut hot) = match self.agent.manager.borrow().as_ref() {
            Some(manager) => {
                let settling = splits.settling.borrow();
                let is_settling = |at| settling.contains_key(&at);
                (manager.too_large(now), manager.too_hot(now, is_settling))
            }
            None => return,
        };
        let mut decided = splits.decided.borrow_mut();
        large.retain(|large| !decided.contains(&large.range));
        large.truncate(RANGES_MAX.saturating_sub(decided.len()));
        decided.extend(large.iter().map(|large| large.range));
        hot.retain(|hot| !decided.contains(&hot.range));
        hot.truncate(RANGES_MAX.saturating_sub(decided.len()));
        decided.extend(hot.iter().map(|hot| hot.range));
        drop(decided);
        for large in large {
            let inner = self.clone();
            drop(E::Runtime::spawn(async move {
                let result = inner.split_large(&large).await;
                inner.decided_split_ended(large.range, SplitReason::Size, result);
            }));
        }
        for hot in hot {
            self.settle(&hot);
            let inner = self.clone();
            drop(E::Runtime::spawn(async move {
                let result = inner.split_hot(&hot).await;
                let part = result.as_ref().ok().copied();
                inner.decided_split_ended(hot.range, SplitReason::Load, result.map(drop));
                if let Some(part) = part {
                    inner.settle(&hot);
                    inner.move_part(part, &hot).await;
                }
            }));
        }
    }

    /// Has the shards of a split by load left alone for a while.
    fn settle(&self, hot: &TooHot) {
        let until = E::now() + SETTLING;
        let mut settling = self.agent.bounds_orders.splits.settling.borrow_mut();
        settling.extend([(hot.leader, until), (hot.to, until)]);
    }

    /// Notes the end of a split and, if it was not made, what stands in the way.
    fn decided_split_ended(&self, range: RangeId, by: SplitReason, result: Result<(), Blocked>) {
        let splits = &self.agent.bounds_orders.splits;
        splits.decided.borrow_mut().remove(&range);
        let Err(Blocked { reason, key, why }) = result else {
            return;
        };
        let now = E::now();
        let at = (now, self.around.clock.wall_ms());
        let pause = self
            .agent
            .manager
            .borrow_mut()
            .as_mut()
            .and_then(|manager| manager.split_failed((range, by), (reason, key), at));
        let Some(pause) = pause else { return };
        let mut told = splits.told.borrow_mut();
        let was_told = told
            .get(&reason)
            .is_some_and(|told| now < *told + SAME_REASON_INTERVAL);
        if !was_told {
            told.insert(reason, now);
            tracing::warn!(
                event = "split_blocked",
                reason = reason.name(),
                by = by.name(),
                "range {range} should be split because of its {}, and was not: {why}. It is tried again \
                 after {pause} s. For the next hour `rangedb range ls --format json` alone tells which ranges \
                 are not split for this reason",
                by.name()
            );
        }
    }

    /// What stands in the way, if a leader has refused a split.
    fn refused_split(&self, range: RangeId, why: &OrderError) -> Blocked {
        let now = E::now();
        let manager = self.agent.manager.borrow();
        let reason = manager
            .as_ref()
            .map(|manager| manager.why_not_split(range, now));
        Blocked {
            reason: reason.unwrap_or(BlockReason::Changing),
            key: None,
            why: why.to_string(),
        }
    }

    /// The keys that cut a range into parts of about the same size, as its leader knows them.
    ///
    /// # Errors
    /// The leader refuses to say, or does not answer.
    pub(super) async fn ask_split_keys(
        self: &Rc<Self>,
        (range, version): (RangeId, u32),
        leader: Location,
        parts: u16,
    ) -> Result<Vec<Vec<u8>>, OrderError> {
        let request = ClusterRequest::SplitKeys {
            range,
            version,
            parts,
        };
        match self.ask(leader, &request, KEYS_TIMEOUT).await {
            Some(ClusterResponse::SplitKeys(keys)) => Ok(keys),
            Some(ClusterResponse::Refused(why)) => Err(why),
            _ => Err(no_answer(leader)),
        }
    }

    async fn split_large(self: &Rc<Self>, large: &TooLarge) -> Result<(), Blocked> {
        let of = (large.range, large.version);
        let keys = self.ask_split_keys(of, large.leader, large.parts).await;
        let keys = keys.map_err(|why| self.refused_split(large.range, &why))?;
        if keys.is_empty() {
            return Err(Blocked {
                reason: BlockReason::NoKey,
                key: None,
                why: format!(
                    "no key cuts its {} bytes; it may have one key with many versions",
                    large.bytes
                ),
            });
        }
        self.split_at(large.range, keys, SplitReason::Size)
            .await
            .map(drop)
    }

    /// Splits a range because of its load; gives the part that is to be moved.
    async fn split_hot(self: &Rc<Self>, hot: &TooHot) -> Result<RangeId, Blocked> {
        let TooHot { range, version, .. } = *hot;
        let request = ClusterRequest::LoadKeys { range, version };
        let (keys, hottest) = match self.ask(hot.leader, &request, KEYS_TIMEOUT).await {
            Some(ClusterResponse::LoadKeys { keys, hot }) => (keys, hot),
            Some(ClusterResponse::NoLoadKey { reason, key }) => {
                let why = no_load_key(reason, key.as_deref());
                return Err(Blocked { reason, key, why });
            }
            Some(ClusterResponse::Refused(why)) => return Err(self.refused_split(range, &why)),
            _ => return Err(self.refused_split(range, &no_answer(hot.leader))),
        };
        let parts = self.split_at(range, keys, SplitReason::Load).await?;
        let holds = |part: &&SplitPart| match &hottest {
            Some(key) => part.keys.start == *key,
            None => part.range != range,
        };
        Ok(parts.iter().find(holds).map_or(range, |part| part.range))
    }

    async fn split_at(
        self: &Rc<Self>,
        range: RangeId,
        keys: Vec<Vec<u8>>,
        reason: SplitReason,
    ) -> Result<Vec<SplitPart>, Blocked> {
        match self.split_by_order(range, keys, None, reason).await {
            ClusterResponse::Split {
                ranges,
                failed: None,
            } => Ok(ranges),
            ClusterResponse::Split {
                failed: Some(why), ..
            }
            | ClusterResponse::Refused(why) => Err(self.refused_split(range, &why)),
            _ => {
                let why = OrderError::busy("another shard manages the cluster by now");
                Err(self.refused_split(range, &why))
            }
        }
    }

    /// Moves a part that was split off because of load to the shard that was chosen for it, by the orders
    /// that operators have.
    async fn move_part(self: &Rc<Self>, part: RangeId, hot: &TooHot) {
        let to = hot.to;
        let begun = E::now();
        loop {
            let why = Why::necessary(
                format!("it was split off range {} because of load", hot.range),
                format!("shard {to}, which is idler, leads it"),
            );
            let response = match hot.way {
                Way::Lead(node) => self.transfer(part, Some(node), why).await,
                Way::Move(from) => {
                    self.move_replica(part, from, (to.node, Some(to.shard)), why)
                        .await
                }
            };
            match response {
                ClusterResponse::Done => break,
                ClusterResponse::Refused(
                    OrderError::Busy { .. } | OrderError::Conflict(_) | OrderError::NotFound(_),
                ) if E::now() < begun + MOVE_ORDER_TIMEOUT => {
                    E::Runtime::sleep(MOVE_RETRY_INTERVAL).await;
                }
                ClusterResponse::Refused(why) => {
                    tracing::warn!(
                        "range {part}, which was split off range {} because of load, is not moved to shard \
                         {to}: {why}",
                        hot.range
                    );
                    return;
                }
                // Another shard manages the cluster by now.
                _ => return,
            }
        }
        tracing::info!(
            "range {part}, which was split off range {} because of load, moves from shard {} to shard {to}",
            hot.range,
            hot.leader
        );
        if matches!(hot.way, Way::Move(_)) {
            self.lead_where_moved(part, to, begun + MOVE_TIMEOUT).await;
        }
    }

    /// Has the replica that has moved lead again: while the leader's own replica moves, another voter may
    /// take the lead.
    async fn lead_where_moved(self: &Rc<Self>, part: RangeId, to: Location, until: BootTime) {
        while !self.closing.get() && E::now() < until {
            E::Runtime::sleep(MOVE_RETRY_INTERVAL).await;
            let now = E::now();
            let orderable = match self.agent.manager.borrow().as_ref() {
                Some(manager) => manager.orderable(part, now),
                None => return,
            };
            match orderable {
                Ok((leader, _)) if leader == to => return,
                Ok((_, range)) if range.voters.iter().any(|voter| voter.location == to) => {
                    let why = Why::necessary(
                        "its replica moved there because of load".to_owned(),
                        format!("shard {to} leads it"),
                    );
                    self.transfer(part, Some(to.node), why).await;
                }
                // The move is under way.
                _ => {}
            }
        }
    }
}

/// The leader of a range did not answer.
fn no_answer(leader: Location) -> OrderError {
    OrderError::busy(format!("shard {leader}, which leads it, does not answer"))
}

/// Why the load of a range cannot be split, in words.
fn no_load_key(reason: BlockReason, key: Option<&[u8]>) -> String {
    let key = key.map(shown).unwrap_or_default();
    match reason {
        BlockReason::SingleKey => format!("all of its load is that of the key {key}, its only one"),
        BlockReason::Limit => format!(
            "most of its load is that of the key {key}, which is so long that no border can lie right after it"
        ),
        _ => "at every key too much would stay on one side, too many scans would cross it, or too few \
              requests were sampled"
            .to_owned(),
    }
}
