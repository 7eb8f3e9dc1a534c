//! Scans, snapshots and digests over blocks that only a late disk has, at real nodes: hot gets go on beside
//! them, no shard's thread waits for the disk, and all rows come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rangedb_client::ClientOptions;
use rangedb_client::blocking::Client;
use rangedb_tests::cluster::{
    addresses, homes, joining, leader, start_all, status, wait_for, wait_until_alike,
    wait_until_replicated,
};
use rangedb_tests::process::{Home, Node};

/// Rows, all in one range: some 500 blocks.
const ROWS: usize = 2000;
/// Rows of the scan that is waited for.
const SCANNED: usize = 600;
/// Any stall of a shard this long is one of a read that takes longer. Others may come from the machine.
const STALL: &str = "le=\"0.1\"";
/// The time that each read of tables takes, longer than that.
const LATE: &str = "reads=150ms";
/// Apply may wait for the disk, for the few records of the cluster that a move changes; none was seen. Without
/// reads beside the thread there would be as many as waits of the snapshot, some 60.
const STALLS_OF_APPLY: f64 = 8.0;
/// How long anything may take. A range is compared once it is at rest for a minute.
const WAIT_TIMEOUT: Duration = Duration::from_mins(4);
/// Pause between two hot gets: the machine has other work.
const PAUSE: Duration = Duration::from_millis(1);
/// Hot gets in a second, at least. If they waited for reads, there would be seven.
const GETS_PER_SECOND: f64 = 60.0;

fn key(row: usize) -> String {
    format!("d-{row:04}")
}

fn value(row: usize) -> String {
    format!("value of row {row:04} {}", "x".repeat(1000))
}

fn connect(addresses: &str) -> Client {
    let options = ClientOptions::new(addresses.split(',')).timeout(Duration::from_mins(1));
    Client::connect(options).expect("connects")
}

fn put_all(client: &Client) {
    for row in 0..ROWS {
        client.put(key(row), value(row)).expect("is written");
    }
}

/// Restarts a node: its rows are in tables then, and none of their blocks is cached.
fn restart(home: &Home, node: &mut Option<Node>) {
    let stopping = node.take().expect("it runs");
    stopping.signal("TERM");
    assert_eq!(stopping.wait().code(), Some(0), "{}", home.log());
    *node = Some(home.start());
}

/// Reads the hot row so often that the row cache has it.
fn warm_up(client: &Client) {
    (0..3).for_each(|_| read_hot(client));
}

fn read_hot(client: &Client) {
    let found = client.get(key(0)).expect("is read").expect("is there");
    assert_eq!(found.value, value(0).as_bytes());
}

/// Reads the hot row again and again while `work` goes on; gives what that gives.
fn beside_hot_gets<R: Send>(client: &Client, work: impl FnOnce() -> R + Send) -> R {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            is_over.store(true, Ordering::SeqCst);
            result
        });
        let (begun, mut gets, mut slowest) = (Instant::now(), 0, Duration::ZERO);
        while !is_over.load(Ordering::SeqCst) {
            let asked = Instant::now();
            read_hot(client);
            slowest = slowest.max(asked.elapsed());
            gets += 1;
            std::thread::sleep(PAUSE);
        }
        let result = working.join().expect("it catches panics");
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let took = begun.elapsed();
        println!("{gets} hot gets in {took:?}, the slowest took {slowest:?}");
        assert!(f64::from(gets) > took.as_secs_f64() * GETS_PER_SECOND);
        result
    })
}

/// Stalls of a node that were as long as a read of its tables.
fn long_stalls(home: &Home) -> f64 {
    let name = "rangedb_shard_stall_duration_seconds";
    let all = home.metric(&format!("{name}_count"));
    all - home.metric_with(&format!("{name}_bucket"), STALL)
}

/// Asserts that a node has had at most so many stalls that were as long as a read of its tables.
fn assert_few_long_stalls(home: &Home, before: f64, most: f64) {
    let (_, metrics) = home.page("/metrics");
    let stalls = metrics
        .lines()
        .filter(|line| line.starts_with("rangedb_shard_stalls_total"));
    let stalls = stalls.collect::<Vec<_>>().join("\n");
    println!("{stalls}");
    let long = long_stalls(home) - before;
    println!("{long} long stalls");
    assert!(long <= most, "{long}: {stalls}\n{}", home.log());
}

