//! A seed's run: options drawn from the seed, clients, faults, and at the end the check.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use super::cluster::Cluster;
use super::executor::{self, Executor, OUTSIDE};
use super::node::{SimNode, Sizes};
use super::random::Random;
use super::runtime::SimRuntime;
use super::workload::{Seen, SimClient};
use crate::invariants;

/// A node that has not started after this is waiting for room on its disk.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// At the end replicas may take so long to have the same.
const CONVERGENCE_LOOKS: u32 = 100;
const CONVERGENCE_LOOK_EVERY: Duration = Duration::from_millis(50);

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
    /// Replicas that took over a snapshot, at the end.
    pub snapshots: u64,
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
    partitions: bool,
    losses: bool,
    slow_links: bool,
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
            partitions: !random.once_in(3),
            losses: random.once_in(3),
            slow_links: random.once_in(3),
            steps: random.between(3, 8),
            clients: random.between(1, 5) as u32,
        }
    }
}

fn sizes(random: &Random) -> Sizes {
    Sizes {
        shards: random.between(1, 3) as u16,
        nodes: [1, 3, 3, 5][random.below(4) as usize],
        grows: random.once_in(2),
        memtable_bytes: 1 << random.between(12, 17),
        segment_bytes: 1 << random.between(16, 19),
        entry_cache_bytes: 1 << random.between(8, 18),
        entries_kept: 1 << random.between(0, 8),
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
        snapshots: seen.snapshots.get(),
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
        self.start_all().await;
        for number in 0..self.swarm.clients {
            let (cluster, seen) = (self.cluster.clone(), self.seen.clone());
            let client = SimClient::new(number, cluster, seen, self.seed, stop.clone());
            executor::current().spawn_on(OUTSIDE, client.run());
        }
        self.watch(&stop);
        for _ in 0..self.swarm.steps {
            let pause = Duration::from_millis(self.random.between(1, 1500));
            SimRuntime::sleep(pause).await;
            self.disturb().await;
            for node in &self.cluster.nodes {
                if node.fatal().is_some() {
                    self.after_fatal(node).await;
                }
            }
        }
        self.heal().await;
        stop.set(true);
        // Everyone ends what it does; a write gives up after eight seconds.
        SimRuntime::sleep(Duration::from_secs(14)).await;
        self.check().await;
    }

    /// Looks at all leaders again and again.
    fn watch(&self, stop: &Rc<Cell<bool>>) {
        let (cluster, seen, stop) = (self.cluster.clone(), self.seen.clone(), stop.clone());
        executor::current().spawn_on(OUTSIDE, async move {
            let leadership = invariants::leadership::Leadership::default();
            while !stop.get() {
                SimRuntime::sleep(Duration::from_millis(7)).await;
                leadership.check(&seen, &cluster.statuses());
            }
        });
    }

    async fn start_all(&self) {
        for node in &self.cluster.nodes {
            self.start(node, false).await;
        }
    }

    fn any_node(&self) -> &Rc<SimNode> {
        let count = self.cluster.nodes.len() as u64;
        &self.cluster.nodes[self.random.below(count) as usize]
    }

    async fn start(&self, node: &Rc<SimNode>, after_clean_stop: bool) {
        self.restarts.set(self.restarts.get() + 1);
        let started = SimRuntime::timeout(START_PATIENCE, node.start());
        if started.await.is_err() && node.fatal().is_none() {
            // With a full disk a long log cannot be applied; with room again the start goes on.
            node.table_disks().for_each(|disk| disk.full.set(false));
            node.crash();
            let started = SimRuntime::timeout(START_PATIENCE, node.start());
            if started.await.is_err() && node.fatal().is_none() {
                self.seen
                    .violation("the node hangs at its start".to_owned());
            }
        }
        let Some(shards) = node.shards() else {
            return;
        };
        // Others may have sent entries already.
        if after_clean_stop && self.cluster.nodes.len() == 1 {
            for shard in shards.iter() {
                invariants::replay::check_after_clean_stop(&self.seen, &shard.status());
            }
        }
    }

    /// One fault, of those that the seed has.
    async fn disturb(&self) {
        let node = self.any_node().clone();
        match self.random.below(9) {
            0 | 1 if self.swarm.crashes => {
                node.crash();
                // Long enough, now and then, for the others to purge what it has not seen.
                let most = if self.random.once_in(3) { 8_000 } else { 500 };
                let down = Duration::from_millis(self.random.between(0, most));
                SimRuntime::sleep(down).await;
                self.start(&node, false).await;
            }
            2 if self.swarm.clean_stops => {
                let stopped = SimRuntime::timeout(START_PATIENCE, node.stop()).await;
                if node.fatal().is_some() {
                    return;
                }
                if stopped.is_err() {
                    self.seen.violation("the node hangs at its stop".to_owned());
                }
                // With a full disk the last flush is left out.
                let full = node.table_disks().any(|disk| disk.full.get());
                self.start(&node, !full).await;
            }
            3 if self.swarm.clock_jumps => {
                let hour = 3_600_000;
                node.clock
                    .jump(self.random.below(2 * hour) as i64 - hour as i64);
            }
            4 if self.swarm.write_errors => {
                let platter = node.platters().nth(0).expect("a node has a disk");
                platter
                    .writes_until_failure
                    .set(Some(self.random.below(50)));
            }
            5 if self.swarm.full_disks => {
                let full = self.random.once_in(2);
                node.table_disks().for_each(|disk| disk.full.set(full));
            }
            6 | 7 if self.swarm.partitions => self.cut_off(&node),
            8 if self.swarm.losses => {
                let network = &self.cluster.network;
                network.loss_one_in.set(self.random.below(20));
                network.duplicates.set(self.random.once_in(2));
            }
            8 if self.swarm.slow_links => {
                let delay = self.random.between(100, 150_000);
                self.cluster.network.delay_max_us.set(delay);
            }
            _ if self.swarm.slow_disks => {
                let latency = self.random.between(100, 30_000);
                node.platters()
                    .for_each(|platter| platter.latency_max_us.set(latency));
            }
            _ => {}
        }
    }

    /// Cuts links of a node: to or from some of the others, or heals them all.
    fn cut_off(&self, node: &Rc<SimNode>) {
        let network = &self.cluster.network;
        if self.random.once_in(3) {
            return network.heal();
        }
        let (out, into) = (!self.random.once_in(4), !self.random.once_in(4));
        for other in &self.cluster.nodes {
            if other.id == node.id || self.random.once_in(5) {
                continue;
            }
            if out {
                network.cut(node.id, other.id);
            }
            if into {
                network.cut(other.id, node.id);
            }
        }
    }

    /// A node has stopped by itself: it must have had a reason, and the process is gone.
    async fn after_fatal(&self, node: &Rc<SimNode>) {
        let why = node.fatal().unwrap_or_default();
        if !node.platters().any(|platter| platter.has_failed.get()) {
            self.seen
                .violation(format!("the node stopped without a reason: {why}"));
        }
        node.crash();
        for platter in node.platters() {
            platter.writes_until_failure.set(None);
            platter.has_failed.set(false);
        }
        self.start(node, false).await;
    }

    /// No more faults, and all nodes run.
    async fn heal(&self) {
        self.cluster.network.heal();
        for node in &self.cluster.nodes {
            for platter in node.platters() {
                platter.writes_until_failure.set(None);
                platter.latency_max_us.set(300);
            }
            node.table_disks().for_each(|disk| disk.full.set(false));
            if node.fatal().is_some() {
                self.after_fatal(node).await;
            }
            if node.shards().is_none() {
                node.crash();
                self.start(node, false).await;
            }
            if node.shards().is_none() {
                let why = node.fatal().unwrap_or_else(|| "it hangs".to_owned());
                self.seen
                    .violation(format!("the node does not start: {why}"));
            }
        }
    }

    async fn check(&self) {
        for node in &self.cluster.nodes {
            if let Some(why) = node.fatal() {
                self.seen
                    .violation(format!("the node stopped without a reason: {why}"));
            }
        }
        let stop = Rc::new(Cell::new(false));
        let reader = SimClient::new(
            u32::MAX,
            self.cluster.clone(),
            self.seen.clone(),
            self.seed,
            stop,
        );
        let keys: Vec<String> = self.seen.counters.borrow().keys().cloned().collect();
        for key in keys {
            let Some(value) = reader.read_patiently(&key).await else {
                return self.seen.violation(format!("{key} cannot be read"));
            };
            let value = value.unwrap_or_else(|| "0".to_owned());
            invariants::counters::check(&self.seen, &key, value.parse().unwrap_or(i64::MIN));
        }
        reader.scan_pairs().await;
        invariants::registers::check(&self.seen);
        self.check_convergence().await;
    }

    /// All replicas of a range have applied the same entries soon.
    async fn check_convergence(&self) {
        let mut apart = Vec::new();
        for _ in 0..CONVERGENCE_LOOKS {
            apart = self.apart();
            if apart.is_empty() {
                break;
            }
            SimRuntime::sleep(CONVERGENCE_LOOK_EVERY).await;
        }
        apart.into_iter().for_each(|what| self.seen.violation(what));
        let statuses = self.cluster.statuses();
        let ranges = statuses.iter().flat_map(|shard| &shard.ranges);
        // A shard begins with two replicas at most.
        let staged = ranges.filter(|status| status.data_id.0 > 2).count();
        self.seen
            .snapshots
            .set(self.seen.snapshots.get() + staged as u64);
    }

    /// Ranges whose replicas have not applied the same entries.
    fn apart(&self) -> Vec<String> {
        let mut applied = std::collections::BTreeMap::new();
        let mut apart = Vec::new();
        let statuses = self.cluster.statuses();
        for status in statuses.iter().flat_map(|shard| &shard.ranges) {
            let first = *applied.entry(status.route.range).or_insert(status.applied);
            if first != status.applied {
                apart.push(format!(
                    "range {} does not converge: entry {first} is applied on one replica, {} on {}",
                    status.route.range, status.applied, status.replica
                ));
            }
        }
        apart
    }
}
