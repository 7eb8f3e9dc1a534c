//! Blocks of tables that cannot be read or are damaged, at real nodes: no read finds a wrong value or none,
//! the node goes on, and a range with other replicas gets another one in place of that replica.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rangedb_client::blocking::Client;
use rangedb_client::{ClientOptions, Condition, Error, ErrorCode, ScanOptions};
use rangedb_tests::cluster::{
    addresses, homes, leader, start_all, status, wait_for, wait_until_alike, wait_until_replicated,
};
use rangedb_tests::process::{Home, Node};

/// Rows, all in one range.
const ROWS: usize = 200;
/// How long a read may be tried again while leaders change.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

fn key(row: usize) -> String {
    format!("d-{row:04}")
}

/// A value that is found in a file by its beginning.
fn value(row: usize) -> String {
    format!("value of row {row:04} {}", "x".repeat(180))
}

fn connect(addresses: &str, timeout: Duration) -> Client {
    let options = ClientOptions::new(addresses.split(',')).timeout(timeout);
    Client::connect(options).expect("connects")
}

fn put_all(client: &Client) {
    for row in 0..ROWS {
        client.put(key(row), value(row)).expect("is written");
    }
}

/// Reads a row until it is read; it must have its value.
fn read(client: &Client, row: usize) {
    let begun = Instant::now();
    loop {
        match client.get(key(row)) {
            Ok(found) => {
                let found = found.unwrap_or_else(|| panic!("{} is not found", key(row)));
                assert_eq!(found.value, value(row).as_bytes());
                return;
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                assert!(begun.elapsed() < WAIT_TIMEOUT, "{error}");
            }
        }
    }
}

/// The files of a node's tables.
fn tables(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_table = name.is_some_and(|name| name.parse::<u64>().is_ok());
        if path.is_dir() {
            files.extend(tables(&path));
        } else if is_table && folder.ends_with("tables") {
            files.push(path);
        }
    }
    files
}

/// Lets all reads of the present tables of a node fail.
fn fail_reads(home: &Home) {
    let files = tables(&home.folder);
    let words = files.iter().map(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        format!("reads=fail@{}", name.expect("a name"))
    });
    let words: BTreeSet<String> = words.collect();
    assert!(!words.is_empty(), "there are tables");
    home.set_disk_fault(&Vec::from_iter(words).join(" "));
}

/// Flips a bit in the value of a row wherever a table has it. The node must be stopped.
fn flip(home: &Home, row: usize) {
    let wanted = format!("value of row {row:04} ");
    let mut flipped = 0;
    for path in tables(&home.folder) {
        let mut bytes = std::fs::read(&path).expect("readable");
        let mut places = bytes.windows(wanted.len());
        if let Some(at) = places.position(|window| window == wanted.as_bytes()) {
            bytes[at] ^= 1;
            flipped += 1;
            std::fs::write(&path, &bytes).expect("written");
        }
    }
    assert!(flipped > 0, "the row is in a table");
}

fn restart(home: &Home, node: &mut Option<Node>, between: impl FnOnce()) {
    let stopping = node.take().expect("it runs");
    stopping.signal("TERM");
    assert_eq!(stopping.wait().code(), Some(0), "{}", home.log());
    between();
    *node = Some(home.start());
}

/// The id of the range of the rows, and of its replica on a node.
fn replica(client: &Client, node: u64) -> Option<(u64, u64)> {
    let ranges = client.admin().ranges().ok()?;
    let of_rows = |start: &[u8]| start <= key(0).as_bytes();
    let range = ranges
        .into_iter()
        .filter(|range| !range.system && of_rows(&range.start));
    let range = range.max_by(|a, b| a.start.cmp(&b.start))?;
    let here = range.replicas.iter().find(|replica| replica.node == node)?;
    Some((range.id, here.replica))
}

/// Has a node lead the range of the rows.
fn lead(homes: &[Home], client: &Client, victim: usize) {
    let node = status(&homes[victim])["node"].as_u64().expect("an id");
    wait_for("the leader that is wanted", || {
        let (range, _) = replica(client, node)?;
        // It is refused while the replica lags behind.
        let _ = client.admin().transfer_leader(range, Some(node));
        (leader(homes, &key(0)) == victim).then_some(())
    });
}

