//! The hottest ranges and their hottest keys: how a leader answers from its samples, and how the manager
//! asks the leaders of the ranges that take the most CPU time. The other leaders are not asked.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::cluster::{BlockReason, ClusterRequest, ClusterResponse, HotRange};
use crate::env::Env;
use crate::error::OrderError;
use crate::limits::HOT_RANGES_MAX;
use crate::range::usage::hot_keys::{HotKey, LoadCut};
use crate::shard::ShardInner;
use crate::types::{Location, RangeId};

/// Keys of each range that are shown.
const KEYS_OF_RANGE: u32 = 10;
/// Time limit of the question to a leader. The manager's own caller waits a little longer.
const KEYS_TIMEOUT: Duration = Duration::from_millis(500);

impl<E: Env> ShardInner<E> {
    /// The hottest keys of a range that is led here.
    pub(in crate::shard) fn hot_keys(&self, range: RangeId, top: u32) -> ClusterResponse {
        let Some(running) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        let usage = &running.replica.usage;
        ClusterResponse::HotKeys(usage.hottest(E::now(), top as usize))
    }

    /// The keys at which the load of a range is best split that is led here.
    pub(in crate::shard) fn load_keys(&self, range: RangeId, version: u32) -> ClusterResponse {
        let Some(running) = self.led(range) else {
            return ClusterResponse::Refused(self.leads_no_more(range));
        };
        let descriptor = running.replica.with_state(|state| state.descriptor.clone());
        if descriptor.epoch.version != version {
            let why = format!("range {range} has other bounds by now");
            return ClusterResponse::Refused(OrderError::busy(why));
        }
        let cut = running.replica.usage.load_cut(E::now(), &descriptor.keys);
        let (reason, key) = match cut {
            LoadCut::At(keys, hot) => return ClusterResponse::LoadKeys { keys, hot },
            LoadCut::SingleKey(key) => (BlockReason::SingleKey, Some(key)),
            LoadCut::LongKey(key) => (BlockReason::Limit, Some(key)),
            LoadCut::NoKey => (BlockReason::NoKey, None),
        };
        ClusterResponse::NoLoadKey { reason, key }
    }

    /// The ranges that take the most CPU time, with their hottest keys.
    pub(super) async fn hot_ranges(self: &Rc<Self>, top: u32) -> ClusterResponse {
        if !(1..=HOT_RANGES_MAX).contains(&top) {
            let why =
                format!("the {top} hottest ranges were asked for; ask for 1 to {HOT_RANGES_MAX}");
            return ClusterResponse::Refused(OrderError::Invalid(why));
        }
        let hottest = match self.agent.manager.borrow().as_ref() {
            Some(manager) => manager.hottest(top as usize, E::now()),
            None => return self.not_here(),
        };
        let ranges = hottest.into_iter().map(|(range, cpu, leader)| async move {
            HotRange {
                range,
                cpu_millis_per_second: cpu,
                keys: self.ask_hot_keys(range, leader).await,
            }
        });
        ClusterResponse::HotRanges(join_all(ranges).await)
    }

    async fn ask_hot_keys(
        self: &Rc<Self>,
        range: RangeId,
        leader: Option<Location>,
    ) -> Vec<HotKey> {
        let request = ClusterRequest::HotKeys {
            range,
            top: KEYS_OF_RANGE,
        };
        let Some(leader) = leader else {
            return Vec::new();
        };
        match self.ask(leader, &request, KEYS_TIMEOUT).await {
            Some(ClusterResponse::HotKeys(keys)) => keys,
            _ => Vec::new(),
        }
    }
}
