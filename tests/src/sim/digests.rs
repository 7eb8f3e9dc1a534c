//! Flipped bits. Some are in a replica's rows, as after a fault of a disk or of memory: comparing
//! replicas must find them. Some are in messages: these must change no row.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::Error;
use rangedb_engine::request::Batch;
use rangedb_engine::types::{RangeId, ReplicaId, SYSTEM_RANGE};

use super::client::{Effort, SimClient};
use super::cluster::Cluster;
use super::executor::{self, Executor, OnHost};
use super::node::{SimNode, Sizes};
use super::runtime::SimRuntime;
use crate::invariants;

/// What happened to a range whose rows were changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The replicas that a comparison found to differ.
    pub different: u64,
    /// The machines whose first replica of the range was removed.
    pub removed: Vec<u16>,
    /// Whether the range refuses reads, since it is unknown which rows are right.
    pub halted: bool,
}

const KEY: &str = "spoilt";
const KEYS: u32 = 40;
const EFFORT: Effort = Effort { deadline: None };
/// The time for comparisons to find the rows. A comparison that a restart interrupts takes a minute
/// to end.
const TIMEOUT: Duration = Duration::from_secs(150);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The time after which rows are replicated, and old enough to be compared.
const SETTLED: Duration = Duration::from_secs(2);
const RANGE: RangeId = RangeId(SYSTEM_RANGE.0 + 1);

/// Changes a row on each of these machines, each in another way, and lets replicas compare. With
/// `leads`, the first of these machines leads the range at the comparison.
///
/// # Errors
/// No task could run any more, or the run took too many steps.
pub fn spoil(seed: u64, machines: &'static [u16], leads: bool) -> Result<Found, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let cluster = Cluster::new(Sizes::THREE_SMALL, seed);
    let ended = executor.block_on(async move {
        for node in cluster.nodes() {
            node.start().await;
        }
        let stop = Rc::new(Cell::new(false));
        let client = SimClient::new(1, cluster.clone(), Rc::default(), seed, stop);
        for number in 0..KEYS {
            let key = format!("{KEY}-{number}");
            let write = Batch::put(key.clone().into(), format!("value {number}").into());
            let written = client.write(key.as_bytes(), write, EFFORT).await;
            assert!(written.is_ok(), "{written:?}");
        }
        SimRuntime::sleep(SETTLED).await;
        let before: Vec<_> = cluster.nodes().iter().map(replica).collect();
        for machine in machines {
            change_a_row(&cluster.nodes()[usize::from(*machine) - 1], *machine).await;
        }
        let first = machines.first().filter(|_| leads);
        found(&cluster, &before, machines.len(), first).await
    });
    executor.end();
    ended
}

/// The result of a run with damaged messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The messages of which a bit was flipped.
    pub damaged: u64,
    /// Those of them that the receiver accepted nevertheless.
    pub taken: u64,
    /// The comparisons of replicas afterwards.
    pub compared: u64,
    /// The replicas that were found to differ.
    pub different: u64,
}

/// Writes rows while one message between nodes in `one_in` has a flipped bit.
///
/// # Errors
/// No task could run any more, or the run took too many steps.
pub fn damage(seed: u64, one_in: u64) -> Result<Damage, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let cluster = Cluster::new(Sizes::THREE_SMALL, seed);
    let ended = executor.block_on(async move {
        for node in cluster.nodes() {
            node.start().await;
        }
        let stop = Rc::new(Cell::new(false));
        let client = SimClient::new(1, cluster.clone(), Rc::default(), seed, stop);
        cluster.network.damage_one_in.set(one_in);
        for number in 0..KEYS * 5 {
            let key = format!("{KEY}-{}", number % KEYS);
            let write = Batch::put(key.clone().into(), format!("value {number}").into());
            // A write may fail: links that break again and again use up its time.
            drop(client.write(key.as_bytes(), write, EFFORT).await);
        }
        cluster.network.heal();
        SimRuntime::sleep(TIMEOUT / 15).await;
        for node in cluster.nodes() {
            assert_eq!(node.fatal(), None, "node {}", node.machine);
        }
        let nodes = cluster.nodes();
        let shards = nodes.iter().filter_map(|node| node.shards());
        let stats: Vec<_> = shards.map(|shards| shards[0].digests()).collect();
        let (damaged, taken) = cluster.network.damaged.get();
        Damage {
            damaged,
            taken,
            compared: stats.iter().map(|stats| stats.compared).sum(),
            different: stats.iter().map(|stats| stats.different).sum(),
        }
    });
    executor.end();
    ended
}

/// The replica of the range on a node.
fn replica(node: &Rc<SimNode>) -> Option<ReplicaId> {
    let shards = node.shards()?;
    let ranges = executor::current().on_host(node.host(), || shards.first().map(|s| s.ranges()));
    let mut ranges = ranges?.into_iter();
    let found = ranges.find(|status| status.route.range == RANGE)?;
    Some(found.replica)
}

/// Stops a node, changes one bit in one row of its tables, and starts it again.
async fn change_a_row(node: &Rc<SimNode>, machine: u16) {
    assert!(node.stop().await, "it stops: {:?}", node.fatal());
    let mut changed = 0;
    for disk in node.table_disks() {
        disk.spoil(|key, row| {
            let is_it = key.ends_with(format!("{KEY}-7").as_bytes());
            if let Some(last) = row.last_mut().filter(|_| is_it) {
                *last ^= machine as u8;
                changed += 1;
            }
        });
    }
    assert_eq!(changed, 1, "the row is in the tables once");
    node.start().await;
    SimRuntime::sleep(SETTLED).await;
}

async fn found(
    cluster: &Rc<Cluster>,
    before: &[Option<ReplicaId>],
    spoilt: usize,
    leads: Option<&u16>,
) -> Found {
    let mut found = Found::default();
    let mut counted = vec![0; cluster.nodes().len()];
    let until = executor::current().now() + TIMEOUT;
    while executor::current().now() < until {
        SimRuntime::sleep(POLL_INTERVAL).await;
        for (node, count) in cluster.nodes().iter().zip(&mut counted) {
            let Some(shards) = node.shards() else {
                continue;
            };
            *count = shards.iter().map(|shard| shard.digests().different).sum();
            let shard = shards[0].clone();
            let read = executor::current()
                .on_host(node.host(), || shard.get(KEY.as_bytes(), None, |_| ()));
            found.halted |= matches!(read, Err(Error::Diverged(_)));
            let is_first = leads.is_some_and(|machine| *machine == node.machine);
            let is_led = executor::current().on_host(node.host(), || {
                let mut ranges = shard.ranges().into_iter();
                ranges.any(|status| status.route.range == RANGE && status.leads)
            });
            if leads.is_some() && is_led && !is_first && counted_nothing(&found) {
                let transferred = OnHost::new(node.host(), async move {
                    // It does not matter which node takes the range: in the end it is the first
                    // machine.
                    let _ = shard.transfer_leaders().await;
                });
                transferred.await;
            }
        }
        found.different = counted.iter().sum();
        if found.different >= spoilt as u64 || found.halted {
            break;
        }
    }
    SimRuntime::sleep(SETTLED).await;
    let nodes = cluster.nodes();
    let pairs = nodes.iter().zip(before);
    let gone = pairs.filter(|(node, before)| replica(node) != **before);
    found.removed = gone.map(|(node, _)| node.machine).collect();
    found
}

fn counted_nothing(found: &Found) -> bool {
    found.different == 0 && !found.halted
}
