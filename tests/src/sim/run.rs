//! A seed's run: options drawn from the seed, clients, faults, and at the end the check.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::ScanRequest;
use rangedb_engine::types::Blob;

use super::cluster::{Cluster, Sizes};
use super::executor::{self, Executor, OUTSIDE};
use super::random::Random;
use super::runtime::SimRuntime;
use super::workload::{Seen, SimClient};
use crate::invariants;

/// A node that has not started after this is waiting for room on its disk.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The hash of everything that happened.
    pub trace: u64,
    /// Operations that ended well.
    pub done: u64,
    /// Operations that failed.
    pub failed: u64,
    /// Crashes and stops.
    pub restarts: u64,
    /// What must not have happened.
    pub violations: Vec<String>,
}

/// Which faults a seed has.
#[derive(Clone, Copy, Debug)]
struct Swarm {
    crashes: bool,
    clean_stops: bool,
    clock_jumps: bool,
    write_errors: bool,
    full_disks: bool,
    slow_disks: bool,
    steps: u64,
    clients: u32,
}

impl Swarm {
    fn of(random: &Random) -> Swarm {
        Swarm {
            crashes: !random.once_in(4),
            clean_stops: random.once_in(2),
            clock_jumps: random.once_in(2),
            write_errors: random.once_in(4),
            full_disks: random.once_in(4),
            slow_disks: random.once_in(4),
            steps: random.between(3, 8),
            clients: random.between(1, 5) as u32,
        }
    }
}

fn sizes(random: &Random) -> Sizes {
    Sizes {
        shards: random.between(1, 3) as u16,
        memtable_bytes: 1 << random.between(12, 17),
        segment_bytes: 1 << random.between(16, 19),
        entry_cache_bytes: 1 << random.between(8, 18),
        gc_retention_ms: random.between(1_000, 30_000),
    }
}

/// Runs a seed.
///
/// # Errors
/// Nothing could run any more, or too much did.
pub fn run(seed: u64) -> Result<Report, String> {
    let executor = Executor::start(seed);
    let random = Random::new(seed, 3);
    let swarm = Swarm::of(&random);
    let cluster = Cluster::new(sizes(&random), seed);
    let seen = Rc::new(Seen::default());
    let restarts = Rc::new(Cell::new(0));
    let story = Story {
        cluster,
        seen: seen.clone(),
        random,
        swarm,
        seed,
        restarts: restarts.clone(),
    };
    let ended = executor.block_on(story.tell());
    let report = Report {
        trace: executor.trace(),
        done: seen.done.get(),
        failed: seen.failed.get(),
        restarts: restarts.get(),
        violations: seen.violations.borrow().clone(),
    };
    executor.end();
    ended.map(|()| report)
}

struct Story {
    cluster: Rc<Cluster>,
    seen: Rc<Seen>,
    random: Random,
    swarm: Swarm,
    seed: u64,
    restarts: Rc<Cell<u64>>,
}

impl Story {
    async fn tell(self) {
        let stop = Rc::new(Cell::new(false));
        self.start(false).await;
        for number in 0..self.swarm.clients {
            let (cluster, seen) = (self.cluster.clone(), self.seen.clone());
            let client = SimClient::new(number, cluster, seen, self.seed, stop.clone());
            executor::current().spawn_on(OUTSIDE, client.run());
        }
        for _ in 0..self.swarm.steps {
            let pause = Duration::from_millis(self.random.between(1, 1500));
            SimRuntime::sleep(pause).await;
            self.disturb().await;
            if self.cluster.fatal().is_some() {
                self.after_fatal().await;
            }
        }
        self.heal().await;
        stop.set(true);
        // Everyone ends what it does; a write gives up after eight seconds.
        SimRuntime::sleep(Duration::from_secs(12)).await;
        self.check().await;
    }

    async fn start(&self, after_clean_stop: bool) {
        self.restarts.set(self.restarts.get() + 1);
        let started = SimRuntime::timeout(START_PATIENCE, self.cluster.start());
        if started.await.is_err() && self.cluster.fatal().is_none() {
            // With a full disk a long log cannot be applied; with room again the start goes on.
            self.cluster
                .table_disks()
                .for_each(|disk| disk.full.set(false));
            self.cluster.crash();
            let started = SimRuntime::timeout(START_PATIENCE, self.cluster.start());
            if started.await.is_err() && self.cluster.fatal().is_none() {
                self.seen
                    .violation("the node hangs at its start".to_owned());
            }
        }
        let Some(shards) = self.cluster.shards() else {
            return;
        };
        if after_clean_stop {
            for shard in shards.iter() {
                invariants::replay::check_after_clean_stop(&self.seen, &shard.status());
            }
        }
    }

