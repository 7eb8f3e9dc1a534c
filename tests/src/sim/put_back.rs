//! A node whose folder is replaced by an older copy, as from a backup or a snapshot of its machine,
//! lacks entries that it has acknowledged. It must neither vote nor acknowledge again.
//!
//! Here its acknowledgements matter. A third node is cut off while rows are written, so that only
//! the leader and the node in question have them. After the replacement the leader is down for a
//! while, and the other two nodes meet: they must elect no leader.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Batch;
use rangedb_engine::types::{RangeId, SYSTEM_RANGE};

use super::client::{Effort, SimClient};
use super::cluster::Cluster;
use super::executor::{self, Executor};
use super::node::{SimNode, Sizes};
use super::runtime::SimRuntime;
use crate::invariants;

const RANGE: RangeId = RangeId(SYSTEM_RANGE.0 + 1);
const KEYS: u32 = 20;
const EFFORT: Effort = Effort { deadline: None };
/// By then elections are over, and replicas have received the writes.
const SETTLED: Duration = Duration::from_secs(2);
/// How long the node is down; too short for the leader to notice.
const DOWN: Duration = Duration::from_millis(50);

/// The time when the copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The copy is from before the node's last start: afterwards the folder counts as many starts
    /// as the cluster has seen.
    SameStart,
    /// The copy is one start older: the folder counts fewer starts than the cluster has seen.
    EarlierStart,
}

/// Runs the scenario. Returns why the node ended by itself, if it did.
///
/// # Errors
/// An acknowledged row is missing, no task could run any more, or the run took too many steps.
pub fn put_back(seed: u64, copy: Copy) -> Result<Option<String>, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let cluster = Cluster::new(Sizes::THREE_SMALL, seed);
    let ended = executor.block_on(async move { tell(&cluster, seed, copy).await });
    executor.end();
    ended?
}

/// Why a seed fails, if it does.
pub fn failure(seed: u64) -> Option<String> {
    let of = |copy| put_back(seed, copy).err();
    of(Copy::SameStart).or_else(|| of(Copy::EarlierStart))
}

async fn tell(cluster: &Rc<Cluster>, seed: u64, copy: Copy) -> Result<Option<String>, String> {
    for node in cluster.nodes() {
        node.start().await;
    }
    let client = SimClient::new(1, cluster.clone(), Rc::default(), seed, Rc::default());
    write(&client, "old").await;
    SimRuntime::sleep(SETTLED).await;
    let leader = leader(cluster).ok_or("no node leads the range")?;
    let mut others: Vec<_> = cluster.nodes();
    others.retain(|node| node.machine != leader.machine);
    let [victim, third] = others.as_slice() else {
        return Err("there are not three nodes".to_owned());
    };
    victim.crash();
    let copied = victim.copy_disks();
    victim.start().await;
    if copy == Copy::EarlierStart {
        victim.crash();
        victim.start().await;
    }
    SimRuntime::sleep(SETTLED).await;
    for other in [&leader, victim] {
        cluster.network.cut(third.machine, other.machine);
        cluster.network.cut(other.machine, third.machine);
    }
    write(&client, "new").await;

    victim.crash();
    victim.put_back(&copied);
    SimRuntime::sleep(DOWN).await;
    victim.start().await;
    SimRuntime::sleep(SETTLED).await;
    let ended = victim.fatal();
    leader.crash();
    cluster.network.heal();
    SimRuntime::sleep(SETTLED).await;
    leader.start().await;
    let reader = SimClient::new(2, cluster.clone(), Rc::default(), seed, Rc::default());
    for number in 0..KEYS {
        let key = key(number);
        match reader.read_with_retries(&key).await.flatten().as_deref() {
            Some("new") => {}
            found => return Err(format!("{key} was written as new and is {found:?}")),
        }
    }
    Ok(ended)
}

fn key(number: u32) -> String {
    format!("put-back-{number}")
}

async fn write(client: &Rc<SimClient>, value: &'static str) {
    for number in 0..KEYS {
        let key = key(number);
        let write = Batch::put(key.clone().into(), value.into());
        let written = client.write(key.as_bytes(), write, EFFORT).await;
        assert!(written.is_ok(), "{written:?}");
    }
}

fn leader(cluster: &Rc<Cluster>) -> Option<Rc<SimNode>> {
    let leads = |node: &Rc<SimNode>| {
        let shards = node.shards().unwrap_or_default();
        executor::current().on_host(node.host(), || {
            let mut ranges = shards.iter().flat_map(|shard| shard.ranges());
            ranges.any(|status| status.route.range == RANGE && status.leads)
        })
    };
    cluster.nodes().into_iter().find(leads)
}
