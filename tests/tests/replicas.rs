//! Replicas that are members of their range by name only, as real processes: one whose folder was put
//! back from an older copy, and nodes at addresses that no other node reaches. Each is reported and
//! replaced.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rangedb_tests::cluster::{
    Caller, KEYS, SECRET, homes, nodes, ranges, start_all, status, wait_for, wait_until_alike,
    wait_until_replicated,
};
use rangedb_tests::process::{Home, Node, free_port};
use serde_json::Value;

/// An address at which nothing listens.
const NOWHERE: &str = "127.0.0.1:1";
/// Of each clock tick the kernel counts a hundredth of a second.
const TICKS_PER_SECOND: u64 = 100;

/// A home of a node that joins the cluster of the others.
fn joining(folder: &Path, name: &str, others: &[Home], flags: &[&str]) -> Home {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    let list: Vec<&str> = others.iter().map(|home| home.listen.as_str()).collect();
    let join = ["--shards", "1", "--cluster-secret", SECRET, "--join"];
    Home::new(&folder, &[&join[..], &[&list.join(",")], flags].concat())
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()));
}

/// The replicas of each range as they are shown: id and state, by node.
fn replicas(home: &Home) -> Option<Vec<(u64, u64, u64, String)>> {
    let output = home.cli(&["range", "ls", "--format", "json", "--timeout", "2s"]);
    let value: Value = serde_json::from_slice(&output.stdout).ok()?;
    let mut all = Vec::new();
    for range in value["ranges"].as_array()? {
        for replica in range["replicas"].as_array()? {
            all.push((
                range["id"].as_u64()?,
                replica["node"].as_u64()?,
                replica["replica"].as_u64()?,
                replica["state"].as_str()?.to_owned(),
            ));
        }
    }
    Some(all)
}

/// Waits until exactly these nodes hold every range.
fn wait_until_on(home: &Home, wanted: &[u64]) {
    wait_for("replicas that move", || {
        let on = |voters: &[u64]| {
            let mut voters = voters.to_vec();
            voters.sort_unstable();
            voters == wanted
        };
        let ranges = ranges(home)?;
        let mut all = ranges.values();
        all.all(|range| range.leader.is_some() && on(&range.voters))
            .then_some(())
    });
}

fn id_of(home: &Home) -> u64 {
    status(home)["node"].as_u64().expect("a node has an id")
}

/// The time that a process has used a processor, in ticks.
fn cpu_ticks(node: &Node) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.id())).expect("it runs");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    ticks(11) + ticks(12)
}

/// Makes the folder count more starts than its cluster has seen.
fn count_starts_up(folder: &Path) {
    let path = folder.join("node.json");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let mut identity: Value = serde_json::from_str(&text).expect("JSON");
    identity["starts"] = (identity["starts"].as_u64().expect("a number") + 10).into();
    std::fs::write(&path, identity.to_string()).expect("written");
}

#[test]
fn a_replica_that_has_lost_what_it_acknowledged_is_replaced() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let caller = Caller::new(&homes);
    caller.first_writes();
    let victim = id_of(&homes[2]);

    // An older copy of a stopped node's folder.
    running[2].take().expect("it runs").kill();
    let old: PathBuf = temp.path().join("old");
    copy(&homes[2].folder, &old);
    running[2] = Some(homes[2].start());
    wait_until_alike(&homes);
    let led = |home: &Home| ranges(home).expect("it answers");
    // Leaders are spread again; those that the others lead have heard what the node acknowledges.
    wait_for("a leader on each node", || {
        let ranges = ranges(&homes[0])?;
        let leads = |node: &Home| {
            let id = id_of(node);
            ranges.values().any(|range| range.leader == Some(id))
        };
        homes.iter().all(leads).then_some(())
    });
    for number in 0..10 {
        for key in KEYS {
            let key = format!("{key}{number}");
            assert!(caller.cli(&["put", &key, "v"]).status.success());
        }
    }
    wait_until_alike(&homes);
    let before = led(&homes[0]);
    let by_others = before
        .iter()
        .filter(|(_, range)| range.leader != Some(victim));
    let by_others: Vec<u64> = by_others.map(|(id, _)| *id).collect();
    assert!(!by_others.is_empty());
    let known = replicas(&homes[0]).expect("it answers");

    running[2].take().expect("it runs").kill();
    std::fs::remove_dir_all(&homes[2].folder).expect("removed");
    std::fs::rename(&old, &homes[2].folder).expect("renamed");
    count_starts_up(&homes[2].folder);
    running[2] = Some(homes[2].start());
    let begun = Instant::now();
    wait_for("replicas in place of those that have lost entries", || {
        let now = replicas(&homes[0])?;
        let is_new = |range: &u64| {
            let mut there = now
                .iter()
                .filter(|(id, node, ..)| id == range && *node == victim);
            there.any(|now| {
                !known
                    .iter()
                    .any(|(id, _, replica, _)| (id, replica) == (&now.0, &now.2))
            })
        };
        by_others.iter().all(is_new).then_some(())
    });
    println!("replaced within {:?}", begun.elapsed());
    wait_until_replicated(&homes);
    wait_until_alike(&homes);
    let logs: String = homes.iter().map(Home::log).collect();
    for told in [
        "a replica has lost entries that it had acknowledged",
        "this replica has lost entries that it had acknowledged",
        "a replica is a member by name only",
    ] {
        assert!(logs.contains(told), "{told}: {logs}");
    }

    // Nobody is busy, and the node counts again: with another one gone the rest is a majority.
    let used = |running: &[Option<Node>]| running.iter().flatten().map(cpu_ticks).sum::<u64>();
    let ticks = used(&running);
    std::thread::sleep(Duration::from_secs(2));
    let ticks = used(&running) - ticks;
    assert!(ticks < 2 * TICKS_PER_SECOND * 3 / 4, "{ticks} ticks in 2 s");
    let health = status(&homes[0])["health"].clone();
    assert_eq!(health, "ok");
    running[0].take().expect("it runs").kill();
    let rest = Caller::new(&homes[1..]);
    rest.first_writes();
    for number in 0..10 {
        for key in KEYS {
            let key = format!("{key}{number}");
            assert_eq!(rest.cli(&["get", &key]).stdout, b"v\n", "{key}");
        }
    }
}

