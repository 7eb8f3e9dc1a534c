//! Splits of ranges that have become larger than `range-size-max`. Runs on the shard that hosts the
//! manager, which knows the sizes from the reports of leaders.
//!
//! The leader names the keys, from the indexes of its tables. A range for which there are none, or whose
//! split fails, is tried again after a pause that doubles each time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;

use super::Inner;
use crate::cluster::split::TooLarge;
use crate::cluster::{ClusterRequest, ClusterResponse, SplitReason};
use crate::env::{AsyncRuntime, Env, Instant, Now};
use crate::notify::Count;
use crate::types::RangeId;

/// The first pause after a split that failed, and the longest.
const PAUSE: Duration = Duration::from_mins(1);
const PAUSE_MAX: Duration = Duration::from_hours(1);
/// Time limit of the question for keys.
const KEYS_TIMEOUT: Duration = Duration::from_secs(2);
/// At most so many ranges are split in one round; the next round begins when they are.
const RANGES_MAX: usize = 8;

/// The splits that the manager has under way.
pub(super) struct Splits<T> {
    /// How many there are, of all orders.
    pub under_way: Count,
    /// Whether a round of splits because of size is under way.
    is_running: Cell<bool>,
    /// Ranges that are not tried again before a time, and the pause that led to it.
    paused: RefCell<BTreeMap<RangeId, (T, Duration)>>,
}

impl<T> Default for Splits<T> {
    fn default() -> Splits<T> {
        Splits {
            under_way: Count::default(),
            is_running: Cell::new(false),
            paused: RefCell::default(),
        }
    }
}

impl<E: Env> Inner<E> {
    /// Begins to split the ranges that are too large, unless that is under way.
    pub(super) fn split_large(self: &Rc<Self>) {
        let now = Now::<E>::now();
        let Splits {
            is_running, paused, ..
        } = &self.management.splits;
        if is_running.get() {
            return;
        }
        let mut large = match self.management.manager.borrow().as_ref() {
            Some(manager) => manager.too_large(now),
            None => return,
        };
        large.retain(|large| {
            let paused = paused.borrow();
            paused
                .get(&large.range)
                .is_none_or(|(until, _)| now >= *until)
        });
        large.truncate(RANGES_MAX);
        if large.is_empty() {
            return;
        }
        is_running.set(true);
        let inner = self.clone();
        drop(E::Runtime::spawn(async move {
            join_all(large.iter().map(|large| inner.split_one(large))).await;
            inner.management.splits.is_running.set(false);
        }));
    }

    async fn split_one(self: &Rc<Self>, large: &TooLarge) {
        let range = large.range;
        let result = self.try_to_split(large).await;
        let mut paused = self.management.splits.paused.borrow_mut();
        match result {
            Ok(()) => drop(paused.remove(&range)),
            Err(why) => {
                let pause = paused.get(&range).map_or(PAUSE, |(_, pause)| *pause * 2);
                let pause = pause.min(PAUSE_MAX);
                paused.insert(range, (Now::<E>::now() + pause, pause));
                tracing::warn!(
                    %range,
                    bytes = large.bytes,
                    "a range that is larger than `range-size-max` was not split, and is tried again after \
                     {} s: {why}",
                    pause.as_secs()
                );
            }
        }
    }

    async fn try_to_split(self: &Rc<Self>, large: &TooLarge) -> Result<(), String> {
        let request = ClusterRequest::SplitKeys {
            range: large.range,
            version: large.version,
            parts: large.parts,
        };
        let keys = match self.ask(large.leader, &request, KEYS_TIMEOUT).await {
            Some(ClusterResponse::SplitKeys(keys)) if keys.is_empty() => {
                return Err("no key cuts it: it may have one key with many versions".to_owned());
            }
            Some(ClusterResponse::SplitKeys(keys)) => keys,
            Some(ClusterResponse::Refused(why)) => return Err(why.to_string()),
            _ => {
                return Err(format!(
                    "shard {}, which leads it, does not answer",
                    large.leader
                ));
            }
        };
        let reason = SplitReason::Size;
        match self.split_by_order(large.range, keys, None, reason).await {
            ClusterResponse::Split { failed: None, .. } => Ok(()),
            ClusterResponse::Split {
                failed: Some(why), ..
            }
            | ClusterResponse::Refused(why) => Err(why.to_string()),
            _ => Err("another shard manages the cluster by now".to_owned()),
        }
    }
}
