//! The power fails at every point of a node's first start; the next start continues from the files that
//! are there.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use rangedb_engine::env::AsyncRuntime;
use rangedb_tests::sim::executor::{self, Executor};
use rangedb_tests::sim::network::Network;
use rangedb_tests::sim::node::{SimNode, Sizes};
use rangedb_tests::sim::random::Random;
use rangedb_tests::sim::runtime::SimRuntime;

const SIZES: Sizes = Sizes {
    shards: 2,
    nodes: 1,
    grows: false,
    memtable_bytes: 1 << 12,
    segment_bytes: 1 << 16,
    entry_cache_bytes: 1 << 8,
    row_cache_bytes: 1 << 14,
    entries_kept: 1,
    gc_retention_ms: 5_000,
    small_append_bytes: 1 << 10,
    has_very_slow_reads: true,
};
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Starts a new node whose power fails after this many polls of its tasks, and starts it again.
/// Returns whether the power failed before the first start had ended.
async fn start_twice(seed: u64, polls: u64) -> bool {
    let network = Network::new(Random::new(seed, 4));
    let node = SimNode::new(1, SIZES, seed, network);
    let executor = executor::current();
    executor.count_polls(Some((1, polls)));
    let was_cut = {
        let stopped = pin!(async {
            while !executor.has_stopped() {
                SimRuntime::sleep(POLL_INTERVAL).await;
            }
        });
        let started = pin!(node.start());
        matches!(select(started, stopped).await, Either::Right(_))
    };
    executor.count_polls(None);
    node.crash();
    node.start().await;
    assert_eq!(node.fatal(), None, "seed {seed}, after {polls} polls");
    let shards = node.shards().expect("it runs");
    let ranges = executor.on_host(node.host(), || {
        let ranges = shards.iter().map(|shard| shard.ranges().len());
        ranges.collect::<Vec<_>>()
    });
    // A range of users on each shard, and the system's.
    assert_eq!(ranges, [2, 1], "seed {seed}, after {polls} polls");
    node.crash();
    was_cut
}

#[test]
fn a_first_start_that_is_cut_off_anywhere_is_finished() {
    for seed in 1..=3 {
        let mut polls = 0;
        let mut was_cut = true;
        while was_cut {
            polls += 1;
            let executor = Executor::start(seed);
            let ended = executor.block_on(start_twice(seed, polls));
            executor.end();
            was_cut = ended.expect("it ends");
        }
        println!("seed {seed}: cut at {polls} points");
        assert!(polls > 50, "{polls} points");
    }
}
