//! Measures how far hybrid clocks run ahead of wall clocks while leaders change, ranges are split or nodes
//! restart, again and again.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Clock};
use rangedb_engine::request::Batch;
use rangedb_engine::shard::Shard;
use rangedb_engine::types::{Blob, Timestamp};

use super::client::{Effort, SimClient};
use super::cluster::Cluster;
use super::executor::{self, Executor, OnHost};
use super::faults::Order;
use super::node::{SimNode, Sizes};
use super::operator;
use super::runtime::SimRuntime;
use crate::invariants;

/// The step that is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// The nodes in turn transfer the leadership of all their ranges.
    HandOvers,
    /// A single node restarts so soon that its ceilings are still in the future.
    Restarts,
    /// The last range is split, and the nodes in turn transfer their leaderships.
    Splits,
    /// Clients scan a snapshot that lies as far ahead of the last reply as is allowed.
    Scans,
}

/// The number of steps within [`WITHIN`].
const LINKS: u32 = 100;
const WITHIN: Duration = Duration::from_secs(10);
/// By then elections and first writes are over.
const SETTLED: Duration = Duration::from_secs(2);

/// Repeats a step. Returns the largest lead of a hybrid clock over its wall clock, in milliseconds.
///
/// # Errors
/// No task could run any more, or the run took too many steps.
pub fn furthest_ahead(seed: u64, chain: Chain) -> Result<u64, String> {
    let executor = Executor::start(seed);
    invariants::forget();
    let nodes = if chain == Chain::Restarts { 1 } else { 3 };
    let sizes = Sizes {
        shards: 1,
        nodes,
        grows: false,
        memtable_bytes: 1 << 16,
        segment_bytes: 1 << 17,
        entry_cache_bytes: 1 << 16,
        row_cache_bytes: 1 << 14,
        entries_kept: 16,
        gc_retention_ms: 5_000,
        small_append_bytes: 1 << 12,
        has_very_slow_reads: true,
    };
    let cluster = Cluster::new(sizes, seed);
    let ended = executor.block_on(async move {
        for node in cluster.nodes() {
            node.start().await;
        }
        SimRuntime::sleep(SETTLED).await;
        let (mut furthest, mut splits, mut refused) = (0, 0, 0);
        // It tells each node what time it has seen at another one.
        let client = SimClient::new(1, cluster.clone(), Rc::default(), seed, Rc::default());
        for link in 0..LINKS {
            let nodes = cluster.nodes();
            let node = &nodes[link as usize % nodes.len()];
            match chain {
                Chain::HandOvers => transfer_to(node).await,
                Chain::Splits => {
                    let at = [b'k', b'a' + (link / 26) as u8, b'a' + (link % 26) as u8];
                    let is_split = operator::order(&cluster, Order::Split { at }, node.machine);
                    splits += u32::from(is_split.await);
                    refused += u32::from(!write(&client, &at).await);
                    transfer_to(node).await;
                    refused += u32::from(!write(&client, b"ka").await);
                }
                Chain::Restarts => {
                    node.crash();
                    node.start().await;
                }
                Chain::Scans => scan_ahead(node).await,
            }
            SimRuntime::sleep(WITHIN / LINKS).await;
            furthest = nodes.iter().map(ahead).max().unwrap_or(0).max(furthest);
        }
        let is_done = chain != Chain::Splits || splits > LINKS / 2 && refused == 0;
        is_done.then_some(furthest).ok_or((splits, refused))
    });
    executor.end();
    ended?.map_err(|(splits, refused)| {
        format!(
            "{splits} of {LINKS} splits were made, and {refused} writes of a client that tells what time it has \
             seen were refused"
        )
    })
}

/// Writes a key as a client that carries the newest timestamp that it has seen.
async fn write(client: &SimClient, key: &[u8]) -> bool {
    let batch = Batch::put(Blob::copy_from_slice(key), "value".into());
    let effort = Effort { deadline: None };
    client.write(key, batch, effort).await.is_ok()
}

fn shard(node: &Rc<SimNode>) -> Option<Shard<super::sim_env::SimEnv>> {
    node.shards()?.first().cloned()
}

async fn transfer_to(node: &Rc<SimNode>) {
    if let Some(shard) = shard(node) {
        let transferred = OnHost::new(node.host(), async move {
            shard.transfer_leaders().await.is_ok()
        });
        assert!(transferred.await, "a group has failed");
    }
}

async fn scan_ahead(node: &Rc<SimNode>) {
    use rangedb_engine::request::ScanRequest;
    let Some(shard) = shard(node) else { return };
    let scanned = OnHost::new(node.host(), async move {
        let request = ScanRequest {
            rows_max: 1,
            at: Some(shard.now().plus_ms(499)),
            ..ScanRequest::default()
        };
        // Followers refuse the scan, and so does a leader that is beyond the bound.
        drop(shard.scan(request, None, None).await);
    });
    scanned.await;
}

fn ahead(node: &Rc<SimNode>) -> u64 {
    let Some(shard) = shard(node) else { return 0 };
    executor::current().on_host(node.host(), || {
        let wall = Timestamp::from_ms(node.clock.wall_ms());
        shard.now().ms() - wall.ms()
    })
}
