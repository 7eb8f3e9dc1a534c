//! The run of a seed: the sizes and faults that it fixes, the clients, and the checks at the end.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::{RangeId, SYSTEM_RANGE};
use tokio::sync::oneshot;

use super::client::SimClient;
use super::cluster::Cluster;
use super::executor::{self, Executor, OUTSIDE, OnHost};
use super::faults::{Fault, Faults, Part, Telling, Then};
use super::node::{SimNode, Sizes};
use super::operator;
use super::random::Random;
use super::runtime::SimRuntime;
use super::seen::Seen;
use super::sim_env;
use crate::invariants::replay::{self, Applied};
use crate::invariants::{self, Watch};

/// A node that has not started after this time may be waiting for room on its disk.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How often the invariants of all replicas are checked.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(3);
/// The time in which an answer that has left certainly arrives.
const ANSWER_ARRIVES: Duration = Duration::from_millis(1);
/// How long a lost disk waits until every range can do without it; after that it is not lost.
const SPARE_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The hash of everything that happened.
    pub trace: u64,
    /// Writes with a known outcome.
    pub done: u64,
    /// Writes that failed.
    pub failed: u64,
    /// Starts of nodes.
    pub restarts: u64,
    /// Orders to the manager that it followed.
    pub orders: u64,
    /// Disks that were lost.
    pub disks_lost: u64,
    /// Reads without a lease, confirmed by a majority.
    pub confirmed: u64,
    /// Replicas that have installed a snapshot by the end.
    pub snapshots: u64,
    /// The polls of each machine's tasks during an [`install`](super::install) or a
    /// [`split`](super::split) or a [`merge`](super::merge) that was not interrupted.
    pub polls: BTreeMap<u16, u64>,
    /// The violated invariants.
    pub violations: Vec<String>,
}

fn sizes(seed: u64, random: &Random) -> Sizes {
    // A stream of its own: the rest of a run does not depend on the row cache.
    let row_cache = Random::new(seed, 5);
    Sizes {
        shards: random.between(1, 3) as u16,
        nodes: [1, 3, 3, 5][random.below(4) as usize],
        grows: random.once_in(2),
        memtable_bytes: 1 << random.between(12, 17),
        segment_bytes: 1 << random.between(16, 21),
        entry_cache_bytes: 1 << random.between(8, 18),
        // None, or room for some rows, or for most.
        row_cache_bytes: [0, 1 << 11, 1 << 12, 1 << 14][row_cache.below(4) as usize],
        entries_kept: 1 << random.between(0, 8),
        gc_retention_ms: random.between(200, [2_000, 30_000][random.below(2) as usize]),
        small_append_bytes: 1 << random.between(7, 16),
        has_very_slow_reads: true,
    }
}

/// The part of a run that the seed fixes.
struct Drawn {
    sizes: Sizes,
    clients: u32,
    faults: Faults,
    random: Random,
}

