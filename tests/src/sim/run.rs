//! A seed's run: sizes and faults drawn from the seed, clients, and at the end the check.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use super::client::SimClient;
use super::cluster::Cluster;
use super::executor::{self, Executor, OUTSIDE, OnHost};
use super::faults::{Fault, Faults};
use super::node::{SimNode, Sizes};
use super::random::Random;
use super::runtime::SimRuntime;
use super::seen::Seen;
use crate::invariants::{self, Watch};

/// A node that has not started after this is waiting for room on its disk.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// All replicas are looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// When faults are over, clients have ended what they do after this: a try and a give-up.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(14);
/// After this the cluster has converged.
const CONVERGES_WITHIN: Duration = Duration::from_secs(10);
/// A node does not hear a leader for so long.
const DEAF: Duration = Duration::from_secs(3);
/// Meanwhile it is looked so often who leads.
const DEAF_LOOKS: u32 = 30;

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

/// What a seed has before anything happens.
struct Drawn {
    sizes: Sizes,
    clients: u32,
    faults: Faults,
    random: Random,
}

fn draw(seed: u64) -> Drawn {
    let random = Random::new(seed, 3);
    let sizes = sizes(&random);
    let clients = random.between(1, 5) as u32;
    let faults = Faults::of(&random, sizes.nodes, sizes.shards);
    Drawn {
        sizes,
        clients,
        faults,
        random,
    }
}

/// The faults of a seed.
pub fn faults_of(seed: u64) -> Faults {
    draw(seed).faults
}

/// Runs a seed with its faults.
///
/// # Errors
/// Nothing could run any more, or too much did.
pub fn run(seed: u64) -> Result<Report, String> {
    run_with(seed, &faults_of(seed))
}

/// Runs a seed with other faults.
///
/// # Errors
/// Nothing could run any more, or too much did.
pub fn run_with(seed: u64, faults: &Faults) -> Result<Report, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let drawn = draw(seed);
    let seen = Rc::new(Seen::default());
    let story = Rc::new(Story {
        cluster: Cluster::new(drawn.sizes, seed),
        seen: seen.clone(),
        random: drawn.random,
        faults: faults.clone(),
        clients: drawn.clients,
        seed,
        restarts: Cell::new(0),
        busy: RefCell::default(),
    });
    let ended = executor.block_on(story.clone().tell());
    let report = Report {
        trace: executor.trace(),
        done: seen.done.get(),
        failed: seen.failed.get(),
        restarts: story.restarts.get(),
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
    faults: Faults,
    clients: u32,
    seed: u64,
    restarts: Cell<u64>,
    /// Nodes that are down, start, or are paused: nothing else happens to them.
    busy: RefCell<BTreeSet<u16>>,
}

impl Story {
    async fn tell(self: Rc<Story>) {
        let stop = Rc::new(Cell::new(false));
        for step in &self.faults.steps {
            if let Fault::Drift { node, millionths } = step.fault {
                executor::current().set_drift(node, millionths);
            }
        }
        for node in &self.cluster.nodes {
            self.start(node, false).await;
        }
        for number in 0..self.clients {
            self.seen.clients.set(self.seen.clients.get() + 1);
            let client = self.client(number, &stop);
            executor::current().spawn_on(OUTSIDE, client.run());
        }
        let watched = Rc::new(Cell::new(false));
        self.clone().watch(watched.clone());
        for step in &self.faults.steps {
            SimRuntime::sleep(step.after).await;
            self.happen(&step.fault).await;
            for node in &self.cluster.nodes {
                if node.fatal().is_some() && !self.is_busy(node) {
                    self.while_busy(node, |story, node| async move {
                        story.after_fatal(&node).await;
                    });
                }
            }
            if self.seen.is_violated() {
                break;
            }
        }
        if !self.seen.is_violated() {
            self.heal().await;
        }
        stop.set(true);
        if !self.seen.is_violated() {
            self.check().await;
        }
        watched.set(true);
    }

    fn client(&self, number: u32, stop: &Rc<Cell<bool>>) -> SimClient {
        let (cluster, seen) = (self.cluster.clone(), self.seen.clone());
        SimClient::new(number, cluster, seen, self.seed, stop.clone())
    }

