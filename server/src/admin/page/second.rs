//! The event `second`: what this node did since the last one, and how it is now. Counters are sent as
//! differences, and histograms as the few buckets that have grown: so the page can add up any operations
//! and shards. Pure, but for the room on the disk and the state of the clock.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use rangedb_engine::memory::MemoryUse;
use rangedb_engine::shard::RangeStatus;
use serde::Serialize;

use crate::admin::Serving;
use crate::env::{self, discipline};
use crate::probe::ShardReport;

/// Buckets of a latency histogram for each doubling: each is 4.4 % wide.
const BUCKETS_OF_DOUBLING: f64 = 16.0;
/// The first bucket ends at this many nanoseconds.
const FIRST_BUCKET_NANOS: f64 = 1_000.0;

/// What the node did in about a second.
#[derive(Serialize)]
pub(super) struct Second {
    /// Milliseconds since 1970.
    t: u64,
    node: u64,
    cluster: String,
    version: &'static str,
    uptime_s: u64,
    ready: bool,
    /// Why the node is ready or is not.
    state: String,
    /// Free bytes and all bytes of the data folder's file system.
    disk: Option<(u64, u64)>,
    /// Whether a time service keeps the clock, and its largest error in microseconds.
    clock: Option<(bool, u64)>,
    /// Connections of clients and of other nodes.
    connections: (usize, usize),
    /// Those that refuse this node, and why.
    refused_by: BTreeMap<u64, String>,
    /// By number; a shard that does not answer is `null`.
    shards: Vec<Option<Shard>>,
}

