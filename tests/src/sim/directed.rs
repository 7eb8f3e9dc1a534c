//! Scenarios for moments that are too rare for random faults: each brings about the one thing for which a step
//! of a split, of a merge or of a read is there. The seed decides the rest.
//!
//! What brings it about is an adversary that knows the state of all replicas: a disk of one node that hangs, a
//! replica of one range that gets no message, power that fails right after a change of bounds.

mod leaders;
mod power;
mod rewrites;
mod tables;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rangedb_engine::cluster::ClusterRequest;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Batch;
use rangedb_engine::types::{Blob, RangeId};

use super::client::{Effort, SimClient};
use super::cluster::Look;
use super::executor::{self, OUTSIDE};
use super::faults::{Fault, Faults, Order, Step};
use super::node::Sizes;
use super::operator;
use super::run::{POLL_INTERVAL, Report, Story, run_drawn};
use super::runtime::SimRuntime;
use super::split::{BEGINS_AFTER, KEY, SIZES};

/// A key of the left range, after a split at [`KEY`].
const LEFT: [u8; 3] = *b"cr1";
/// The first key of a range with rows of its own, which make memtables full.
const BESIDE: [u8; 3] = *b"d00";
/// How long anything that is waited for may take.
const WAIT_TIMEOUT: Duration = Duration::from_secs(8);
/// How often the state is looked at when the moment counts.
const MOMENT: Duration = Duration::from_micros(100);
/// How far a clock is ahead: more than any change of bounds takes.
const AHEAD_MS: i64 = 5_000;
const CLIENTS: u32 = 3;
const EFFORT: Effort = Effort { deadline: None };

