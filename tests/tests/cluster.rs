//! Three real processes on loopback as one cluster: formed, killed, frozen, restarted one after the
//! other, while clients check that what they see is linearizable.
//!
//! With `RANGEDB_SOAK_SECONDS` the faults go on for that long.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_client::{Client, ClientOptions};
use rangedb_tests::process::{Home, Node, cli, command, free_port, wait};

const SECRET: &str = "a secret of the test";

/// The homes of three nodes of one cluster.
fn homes(folder: &std::path::Path) -> Vec<Home> {
    let listen: Vec<String> = (0..3)
        .map(|_| format!("127.0.0.1:{}", free_port()))
        .collect();
    let list = listen.join(",");
    let home = |(number, listen): (usize, &String)| {
        let folder = folder.join(number.to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let flags = ["--shards", "1", "--split-at", "check-4,m"];
        let cluster = ["--join", &list, "--bootstrap-expect", "3"];
        let mut home = Home::new(&folder, &[flags, cluster].concat());
        home.listen.clone_from(listen);
        home.flags
            .extend(["--cluster-secret".to_owned(), SECRET.to_owned()]);
        home
    };
    listen.iter().enumerate().map(home).collect()
}

/// Starts all nodes at once: none is ready before the founder has answered it.
fn start_all(homes: &[Home]) -> Vec<Option<Node>> {
    std::thread::scope(|scope| {
        let starts: Vec<_> = homes
            .iter()
            .map(|home| scope.spawn(|| Some(home.start())))
            .collect();
        let nodes = starts
            .into_iter()
            .map(|start| start.join().expect("it starts"));
        nodes.collect()
    })
}

fn addresses(homes: &[Home]) -> String {
    let listen: Vec<&str> = homes.iter().map(|home| home.listen.as_str()).collect();
    listen.join(",")
}

/// Writes until it works; gives how long that took.
fn first_write(addresses: &str, key: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let put = cli(addresses, &["put", key, "v", "--timeout", "2s"]);
        if put.status.success() {
            return begun.elapsed();
        }
        let complaint = String::from_utf8_lossy(&put.stderr).into_owned();
        assert!(begun.elapsed() < Duration::from_secs(30), "{complaint}");
    }
}

/// The last entry that each replica of a node has applied, by range.
fn applied(home: &Home) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let options = ClientOptions {
        addresses: vec![home.listen.clone()],
        ..ClientOptions::default()
    };
    let ranges = runtime.block_on(async { Client::connect(options).await?.ranges().await });
    let ranges = ranges.expect("it answers").into_iter();
    let mut all: Vec<(u64, u64)> = ranges
        .map(|range| (range.route.range, range.applied))
        .collect();
    all.sort_unstable();
    all.into_iter().map(|(_, applied)| applied).collect()
}

fn check(addresses: &str, seconds: u64) -> Child {
    command("loadgen")
        .args(["check", "--addr", addresses, "--format", "json"])
        .args(["--clients", "8", "--keys", "8"])
        .args(["--duration", &seconds.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("loadgen starts")
}

fn conclude(check: Child) {
    let output = check.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}{complaint}");
    let result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(result["violations"], 0, "{text}");
    assert!(result["operations"].as_u64() > Some(500), "{text}");
    println!("{}", text.trim());
}

#[test]
fn histories_are_linearizable_while_nodes_die_and_freeze() {
    let soak: Option<u64> = std::env::var("RANGEDB_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = std::env::var("RANGEDB_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut random = StdRng::seed_from_u64(seed.unwrap_or(1));
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    let list = addresses(&homes);
    first_write(&list, "a");
    let seconds = soak.unwrap_or(20).max(20);
    let checking = check(&list, seconds);
    let until = Instant::now() + Duration::from_secs(seconds - 4);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.random_range(300..2_000)));
        let victim = random.random_range(0..nodes.len());
        let node = nodes[victim].take().expect("it runs");
        match random.random_range(0..4) {
            0 => {
                // Longer than a lease: it must not read alone when it goes on.
                node.signal("STOP");
                std::thread::sleep(Duration::from_millis(random.random_range(300..2_500)));
                node.signal("CONT");
                nodes[victim] = Some(node);
            }
            1 => {
                node.signal("TERM");
                assert_eq!(node.wait().code(), Some(0), "{}", homes[victim].log());
                nodes[victim] = Some(homes[victim].start());
            }
            _ => {
                node.kill();
                std::thread::sleep(Duration::from_millis(random.random_range(0..1_500)));
                nodes[victim] = Some(homes[victim].start());
            }
        }
    }
    conclude(checking);

    // All at once.
    let before = cli(&list, &["incr", "all-at-once"]);
    assert!(before.status.success());
    for node in &mut nodes {
        node.take().expect("it runs").kill();
    }
    let nodes = start_all(&homes);
    let took = first_write(&list, "b");
    println!("three killed at once: the first write after {took:?}");
    let after = cli(&list, &["get", "all-at-once"]);
    assert_eq!(after.stdout, b"1\n");
    drop(nodes);
}