/// What a shard did.
#[derive(Serialize)]
struct Shard {
    /// The time that the differences are about; 0 if there is no earlier report.
    seconds: f64,
    /// Latencies of requests, by operation; only those that there were.
    ops: Vec<(&'static str, Buckets)>,
    /// Refused requests, by code.
    refused: Vec<(String, u64)>,
    in_flight: usize,
    thread: Thread,
    ranges: Ranges,
    wal: Log,
    tree: Tree,
    /// Name, bytes in use, bound, hits and misses of each budget of memory.
    memory: Vec<(&'static str, u64, u64, u64, u64)>,
    /// Reads and writes of each range that had any.
    load: Vec<(u64, u64, u64)>,
}

#[derive(Serialize)]
struct Thread {
    /// The part of the time in which the thread did not sleep.
    busy: f64,
    stall_longest_ms: f64,
    /// Stalls since the last event and since the start, by task.
    stalls: Vec<(String, u64, u64)>,
}

#[derive(Serialize)]
struct Ranges {
    held: usize,
    led: usize,
    waiting: usize,
    in_flight: usize,
}

#[derive(Serialize)]
struct Log {
    writes: u64,
    records: u64,
    bytes: u64,
    latency: Buckets,
    pending_bytes: u64,
    segments: u64,
    live_bytes: u64,
    pinned_bytes: u64,
    replay_bytes: u64,
}

#[derive(Serialize)]
struct Tree {
    frozen: usize,
    tables: usize,
    bytes: u64,
    level0_runs: usize,
    flushes: u64,
    compactions: u64,
    cold_reads: u64,
    pressure: f32,
    disk_full: bool,
    stuck: bool,
    starved: bool,
}

/// The buckets of a histogram that have grown: number and growth in turn. Bucket n ends at
/// `FIRST_BUCKET_NANOS * 2^(n / BUCKETS_OF_DOUBLING)`.
type Buckets = Vec<u64>;

/// The last report of each shard, with which the next one is compared.
#[derive(Default)]
pub(super) struct Seconds(Vec<Option<(ShardReport, Instant)>>);

impl Seconds {
    /// The event for these reports.
    pub(super) fn next(
        &mut self,
        node: &Serving,
        (ready, state): (bool, &str),
        reports: Vec<Option<ShardReport>>,
    ) -> Second {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let refused_by = node.peers.refused_by().into_iter();
        Second {
            t: since_1970.map_or(0, |time| time.as_millis() as u64),
            node: node.id,
            cluster: node.cluster.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: node.started.elapsed().as_secs(),
            ready,
            state: state.to_owned(),
            disk: env::room(&node.data_dir)
                .ok()
                .map(|room| (room.free, room.total)),
            clock: discipline::of_clock().ok().map(|clock| {
                let error = clock.error_max.as_micros() as u64;
                (clock.is_synchronized, error)
            }),
            connections: (node.client_limit.taken(), node.peer_limit.taken()),
            refused_by: refused_by.map(|(id, why)| (id.0, why)).collect(),
            shards: self.compare(reports),
        }
    }

    /// Compares each report with the last one of its shard, and keeps it for the next time.
    fn compare(&mut self, reports: Vec<Option<ShardReport>>) -> Vec<Option<Shard>> {
        self.0.resize_with(reports.len(), || None);
        let now = Instant::now();
        let pairs = self.0.iter_mut().zip(reports);
        let shards = pairs.map(|(last, report)| {
            let report = report?;
            let shard = match last.as_ref() {
                Some((before, at)) => shard(&report, before, (now - *at).as_secs_f64()),
                None => shard(&report, &report, 0.0),
            };
            *last = Some((report, now));
            Some(shard)
        });
        shards.collect()
    }
}

fn shard(now: &ShardReport, before: &ShardReport, seconds: f64) -> Shard {
    let ops = now.probe.latency.iter().zip(&before.probe.latency);
    let ops =
        ops.map(|((op, now), (_, before))| (op.name(), grown(now.spread(), before.spread(), 1.0)));
    let refused = now.probe.refused.iter().map(|(code, count)| {
        let earlier = before.probe.refused.get(code).copied().unwrap_or(0);
        (code.to_string(), count.saturating_sub(earlier))
    });
    let memory = now.status.memory.iter().map(|now| {
        let mut earlier = before.status.memory.iter();
        budget(now, earlier.find(|before| before.name == now.name))
    });
    Shard {
        seconds,
        ops: ops.filter(|(_, buckets)| !buckets.is_empty()).collect(),
        refused: refused.filter(|(_, count)| *count > 0).collect(),
        in_flight: now.in_flight,
        thread: thread(now, before, seconds),
        ranges: ranges(&now.status.ranges),
        wal: log(now, before),
        tree: tree(now, before),
        memory: memory.collect(),
        load: load(&now.status.ranges, &before.status.ranges),
    }
}

fn thread(now: &ShardReport, before: &ShardReport, seconds: f64) -> Thread {
    let busy = (now.load.busy.saturating_sub(before.load.busy)).as_secs_f64();
    let stalls = now.load.stalls.iter().map(|(task, count)| {
        let mut earlier = before.load.stalls.iter();
        let earlier = earlier.find(|(known, _)| known == task);
        let earlier = earlier.map_or(0, |(_, count)| *count);
        (task.clone(), count.saturating_sub(earlier), *count)
    });
    Thread {
        busy: if seconds > 0.0 {
            (busy / seconds).min(1.0)
        } else {
            0.0
        },
        stall_longest_ms: now.load.longest_stall.as_secs_f64() * 1e3,
        stalls: stalls.collect(),
    }
}

fn ranges(ranges: &[RangeStatus]) -> Ranges {
    Ranges {
        held: ranges.len(),
        led: ranges.iter().filter(|range| range.leads).count(),
        waiting: ranges.iter().map(|range| range.load.waiting).sum(),
        in_flight: ranges.iter().map(|range| range.load.in_flight).sum(),
    }
}

fn log(now: &ShardReport, before: &ShardReport) -> Log {
    let (status, wal, earlier) = (&now.status, &now.status.wal, &before.status.wal);
    Log {
        writes: wal.writes.saturating_sub(earlier.writes),
        records: wal.records.saturating_sub(earlier.records),
        bytes: wal.bytes.saturating_sub(earlier.bytes),
        latency: grown(
            wal.write_micros.spread(),
            earlier.write_micros.spread(),
            1e3,
        ),
        pending_bytes: wal.pending_bytes as u64,
        segments: wal.segments as u64,
        live_bytes: wal.live_bytes,
        pinned_bytes: status.pinned_bytes,
        replay_bytes: status.replay_bytes,
    }
}

fn tree(now: &ShardReport, before: &ShardReport) -> Tree {
    let (status, tables) = (&now.status, &now.status.lsm.tables);
    Tree {
        frozen: status.lsm.frozen,
        tables: tables.tables,
        bytes: tables.bytes,
        level0_runs: tables.level0_runs,
        flushes: tables.flushes,
        compactions: tables.compactions,
        cold_reads: (status.cold_reads.reads).saturating_sub(before.status.cold_reads.reads),
        pressure: status.pressure,
        disk_full: status.disk_full,
        stuck: status.lsm.stuck,
        starved: status.starved,
    }
}

/// A budget of memory with the lookups since the last report.
fn budget(now: &MemoryUse, before: Option<&MemoryUse>) -> (&'static str, u64, u64, u64, u64) {
    let before = before.unwrap_or(now);
    let hits = now.hits.saturating_sub(before.hits);
    let misses = now.misses.saturating_sub(before.misses);
    (now.name, now.used, now.bound, hits, misses)
}

/// What each range was asked since the last report. One that has just come is left out, and so is one
/// whose replica was made anew.
fn load(now: &[RangeStatus], before: &[RangeStatus]) -> Vec<(u64, u64, u64)> {
    let earlier = before.iter().map(|range| (range.replica, range.load));
    let earlier: BTreeMap<_, _> = earlier.collect();
    let loads = now.iter().filter_map(|range| {
        let before = earlier.get(&range.replica)?;
        let reads = range.load.reads.saturating_sub(before.reads);
        let writes = range.load.writes.saturating_sub(before.writes);
        (reads + writes > 0).then_some((range.route.range.0, reads, writes))
    });
    loads.collect()
}

/// The buckets by which a histogram has grown. `nanos` is the recorded unit.
fn grown(now: &Histogram<u64>, before: &Histogram<u64>, nanos: f64) -> Buckets {
    let mut buckets: BTreeMap<u64, u64> = BTreeMap::new();
    if now.len() == before.len() {
        return Buckets::new();
    }
    for value in now.iter_recorded() {
        let recorded = value.value_iterated_to();
        let grown = value.count_at_value();
        let grown = grown.saturating_sub(before.count_at(recorded));
        if grown > 0 {
            *buckets.entry(bucket(recorded as f64 * nanos)).or_default() += grown;
        }
    }
    buckets.into_iter().flat_map(<[u64; 2]>::from).collect()
}

fn bucket(nanos: f64) -> u64 {
    let doublings = (nanos / FIRST_BUCKET_NANOS).max(1.0).log2();
    (doublings * BUCKETS_OF_DOUBLING).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_sent_as_what_has_grown() {
        let mut before = Histogram::new_with_max(60_000_000_000, 2).expect("allowed");
        before.saturating_record(80_000);
        let mut now = before.clone();
        assert_eq!(grown(&now, &before, 1.0), Buckets::new());
        for nanos in [1, 900, 80_000, 80_100, 2_000_000] {
            now.saturating_record(nanos);
        }
        let buckets = grown(&now, &before, 1.0);
        let counts: Vec<u64> = buckets.chunks(2).map(|pair| pair[1]).collect();
        assert_eq!(counts, [2, 2, 1], "{buckets:?}");
        assert_eq!(buckets[0], 0);
        // Microseconds become the same buckets.
        let mut micros = Histogram::new_with_max(60_000_000, 2).expect("allowed");
        let none = micros.clone();
        micros.saturating_record(2_000);
        assert_eq!(grown(&micros, &none, 1e3)[0], buckets[4]);
    }

    #[test]
    fn a_bucket_holds_what_ends_with_it() {
        let end = |bucket: u64| FIRST_BUCKET_NANOS * (bucket as f64 / BUCKETS_OF_DOUBLING).exp2();
        for nanos in [1.0, 1_000.0, 1_001.0, 77_777.0, 1e6, 6e10] {
            let found = bucket(nanos);
            assert!(nanos <= end(found) * 1.000_001, "{nanos} in {found}");
            let before = found.checked_sub(1).map_or(0.0, end);
            assert!(nanos > before, "{nanos} in {found}");
        }
    }
}