/// One of the scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The leader of a range that is split applies that late, since its log's disk hangs. Meanwhile the
    /// others have given birth to the child, and elect a leader of it.
    LeaderAppliesLate,
    /// The power of a single node fails right after a birth. Meanwhile another range's rows fill memtables, and
    /// the log's disk is slow.
    PowerAtBirth,
    /// The power of a single node fails, and its log's disk takes several times as long for a write as a lone
    /// voter waits between two campaigns.
    PowerOverSlowDisk,
    /// The power of a single node fails right after a split and a merge, while no table has anything of either.
    PowerAfterMerge,
    /// The power of a single node fails right after a split and a merge, before the log says that the merge is
    /// committed. At the start reads of the log are slow, so that the right replica is still being started when
    /// the left one takes it over.
    PowerBeforeMergeIsMarked,
    /// One split after the other, while another range's rows fill memtables.
    SplitsWhileFlushing,
    /// The parent's replica moves to another shard right after a birth; then the power fails.
    ParentMoves,
    /// The child's replica moves to another shard, and a flush that waited since before the split collects what
    /// nobody owns. Then the power fails, so that the parent applies again what came before the split.
    ChildMoves,
    /// The left leader hears nobody from about the time on at which it proposes the merge. It gives up, and
    /// clients write to the right range, if anybody lets them. Then what it proposed is committed.
    DeafAtMerge,
    /// Two merges, one after the other. The first one fails; a replica of the right range has applied its
    /// freeze, and hears nothing of what comes after that.
    TwoAttempts,
    /// The clock of the right leader is ahead. After the merge a client that has seen nothing of that writes
    /// what it has written.
    ClockAhead,
    /// A leader is cut off and stands still until another one leads. Then it is read from, with blocks that
    /// are not in memory.
    DeposedReader,
    /// The leader of the system range, or of another one, is cut off while its group sleeps. Another one leads
    /// meanwhile, and the old one's replica is moved away, or all three are: nobody has anything to send to the old
    /// one any more. Perhaps its power fails while it is cut off.
    SleepingLeaderRemoved,
    /// Blocks of a leader's tables cannot be read, one leader after the other.
    UnreadableBlocks,
    /// A replica is removed while an entry of its log waits for room in the tables.
    RemovedWhileApplying,
    /// Compactions fail on the machine of a leader.
    FailingCompactions,
    /// Compactions fail on the only machine.
    FailingCompactionsAlone,
    /// The tables' disk of the left leader's machine takes no write, from before a merge or from its freeze on.
    HangingFlush,
    /// The tables' disks of all machines are full. Three ranges become one: the right one is taken over first.
    /// Then the power fails everywhere.
    MergesOnFullDisks,
    /// Twelve merges in a row on nodes of one shard. On one machine each range has rows under a data id of its
    /// own, so that its replica must write them anew. The power fails there again and again.
    TwelveMerges,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 20] = [
        Scenario::LeaderAppliesLate,
        Scenario::PowerAtBirth,
        Scenario::PowerOverSlowDisk,
        Scenario::PowerAfterMerge,
        Scenario::PowerBeforeMergeIsMarked,
        Scenario::SplitsWhileFlushing,
        Scenario::ParentMoves,
        Scenario::ChildMoves,
        Scenario::DeafAtMerge,
        Scenario::TwoAttempts,
        Scenario::ClockAhead,
        Scenario::DeposedReader,
        Scenario::SleepingLeaderRemoved,
        Scenario::UnreadableBlocks,
        Scenario::RemovedWhileApplying,
        Scenario::FailingCompactions,
        Scenario::FailingCompactionsAlone,
        Scenario::HangingFlush,
        Scenario::MergesOnFullDisks,
        Scenario::TwelveMerges,
    ];

    fn sizes(self) -> Sizes {
        match self {
            Scenario::PowerOverSlowDisk => Sizes { nodes: 1, ..SIZES },
            Scenario::PowerAfterMerge | Scenario::PowerBeforeMergeIsMarked => Sizes {
                nodes: 1,
                memtable_bytes: 1 << 20,
                segment_bytes: 1 << 21,
                ..SIZES
            },
            Scenario::PowerAtBirth => Sizes {
                nodes: 1,
                memtable_bytes: 1 << 10,
                ..SIZES
            },
            Scenario::SplitsWhileFlushing | Scenario::FailingCompactions => Sizes {
                memtable_bytes: 1 << 10,
                ..SIZES
            },
            Scenario::FailingCompactionsAlone => Sizes {
                nodes: 1,
                memtable_bytes: 1 << 10,
                ..SIZES
            },
            Scenario::SleepingLeaderRemoved => Sizes { nodes: 6, ..SIZES },
            Scenario::RemovedWhileApplying | Scenario::TwelveMerges => Sizes {
                nodes: 4,
                memtable_bytes: 1 << 12,
                ..SIZES
            },
            Scenario::HangingFlush => Sizes {
                memtable_bytes: 1 << 20,
                segment_bytes: 1 << 21,
                ..SIZES
            },
            Scenario::ParentMoves => Sizes {
                shards: 2,
                memtable_bytes: 1 << 20,
                segment_bytes: 1 << 21,
                ..SIZES
            },
            Scenario::ChildMoves => Sizes {
                shards: 2,
                memtable_bytes: 1 << 15,
                segment_bytes: 1 << 20,
                ..SIZES
            },
            Scenario::DeposedReader | Scenario::UnreadableBlocks => Sizes {
                memtable_bytes: 1 << 12,
                row_cache_bytes: 0,
                ..SIZES
            },
            _ => SIZES,
        }
    }

    /// Runs the scenario.
    ///
    /// # Errors
    /// No task could run any more, or the run took too many steps.
    pub fn run(self, seed: u64) -> Result<Report, String> {
        let steps = vec![Step {
            after: BEGINS_AFTER,
            fault: Fault::Directed(self),
        }];
        let clients = match self {
            // A client tells a node what time it has seen at another one.
            Scenario::ClockAhead => 0,
            // Ranges sleep that nobody uses.
            Scenario::SleepingLeaderRemoved => 0,
            _ => CLIENTS,
        };
        run_drawn(seed, self.sizes(), clients, &Faults { steps })
    }
}

fn machine(look: &Look) -> u16 {
    look.host.machine()
}

fn holds(look: &Look, key: &[u8]) -> bool {
    !look.status.system && look.status.route.keys.contains(key)
}

/// The replicas of the range that begins at [`KEY`].
fn rights(looks: &[Look]) -> impl Iterator<Item = &Look> {
    let is_right = |look: &&Look| look.status.route.keys.start == KEY && !look.status.system;
    looks.iter().filter(is_right)
}

