//! What all clients have seen in a run, and what must not have happened.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use rangedb_engine::types::Timestamp;
use rangedb_loadgen::check::Checker;

use crate::invariants::pairs::Pairs;
use crate::invariants::rows::Rows;
use crate::invariants::snapshots::Snapshots;

/// So many violations are told of one run.
const VIOLATIONS_MAX: usize = 8;

/// What all clients have seen.
#[derive(Default)]
pub struct Seen {
    /// Gets and writes of registers.
    pub history: RefCell<Checker<String>>,
    /// Of each counter: what was acknowledged, and what may have been added beyond.
    pub counters: RefCell<BTreeMap<String, (i64, i64)>>,
    /// Writes of pairs.
    pub pairs: RefCell<Pairs>,
    /// Writes of registers and other rows.
    pub rows: RefCell<Rows>,
    /// The highest version acknowledged or read, of each key.
    pub versions: RefCell<BTreeMap<String, Timestamp>>,
    /// Snapshots that were scanned.
    pub snapshots_read: RefCell<Snapshots>,
    /// What must not have happened.
    pub violations: RefCell<Vec<String>>,
    /// Clients that have not ended.
    pub clients: Cell<u32>,
    /// Operations that ended well.
    pub done: Cell<u64>,
    /// Operations that failed for a while or for good.
    pub failed: Cell<u64>,
    /// Reads without a lease that others confirmed.
    pub confirmed: Cell<u64>,
    /// Replicas that took over a snapshot.
    pub snapshots: Cell<u64>,
}

impl Seen {
    /// Notes a violation.
    pub fn violation(&self, what: String) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < VIOLATIONS_MAX && !violations.contains(&what) {
            violations.push(what);
        }
    }

    /// Whether the run need not go on.
    pub fn is_violated(&self) -> bool {
        !self.violations.borrow().is_empty()
    }

    /// A version was acknowledged or read; `least` is what was known before the call.
    pub fn version(&self, key: &str, version: Timestamp, least: Timestamp) {
        if version < least {
            self.violation(format!("{key}: version {version} after {least} was known"));
        }
        let mut versions = self.versions.borrow_mut();
        let known = versions.entry(key.to_owned()).or_default();
        *known = version.max(*known);
    }

    /// The highest version of all keys from `start` to before `end` known so far.
    pub fn highest(&self, (start, end): (&str, &str)) -> Timestamp {
        let versions = self.versions.borrow();
        let versions = versions.range(start.to_owned()..end.to_owned());
        versions
            .map(|(_, version)| *version)
            .max()
            .unwrap_or_default()
    }

    /// The highest version of a key known so far.
    pub fn known(&self, key: &str) -> Timestamp {
        self.versions.borrow().get(key).copied().unwrap_or_default()
    }
}
