//! Collects figures of the node from the counters of its shards: the work of
//! each minute for the history, and the node's state for the cluster's manager. Runs on the control thread.

use std::sync::Arc;
use std::time::Duration;

use rangedb_engine::env::Clock;
use rangedb_engine::types::NodeStats;

use super::Node;
use crate::env::{self, SystemClock, discipline, node_stats};
use crate::history::History;
use crate::history::record::{MINUTE_MS, Work, raise};
use crate::operation::Operation;
use crate::probe::ShardProbe;

/// The time from one look at how the node is to the next. The latencies are those of that time.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);

/// Gives the history the work of every minute, until the runtime ends.
pub async fn collect(node: Arc<Node>, history: History) {
    let mut counted = Counted::default();
    loop {
        let left = MINUTE_MS - SystemClock.wall_ms() % MINUTE_MS;
        tokio::time::sleep(Duration::from_millis(left)).await;
        let Some(serving) = node.serving.get() else {
            continue;
        };
        let work = counted.work_since(serving.probes().await);
        history.minute(minute_before(SystemClock.wall_ms()), work);
    }
}

/// Measures again and again how this node is, for the reports of its shards, until the runtime ends.
pub async fn measure(node: Arc<Node>) {
    let mut counted = Counted::default();
    loop {
        tokio::time::sleep(MEASURE_INTERVAL).await;
        let Some(serving) = node.serving.get() else {
            continue;
        };
        let period = counted.work_since(serving.probes().await).period(0);
        let answered = |micros: u64| (period.ops > 0).then_some(micros);
        let room = env::room(&serving.data_dir).ok();
        let clock = discipline::of_clock().ok();
        node_stats::keep(NodeStats {
            p50_micros: answered(period.p50_us),
            p99_micros: answered(period.p99_us),
            disk_free: room.map(|room| room.free),
            disk_total: room.map(|room| room.total),
            clock_error_micros: clock.map(|clock| clock.error_max.as_micros() as u64),
            is_clock_kept: clock.map(|clock| clock.is_synchronized),
        });
    }
}

/// The beginning of the minute that ended about now.
fn minute_before(now: u64) -> u64 {
    let ended = (now + MINUTE_MS / 2) / MINUTE_MS;
    ended.saturating_sub(1) * MINUTE_MS
}

/// What the shards had counted when they were last asked.
#[derive(Default)]
struct Counted {
    shards: Vec<Option<ShardProbe>>,
}

impl Counted {
    /// The work of all shards since they last answered. If a shard does not answer now, its work is counted the
    /// next time.
    fn work_since(&mut self, probes: Vec<Option<ShardProbe>>) -> Work {
        self.shards.resize_with(probes.len(), || None);
        let mut work = Work::default();
        for (before, probe) in self.shards.iter_mut().zip(probes) {
            if let Some(probe) = probe {
                add_difference(&mut work, &probe, before.as_ref());
                *before = Some(probe);
            }
        }
        work
    }
}

/// Adds what a shard did between two reports. Requests about the cluster itself are no work of it.
fn add_difference(work: &mut Work, now: &ShardProbe, before: Option<&ShardProbe>) {
    for (place, (operation, latency)) in now.latency.iter().enumerate() {
        let others = [Operation::Admin, Operation::Status, Operation::Directory];
        if others.contains(operation) {
            continue;
        }
        let earlier = before.and_then(|before| before.latency.get(place));
        let earlier = earlier.map(|(_, latency)| latency.spread());
        let latency = latency.spread();
        let count = latency.len() - earlier.map_or(0, |earlier| earlier.len());
        if count == 0 {
            continue;
        }
        raise(&mut work.operations, operation.name(), count);
        for bucket in latency.iter_recorded() {
            let nanos = bucket.value_iterated_to();
            let counted = earlier.map_or(0, |earlier| earlier.count_at(nanos));
            let count = bucket.count_at_value() - counted;
            if count > 0 {
                *work.latency.entry(nanos.div_ceil(1000)).or_default() += count;
            }
        }
    }
    for (code, count) in &now.refused {
        let earlier = before.and_then(|before| before.refused.get(code));
        let count = count - earlier.copied().unwrap_or_default();
        if count > 0 {
            raise(&mut work.refused, code.name(), count);
        }
    }
}

#[cfg(test)]
mod tests {
    use rangedb_protocol::ErrorCode;

    use super::*;

    fn record(probe: &mut ShardProbe, operation: Operation, nanos: u64) {
        let (_, latency) = &mut probe.latency[operation as usize];
        latency.record(nanos);
    }

    #[test]
    fn only_the_difference_of_two_reports_is_told() {
        let mut before = ShardProbe::new();
        record(&mut before, Operation::Get, 10_000);
        before.refused(ErrorCode::Busy);
        let mut now = before.clone();
        record(&mut now, Operation::Get, 10_000);
        record(&mut now, Operation::Put, 2_000_000);
        record(&mut now, Operation::Admin, 5_000_000);
        now.refused(ErrorCode::Busy);
        let mut work = Work::default();
        add_difference(&mut work, &now, Some(&before));
        let told = work.period(0);
        assert_eq!((told.ops, told.errors), (2, 1));
        assert_eq!(told.operations["get"], 1);
        assert!(told.p50_us.abs_diff(10) <= 1, "{told:?}");
        assert!(told.p99_us.abs_diff(2000) <= 20, "{told:?}");
        let mut none = Work::default();
        add_difference(&mut none, &now, Some(&now));
        assert_eq!(none, Work::default());
    }

    #[test]
    fn a_minute_is_that_which_just_ended() {
        assert_eq!(minute_before(120_010), 60_000);
        assert_eq!(minute_before(119_990), 60_000);
    }
}