fn draw(seed: u64) -> Drawn {
    let random = Random::new(seed, 3);
    let sizes = sizes(seed, &random);
    let clients = random.between(1, 5) as u32;
    let mut faults = Faults::of(&random, sizes.nodes, sizes.shards);
    // A stream of its own: the other faults do not depend on who leaves.
    faults.add_leaving(&Random::new(seed, 6), sizes.nodes);
    faults.add_splits(&Random::new(seed, 7), sizes.nodes);
    faults.add_merges(&Random::new(seed, 8), sizes.nodes);
    let ranges = Random::new(seed, 9);
    faults.add_automatic(&ranges, sizes.nodes);
    faults.add_moves(&ranges, sizes.nodes, sizes.shards);
    faults.add_decommission(&ranges, sizes.nodes);
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

/// Runs a seed with its own faults.
///
/// # Errors
/// No task could run any more, or the run took too many steps.
pub fn run(seed: u64) -> Result<Report, String> {
    run_with(seed, &faults_of(seed))
}

/// Runs a seed with other faults.
///
/// # Errors
/// No task could run any more, or the run took too many steps.
pub fn run_with(seed: u64, faults: &Faults) -> Result<Report, String> {
    let drawn = draw(seed);
    tell(seed, drawn, faults)
}

/// Runs a seed with these sizes, clients, and faults.
///
/// # Errors
/// No task could run any more, or the run took too many steps.
pub(super) fn run_drawn(
    seed: u64,
    sizes: Sizes,
    clients: u32,
    faults: &Faults,
) -> Result<Report, String> {
    let drawn = Drawn {
        sizes,
        clients,
        ..draw(seed)
    };
    tell(seed, drawn, faults)
}

fn tell(seed: u64, drawn: Drawn, faults: &Faults) -> Result<Report, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    sim_env::make_all_leases_valid();
    let seen = Rc::new(Seen::default());
    let story = Rc::new(Story {
        cluster: Cluster::new(drawn.sizes, seed),
        seen: seen.clone(),
        random: drawn.random,
        faults: faults.clone(),
        clients: drawn.clients,
        seed,
        restarts: Cell::new(0),
        orders: Cell::new(0),
        disks_lost: Cell::new(0),
        polls: RefCell::default(),
        busy: RefCell::default(),
    });
    let ended = executor.block_on(story.clone().tell());
    let report = Report {
        trace: executor.trace(),
        done: seen.done.get(),
        failed: seen.failed.get(),
        restarts: story.restarts.get(),
        orders: story.orders.get(),
        disks_lost: story.disks_lost.get(),
        confirmed: seen.confirmed.get(),
        snapshots: seen.snapshots.get(),
        polls: story.polls.take(),
        violations: seen.violations.borrow().clone(),
    };
    executor.end();
    ended.map(|()| report)
}

/// A run in progress.
pub(super) struct Story {
    pub(super) cluster: Rc<Cluster>,
    pub(super) seen: Rc<Seen>,
    pub(super) random: Random,
    pub(super) faults: Faults,
    clients: u32,
    seed: u64,
    restarts: Cell<u64>,
    orders: Cell<u64>,
    disks_lost: Cell<u64>,
    pub(super) polls: RefCell<BTreeMap<u16, u64>>,
    /// Machines whose node is down, starting, or paused: no further fault hits them meanwhile.
    pub(super) busy: RefCell<BTreeSet<u16>>,
}

