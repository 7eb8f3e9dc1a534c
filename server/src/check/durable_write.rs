//! How long the disk takes to make a small write durable. Every write of a client waits for that, at
//! least once.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rangedb_engine::limits::BLOCK_LEN;

use super::Check;
use crate::env::kernel::probe_file;
use crate::env::reactor::AlignedBuffer;

/// The length of the file; writes go through it again and again, as through a segment of the log.
const FILE_LEN: usize = 4 << 20;
/// The slowest hundredth that leaves room for an answer within tens of milliseconds.
const P99_WANTED: Duration = Duration::from_millis(10);
/// With such a median, leaders lose their followers whenever the disk is busy.
const P50_MAX: Duration = Duration::from_millis(100);
/// No disk is as fast: writes end in a cache that forgets.
const P50_MIN: Duration = Duration::from_micros(4);

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latency {
    pub writes: u64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Writes a block after the other durably, as the log does, for as long as `time`.
///
/// # Errors
/// The file cannot be made or written.
pub(super) fn measure(folder: &Path, time: Duration) -> io::Result<Latency> {
    let durable = libc::O_DSYNC;
    let file = match probe_file(folder, durable | libc::O_DIRECT) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => probe_file(folder, durable)?,
        made => made?,
    };
    file.write_all_at(AlignedBuffer::new(FILE_LEN).as_ref(), 0)?;
    file.sync_all()?;
    let block = AlignedBuffer::new(BLOCK_LEN);
    let latency = Histogram::<u64>::new_with_max(u64::MAX / 2, 2);
    let mut latency = latency.map_err(|error| io::Error::other(error.to_string()))?;
    let begun = Instant::now();
    let offsets = (0..FILE_LEN).step_by(BLOCK_LEN).cycle();
    for offset in offsets {
        let sent = Instant::now();
        file.write_all_at(block.as_ref(), offset as u64)?;
        latency.saturating_record(sent.elapsed().as_nanos() as u64);
        if begun.elapsed() >= time {
            break;
        }
    }
    let at = |part| Duration::from_nanos(latency.value_at_quantile(part));
    Ok(Latency {
        writes: latency.len(),
        p50: at(0.5),
        p99: at(0.99),
    })
}

pub(super) fn check(folder: &Path, time: Duration) -> Check {
    verdict(measure(folder, time))
}

pub(super) fn verdict(measured: io::Result<Latency>) -> Check {
    let name = "durable_write";
    let wanted = "writes of 4 KiB that are durable within 10 ms, 99 of 100";
    let latency = match measured {
        Ok(latency) => latency,
        Err(error) => {
            return Check::new(name, format!("cannot write: {error}"), wanted).fail_if(
                true,
                "let this user write to the data folder, or make it first",
            );
        }
    };
    let Latency { writes, p50, p99 } = latency;
    let micros = |time: Duration| format!("{} µs", time.as_micros());
    let found = format!("p50 {}, p99 {}, {writes} writes", micros(p50), micros(p99));
    let slow =
        "use a local SSD, best one with protection against power loss, and nothing else on it";
    Check::new(name, found, wanted)
        .fail_if(
            p50 < P50_MIN,
            "use a disk: these writes end in memory, and are lost when the power goes",
        )
        .fail_if(p50 > P50_MAX, slow)
        .warn_if(p99 > P99_WANTED, slow)
}