    /// One fault, of those that the seed has.
    async fn disturb(&self) {
        match self.random.below(6) {
            0 | 1 if self.swarm.crashes => {
                self.cluster.crash();
                let down = Duration::from_millis(self.random.between(0, 500));
                SimRuntime::sleep(down).await;
                self.start(false).await;
            }
            2 if self.swarm.clean_stops => {
                let stopped = SimRuntime::timeout(START_PATIENCE, self.cluster.stop()).await;
                if self.cluster.fatal().is_some() {
                    return;
                }
                if stopped.is_err() {
                    self.seen.violation("the node hangs at its stop".to_owned());
                }
                // With a full disk the last flush is left out.
                let full = self.cluster.table_disks().any(|disk| disk.full.get());
                self.start(!full).await;
            }
            3 if self.swarm.clock_jumps => {
                let hour = 3_600_000;
                self.cluster
                    .clock
                    .jump(self.random.below(2 * hour) as i64 - hour as i64);
            }
            4 if self.swarm.write_errors => {
                let platter = self.cluster.platters().nth(0).expect("a node has a disk");
                platter
                    .writes_until_failure
                    .set(Some(self.random.below(50)));
            }
            5 if self.swarm.full_disks => {
                let full = self.random.once_in(2);
                self.cluster
                    .table_disks()
                    .for_each(|disk| disk.full.set(full));
            }
            _ if self.swarm.slow_disks => {
                let latency = self.random.between(100, 30_000);
                self.cluster
                    .platters()
                    .for_each(|p| p.latency_max_us.set(latency));
            }
            _ => {}
        }
    }

    /// The node has stopped by itself: it must have had a reason, and the process is gone.
    async fn after_fatal(&self) {
        let why = self.cluster.fatal().unwrap_or_default();
        let asked_for = self
            .cluster
            .platters()
            .any(|platter| platter.has_failed.get());
        if !asked_for {
            self.seen
                .violation(format!("the node stopped without a reason: {why}"));
        }
        self.cluster.crash();
        for platter in self.cluster.platters() {
            platter.writes_until_failure.set(None);
            platter.has_failed.set(false);
        }
        self.start(false).await;
    }

    /// No more faults, and the node runs.
    async fn heal(&self) {
        for platter in self.cluster.platters() {
            platter.writes_until_failure.set(None);
            platter.latency_max_us.set(300);
        }
        self.cluster
            .table_disks()
            .for_each(|disk| disk.full.set(false));
        if self.cluster.fatal().is_some() {
            self.after_fatal().await;
        }
        if self.cluster.shards().is_none() {
            self.cluster.crash();
            self.start(false).await;
        }
        if self.cluster.shards().is_none() {
            let why = self
                .cluster
                .fatal()
                .unwrap_or_else(|| "it hangs".to_owned());
            self.seen
                .violation(format!("the node does not start: {why}"));
        }
    }

    async fn check(&self) {
        if let Some(why) = self.cluster.fatal() {
            self.seen
                .violation(format!("the node stopped without a reason: {why}"));
        }
        let Some(shards) = self.cluster.shards() else {
            return;
        };
        let keys: Vec<String> = self.seen.counters.borrow().keys().cloned().collect();
        for key in keys {
            let values = shards.iter().filter_map(|shard| {
                let get = shard.get(key.as_bytes(), None, |found| {
                    found.map(|(value, _)| String::from_utf8_lossy(value).into_owned())
                });
                get.ok()
            });
            let value = values.flatten().next().unwrap_or_else(|| "0".to_owned());
            invariants::counters::check(&self.seen, &key, value.parse().unwrap_or(i64::MIN));
        }
        let before = self.seen.pairs.borrow().clone();
        for shard in shards.iter() {
            let scan = ScanRequest {
                start: Some(Blob::from_static(b"cp")),
                end: Some(Blob::from_static(b"cq")),
                rows_max: 0,
                bytes_max: 0,
                at: None,
            };
            if let Ok(reply) = shard.scan(scan, None, None).await {
                invariants::pairs::check(&self.seen, &before, &reply.rows);
            }
        }
        invariants::registers::check(&self.seen);
    }
}
