//! An operator who splits, merges and moves ranges all the time, by the command line, while something else
//! happens to the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_engine::types::SYSTEM_RANGE;

use crate::cluster::{Caller, Range};

/// The pause between two orders.
const INTERVAL: Duration = Duration::from_millis(200);
/// With more ranges of users than this, they are merged more often than split.
const RANGES_MAX: usize = 12;

/// The orders that were carried out, by their kinds, and those that were refused or given up.
pub type Tally = BTreeMap<&'static str, u64>;

/// An operator at work.
#[derive(Debug)]
pub struct Operator {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Operator {
    /// Begins to give orders.
    pub fn begin(caller: &Caller, seed: u64) -> Operator {
        let stop = Arc::new(AtomicBool::new(false));
        let (caller, ends) = (caller.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            let mut tally = Tally::new();
            while !ends.load(Ordering::Relaxed) {
                if let Some(ranges) = caller.ranges() {
                    let kind = order(&caller, &mut random, &ranges);
                    *tally.entry(kind).or_default() += 1;
                }
                std::thread::sleep(INTERVAL);
            }
            tally
        });
        Operator { stop, thread }
    }

    /// Ends it after the order that it is about; prints and returns what was done.
    ///
    /// # Panics
    /// The operator has panicked.
    pub fn end(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let tally = self.thread.join().expect("the operator ends");
        println!("orders: {tally:?}");
        tally
    }
}

/// Gives one order; returns its kind, or what became of it.
fn order(caller: &Caller, random: &mut StdRng, ranges: &BTreeMap<u64, Range>) -> &'static str {
    let users: Vec<(u64, &Range)> = (ranges.iter())
        .filter(|(id, _)| **id != SYSTEM_RANGE.0)
        .map(|(id, range)| (*id, range))
        .collect();
    if users.is_empty() {
        return "nothing to order";
    }
    let (id, range) = users[random.random_range(0..users.len())];
    let range_id = id.to_string();
    let merges = random.random_range(0..RANGES_MAX * 2) < users.len();
    let (kind, done) = match random.random_range(0..10) {
        0..6 if merges => ("merge", run(caller, &["merge", &range_id])),
        0..6 => {
            // The keys of the check begin with two hexadecimal digits.
            let at = format!("{:02x}", random.random_range(0..256));
            let hex: String = at.bytes().map(|byte| format!("{byte:02x}")).collect();
            let before = users.iter().filter(|(_, range)| range.start <= hex);
            let holder = before.max_by(|a, b| a.1.start.cmp(&b.1.start));
            let holder = holder.map_or(id, |(id, _)| *id).to_string();
            let hold = ["split", &holder, "--at", &at, "--hold", "0s"];
            ("split", run(caller, &hold))
        }
        6..8 => ("transfer", run(caller, &["transfer-leader", &range_id])),
        _ => {
            let Some((from, to)) = target(random, range, ranges) else {
                return "nothing to move";
            };
            let order = ["move-replica", &range_id, "--from", &from, "--to", &to];
            ("move", run(caller, &order))
        }
    };
    if done { kind } else { "refused" }
}

/// A node that gives up a replica, and a place for it: a node without one, or the other shard of the node.
fn target(
    random: &mut StdRng,
    range: &Range,
    all: &BTreeMap<u64, Range>,
) -> Option<(String, String)> {
    if range.voters.is_empty() {
        return None;
    }
    let from = range.voters[random.random_range(0..range.voters.len())];
    let mut free: Vec<u64> = all
        .values()
        .flat_map(|range| range.voters.clone())
        .collect();
    free.retain(|node| !range.voters.contains(node));
    let to = match free.is_empty() {
        true => format!("{from}/{}", random.random_range(0..2)),
        false => free[random.random_range(0..free.len())].to_string(),
    };
    Some((from.to_string(), to))
}

fn run(caller: &Caller, order: &[&str]) -> bool {
    let words = [&["range"], order, &["--timeout", "5s"]].concat();
    let output = caller.cli(&words);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        println!("{}: {}", order.join(" "), why.trim());
    }
    output.status.success()
}
