//! A node whose folder is put back to an older copy of itself, as from a backup or a snapshot of its
//! machine, has less than it has acknowledged. It must neither vote nor acknowledge again.
//!
//! Here its acknowledgements matter: a third node was cut off while rows were written, so that only the
//! leader has them beside the one that is put back. Then the leader is gone for a while, and the other
//! two meet each other: they must elect nobody.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::Write;
use rangedb_engine::types::{RangeId, SYSTEM_RANGE};

use super::client::{Effort, RETRY, SimClient};
use super::cluster::Cluster;
use super::executor::{self, Executor};
use super::node::{SimNode, Sizes};
use super::runtime::SimRuntime;
use crate::invariants;

const RANGE: RangeId = RangeId(SYSTEM_RANGE.0 + 1);
const KEYS: u32 = 20;
const EFFORT: Effort = Effort {
    deadline: None,
    retry: RETRY,
};
/// Elections are over by then, or replicas have what was written.
const SETTLED: Duration = Duration::from_secs(2);
/// The leader does not miss for so short a time the one that is put back.
const DOWN: Duration = Duration::from_millis(50);

/// From when a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The node has not started since.
    SameStart,
    /// The node has started twice since: its folder counts fewer starts than the cluster has seen.
    EarlierStart,
}

/// Puts a copy back; gives whether the node has ended by itself, with why.
///
/// # Errors
/// Something that was acknowledged is not there, nothing could run any more, or too much did.
pub fn put_back(seed: u64, copy: Copy) -> Result<Option<String>, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let cluster = Cluster::new(Sizes::THREE_SMALL, seed);
    let ended = executor.block_on(async move { tell(&cluster, seed, copy).await });
    executor.end();
    ended?
}

/// What is wrong with a seed.
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
        match reader.read_patiently(&key).await.flatten().as_deref() {
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
        let write = Write::Put {
            key: key.clone().into(),
            value: value.into(),
        };
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
