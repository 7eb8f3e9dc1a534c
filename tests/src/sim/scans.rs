//! A scan in pages whose range gets other bounds between them, or gets them while it is split. Its later pages
//! must show what was acknowledged before it began, wherever they are read.
//!
//! The timestamp of a scan is that of one range. Another one may have acknowledged later writes already.
//!
//! In another run a scan goes on, and a write is tried again under its request id, after every kind of change that
//! a range can go through ([`retry_and_scan`]).

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::{Batch, Outcome, RequestId, ScanRequest};
use rangedb_engine::types::{ClientId, RangeId, SYSTEM_RANGE};

use super::client::{Effort, SimClient};
use super::cluster::{Cluster, Look};
use super::executor::{self, Executor, OUTSIDE};
use super::faults::Order;
use super::node::Sizes;
use super::operator;
use super::runtime::SimRuntime;
use crate::invariants;

const EFFORT: Effort = Effort { deadline: None };
/// Where the range is split before the scan begins.
const BORDER: [u8; 3] = *b"cr5";
/// The keys that are scanned.
const KEYS: [&str; 4] = ["cr1", "cr3", "cr6", "cr8"];
/// How long anything that is waited for may take.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What happens to the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// Between two pages it takes over its right neighbour.
    Merge,
    /// The same, and all nodes restart.
    MergeAndRestart,
    /// The same, and it is split elsewhere.
    MergeAndSplit,
    /// The same, and other replicas take its place, which have it from snapshots.
    MergeAndMoves,
    /// While the scan goes on in reverse, its keys further right are being split off.
    Splitting,
}

impl Between {
    /// All of them.
    pub const ALL: [Between; 5] = [
        Between::Merge,
        Between::MergeAndRestart,
        Between::MergeAndSplit,
        Between::MergeAndMoves,
        Between::Splitting,
    ];
}

/// Runs a scan.
///
/// # Errors
/// A row is missing that was acknowledged before the scan began, something took too long, or no task could
/// run any more.
pub fn scan(seed: u64, between: Between) -> Result<(), String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let sizes = Sizes {
        shards: if between == Between::MergeAndMoves {
            2
        } else {
            1
        },
        gc_retention_ms: 60_000,
        ..Sizes::THREE_SMALL
    };
    let cluster = Cluster::new(sizes, seed);
    let ended = executor.block_on(async move {
        let scans = Scans {
            client: SimClient::new(1, cluster.clone(), Rc::default(), seed, Rc::default()),
            cluster,
        };
        scans.tell(between).await
    });
    executor.end();
    ended?
}

/// The key of the number to which a write adds that is tried again and again.
const NUMBER: &str = "cr7";
/// The write's client.
const ADDER: ClientId = ClientId(77);

/// Tries a write again, under the same request id, and reads the next page of a scan after each of: a split, a
/// move to another shard, a merge, a move to another node, a transfer of the leadership.
///
/// # Errors
/// The write was applied twice or has another outcome, the scan leaves a row out, gives one twice or gives one that
/// was written after it began, something took too long, or no task could run any more.
pub fn retry_and_scan(seed: u64) -> Result<(), String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let sizes = Sizes {
        shards: 2,
        nodes: 4,
        gc_retention_ms: 60_000,
        ..Sizes::THREE_SMALL
    };
    let cluster = Cluster::new(sizes, seed);
    let ended = executor.block_on(async move {
        let scans = Scans {
            client: SimClient::new(1, cluster.clone(), Rc::default(), seed, Rc::default()),
            cluster,
        };
        scans.tell_retries().await
    });
    executor.end();
    ended?
}

/// Whether a replica holds a key of users.
fn holds(look: &Look, key: &[u8]) -> bool {
    !look.status.system && look.status.route.keys.contains(key)
}

struct Scans {
    cluster: Rc<Cluster>,
    client: Rc<SimClient>,
}

impl Scans {
    async fn tell(&self, between: Between) -> Result<(), String> {
        for node in self.cluster.nodes() {
            node.start().await;
        }
        for key in KEYS {
            self.write(key, "old").await?;
        }
        self.order(Order::Split { at: BORDER }).await?;
        let reverse = between == Between::Splitting;
        // In the range in which the scan does not begin.
        let later = if reverse { KEYS[1] } else { KEYS[2] };
        self.write(later, "new").await?;
        if reverse {
            self.begin_to_split().await?;
        }
        let first = ScanRequest {
            start: Some("cr0".into()),
            end: Some(if reverse { "cr7" } else { "cr9" }.into()),
            rows_max: 1,
            reverse,
            ..ScanRequest::default()
        };
        let mut rows = Vec::new();
        let mut next = self.page(first, &mut rows).await?;
        self.change(between).await?;
        while let Some(scan) = next {
            next = self.page(scan, &mut rows).await?;
        }
        match rows.iter().find(|(key, _)| key == later) {
            Some((_, value)) if value == "new" => Ok(()),
            _ => Err(format!(
                "{between:?}: {later} was written as new, and the scan gave {rows:?}"
            )),
        }
    }