/// A cluster whose rows are in tables; the first node is damaged as `damage` does it, and must be replaced.
fn is_replaced(damage: impl FnOnce(&Home, &mut Option<Node>)) {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let client = connect(&addresses(&homes), Duration::from_secs(10));
    homes[0].set("balance", "off");
    put_all(&client);
    wait_until_alike(&homes);
    for (home, node) in homes.iter().zip(&mut running).skip(1) {
        restart(home, node, || ());
        wait_until_alike(&homes);
    }
    damage(&homes[0], &mut running[0]);
    wait_until_alike(&homes);
    let victim = status(&homes[0])["node"].as_u64().expect("an id");
    let before = replica(&client, victim).expect("it has one");
    lead(&homes, &client, 0);

    (0..ROWS).for_each(|row| read(&client, row));
    let begun = Instant::now();
    wait_for("a fresh replica", || {
        let now = replica(&client, victim)?;
        (now != before).then_some(())
    });
    wait_for("a cluster that is well", || {
        (status(&homes[0])["health"] == "ok").then_some(())
    });
    println!("replaced within {:?}", begun.elapsed());
    assert!(homes[0].metric("rangedb_replicas_given_up_total") >= 1.0);
    assert!(homes[0].metric("rangedb_unreadable_reads_total") >= 1.0);
    let log = homes[0].log();
    assert!(log.contains("block_unreadable"), "{log}");
    // The fresh one has all rows.
    lead(&homes, &client, 0);
    (0..ROWS).for_each(|row| read(&client, row));
    assert!(running.iter_mut().flatten().all(Node::is_running));
}

#[test]
fn a_replica_whose_blocks_the_disk_does_not_give_is_replaced() {
    is_replaced(|home, node| {
        restart(home, node, || ());
        fail_reads(home);
    });
}

#[test]
fn a_replica_with_a_flipped_bit_in_a_table_is_replaced() {
    is_replaced(|home, node| restart(home, node, || flip(home, ROWS / 2)));
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorCode {
    result.expect_err("the block cannot be read").code
}

#[test]
fn a_node_without_others_refuses_what_needs_the_block_and_nothing_else() {
    const ROW: usize = ROWS / 2;
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let mut node = Some(home.start());
    let client = connect(&home.listen, Duration::from_secs(1));
    put_all(&client);
    restart(&home, &mut node, || flip(&home, ROW));
    let client = connect(&home.listen, Duration::from_secs(1));

    assert_eq!(code(client.get(key(ROW))), ErrorCode::Unreadable);
    assert_eq!(
        code(client.scan(ScanOptions::default()).count()),
        ErrorCode::Unreadable
    );
    // A write that depends on the row is refused, and does not get into the way of others.
    let swapped = client.compare_and_swap(key(ROW), Condition::Absent, "new");
    assert_eq!(code(swapped), ErrorCode::Unreadable);
    assert_eq!(code(client.delete(key(ROW))), ErrorCode::Unreadable);
    for row in [0, ROWS - 1] {
        read(&client, row);
    }
    client.put("d-other", "value").expect("is written");
    assert!(client.get("d-other").expect("is read").is_some());
    client.put(key(ROW), value(ROW)).expect("is written");
    read(&client, ROW);
    // Another row of the block is as lost as before.
    assert_eq!(code(client.get(key(ROW + 1))), ErrorCode::Unreadable);

    let status = status(&home);
    assert_eq!(
        status["replicas_in_trouble"][0]["state"], "unreadable",
        "{status}"
    );
    assert_eq!(status["health"], "degraded", "{status}");
    assert!(
        home.log().contains("there is no other replica"),
        "{}",
        home.log()
    );
    assert_eq!(home.metric("rangedb_replicas_given_up_total"), 0.0);
    assert!(node.as_mut().is_some_and(Node::is_running));
    let node = node.take().expect("it runs");
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0), "{}", home.log());
}
