//! The load and the size of a shard and of its ranges, for its reports and its status.
//!
//! Each report measures the CPU time of the shard's thread and the rates of every replica
//! ([`crate::range::usage`]). The thread's time is shared out among the replicas by the work that was
//! timed for each: what is not timed by range, such as frames, entries of the log and replies, goes with
//! it. A replica gets at most [`CPU_SHARE_MAX`] times its own timed work, so that what an idle thread does
//! besides is not laid upon the one range that is read now and then.
//!
//! Sizes come from memory alone, but each costs some microseconds. One report measures [`SIZES_OF_REPORT`] of
//! them in turn, besides those of ranges in which much was written, and at most [`NEW_SIZES_OF_REPORT`] of
//! ranges that are new to the shard. Until it is measured a new range has no size.
//!
//! Lives on the shard's thread.

use std::cell::Cell;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::cluster::message::{RangeRates, RangeStats, ShardStats};
use crate::env::Env;
use crate::range::replica::Replica;
use crate::range::usage::Work;
use crate::shard::{RangeHandle, ShardInner};

/// The time over which the rate of CPU time forgets.
const CPU_OVER: Duration = Duration::from_secs(10);
/// The most CPU time of a replica, as a multiple of its own timed work.
const CPU_SHARE_MAX: f64 = 32.0;
/// How many known sizes of ranges a report measures again, in turn.
const SIZES_OF_REPORT: usize = 64;
/// How many sizes of ranges a report measures at most for the first time.
const NEW_SIZES_OF_REPORT: usize = 256;

/// What a shard remembers to measure its load.
pub(in crate::shard) struct LoadMeter {
    /// When the CPU time of the thread was last looked at, and what it was.
    looked: Cell<Option<(BootTime, Duration)>>,
    /// The part of a core that the thread uses.
    cpu: Cell<f64>,
    /// The first replica whose size the next report measures, by its place among all.
    next_size: Cell<usize>,
    /// CPU time of a replica for each unit of its timed work.
    cpu_share: Cell<f64>,
}

impl Default for LoadMeter {
    fn default() -> LoadMeter {
        LoadMeter {
            looked: Cell::new(None),
            cpu: Cell::new(0.0),
            next_size: Cell::new(0),
            cpu_share: Cell::new(1.0),
        }
    }
}

impl LoadMeter {
    /// Takes the CPU time that the thread has used until now.
    fn look(&self, now: BootTime, used: Duration) {
        let Some((at, before)) = self.looked.get() else {
            self.looked.set(Some((now, used)));
            return;
        };
        let elapsed = (now - at).as_secs_f64();
        if elapsed > 0.0 {
            let ratio = used.saturating_sub(before).as_secs_f64() / elapsed;
            let kept = (-elapsed / CPU_OVER.as_secs_f64()).exp();
            self.cpu.set(ratio + (self.cpu.get() - ratio) * kept);
            self.looked.set(Some((now, used)));
        }
    }

    /// The part of a core that the thread has used over the last 10 s.
    pub(in crate::shard) fn cpu(&self) -> f64 {
        self.cpu.get()
    }
}

/// Measures the load of a shard and of all its replicas; gives that of the shard.
pub(super) fn measure<E: Env>(inner: &ShardInner<E>, now: BootTime) -> ShardStats {
    let meter = &inner.agent.load;
    let used = E::thread_cpu_time();
    if let Some(used) = used {
        meter.look(now, used);
    }
    let (mut count, mut new, mut bytes, mut timed) = (0, 0, 0, 0.0);
    let first = meter.next_size.get();
    inner.ranges.for_each(|RangeHandle { replica, .. }| {
        let is_due = match replica.usage.has_size() {
            true => (first..first + SIZES_OF_REPORT).contains(&count),
            false => {
                new += 1;
                new <= NEW_SIZES_OF_REPORT
            }
        };
        bytes += replica.size(is_due).bytes;
        timed += replica.usage.measure(now).short.cpu_nanos;
        count += 1;
    });
    let next = first + SIZES_OF_REPORT;
    meter.next_size.set(if next < count { next } else { 0 });
    // Where there is no clock of the thread, the timed work counts as it is.
    let share = match used {
        Some(_) if timed > 0.0 => meter.cpu() * 1e9 / timed,
        _ => 1.0,
    };
    meter.cpu_share.set(share.min(CPU_SHARE_MAX));
    ShardStats {
        cpu: (meter.cpu() * 1000.0) as u32,
        bytes,
        node: E::node_stats(),
    }
}

/// The load and the size of a range at its leader, as they were last measured.
pub(in crate::shard) fn of_range<E: Env>(
    inner: &ShardInner<E>,
    replica: &Replica<E>,
) -> RangeStats {
    let size = replica.size(false);
    let rates = replica.usage.rates();
    let share = inner.agent.load.cpu_share.get();
    let (short, long) = (shown(rates.short, share), shown(rates.long, share));
    RangeStats {
        bytes: size.bytes,
        live_bytes: size.live_bytes,
        reads_per_second: short.reads_per_second,
        writes_per_second: short.writes_per_second,
        cpu_millis_per_second: short.cpu_millis_per_second,
        read_bytes_per_second: short.read_bytes_per_second,
        written_bytes_per_second: short.written_bytes_per_second,
        waiting: u32::try_from(replica.proposer.waiting()).unwrap_or(u32::MAX),
        long,
    }
}

/// Rates as reports have them, with this much CPU time for each unit of timed work.
fn shown(work: Work, share: f64) -> RangeRates {
    RangeRates {
        reads_per_second: work.reads.round() as u32,
        writes_per_second: work.writes.round() as u32,
        cpu_millis_per_second: (work.cpu_nanos * share / 1e6).round() as u32,
        read_bytes_per_second: work.read_bytes.round() as u64,
        written_bytes_per_second: work.written_bytes.round() as u64,
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    #[test]
    fn the_ratio_of_cpu_time_follows_the_thread_over_ten_seconds() {
        let meter = LoadMeter::default();
        let (mut now, mut used) = (test_clock::now(), Duration::from_secs(7));
        meter.look(now, used);
        let mut pass = |seconds: u32, ratio: f64| {
            for _ in 0..seconds * 2 {
                now += Duration::from_millis(500);
                used += Duration::from_millis(500).mul_f64(ratio);
                meter.look(now, used);
            }
            meter.cpu()
        };
        assert!((pass(60, 0.5) - 0.5).abs() < 0.01);
        assert!((pass(10, 0.0) - 0.5 / std::f64::consts::E).abs() < 0.01);
        assert!((pass(90, 1.0) - 1.0).abs() < 0.01);
    }
}