fn all_are_born(looks: &[Look]) -> bool {
    let is_led = rights(looks).any(|look| look.status.leads);
    is_led && rights(looks).count() == usize::from(SIZES.nodes)
}

impl Story {
    pub(super) async fn direct(self: &Rc<Story>, scenario: Scenario) {
        match scenario {
            Scenario::LeaderAppliesLate => self.leader_applies_late().await,
            Scenario::PowerAtBirth => self.power_at_birth().await,
            Scenario::PowerOverSlowDisk => self.power_over_slow_disk().await,
            Scenario::PowerAfterMerge => self.power_after_merge().await,
            Scenario::PowerBeforeMergeIsMarked => self.power_before_merge_is_marked().await,
            Scenario::SplitsWhileFlushing => self.splits_while_flushing().await,
            Scenario::ParentMoves => self.parent_moves().await,
            Scenario::ChildMoves => self.child_moves().await,
            Scenario::DeafAtMerge => self.deaf_at_merge().await,
            Scenario::TwoAttempts => self.two_attempts().await,
            Scenario::ClockAhead => self.clock_ahead().await,
            Scenario::DeposedReader => self.deposed_reader().await,
            Scenario::SleepingLeaderRemoved => self.sleeping_leader_removed().await,
            Scenario::UnreadableBlocks => self.unreadable_blocks().await,
            Scenario::RemovedWhileApplying => self.removed_while_applying().await,
            Scenario::FailingCompactions => self.failing_compactions().await,
            Scenario::FailingCompactionsAlone => self.failing_compactions_alone().await,
            Scenario::HangingFlush => self.hanging_flush().await,
            Scenario::MergesOnFullDisks => self.merges_on_full_disks().await,
            Scenario::TwelveMerges => self.twelve_merges().await,
        }
    }

    /// Looks until something is so; `false` if it does not come to that.
    async fn until(&self, every: Duration, is_so: impl Fn(&[Look]) -> bool) -> bool {
        let until = executor::current().now() + WAIT_TIMEOUT;
        while !is_so(&self.cluster.looks()) {
            if executor::current().now() > until {
                return false;
            }
            SimRuntime::sleep(every).await;
        }
        true
    }

    /// The machine that leads the range of a key, and the range.
    async fn leader_of(&self, key: &[u8]) -> Option<(u16, RangeId)> {
        let leads = |look: &&Look| look.status.leads && holds(look, key);
        self.until(POLL_INTERVAL, |looks| looks.iter().any(|look| leads(&look)))
            .await;
        let looks = self.cluster.looks();
        let newest = looks.iter().filter(leads);
        let newest = newest.max_by_key(|look| look.status.route.epoch.version)?;
        Some((machine(newest), newest.status.route.range))
    }

    /// Gives an order, and does not wait for it.
    fn give(self: &Rc<Story>, order: Order) {
        let cluster = self.cluster.clone();
        executor::current().spawn_on(OUTSIDE, async move {
            operator::order(&cluster, order, 1).await;
        });
    }

    /// Lets the log's disks of a machine hang, or go on.
    fn hang(&self, machine: u16, hangs: bool) {
        let node = self.cluster.on(machine);
        let platters = node.iter().flat_map(|node| node.platters());
        platters.for_each(|platter| platter.hangs.set(hangs));
    }

    /// Another machine than these.
    fn other_than(&self, machines: &[u16]) -> Option<u16> {
        (1..=self.cluster.machines()).find(|other| !machines.contains(other))
    }

    /// Splits the range at [`KEY`]; gives the machine that leads the left part, and the right range.
    async fn split_apart(self: &Rc<Story>) -> Option<(u16, RangeId)> {
        operator::order(&self.cluster, Order::Split { at: KEY }, 1).await;
        self.until(POLL_INTERVAL, all_are_born)
            .await
            .then_some(())?;
        let (_, right) = self.leader_of(&KEY).await?;
        let (left_leader, _) = self.leader_of(&LEFT).await?;
        Some((left_leader, right))
    }

    /// Has the manager move no replica and no leader by itself.
    async fn stop_balancing(&self) {
        let Some(first) = self.cluster.on(1) else {
            return;
        };
        let balance = ClusterRequest::Set {
            name: "balance".to_owned(),
            value: "off".to_owned(),
        };
        operator::ask(&first, balance).await;
    }