impl Story {
    async fn tell(self: Rc<Story>) {
        let stop = Rc::new(Cell::new(false));
        for step in &self.faults.steps {
            if let Fault::Drift { node, millionths } = step.fault {
                executor::current().set_drift(node, millionths);
            }
        }
        for node in self.cluster.nodes() {
            self.start(&node, None).await;
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
            invariants::compare(&self.seen, &self.cluster, false);
            for node in self.cluster.nodes() {
                if node.fatal().is_some() && !self.is_busy(&node) {
                    self.while_busy(&node, |story, node| async move {
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

    pub(super) fn client(&self, number: u32, stop: &Rc<Cell<bool>>) -> Rc<SimClient> {
        let (cluster, seen) = (self.cluster.clone(), self.seen.clone());
        SimClient::new(number, cluster, seen, self.seed, stop.clone())
    }

    /// Checks the invariants of all replicas until `stop` is set.
    fn watch(self: Rc<Story>, stop: Rc<Cell<bool>>) {
        executor::current().spawn_on(OUTSIDE, async move {
            let mut watch = Watch::default();
            while !stop.get() {
                SimRuntime::sleep(POLL_INTERVAL).await;
                watch.check(&self.seen, &self.cluster.looks());
                for shard in self.cluster.nodes().iter().filter_map(|node| node.shards()) {
                    if shard.iter().any(|shard| shard.digests().different > 0) {
                        self.seen
                            .violation("replicas were found to differ".to_owned());
                    }
                }
            }
        });
    }

    fn is_busy(&self, node: &SimNode) -> bool {
        self.busy.borrow().contains(&node.machine)
    }

    /// Runs `work` on a node beside the list of faults; until it ends, the node counts as busy.
    pub(super) fn while_busy<F: Future<Output = ()> + 'static>(
        self: &Rc<Story>,
        node: &Rc<SimNode>,
        work: impl FnOnce(Rc<Story>, Rc<SimNode>) -> F,
    ) {
        self.busy.borrow_mut().insert(node.machine);
        let (story, machine) = (self.clone(), node.machine);
        let work = work(self.clone(), node.clone());
        executor::current().spawn_on(OUTSIDE, async move {
            work.await;
            story.busy.borrow_mut().remove(&machine);
        });
    }

    /// Starts a node, or the one that replaces it if its disk is lost. After a clean stop, `before` is what
    /// it had applied before that.
    pub(super) async fn start(&self, node: &Rc<SimNode>, before: Option<Applied>) {
        self.restarts.set(self.restarts.get() + 1);
        let mut node = node.clone();
        if node.is_lost() {
            let token = u128::from(self.seed);
            match operator::enroll(&self.cluster, &node, token).await {
                Some(successor) => node = successor,
                None => return,
            }
        }
        let started = SimRuntime::timeout(START_TIMEOUT, node.start());
        if started.await.is_err() && node.fatal().is_none() {
            // A long log cannot be applied to a full disk. With room again the start must succeed.
            node.make_room();
            node.crash();
            let started = SimRuntime::timeout(START_TIMEOUT, node.start());
            if started.await.is_err() && node.fatal().is_none() {
                self.seen
                    .violation("the node hangs at its start".to_owned());
            }
        }
        let Some(shards) = node.shards() else {
            return;
        };
        // Only a node that is alone: others may have sent it entries already.
        if let Some(before) = before.filter(|_| self.cluster.machines() == 1) {
            for shard in shards.iter() {
                let ranges = executor::current().on_host(node.host(), || shard.ranges());
                replay::check_after_clean_stop(&self.seen, &before, &ranges);
            }
        }
    }

    /// Lets a fault happen.
    async fn happen(self: &Rc<Story>, fault: &Fault) {
        let network = &self.cluster.network;
        match fault {
            Fault::Mend => network.mend(),
            Fault::Cut { links } => links.iter().for_each(|(from, to)| network.cut(*from, *to)),
            Fault::Loss { one_in, duplicates } => {
                network.loss_one_in.set(*one_in);
                network.duplicates.set(*duplicates);
            }
            Fault::Damage { one_in } => network.damage_one_in.set(*one_in),
            Fault::SlowLinks {
                links,
                delay_max_us,
            } => {
                let slow = |(from, to): &(u16, u16)| network.slow_down(*from, *to, *delay_max_us);
                links.iter().for_each(slow);
            }
            Fault::Drift { .. } => {}
            Fault::LargeRows { times } => {
                for node in self.cluster.nodes() {
                    node.table_disks()
                        .for_each(|disk| disk.byte_counts.set(*times));
                }
            }
            Fault::Install { crash } => self.install(*crash).await,
            Fault::Split { crash } => self.split(*crash).await,
            Fault::Merge { crash } => self.merge(*crash).await,
            Fault::Directed(scenario) => self.direct(*scenario).await,
            Fault::Order { by, order } => {
                let (story, by, order) = (self.clone(), *by, *order);
                executor::current().spawn_on(OUTSIDE, async move {
                    let is_followed = operator::order(&story.cluster, order, by).await;
                    let before = story.orders.get();
                    story.orders.set(before + u64::from(is_followed));
                });
            }
            Fault::NoLease { node, off } => sim_env::set_leases_valid(*node, !off),
            Fault::AtAnswer { node, answer, then } => self.at_answer(*node, *answer, *then),
            Fault::Crash { node, .. }
            | Fault::Stop { node }
            | Fault::Pause { node, .. }
            | Fault::StandStill { node, .. }
            | Fault::ClockJump { node, .. }
            | Fault::WriteError { node, .. }
            | Fault::ReadError { node, .. }
            | Fault::TableError { node }
            | Fault::FullDisk { node, .. }
            | Fault::FullLog { node, .. }
            | Fault::SlowDisk { node, .. }
            | Fault::TransferLeadership { node, .. }
            | Fault::LoseDisk { node, .. }
            | Fault::LosePart { node, .. } => {
                let node = self.cluster.on(*node);
                if let Some(node) = node.filter(|node| !self.is_busy(node)) {
                    self.happen_to(&node, fault);
                }
            }
        }
    }

    /// Waits for a machine's next answer of a kind, then lets the consequence happen.
    fn at_answer(self: &Rc<Story>, machine: u16, answer: Telling, then: Then) {
        let (told, answered) = oneshot::channel();
        self.cluster.network.stop_at(machine, answer, told);
        let story = self.clone();
        executor::current().spawn_on(OUTSIDE, async move {
            let Ok(asker) = answered.await else { return };
            let node = story.cluster.on(machine);
            let (down_ms, parts) = match then {
                Then::Crash { down_ms } => (down_ms, false),
                Then::CrashAndPart { down_ms } => (down_ms, true),
                Then::Mend => {
                    story.cluster.network.mend();
                    return executor::current().resume(machine);
                }
            };
            let Some(node) = node.filter(|node| !story.is_busy(node)) else {
                return executor::current().resume(machine);
            };
            story.while_busy(&node, move |story, node| async move {
                node.crash();
                SimRuntime::sleep(ANSWER_ARRIVES).await;
                if parts {
                    story.part(asker);
                }
                SimRuntime::sleep(Duration::from_millis(down_ms)).await;
                story.start(&node, None).await;
            });
        });
    }

    /// Cuts a machine off from all others; all other links work.
    fn part(&self, machine: u16) {
        let network = &self.cluster.network;
        network.mend();
        network.forget_stops();
        self.cut_off(machine);
    }

    /// Cuts a machine off from all others; links that were cut stay so.
    pub(super) fn cut_off(&self, machine: u16) {
        let network = &self.cluster.network;
        for other in (1..=self.cluster.machines()).filter(|other| *other != machine) {
            network.cut(machine, other);
            network.cut(other, machine);
        }
    }

    /// Lets a fault of one node happen.
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
                    let start = story.start(&node, None);
                    let _ = SimRuntime::timeout(Duration::from_micros(micros), start).await;
                    node.crash();
                }
                story.start(&node, None).await;
            }),
            Fault::LoseDisk { down_ms, .. } => {
                self.while_busy(node, move |story, node| async move {
                    if story.can_spare_a_disk().await {
                        node.lose_disk();
                        story.disks_lost.set(story.disks_lost.get() + 1);
                        SimRuntime::sleep(Duration::from_millis(down_ms)).await;
                        story.start(&node, None).await;
                    }
                })
            }
            Fault::LosePart {
                shard,
                part,
                down_ms,
                ..
            } => self.while_busy(node, move |story, node| async move {
                SimRuntime::sleep(Duration::from_millis(down_ms)).await;
                if story.can_spare_a_disk().await {
                    story.lose_part(&node, shard, part).await;
                }
            }),
            Fault::Stop { .. } => self.while_busy(node, |story, node| async move {
                story.stop_and_start(&node).await;
            }),
            Fault::Pause { ms, .. } => self.while_busy(node, move |_, node| async move {
                node.pause(Duration::from_millis(ms)).await;
            }),
            Fault::StandStill { ms, .. } => self.while_busy(node, move |_, node| async move {
                node.stand_still(Duration::from_millis(ms)).await;
            }),
            Fault::ClockJump { by_ms, .. } => node.clock.jump(by_ms),
            Fault::WriteError { after, .. } => {
                let platter = node.platters().nth(0).expect("a node has a disk");
                platter.writes_until_failure.set(Some(after));
            }
            Fault::ReadError { after, .. } => {
                let platter = node.platters().nth(0).expect("a node has a disk");
                platter.reads_until_failure.set(Some(after));
            }
            Fault::TableError { .. } => {
                let disk = node.table_disks().nth(0).expect("a node has a disk");
                disk.failing.set(true);
            }
            Fault::FullDisk { full, .. } => {
                node.table_disks().for_each(|disk| disk.full.set(full));
            }
            Fault::FullLog { full, .. } => {
                node.platters().for_each(|platter| platter.full.set(full));
            }
            Fault::SlowDisk { latency_us, .. } => node
                .platters()
                .for_each(|platter| platter.latency_max_us.set(latency_us)),
            Fault::TransferLeadership { shard, .. } => {
                let shards = node.shards();
                let shard = shards.and_then(|shards| shards.get(usize::from(shard)).cloned());
                if let Some(shard) = shard {
                    let transferred = OnHost::new(node.host(), async move {
                        // A group that fails stops its process, which is checked elsewhere.
                        let _ = shard.transfer_leaders().await;
                    });
                    executor::current().spawn_on(OUTSIDE, transferred);
                }
            }
            _ => {}
        }
    }