#[test]
fn one_node_of_three_may_be_missing_but_not_two() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    let list = addresses(&homes);
    first_write(&list, "a");
    let slowest = (0..3).map(|victim| {
        nodes[victim].take().expect("it runs").kill();
        // Each range on its own: keys on both sides of both borders.
        let took = ["a", "d", "z"].map(|key| first_write(&list, key));
        nodes[victim] = Some(homes[victim].start());
        took.into_iter().max().expect("three")
    });
    println!(
        "first write of every range after a kill: {:?}",
        slowest.collect::<Vec<_>>()
    );
    for node in nodes.iter_mut().take(2) {
        node.take().expect("it runs").kill();
    }
    let put = cli(&list, &["put", "a", "2", "--timeout", "2s"]);
    assert!(!put.status.success(), "a minority must not write");
    let get = cli(&list, &["get", "a", "--timeout", "2s"]);
    assert!(!get.status.success(), "a minority must not read");
    nodes[0] = Some(homes[0].start());
    first_write(&list, "a");
}

#[test]
fn who_may_not_be_part_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    first_write(&addresses(&homes), "a");

    // A node that has lost its folder has forgotten its votes.
    let mut member = homes
        .iter()
        .map(|home| home.listen.clone())
        .collect::<Vec<_>>();
    member.sort();
    let lost = homes
        .iter()
        .position(|home| home.listen == member[1])
        .expect("one");
    nodes[lost].take().expect("it runs").kill();
    std::fs::remove_dir_all(&homes[lost].folder).expect("removed");
    let (code, complaint) = homes[lost].refused();
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("lost its folder"), "{complaint}");

    let mut stranger = homes[lost].clone();
    let place = stranger
        .flags
        .iter()
        .position(|flag| flag == SECRET)
        .expect("given");
    stranger.flags[place] = "another secret".to_owned();
    let (code, complaint) = stranger.refused();
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("secret"), "{complaint}");

    let mut without = homes[lost].clone();
    without.flags.truncate(place - 1);
    assert_eq!(without.refused().0, 2);
    let mut wildcard = homes[lost].clone();
    wildcard.listen = format!("0.0.0.0:{}", free_port());
    let (code, complaint) = wildcard.refused();
    assert!(
        code == 2 && complaint.contains("--advertise"),
        "{complaint}"
    );
}

#[test]
fn a_node_that_was_away_for_long_catches_up_by_a_snapshot() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    for home in &mut homes {
        // Small memtables: what is flushed may be purged from the log.
        home.flags
            .extend(["--memory".to_owned(), "64MiB".to_owned()]);
    }
    let mut nodes = start_all(&homes);
    let list = addresses(&homes);
    first_write(&list, "a");
    nodes[2].take().expect("it runs").kill();
    // One entry each: more than a log keeps, and more bytes than a memtable holds.
    let mut load = command("loadgen")
        .args([
            "run",
            "--workload",
            "write",
            "--records",
            "20000",
            "--addr",
            &list,
        ])
        .args(["--connections", "4", "--duration", "8", "--warmup", "0"])
        .args(["--value-size", "4000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    assert!(wait(&mut load).success());
    nodes[2] = Some(homes[2].start());
    let begun = Instant::now();
    while applied(&homes[2]) != applied(&homes[0]) {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?} of {:?}\n{}",
            applied(&homes[2]),
            applied(&homes[0]),
            homes[2].log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("caught up after {:?}", begun.elapsed());
    assert!(
        homes[2].log().contains("took over a snapshot"),
        "{}",
        homes[2].log()
    );
    // It can carry on with one of the others gone.
    nodes[0].take().expect("it runs").kill();
    first_write(&list, "a");
    first_write(&list, "z");
}