    /// Has another machine lead a range.
    async fn lead(self: &Rc<Story>, range: RangeId, to: u16) -> bool {
        let order = Order::Lead {
            range: range.0,
            to: Some(to),
        };
        self.give(order);
        let leads = |look: &Look| {
            machine(look) == to && look.status.leads && look.status.route.range == range
        };
        self.until(POLL_INTERVAL, |looks| looks.iter().any(leads))
            .await
    }

    /// Writes rows from [`BESIDE`] on until `stop` is set, many at a time.
    fn fill(self: &Rc<Story>, stop: &Rc<Cell<bool>>) {
        let (story, stop) = (self.clone(), stop.clone());
        executor::current().spawn_on(OUTSIDE, async move {
            let client = story.client(100, &stop);
            while !stop.get() {
                story.fill_once(&client).await;
            }
        });
    }

    async fn fill_once(&self, client: &Rc<SimClient>) {
        let writes = (0..24).map(|row| {
            let key = Blob::from(format!("d{row:02}"));
            let write = Batch::put(key.clone(), "x".repeat(250).into());
            async move { client.write(&key, write, EFFORT).await.is_ok() }
        });
        join_all(writes).await;
    }

    async fn leader_applies_late(self: &Rc<Story>) {
        let Some((leader, _)) = self.leader_of(&KEY).await else {
            return;
        };
        self.hang(leader, true);
        self.give(Order::Split { at: KEY });
        let is_led = |looks: &[Look]| rights(looks).any(|look| look.status.leads);
        self.until(POLL_INTERVAL, is_led).await;
        SimRuntime::sleep(Duration::from_millis(300)).await;
        self.hang(leader, false);
        SimRuntime::sleep(Duration::from_millis(500)).await;
    }

    async fn splits_while_flushing(self: &Rc<Story>) {
        let stop = Rc::new(Cell::new(false));
        operator::order(&self.cluster, Order::Split { at: BESIDE }, 1).await;
        self.fill(&stop);
        for place in [
            *b"cq1", *b"cq3", *b"cq5", *b"cr0", *b"cr1", *b"cr2", *b"cr3",
        ] {
            let pause = Duration::from_micros(self.random.below(20_000));
            SimRuntime::sleep(pause).await;
            operator::order(&self.cluster, Order::Split { at: place }, 1).await;
        }
        stop.set(true);
        SimRuntime::sleep(Duration::from_millis(500)).await;
    }

    async fn parent_moves(self: &Rc<Story>) {
        let Some((leader, _)) = self.split_apart().await else {
            return;
        };
        let Some((_, parent)) = self.leader_of(&LEFT).await else {
            return;
        };
        let Some(mover) = self.other_than(&[leader]) else {
            return;
        };
        if self.changes_shard(parent, mover).await {
            let later = Duration::from_millis(self.random.below(20));
            SimRuntime::sleep(later).await;
            self.lose_power(mover).await;
        }
    }

    async fn child_moves(self: &Rc<Story>) {
        let Some((leader, _)) = self.leader_of(&KEY).await else {
            return;
        };
        // The first machine manages the cluster: its records need room, too.
        let Some(mover) = self.other_than(&[leader, 1]) else {
            return;
        };
        let Some(node) = self.cluster.on(mover) else {
            return;
        };
        self.stop_balancing().await;
        let hang = |hangs| {
            node.table_disks()
                .take(1)
                .for_each(|disk| disk.stuck.set(hangs))
        };
        hang(true);
        let client = self.client(100, &Rc::default());
        for _ in 0..5 {
            self.fill_once(&client).await;
        }
        let child = self.split_apart().await.map(|(_, child)| child);
        let has_moved = match child {
            Some(child) => self.changes_shard(child, mover).await,
            None => false,
        };
        let durable = |looks: &[Look]| {
            let mut looks = looks.iter().filter(|look| machine(look) == mover);
            let parent = looks.find(|look| holds(look, &LEFT));
            parent.map(|parent| parent.status.durable)
        };
        let before = durable(&self.cluster.looks());
        hang(false);
        if has_moved {
            self.until(MOMENT, |looks| durable(looks) != before).await;
            self.lose_power(mover).await;
        }
    }