    /// Starts a node without a part of its folder, which it must refuse. Then another node runs on
    /// its machine.
    async fn lose_part(&self, node: &Rc<SimNode>, shard: u16, part: Part) {
        node.crash();
        node.mend_disks();
        let was_there = node.lose_part(shard, part);
        if was_there {
            let _ = SimRuntime::timeout(START_TIMEOUT, node.start()).await;
            let why = node.fatal().unwrap_or_default();
            let named = match part {
                Part::Log => "log",
                Part::Tables => "tables",
            };
            if !why.contains(named) {
                self.seen.violation(format!(
                    "a node has started without a shard's {part:?}: {why}"
                ));
            }
        }
        node.lose_disk();
        self.disks_lost.set(self.disks_lost.get() + 1);
        self.start(node, None).await;
    }

    /// Waits until every range can lose a disk without losing data; `false` if that takes too long.
    async fn can_spare_a_disk(&self) -> bool {
        let Sizes {
            nodes,
            shards,
            grows,
            ..
        } = self.cluster.sizes;
        let begun_with = if grows { 1 } else { usize::from(nodes) };
        let ranges = || (0..=u64::from(shards)).map(|range| RangeId(SYSTEM_RANGE.0 + range));
        let until = executor::current().now() + SPARE_TIMEOUT;
        while executor::current().now() < until {
            if invariants::can_spare_a_disk(ranges(), begun_with, &self.cluster.looks()) {
                return true;
            }
            SimRuntime::sleep(POLL_INTERVAL).await;
        }
        false
    }

    async fn stop_and_start(&self, node: &Rc<SimNode>) {
        let mut before = Applied::new();
        for shard in node.shards().iter().flat_map(|shards| shards.iter()) {
            let ranges = executor::current().on_host(node.host(), || shard.ranges());
            before.extend(replay::applied(&ranges));
        }
        let stopped = SimRuntime::timeout(START_TIMEOUT, node.stop()).await;
        if node.fatal().is_some() {
            return self.after_fatal(node).await;
        }
        if stopped.is_err() {
            self.seen.violation("the node hangs at its stop".to_owned());
        }
        // If a disk is full, the last flush is left out, so that a start replays some entries.
        let full = node.table_disks().any(|disk| disk.full.get())
            || node.platters().any(|platter| platter.full.get());
        self.start(node, (!full).then_some(before)).await;
    }

    /// Restarts a node that stopped by itself. It must have had a reason for that: a failed disk.
    pub(super) async fn after_fatal(&self, node: &Rc<SimNode>) {
        let why = node.fatal().unwrap_or_default();
        if !node.has_failed_disk() {
            self.seen
                .violation(format!("the node stopped without a reason: {why}"));
        }
        node.crash();
        node.mend_disks();
        self.start(node, None).await;
    }
}
