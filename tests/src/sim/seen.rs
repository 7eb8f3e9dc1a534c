//! The observations of all clients of a run, and the violations found in it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use rangedb_engine::types::Timestamp;
use rangedb_loadgen::check::Checker;

use crate::invariants::pairs::Pairs;
use crate::invariants::rows::Rows;
use crate::invariants::snapshots::Snapshots;

/// The largest number of violations that a run reports.
const VIOLATIONS_MAX: usize = 8;

/// The observations of all clients.
#[derive(Default)]
pub struct Seen {
    /// Reads and writes of registers.
    pub history: RefCell<Checker<String>>,
    /// For each counter: the acknowledged sum, and the sum that may have been added in addition.
    pub counters: RefCell<BTreeMap<String, (i64, i64)>>,
    /// The writes of pairs.
    pub pairs: RefCell<Pairs>,
    /// The writes of registers and other rows.
    pub rows: RefCell<Rows>,
    /// For each key, the highest version that was acknowledged or read.
    pub versions: RefCell<BTreeMap<String, Timestamp>>,
    /// The snapshots that were scanned.
    pub snapshots_read: RefCell<Snapshots>,
    /// The violated invariants.
    pub violations: RefCell<Vec<String>>,
    /// The number of clients that have not ended.
    pub clients: Cell<u32>,
    /// Writes with a known outcome.
    pub done: Cell<u64>,
    /// Writes that were refused or whose outcome is unknown.
    pub failed: Cell<u64>,
    /// Reads without a lease, confirmed by a majority.
    pub confirmed: Cell<u64>,
    /// Replicas that have installed a snapshot.
    pub snapshots: Cell<u64>,
}

impl Seen {
    /// Records a violation.
    pub fn violation(&self, what: String) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < VIOLATIONS_MAX && !violations.contains(&what) {
            violations.push(what);
        }
    }

    /// Whether an invariant is violated, so that the run can end.
    pub fn is_violated(&self) -> bool {
        !self.violations.borrow().is_empty()
    }

    /// Records a version that was acknowledged or read. `least` is the highest one known before the
    /// call.
    pub fn version(&self, key: &str, version: Timestamp, least: Timestamp) {
        if version < least {
            self.violation(format!("{key}: version {version} after {least} was known"));
        }
        let mut versions = self.versions.borrow_mut();
        let known = versions.entry(key.to_owned()).or_default();
        *known = version.max(*known);
    }

    /// The highest version of a key known so far.
    pub fn known(&self, key: &str) -> Timestamp {
        self.versions.borrow().get(key).copied().unwrap_or_default()
    }
}