    async fn tell_retries(&self) -> Result<(), String> {
        for node in self.cluster.nodes() {
            node.start().await;
        }
        for key in KEYS {
            self.write(key, "old").await?;
        }
        let now = self.client.cluster_time().await;
        let id = RequestId {
            client: ADDER,
            sequence: 5,
            lowest_unanswered: 5,
            first_tried: now.ok_or("no node tells the time")?,
        };
        let first = self.add(id).await?;
        let scan = ScanRequest {
            start: Some("cr0".into()),
            end: Some("cr9".into()),
            rows_max: 1,
            ..ScanRequest::default()
        };
        let mut rows = Vec::new();
        let mut next = self.page(scan, &mut rows).await?;
        for change in 0..5 {
            self.change_to(change).await?;
            let again = self.add(id).await?;
            if again != first {
                return Err(format!(
                    "after change {change} a write that gave {first:?} gives {again:?}"
                ));
            }
            // No page shows it: when the scan began, all keys were in one range.
            for key in KEYS {
                self.write(key, "new").await?;
            }
            if let Some(scan) = next.take() {
                next = self.page(scan, &mut rows).await?;
            }
        }
        let number = self.client.read_with_retries(NUMBER).await.flatten();
        if number.as_deref() != Some("1") {
            return Err(format!("1 was added once, and the number is {number:?}"));
        }
        rows.retain(|(key, _)| key != NUMBER);
        let is_old = |(_, value): &(String, String)| value == "old";
        let are_all = rows.iter().map(|(key, _)| key.as_str()).eq(KEYS);
        match next.is_none() && are_all && rows.iter().all(is_old) {
            true => Ok(()),
            false => Err(format!("the scan gave {rows:?}, and goes on at {next:?}")),
        }
    }

    /// Adds 1 to the number under this request id until there is an outcome.
    async fn add(&self, id: RequestId) -> Result<Outcome, String> {
        let until = executor::current().now() + WAIT_TIMEOUT;
        loop {
            let add = Batch::add(NUMBER.into(), 1);
            if let Some(outcome) = self.client.write_as(add, id).await {
                return Ok(outcome);
            }
            if executor::current().now() > until {
                return Err("a write has no outcome".to_owned());
            }
            SimRuntime::sleep(POLL_INTERVAL).await;
        }
    }

    /// Carries out one of the changes, in order.
    async fn change_to(&self, change: u8) -> Result<(), String> {
        let (key, left) = (NUMBER.as_bytes(), *b"cr1");
        let looks = self.cluster.looks();
        let mut replicas = looks.iter().filter(|look| holds(look, key));
        let here = replicas.clone().next().ok_or("nobody holds the key")?;
        let from = here.host.machine();
        match change {
            0 => self.order(Order::Split { at: BORDER }).await,
            1 => {
                let shard = 1 - here.at.shard.0;
                let order = Order::MoveAt {
                    at: *b"cr7",
                    from,
                    to: from,
                    shard,
                };
                let is_there = |looks: &[Look]| {
                    let mut here = looks.iter().filter(|look| look.host.machine() == from);
                    here.all(|look| !holds(look, key) || look.at.shard.0 == shard)
                };
                self.order_until(order, is_there).await
            }
            2 => self.order(Order::Merge { at: left }).await,
            3 => {
                let has_none = |machine: &u16| {
                    looks
                        .iter()
                        .all(|look| !holds(look, key) || look.host.machine() != *machine)
                };
                let mut machines = 1..=self.cluster.machines();
                let to = machines.find(has_none).ok_or("all have a replica")?;
                let order = Order::MoveAt {
                    at: left,
                    from,
                    to,
                    shard: 0,
                };
                let is_there = |looks: &[Look]| {
                    let has = |machine| {
                        let mut here = looks.iter().filter(|look| look.host.machine() == machine);
                        here.any(|look| holds(look, key))
                    };
                    has(to) && !has(from)
                };
                self.order_until(order, is_there).await
            }
            _ => {
                let follows = replicas.find(|look| !look.status.leads);
                let to = follows.ok_or("nobody follows")?.host.machine();
                let order = Order::LeadAt { at: left, to };
                let leads = |looks: &[Look]| {
                    let mut here = looks.iter().filter(|look| look.host.machine() == to);
                    here.any(|look| holds(look, key) && look.status.leads)
                };
                self.order_until(order, leads).await
            }
        }
    }

