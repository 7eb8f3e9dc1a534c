//! Three real processes on loopback as one cluster: formed, killed, frozen, restarted one after the
//! other, while clients check that what they see is linearizable.
//!
//! With `RANGEDB_SOAK_SECONDS` the faults go on for that long.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_tests::cluster::{
    Caller, KEYS, SECRET, conclude, homes, start_all, variable, wait_until_alike,
    wait_until_replicated,
};
use rangedb_tests::process::{Home, command, free_port, wait};

#[test]
fn histories_are_linearizable_while_nodes_die_and_freeze() {
    let mut random = StdRng::seed_from_u64(variable("RANGEDB_SEED").unwrap_or(1));
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    let caller = Caller::new(&homes);
    wait_until_replicated(&homes);
    caller.first_writes();
    let seconds = variable("RANGEDB_SOAK_SECONDS").unwrap_or(20).max(20);
    let checking = caller.check(seconds, 8, 1);
    let until = Instant::now() + Duration::from_secs(seconds - 4);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.random_range(300..2_000)));
        let victim = random.random_range(0..nodes.len());
        let node = nodes[victim].take().expect("it runs");
        match random.random_range(0..4) {
            0 => {
                // Longer than a lease: when the node resumes, it must not read by its old lease.
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

    // All nodes at once.
    let before = caller.cli(&["incr", "all-at-once"]);
    assert!(before.status.success());
    for node in &mut nodes {
        node.take().expect("it runs").kill();
    }
    let nodes = start_all(&homes);
    let took = caller.first_write("b");
    println!("three killed at once: the first write after {took:?}");
    let after = caller.cli(&["get", "all-at-once"]);
    assert_eq!(after.stdout, b"1\n");
    drop(nodes);
}

#[test]
fn one_node_of_three_may_be_missing_but_not_two() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    let caller = Caller::new(&homes);
    wait_until_replicated(&homes);
    caller.first_writes();
    let slowest = (0..3).map(|victim| {
        nodes[victim].take().expect("it runs").kill();
        // Each range separately: keys on both sides of both borders.
        let took = KEYS.map(|key| caller.first_write(key));
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
    let begun = Instant::now();
    let put = caller.try_put("a");
    assert!(!put.status.success(), "a minority must not write");
    let get = caller.cli(&["get", "a", "--timeout", "2s"]);
    assert!(!get.status.success(), "a minority must not read");
    let late = begun.elapsed() > Duration::from_secs(10);
    assert!(!late, "refused after {:?}", begun.elapsed());
    nodes[0] = Some(homes[0].start());
    caller.first_write("a");
}

#[test]
fn who_may_not_be_part_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);

    let lost = 1;
    nodes[lost].take().expect("it runs").kill();
    let kept = temp.path().join("kept");
    std::fs::rename(&homes[lost].folder, &kept).expect("moved");

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

    // A folder of another cluster.
    let flags = ["--shards", "1", "--split-at", "check-4,m"];
    let other = Home::new(&temp.path().join("other"), &flags);
    std::fs::create_dir(temp.path().join("other")).expect("a folder");
    other.start().kill();
    let mut moved = homes[lost].clone();
    moved.folder.clone_from(&other.folder);
    let (code, complaint) = moved.refused();
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("belongs to cluster"), "{complaint}");

    // With its own folder the node is accepted again, and receives what was written meanwhile.
    let caller = Caller::new(&homes);
    caller.first_write("a");
    // The nodes that were refused have begun folders of their own.
    std::fs::remove_dir_all(&homes[lost].folder).expect("removed");
    std::fs::rename(&kept, &homes[lost].folder).expect("moved back");
    nodes[lost] = Some(homes[lost].start());
    wait_until_alike(&homes);
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
    let caller = Caller::new(&homes);
    wait_until_replicated(&homes);
    caller.first_writes();
    let installed = |home: &Home| home.log().matches("installed a snapshot").count();
    let before = installed(&homes[2]);
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
            &caller.addresses,
        ])
        .args(["--connections", "4", "--duration", "8", "--warmup", "0"])
        .args(["--value-size", "4000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    assert!(wait(&mut load).success());
    nodes[2] = Some(homes[2].start());
    println!("caught up after {:?}", wait_until_alike(&homes));
    assert!(installed(&homes[2]) > before, "{}", homes[2].log());
    // It keeps the majority when one of the others is gone.
    nodes[0].take().expect("it runs").kill();
    caller.first_write("a");
    caller.first_write("z");
}