    /// Has a range's replica on a machine move to the machine's other shard; whether it does.
    async fn changes_shard(self: &Rc<Story>, range: RangeId, on: u16) -> bool {
        self.give(Order::Move {
            range: range.0,
            from: on,
            to: on,
            shard: 1,
        });
        let has_moved = |looks: &[Look]| {
            let is_it = |look: &&Look| machine(look) == on && look.status.route.range == range;
            let mut shards = looks.iter().filter(is_it).map(|look| look.at.shard.0);
            shards.next() == Some(1) && shards.next().is_none()
        };
        self.until(POLL_INTERVAL, has_moved).await
    }

    async fn deaf_at_merge(self: &Rc<Story>) {
        let Some((leader, right)) = self.split_apart().await else {
            return;
        };
        let Some(other) = self.other_than(&[leader]) else {
            return;
        };
        if !self.lead(right, other).await {
            return;
        }
        self.give(Order::Merge { at: LEFT });
        let are_frozen = |looks: &[Look]| {
            let mut rights = rights(looks).peekable();
            rights.peek().is_some() && rights.all(|look| look.status.frozen.is_some())
        };
        if !self.until(MOMENT, are_frozen).await {
            return;
        }
        let later = Duration::from_micros(self.random.below(9_000));
        SimRuntime::sleep(later).await;
        let network = &self.cluster.network;
        for from in (1..=self.cluster.machines()).filter(|from| *from != leader) {
            network.cut(from, leader);
        }
        SimRuntime::sleep(Duration::from_millis(2_600)).await;
        network.mend();
        SimRuntime::sleep(Duration::from_millis(1_000)).await;
    }

    async fn two_attempts(self: &Rc<Story>) {
        // The manager moves no leader while it should try the merge again.
        self.stop_balancing().await;
        let Some((leader, right)) = self.split_apart().await else {
            return;
        };
        if !self.lead(right, leader).await {
            return;
        }
        // Not the first machine if it can be another one: it has the manager.
        let machines = 1..=self.cluster.machines();
        let (Some(laggard), network) = (
            machines.rev().find(|other| *other != leader),
            &self.cluster.network,
        ) else {
            return;
        };
        let version = |looks: &[Look]| {
            let lefts = looks.iter().filter(|look| holds(look, &LEFT));
            lefts.map(|look| look.status.route.epoch.version).max()
        };
        let before = version(&self.cluster.looks());
        self.give(Order::Merge { at: LEFT });
        let is_frozen = |look: &Look| machine(look) == laggard && look.status.frozen.is_some();
        if !self
            .until(MOMENT, |looks| rights(looks).any(is_frozen))
            .await
        {
            return;
        }
        // The leader does not hear that the replica is frozen, and cancels the merge.
        network.withhold(right, laggard, true);
        network.cut(laggard, leader);
        self.until(POLL_INTERVAL, |looks| version(looks) > before)
            .await;
        network.mend();
        // The manager has it tried again.
        SimRuntime::sleep(Duration::from_millis(4_000)).await;
        network.withhold(right, laggard, false);
        SimRuntime::sleep(Duration::from_millis(1_000)).await;
    }

    async fn clock_ahead(self: &Rc<Story>) {
        let Some((leader, right)) = self.split_apart().await else {
            return;
        };
        let ahead = self.other_than(&[leader]);
        let Some(ahead) = ahead.and_then(|machine| self.cluster.on(machine)) else {
            return;
        };
        if !self.lead(right, ahead.machine).await {
            return;
        }
        ahead.clock.jump(AHEAD_MS);
        let (key, stop) = ("cr5", Rc::default());
        let write = |number: u32, value: &'static str| {
            let client = self.client(number, &stop);
            let batch = Batch::put(key.into(), value.into());
            async move { client.write(key.as_bytes(), batch, EFFORT).await.is_ok() }
        };
        let first = write(101, "first").await;
        operator::order(&self.cluster, Order::Merge { at: LEFT }, leader).await;
        if !first || !write(102, "second").await {
            return;
        }
        let reader = self.client(103, &stop);
        let found = reader.read_with_retries(key).await.flatten();
        if found.as_deref() != Some("second") {
            let what = format!("{key} was written as second after it was first, and is {found:?}");
            self.seen.violation(what);
        }
    }
}