#[test]
fn hot_gets_go_on_beside_scans_of_cold_blocks() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let mut node = Some(home.start());
    put_all(&connect(&home.listen));
    restart(&home, &mut node);
    let client = connect(&home.listen);
    warm_up(&client);
    let scan_stalls = || home.metric_with("rangedb_shard_stalls_total", "scan");
    let (stalls, stalls_of_scans) = (long_stalls(&home), scan_stalls());
    let waited = home.metric("rangedb_cold_reads_total");
    home.set_disk_fault(LATE);
    for reverse in [false, true] {
        let (from, to) = (key(ROWS / 2 - SCANNED), key(ROWS / 2 + SCANNED));
        let wanted = match reverse {
            false => (ROWS / 2 - SCANNED..ROWS / 2).collect::<Vec<_>>(),
            true => (ROWS / 2..ROWS / 2 + SCANNED).rev().collect(),
        };
        let scanned = beside_hot_gets(&client, || {
            let scan = client.scan(from..to).limit(SCANNED);
            let scan = if reverse { scan.reverse() } else { scan };
            let rows = scan.map(|row| row.expect("is read"));
            rows.map(|row| (row.key.to_vec(), row.value.to_vec()))
                .collect::<Vec<_>>()
        });
        let wanted = wanted
            .into_iter()
            .map(|row| (key(row).into_bytes(), value(row).into_bytes()));
        assert!(scanned.into_iter().eq(wanted), "other rows, {reverse}");
    }
    let waits = home.metric("rangedb_cold_reads_total") - waited;
    println!("the scans have waited {waits} times");
    assert!(waits > 10.0);
    assert_few_long_stalls(&home, stalls, 0.0);
    // The machine may stop a scan for 5 ms now and then, and not at each read.
    assert!(scan_stalls() - stalls_of_scans < waits / 4.0);
    assert_eq!(home.metric("rangedb_cold_blocks_waiting"), 0.0);
    home.set_disk_fault("");
    assert_eq!(client.scan("d-".."e").count().expect("is read"), ROWS);
}

/// The id of the range of the rows, and its replicas' nodes.
fn range(client: &Client) -> Option<(u64, Vec<u64>)> {
    let ranges = client.admin().ranges().ok()?.into_iter();
    let holds_rows = |start: &[u8]| start <= key(0).as_bytes();
    let of_rows = ranges.filter(|range| !range.system && holds_rows(&range.start));
    let range = of_rows.max_by(|a, b| a.start.cmp(&b.start))?;
    let nodes = range.replicas.iter().map(|replica| replica.node);
    Some((range.id, nodes.collect()))
}

#[test]
fn hot_gets_go_on_beside_a_snapshot_and_a_digest_of_cold_blocks() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let client = connect(&addresses(&homes));
    homes[0].set("balance", "off");
    put_all(&client);
    wait_until_alike(&homes);
    for (home, node) in homes.iter().zip(&mut running) {
        restart(home, node);
        wait_until_alike(&homes);
    }
    let fourth = joining(temp.path(), "fourth", &homes);
    running.push(Some(fourth.start()));
    let new = status(&fourth)["node"].as_u64().expect("an id");
    let leads = leader(&homes, &key(0));
    let node = |home: &Home| status(home)["node"].as_u64().expect("an id");
    let old = node(&homes[(leads + 1) % homes.len()]);
    warm_up(&client);
    let stalls: Vec<_> = homes.iter().map(long_stalls).collect();
    let sum = |name: &str| homes.iter().map(|home| home.metric(name)).sum::<f64>();
    let (waited, digested) = (
        sum("rangedb_cold_reads_total"),
        sum("rangedb_digest_bytes_total"),
    );
    homes.iter().for_each(|home| home.set_disk_fault(LATE));
    let (id, _) = range(&client).expect("it is known");
    beside_hot_gets(&client, || {
        let begun = Instant::now();
        // Seldom, because each look may order a move.
        let wait = |what: &str, is_so: &dyn Fn() -> bool| {
            while !is_so() {
                assert!(begun.elapsed() < WAIT_TIMEOUT, "{what} does not come");
                std::thread::sleep(Duration::from_millis(500));
            }
            println!("{what} after {:?}", begun.elapsed());
        };
        wait("the snapshot", &|| {
            // One that is being followed is refused.
            let _ = client.admin().move_replica(id, old, new, None);
            range(&client).is_some_and(|(_, nodes)| nodes.contains(&new) && !nodes.contains(&old))
        });
        wait("a digest of all rows", &|| {
            let bytes = sum("rangedb_digest_bytes_total") - digested;
            bytes > (ROWS * value(0).len()) as f64
        });
    });
    let waits = sum("rangedb_cold_reads_total") - waited;
    println!("the snapshot has waited {waits} times");
    assert!(waits > 10.0);
    for (home, before) in homes.iter().zip(stalls) {
        assert_few_long_stalls(home, before, STALLS_OF_APPLY);
    }
    assert_eq!(sum("rangedb_digest_different_total"), 0.0);
    // The replica that was made from the snapshot has all rows.
    homes.iter().for_each(|home| home.set_disk_fault(""));
    wait_for("the lead of the new replica", || {
        // It is refused while the replica lags behind.
        let _ = client.admin().transfer_leader(id, Some(new));
        let ranges = client.admin().ranges().ok()?.into_iter();
        let mut leads = ranges.filter(|range| range.id == id && range.leader_node == Some(new));
        leads.next().map(drop)
    });
    let rows = client.scan("d-".."e").map(|row| row.expect("is read"));
    let rows = rows.map(|row| (row.key.to_vec(), row.value.to_vec()));
    let wanted = (0..ROWS).map(|row| (key(row).into_bytes(), value(row).into_bytes()));
    assert!(rows.eq(wanted), "other rows");
}
