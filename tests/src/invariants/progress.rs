//! While a process lives, no value of a replica goes back: its epoch, its time, the terms in which it
//! leads, its applied and durable indexes, and its collected threshold.

use std::collections::BTreeMap;

use rangedb_engine::types::{Epoch, ReplicaId, Timestamp};

use crate::sim::cluster::Look;
use crate::sim::executor::Host;
use crate::sim::seen::Seen;

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    version: u32,
    conf: u32,
    term: u64,
    applied: u64,
    durable: u64,
    last_ts: Timestamp,
    gc_threshold: Timestamp,
}

/// The last state of each replica in each process.
#[derive(Default)]
pub struct Progress(BTreeMap<(Host, ReplicaId), Point>);

impl Progress {
    /// Checks all replicas at one moment.
    pub fn check(&mut self, seen: &Seen, looks: &[Look]) {
        for Look { host, status, .. } in looks {
            let Epoch { version, conf } = status.route.epoch;
            let point = self.0.entry((*host, status.replica)).or_default();
            let now = Point {
                version,
                conf,
                // A replica that does not lead reports 0.
                term: if status.leads {
                    status.term
                } else {
                    point.term
                },
                applied: status.applied,
                durable: status.durable,
                last_ts: status.last_ts,
                gc_threshold: status.gc_threshold,
            };
            let before = std::mem::replace(point, now);
            let goes_on = version >= before.version
                && conf >= before.conf
                && now.term >= before.term
                && now.applied >= before.applied
                && now.durable >= before.durable
                && now.durable <= now.applied
                && now.last_ts >= before.last_ts
                && now.gc_threshold >= before.gc_threshold;
            if !goes_on {
                seen.violation(format!(
                    "range {}: {} goes back from {before:?} to {now:?}",
                    status.route.range, status.replica
                ));
            }
        }
    }
}