/// A new manager needs a while to learn which nodes are unreachable.
fn wait_until_alive(asked: &Home, count: usize) {
    wait_for("nodes that are alive, and no others", || {
        let known = nodes(asked)?;
        let alive = known.values().filter(|(state, _)| state == "alive");
        (alive.count() == count).then_some(())
    });
}

#[test]
fn a_node_that_nobody_reaches_is_not_chosen_and_complains() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    homes[0].set("dead-after", "5s");
    let bad = joining(temp.path(), "bad", &homes, &["--advertise", NOWHERE]);
    let unreachable = bad.start();
    homes.push(joining(temp.path(), "spare", &homes, &[]));
    running.push(Some(homes[3].start()));
    let mut wanted: Vec<u64> = [0, 1, 3].map(|at: usize| id_of(&homes[at])).to_vec();
    wanted.sort_unstable();
    running[2].take().expect("it runs").kill();
    wait_until_on(&homes[0], &wanted);
    wait_until_alive(&homes[0], 3);
    let complains = || bad.log().contains("does not reach this node").then_some(());
    wait_for("a complaint", complains);
    drop(unreachable);
}

#[test]
fn an_address_that_another_node_has_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let _running = start_all(&homes);
    wait_until_replicated(&homes);
    let address = homes[1].listen.clone();
    let bad = joining(temp.path(), "bad", &homes, &["--advertise", &address]);
    let (code, complaint) = bad.refused();
    assert_ne!(code, 0);
    assert!(
        complaint.contains("--advertise") && complaint.contains(&address),
        "{complaint}"
    );
    assert_eq!(nodes(&homes[0]).map(|nodes| nodes.len()), Some(3));
}

#[test]
fn a_member_that_comes_back_where_nobody_reaches_it_is_told_and_replaced() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    homes.push(joining(temp.path(), "spare", &homes, &[]));
    running.push(Some(homes[3].start()));
    wait_until_replicated(&homes[..3]);
    homes[0].set("dead-after", "10s");
    let mut wanted: Vec<u64> = [0, 2, 3].map(|at: usize| id_of(&homes[at])).to_vec();
    wanted.sort_unstable();
    running[1].take().expect("it runs").kill();
    // As after a change of its network.
    homes[1].listen = format!("127.0.0.1:{}", free_port());
    homes[1]
        .flags
        .extend(["--advertise", NOWHERE].map(str::to_owned));
    running[1] = Some(homes[1].start());
    wait_for("a status that tells", || {
        let status = status(&homes[0]);
        let told = status["health"] == "degraded" && status["under_replicated"].as_u64() > Some(0);
        told.then_some(())
    });
    wait_until_on(&homes[0], &wanted);
    wait_until_alive(&homes[0], 3);
    // One more node may be lost.
    wait_until_alike(&[homes[0].clone(), homes[2].clone(), homes[3].clone()]);
    running[0].take().expect("it runs").kill();
    Caller::new(&homes[2..]).first_writes();
}
