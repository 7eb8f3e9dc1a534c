//! Replicas that need a snapshot of a large range catch up while clients write: one that was away, and a
//! fourth one that is new.
//!
//! Small by default. `RANGEDB_SNAPSHOT_MIB`, `RANGEDB_SNAPSHOT_RATE` and `RANGEDB_AWAY_SECONDS` make it
//! larger: 4096, 5000 and 600 are what a machine with two cores is to survive.

use std::process::Command;
use std::time::{Duration, Instant};

use rangedb_engine::types::SYSTEM_RANGE;
use rangedb_tests::cluster::{
    Caller, SECRET, homes, nodes, ranges, start_all, variable, wait_for_within,
    wait_until_replicated,
};
use rangedb_tests::process::{Background, Home, command};

/// Bytes of a record that is loaded.
const RECORD_LEN: u64 = 4_000;
/// A replica that lacks at most this many entries has caught up: they may be on their way.
const CAUGHT_UP: u64 = 500;
/// Snapshots that a replica of one range installs; a second one only if the leader changes meanwhile.
const SNAPSHOTS_MAX: usize = 2;
const POLL_INTERVAL: Duration = Duration::from_millis(500);

fn loadgen(what: &str, caller: &Caller, arguments: &[&str]) -> Command {
    let mut loadgen = command("loadgen");
    loadgen
        .args([what, "--addr", &caller.addresses])
        .args(arguments);
    loadgen
}

/// Waits until the node has a replica of each user range that lacks hardly an entry; returns how long
/// that took.
fn wait_until_caught_up(
    asked: &Home,
    node: u64,
    timeout: Duration,
    meanwhile: impl Fn(),
) -> Duration {
    let begun = Instant::now();
    loop {
        meanwhile();
        let mut ranges = ranges(asked).unwrap_or_default();
        ranges.remove(&SYSTEM_RANGE.0);
        let there = ranges.values().filter(|range| range.voters.contains(&node));
        let lags: Vec<Option<u64>> = there.map(|range| range.lag).collect();
        let near = |lag: &Option<u64>| lag.is_some_and(|lag| lag <= CAUGHT_UP);
        let is_whole = lags.len() == ranges.len() && !lags.is_empty();
        if is_whole && lags.iter().all(near) {
            return begun.elapsed();
        }
        let passed = begun.elapsed();
        assert!(passed < timeout, "node {node} does not catch up: {lags:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn installed(home: &Home) -> usize {
    home.log().matches("installed a snapshot").count()
}

#[test]
fn replicas_take_one_snapshot_and_catch_up_while_clients_write() {
    let mib = variable("RANGEDB_SNAPSHOT_MIB").unwrap_or(100);
    let rate = variable("RANGEDB_SNAPSHOT_RATE").unwrap_or(1_000);
    let away = Duration::from_secs(variable("RANGEDB_AWAY_SECONDS").unwrap_or(8));
    // Far more than it takes, and less than for ever.
    let timeout = Duration::from_secs(60 + mib / 2);
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    for home in &mut homes {
        // Small memtables: what is flushed may be purged from the log.
        let memory = if mib > 500 { "512MiB" } else { "64MiB" };
        home.flags
            .extend(["--memory".to_owned(), memory.to_owned()]);
    }
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    homes[0].set("balance", "off");
    let caller = Caller::new(&homes);
    let (records, len) = ((mib << 20) / RECORD_LEN, RECORD_LEN.to_string());
    let records = records.to_string();
    let sizes = ["--records", &records, "--value-size", &len];
    let mut load = loadgen("load", &caller, &[&sizes[..], &["--depth", "4"]].concat());
    assert!(load.output().is_ok_and(|output| output.status.success()));

    // Writes go on until the end.
    let (rate, forever) = (rate.to_string(), "86400");
    let pace = [
        "--workload",
        "write",
        "--rate",
        &rate,
        "--duration",
        forever,
    ];
    let small = ["--records", &records, "--value-size", "100"];
    let mut writes = Background::start(&mut loadgen("run", &caller, &[&pace[..], &small].concat()));
    let before = installed(&homes[2]);
    running[2].take().expect("it runs").kill();
    std::thread::sleep(away);
    running[2] = Some(homes[2].start());
    let id = |home: &Home| {
        let known = nodes(&homes[0]).unwrap_or_default().into_iter();
        let mut known = known.filter(|(_, (_, address))| *address == home.listen);
        known.next().map(|(id, _)| id)
    };
    let third = id(&homes[2]).expect("it is known");
    let took = wait_until_caught_up(&homes[0], third, timeout, || ());
    let snapshots = installed(&homes[2]) - before;
    println!("{mib} MiB, {rate} writes/s: back after {took:?}, {snapshots} snapshots");
    // None, if what it missed was still in the log.
    assert!(snapshots <= 3 * SNAPSHOTS_MAX, "{snapshots}");

    // A fourth node takes the replicas of the third.
    let folder = temp.path().join("fourth");
    std::fs::create_dir(&folder).expect("a folder");
    let flags = ["--shards", "1", "--cluster-secret", SECRET, "--join"];
    let fourth = Home::new(&folder, &[&flags[..], &[&caller.addresses]].concat());
    running.push(Some(fourth.start()));
    let fourth_id = wait_for_within(timeout, "the fourth node", || id(&fourth));
    let (from, to) = (third.to_string(), fourth_id.to_string());
    // An order that was taken may come to nothing, if the leader changes.
    let order_moves = || {
        for (range, known) in ranges(&homes[0]).unwrap_or_default() {
            if range != SYSTEM_RANGE.0 && known.voters.contains(&third) {
                let range = range.to_string();
                let order = [
                    "range",
                    "move-replica",
                    &range,
                    "--from",
                    &from,
                    "--to",
                    &to,
                ];
                // One that is being followed is refused.
                homes[0].cli(&order);
            }
        }
    };
    let took = wait_until_caught_up(&homes[0], fourth_id, 2 * timeout, order_moves);
    let snapshots = installed(&fourth);
    println!("{mib} MiB, {rate} writes/s: a fourth after {took:?}, {snapshots} snapshots");
    assert!((1..=3 * SNAPSHOTS_MAX).contains(&snapshots), "{snapshots}");
    assert!(writes.is_running(), "writes go on");
}
