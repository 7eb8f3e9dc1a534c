//! While a process lives, nothing of a replica goes back: its epoch, its time, its terms as a
//! leader, how far it is applied and durable, and below what old versions may be gone.

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

/// Where each replica of each process was.
#[derive(Default)]
pub struct Progress(BTreeMap<(Host, ReplicaId), Point>);

impl Progress {
    /// Looks at all replicas at one moment.
    pub fn check(&mut self, seen: &Seen, looks: &[Look]) {
        for Look { host, status } in looks {
            let Epoch { version, conf } = status.route.epoch;
            let point = self.0.entry((*host, status.replica)).or_default();
            let now = Point {
                version,
                conf,
                // One that does not lead says 0.
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