    /// Gives an order again and again until the replicas are as they should be.
    async fn order_until(
        &self,
        order: Order,
        is_so: impl Fn(&[Look]) -> bool,
    ) -> Result<(), String> {
        let until = executor::current().now() + WAIT_TIMEOUT;
        while !is_so(&self.cluster.looks()) {
            if executor::current().now() > until {
                return Err(format!("{order:?} was not followed"));
            }
            operator::order(&self.cluster, order, 1).await;
            SimRuntime::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn change(&self, between: Between) -> Result<(), String> {
        if between == Between::Splitting {
            return Ok(());
        }
        self.order(Order::Merge { at: *b"cr1" }).await?;
        match between {
            Between::MergeAndRestart => {
                for node in self.cluster.nodes() {
                    if !node.stop().await {
                        return Err(format!("a node has stopped: {:?}", node.fatal()));
                    }
                }
                for node in self.cluster.nodes() {
                    node.start().await;
                }
                Ok(())
            }
            Between::MergeAndSplit => self.order(Order::Split { at: *b"cr2" }).await,
            Between::MergeAndMoves => {
                for machine in 1..=self.cluster.machines() {
                    self.move_to_second_shard(machine).await?;
                }
                Ok(())
            }
            Between::Merge | Between::Splitting => Ok(()),
        }
    }

    /// Begins to split the right range, and lets the leader's log hang, so that the split goes on for a while.
    async fn begin_to_split(&self) -> Result<(), String> {
        let leads = |look: &&Look| look.status.leads && look.status.route.keys.start == BORDER;
        let looks = self.cluster.looks();
        let leader = looks.iter().find(leads).map(|look| look.host.machine());
        let node = leader.and_then(|machine| self.cluster.on(machine));
        let node = node.ok_or("the right range has no leader")?;
        node.platters().for_each(|platter| platter.hangs.set(true));
        let cluster = self.cluster.clone();
        executor::current().spawn_on(OUTSIDE, async move {
            operator::order(&cluster, Order::Split { at: *b"cr8" }, 1).await;
        });
        let closed = |looks: &[Look]| {
            let leads = |look: &&Look| look.status.leads && look.status.route.keys.start == BORDER;
            let leased = looks
                .iter()
                .find(leads)
                .and_then(|look| look.status.leased.as_ref());
            leased.is_some_and(|leased| leased.end.as_deref() == Some(b"cr8"))
        };
        self.until("the keys are closed", closed).await?;
        let go_on = node.clone();
        executor::current().spawn_on(OUTSIDE, async move {
            SimRuntime::sleep(Duration::from_millis(300)).await;
            go_on
                .platters()
                .for_each(|platter| platter.hangs.set(false));
        });
        Ok(())
    }

    async fn move_to_second_shard(&self, machine: u16) -> Result<(), String> {
        let range = RangeId(SYSTEM_RANGE.0 + 1);
        let order = Order::Move {
            range: range.0,
            from: machine,
            to: machine,
            shard: 1,
        };
        let has_moved = |looks: &[Look]| {
            let is_it =
                |look: &&Look| look.host.machine() == machine && look.status.route.range == range;
            let mut shards = looks.iter().filter(is_it).map(|look| look.at.shard.0);
            shards.next() == Some(1) && shards.next().is_none()
        };
        // Right after another change it may be refused.
        self.order_until(order, has_moved).await
    }

    async fn until(&self, what: &str, is_so: impl Fn(&[Look]) -> bool) -> Result<(), String> {
        let until = executor::current().now() + WAIT_TIMEOUT;
        while !is_so(&self.cluster.looks()) {
            if executor::current().now() > until {
                return Err(format!("it is waited in vain until {what}"));
            }
            SimRuntime::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Gives an order until it is followed: just after a change another one may be too early.
    async fn order(&self, order: Order) -> Result<(), String> {
        let until = executor::current().now() + WAIT_TIMEOUT;
        while !operator::order(&self.cluster, order, 1).await {
            if executor::current().now() > until {
                return Err(format!("{order:?} was not followed"));
            }
            SimRuntime::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn write(&self, key: &'static str, value: &'static str) -> Result<(), String> {
        let write = Batch::put(key.into(), value.into());
        let written = self.client.write(key.as_bytes(), write, EFFORT).await;
        written
            .map(drop)
            .map_err(|_| format!("{key} was not written"))
    }

    /// Reads a page; gives the scan of the next one.
    async fn page(
        &self,
        scan: ScanRequest,
        rows: &mut Vec<(String, String)>,
    ) -> Result<Option<ScanRequest>, String> {
        let until = executor::current().now() + WAIT_TIMEOUT;
        let reply = loop {
            if let Some(reply) = self.client.scan(scan.clone()).await {
                break reply;
            }
            if executor::current().now() > until {
                return Err(format!("{scan:?} was not answered"));
            }
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let read = reply.rows.iter();
        rows.extend(read.map(|row| (text(row.key), text(row.value))));
        Ok(reply.next)
    }
}
