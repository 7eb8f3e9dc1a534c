//! Bits that change: in the rows of a replica behind its back, as by a bad disk or memory, which is found
//! by comparing replicas; and on links, which must change no rows.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::Error;
use rangedb_engine::request::Write;
use rangedb_engine::types::{RangeId, ReplicaId, SYSTEM_RANGE};

use super::client::{Effort, RETRY, SimClient};
use super::cluster::Cluster;
use super::executor::{self, Executor, OnHost};
use super::node::{SimNode, Sizes};
use super::runtime::SimRuntime;
use crate::invariants;

/// What became of a range of which rows were changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Replicas that were found to differ.
    pub different: u64,
    /// Machines that do not have their first replica of the range any more.
    pub removed: Vec<u16>,
    /// Whether the range refuses reads, since nobody knows which rows are right.
    pub halted: bool,
}

const KEY: &str = "spoilt";
const KEYS: u32 = 40;
const EFFORT: Effort = Effort {
    deadline: None,
    retry: RETRY,
};
/// Comparisons have found what there is by then: one that a restart has spoilt takes a minute to end.
const PATIENCE: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Rows are replicated and old enough by then.
const SETTLED: Duration = Duration::from_secs(2);
const RANGE: RangeId = RangeId(SYSTEM_RANGE.0 + 1);

/// Changes a row on each of these machines, each in another way, and has replicas compared; with
/// `leads` the first of them leads the range then.
///
/// # Errors
/// Nothing could run any more, or too much did.
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
            let write = Write::Put {
                key: key.clone().into(),
                value: format!("value {number}").into(),
            };
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

/// What became of replicas whose messages were damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Messages of which a bit was changed.
    pub damaged: u64,
    /// Of these, the ones that were taken all the same.
    pub taken: u64,
    /// Comparisons of replicas afterwards.
    pub compared: u64,
    /// Replicas that were found to differ.
    pub different: u64,
}

/// Writes while in one message of so many between nodes a bit is changed.
///
/// # Errors
/// Nothing could run any more, or too much did.
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
            let write = Write::Put {
                key: key.clone().into(),
                value: format!("value {number}").into(),
            };
            // Links that break again and again may use up a client's patience.
            drop(client.write(key.as_bytes(), write, EFFORT).await);
        }
        cluster.network.heal();
        SimRuntime::sleep(PATIENCE / 15).await;
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

/// Stops a node, changes one bit of one row in its tables, and starts it again.
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
    let until = executor::current().now() + PATIENCE;
    while executor::current().now() < until {
        SimRuntime::sleep(LOOK_EVERY).await;
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
                let handed_over = OnHost::new(node.host(), async move {
                    // Whoever takes it over: in the end it is the one.
                    let _ = shard.hand_over().await;
                });
                handed_over.await;
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