    /// Looks at all replicas again and again.
    fn watch(self: Rc<Story>, stop: Rc<Cell<bool>>) {
        executor::current().spawn_on(OUTSIDE, async move {
            let mut watch = Watch::default();
            while !stop.get() {
                SimRuntime::sleep(LOOK_EVERY).await;
                watch.check(&self.seen, &self.cluster.looks());
            }
        });
    }

    fn is_busy(&self, node: &SimNode) -> bool {
        self.busy.borrow().contains(&node.id)
    }

    /// Does something to a node that takes its time, while the story goes on.
    fn while_busy<F: Future<Output = ()> + 'static>(
        self: &Rc<Story>,
        node: &Rc<SimNode>,
        work: impl FnOnce(Rc<Story>, Rc<SimNode>) -> F,
    ) {
        self.busy.borrow_mut().insert(node.id);
        let (story, id) = (self.clone(), node.id);
        let work = work(self.clone(), node.clone());
        executor::current().spawn_on(OUTSIDE, async move {
            work.await;
            story.busy.borrow_mut().remove(&id);
        });
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
                let ranges = executor::current().on_host(node.host(), || shard.ranges());
                invariants::replay::check_after_clean_stop(&self.seen, &ranges);
            }
        }
    }

    /// One fault.
    async fn happen(self: &Rc<Story>, fault: &Fault) {
        let network = &self.cluster.network;
        match fault {
            Fault::Mend => network.mend(),
            Fault::Cut { links } => links.iter().for_each(|(from, to)| network.cut(*from, *to)),
            Fault::Loss { one_in, duplicates } => {
                network.loss_one_in.set(*one_in);
                network.duplicates.set(*duplicates);
            }
            Fault::SlowLinks {
                links,
                delay_max_us,
            } => {
                let slow = |(from, to): &(u16, u16)| network.slow_down(*from, *to, *delay_max_us);
                links.iter().for_each(slow);
            }
            Fault::Drift { .. } => {}
            Fault::Crash { node, .. }
            | Fault::Stop { node }
            | Fault::Pause { node, .. }
            | Fault::ClockJump { node, .. }
            | Fault::WriteError { node, .. }
            | Fault::FullDisk { node, .. }
            | Fault::SlowDisk { node, .. }
            | Fault::HandOver { node, .. } => {
                let node = self.cluster.node(u64::from(*node)).cloned();
                if let Some(node) = node.filter(|node| !self.is_busy(node)) {
                    self.happen_to(&node, fault);
                }
            }
        }
    }

    /// One fault of a node.
    fn happen_to(self: &Rc<Story>, node: &Rc<SimNode>, fault: &Fault) {
        match *fault {
            Fault::Crash {
                down_ms,
                again_after_us,
                ..
            } => self.while_busy(node, move |story, node| async move {
                node.crash();
                SimRuntime::sleep(Duration::from_millis(down_ms)).await;
                if let Some(micros) = again_after_us {
                    let start = story.start(&node, false);
                    let _ = SimRuntime::timeout(Duration::from_micros(micros), start).await;
                    node.crash();
                }
                story.start(&node, false).await;
            }),
            Fault::Stop { .. } => self.while_busy(node, |story, node| async move {
                story.stop_and_start(&node).await;
            }),
            Fault::Pause { ms, .. } => self.while_busy(node, move |_, node| async move {
                node.pause(Duration::from_millis(ms)).await;
            }),
            Fault::ClockJump { by_ms, .. } => node.clock.jump(by_ms),
            Fault::WriteError { after, .. } => {
                let platter = node.platters().nth(0).expect("a node has a disk");
                platter.writes_until_failure.set(Some(after));
            }
            Fault::FullDisk { full, .. } => {
                node.table_disks().for_each(|disk| disk.full.set(full));
            }
            Fault::SlowDisk { latency_us, .. } => node
                .platters()
                .for_each(|platter| platter.latency_max_us.set(latency_us)),
            Fault::HandOver { shard, .. } => {
                let shards = node.shards();
                let shard = shards.and_then(|shards| shards.get(usize::from(shard)).cloned());
                if let Some(shard) = shard {
                    let handed_over = OnHost::new(node.host(), async move {
                        // A group that has failed stops its process, which is seen elsewhere.
                        let _ = shard.hand_over().await;
                    });
                    executor::current().spawn_on(OUTSIDE, handed_over);
                }
            }
            _ => {}
        }
    }

    async fn stop_and_start(&self, node: &Rc<SimNode>) {
        let stopped = SimRuntime::timeout(START_PATIENCE, node.stop()).await;
        if node.fatal().is_some() {
            return self.after_fatal(node).await;
        }
        if stopped.is_err() {
            self.seen.violation("the node hangs at its stop".to_owned());
        }
        // With a full disk the last flush is left out.
        let full = node.table_disks().any(|disk| disk.full.get());
        self.start(node, !full).await;
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
        let begun = executor::current().now();
        while !self.busy.borrow().is_empty() {
            SimRuntime::sleep(LOOK_EVERY).await;
            // One that waits for room at its start waits for long.
            if executor::current().now() - begun > 4 * START_PATIENCE {
                let busy = self.busy.borrow().clone();
                return self.seen.violation(format!("nodes {busy:?} hang"));
            }
        }
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

    async fn check(self: &Rc<Story>) {
        let clients = async {
            while self.seen.clients.get() > 0 {
                SimRuntime::sleep(LOOK_EVERY).await;
            }
        };
        if SimRuntime::timeout(CLIENTS_END_WITHIN, clients)
            .await
            .is_err()
        {
            self.seen.violation("a client does not end".to_owned());
        }
        for node in &self.cluster.nodes {
            if let Some(why) = node.fatal() {
                self.seen
                    .violation(format!("the node stopped without a reason: {why}"));
            }
        }
        let reader = self.client(u32::MAX, &Rc::default());
        let keys: Vec<String> = self.seen.counters.borrow().keys().cloned().collect();
        for key in keys {
            let Some(value) = reader.read_patiently(&key).await else {
                return self.seen.violation(format!("{key} cannot be read"));
            };
            let value = value.unwrap_or_else(|| "0".to_owned());
            invariants::counters::check(&self.seen, &key, value.parse().unwrap_or(i64::MIN));
        }
        reader.scan_pairs().await;
        reader.scan_snapshots_again().await;
        invariants::registers::check(&self.seen);
        self.check_convergence().await;
        if self.cluster.nodes.len() > 2 && !self.seen.is_violated() {
            self.check_steadiness().await;
        }
    }

    async fn check_convergence(&self) {
        let until = executor::current().now() + CONVERGES_WITHIN;
        while let Some(missing) = invariants::convergence::missing(&self.cluster.looks()) {
            if executor::current().now() > until {
                return self.seen.violation(format!("no convergence: {missing}"));
            }
            SimRuntime::sleep(LOOK_EVERY).await;
        }
        let looks = self.cluster.looks();
        invariants::tiling::check_whole(&self.seen, &looks);
        // A shard begins with two replicas at most.
        let taken_over = looks.iter().filter(|look| look.status.data_id.0 > 2);
        self.seen.snapshots.set(taken_over.count() as u64);
    }

    /// One node does not hear another for a while.
    async fn check_steadiness(&self) {
        let network = &self.cluster.network;
        let count = self.cluster.nodes.len() as u64;
        let leader = self.random.below(count) as u16 + 1;
        let deaf = (u64::from(leader) + self.random.below(count - 1)) % count + 1;
        let mut before = invariants::steadiness::led(&self.cluster.looks(), leader);
        network.cut(leader, deaf as u16);
        if self.random.once_in(2) {
            network.cut(deaf as u16, leader);
        }
        for _ in 0..DEAF_LOOKS {
            SimRuntime::sleep(DEAF / DEAF_LOOKS).await;
            let looks = self.cluster.looks();
            invariants::steadiness::leave_out_handed_on(&mut before, &looks, [leader, deaf as u16]);
        }
        let after = invariants::steadiness::led(&self.cluster.looks(), deaf as u16);
        network.heal();
        invariants::steadiness::check(&self.seen, &before, &after);
    }
}
