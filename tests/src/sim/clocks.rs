//! How far hybrid clocks run ahead of the wall clocks while ranges are led by one replica after the
//! other, and while nodes start again and again.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Clock};
use rangedb_engine::shard::Shard;
use rangedb_engine::types::Timestamp;

use super::cluster::Cluster;
use super::executor::{self, Executor, OnHost};
use super::node::{SimNode, Sizes};
use super::runtime::SimRuntime;
use crate::invariants;

/// What changes the leaders of all ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Each node in turn hands all its ranges over.
    HandOvers,
    /// A node that is alone starts again; so soon that its ceilings are still ahead.
    Restarts,
    /// Clients read a snapshot that lies as far ahead of the last reply as a token may.
    Scans,
}

/// So many links of the chain within [`WITHIN`].
const LINKS: u32 = 100;
const WITHIN: Duration = Duration::from_secs(10);
/// Elections and first writes are over by then.
const SETTLED: Duration = Duration::from_secs(2);

/// Runs a chain; gives how far ahead of its wall clock any hybrid clock was, in milliseconds.
///
/// # Errors
/// Nothing could run any more, or too much did.
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
        entries_kept: 16,
        gc_retention_ms: 5_000,
        small_append_bytes: 1 << 12,
    };
    let cluster = Cluster::new(sizes, seed);
    let ended = executor.block_on(async move {
        for node in cluster.nodes() {
            node.start().await;
        }
        SimRuntime::sleep(SETTLED).await;
        let mut furthest = 0;
        for link in 0..LINKS {
            let nodes = cluster.nodes();
            let node = &nodes[link as usize % nodes.len()];
            match chain {
                Chain::HandOvers => hand_over(node).await,
                Chain::Restarts => {
                    node.crash();
                    node.start().await;
                }
                Chain::Scans => scan_ahead(node).await,
            }
            SimRuntime::sleep(WITHIN / LINKS).await;
            furthest = nodes.iter().map(ahead).max().unwrap_or(0).max(furthest);
        }
        furthest
    });
    executor.end();
    ended
}

fn shard(node: &Rc<SimNode>) -> Option<Shard<super::world::SimEnv>> {
    node.shards()?.first().cloned()
}

async fn hand_over(node: &Rc<SimNode>) {
    if let Some(shard) = shard(node) {
        let handed_over = OnHost::new(node.host(), async move { shard.hand_over().await.is_ok() });
        assert!(handed_over.await, "a group has failed");
    }
}

async fn scan_ahead(node: &Rc<SimNode>) {
    use rangedb_engine::request::ScanRequest;
    let Some(shard) = shard(node) else { return };
    let scanned = OnHost::new(node.host(), async move {
        let request = ScanRequest {
            start: None,
            end: None,
            rows_max: 1,
            bytes_max: 0,
            at: Some(shard.now().plus_ms(499)),
        };
        // Refused by those that do not lead, and above the bound.
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
