//! An operator splits, merges and moves ranges of the real binary without a pause, while nodes are killed
//! and frozen, the network is cut, a disk is full, and a node loses its folder. Clients check that what they
//! see is linearizable; after each fault every range has to serve again.
//!
//! Where the rights or tools for namespaces and mounts are missing, a test says `skipped:` and passes. With
//! `RANGEDB_SOAK_SECONDS` the faults go on for that long, from the seed `RANGEDB_SEED`, and with `RANGEDB_KILLS`
//! until so many nodes of five were killed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{RngExt, SeedableRng};
use rangedb_client::ClientOptions;
use rangedb_client::blocking::Client;
use rangedb_engine::types::SYSTEM_RANGE;
use rangedb_tests::cluster::{
    self, Caller, Isolated, conclude, nodes, ranges, start_all, variable, wait_for,
    wait_until_alike, wait_until_replicated,
};
use rangedb_tests::net::available;
use rangedb_tests::net::netns::Fault;
use rangedb_tests::net::small_disk::SmallDisk;
use rangedb_tests::operator::{Operator, Tally};
use rangedb_tests::process::{Home, Node, free_port};

/// How long faults go on without `RANGEDB_SOAK_SECONDS`.
const SECONDS: u64 = 20;
/// The time that a check goes on after the last fault.
const SECONDS_AFTER: u64 = 6;
/// Every range must serve again within this time after a fault, also on a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(4);
/// A call of the client that is there before the kills gives up after this.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a kill and what follows it takes, at most, on average.
const SECONDS_OF_KILL: u64 = 4;
/// The size of the disk that is filled.
const DISK_MIB: u64 = 1024;
/// How long a disk stays full.
const FULL_FOR: Duration = Duration::from_secs(6);

fn seconds() -> u64 {
    variable("RANGEDB_SOAK_SECONDS").map_or(SECONDS, |seconds| seconds.max(SECONDS))
}

/// How many nodes are killed, at least.
fn kills_min() -> u64 {
    variable("RANGEDB_KILLS").unwrap_or(0)
}

/// How long a check must go on where nodes are killed: it ends with the last kill, at the latest.
fn seconds_of_kills() -> u64 {
    seconds() + kills_min() * SECONDS_OF_KILL
}

fn seed() -> u64 {
    variable("RANGEDB_SEED").unwrap_or(1)
}

/// Waits until a key of every range can be written; returns how long the slowest took.
fn all_serve(caller: &Caller, what: &str) -> Duration {
    let begun = Instant::now();
    let ranges = wait_for("the ranges", || caller.ranges());
    let users = ranges.iter().filter(|(id, _)| **id != SYSTEM_RANGE.0);
    let starts: BTreeSet<&str> = users.map(|(_, range)| range.start.as_str()).collect();
    assert!(
        starts.contains("") && starts.len() + 1 == ranges.len(),
        "{ranges:?}"
    );
    let known = begun.elapsed();
    std::thread::scope(|scope| {
        for start in &starts {
            // The first key; it must not be empty.
            let key = if start.is_empty() { "00" } else { *start };
            scope.spawn(move || {
                let written = || {
                    let put = caller.cli(&["put", "--hex", key, "76", "--timeout", "2s"]);
                    put.status.success().then_some(())
                };
                wait_for("a write in each range", written);
            });
        }
    });
    let took = begun.elapsed();
    println!(
        "{what}: {} ranges are known {known:?} after it, and written {took:?} after it",
        ranges.len()
    );
    assert!(took < BACK_WITHIN, "{what}: {took:?}");
    took
}

/// What was ordered must have been more than refusals.
fn assert_worked(tally: &Tally) {
    let of = |kind| tally.get(kind).copied().unwrap_or(0);
    assert!(of("split") > 1 && of("merge") > 0, "{tally:?}");
}

fn pause(random: &mut StdRng, millis: std::ops::Range<u64>) {
    std::thread::sleep(Duration::from_millis(random.random_range(millis)));
}

/// A fault of one node, from its beginning to its end; returns its description.
fn strike(cluster: &mut Isolated, random: &mut StdRng) -> String {
    let victim = random.random_range(0..cluster.homes.len());
    match random.random_range(0..3) {
        0 => {
            cluster.take(victim).kill();
            pause(random, 0..1_500);
            cluster.restart(victim);
            format!("{victim} was killed")
        }
        1 => {
            let node = cluster.nodes[victim].as_ref().expect("it runs");
            node.signal("STOP");
            // From less than a lease to much more.
            pause(random, 300..4_000);
            node.signal("CONT");
            format!("{victim} was frozen")
        }
        _ => {
            let others = cluster.others(victim);
            let hears = random.random_bool(0.5);
            match hears {
                true => cluster.net.set_both(victim, &others, Some(Fault::Cut)),
                false => others
                    .iter()
                    .for_each(|&other| cluster.net.set(other, victim, Some(Fault::Cut))),
            }
            pause(random, 500..4_000);
            cluster.net.heal();
            format!("{victim} was cut off, one way: {}", !hears)
        }
    }
}

/// Strikes at so many nodes with so many shards each, while clients check and an operator changes ranges.
fn strike_for_a_while((nodes, shards): (usize, &str), clients: u32) {
    let Some(mut cluster) = Isolated::new(nodes, shards) else {
        return;
    };
    cluster.start();
    let mut random = StdRng::seed_from_u64(seed());
    let check = cluster
        .caller
        .check(seconds() + SECONDS_AFTER, clients, seed());
    let operator = Operator::begin(&cluster.caller, seed());
    let (until, mut strikes) = (Instant::now() + Duration::from_secs(seconds()), 0);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        pause(&mut random, 500..2_500);
        let what = strike(&mut cluster, &mut random);
        slowest = slowest.max(all_serve(&cluster.caller, &what));
        cluster.assert_alive();
        strikes += 1;
    }
    let tally = operator.end();
    conclude(check);
    let alike = wait_until_alike(&cluster.homes);
    println!("{strikes} faults, slowest {slowest:?}, all alike {alike:?} after the last");
    assert_worked(&tally);
}

#[test]
fn ranges_split_merge_and_move_while_nodes_of_three_die_freeze_and_are_cut_off() {
    strike_for_a_while((3, "2"), 8);
}

/// The first keys of all ranges of users that a client knows.
fn first_keys(client: &Client) -> BTreeSet<Vec<u8>> {
    let known = wait_for("the ranges", || client.admin().ranges().ok());
    let users = known.into_iter().filter(|range| range.id != SYSTEM_RANGE.0);
    // No key is empty.
    let first = |start: Vec<u8>| if start.is_empty() { vec![0] } else { start };
    users.map(|range| first(range.start)).collect()
}

/// Writes to all keys at once; returns how long the slowest write took.
fn write_all(client: &Client, keys: &BTreeSet<Vec<u8>>) -> Duration {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for key in keys {
            scope.spawn(move || client.put(key, "v").expect("it is written"));
        }
    });
    begun.elapsed()
}

/// Kills so many nodes at once, starts them again, and so on, while clients check and an operator changes ranges.
fn kill_for_a_while(nodes: usize, at_once: usize) {
    let temp = tempfile::tempdir().expect("a folder");
    let listen: Vec<String> = (0..nodes)
        .map(|_| format!("127.0.0.1:{}", free_port()))
        .collect();
    let homes = cluster::homes_at(temp.path(), &listen, "1");
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let (caller, mut random) = (Caller::new(&homes), StdRng::seed_from_u64(seed()));
    let options = ClientOptions::new(&listen).timeout(CALL_TIMEOUT);
    let client = Client::connect(options).expect("a client");
    let check = caller.check(seconds_of_kills() + SECONDS_AFTER, 4, seed());
    let operator = Operator::begin(&caller, seed());
    let (until, mut kills) = (Instant::now() + Duration::from_secs(seconds()), 0);
    let mut times = Vec::new();
    while Instant::now() < until || kills < kills_min() {
        pause(&mut random, 500..2_000);
        let keys = first_keys(&client);
        let victims = sample(&mut random, nodes, at_once).into_vec();
        for victim in &victims {
            running[*victim].take().expect("it runs").kill();
        }
        let start = |running: &mut Vec<Option<Node>>| {
            let fallen: Vec<Home> = victims.iter().map(|one| homes[*one].clone()).collect();
            for (victim, node) in victims.iter().zip(start_all(&fallen)) {
                running[*victim] = node;
            }
        };
        let leaves_majority = at_once == 1;
        if !leaves_majority {
            // Ranges whose majority was on these nodes wait for them.
            pause(&mut random, 0..1_500);
            start(&mut running);
        }
        let took = write_all(&client, &keys);
        if leaves_majority {
            pause(&mut random, 0..1_500);
            start(&mut running);
        }
        println!(
            "{victims:?} were killed: {} ranges are written after {took:?}",
            keys.len()
        );
        assert!(took < BACK_WITHIN, "{victims:?} were killed: {took:?}");
        times.push(took);
        kills += at_once as u64;
    }
    let tally = operator.end();
    conclude(check);
    let alike = wait_until_alike(&homes);
    times.sort_unstable();
    println!(
        "{kills} kills: all ranges were written after {:?} (median) and {:?} (longest); all alike {alike:?} after the \
         last",
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert_worked(&tally);
    drop(running);
}

#[test]
fn ranges_split_merge_and_move_while_one_of_three_is_killed() {
    kill_for_a_while(3, 1);
}

#[test]
fn ranges_split_merge_and_move_while_two_of_five_are_killed_at_once() {
    kill_for_a_while(5, 2);
}

#[test]
fn ranges_split_merge_and_move_while_nodes_of_five_die_freeze_and_are_cut_off() {
    strike_for_a_while((5, "1"), 4);
}

fn is_full(home: &Home) -> bool {
    let status = cluster::status(home);
    let shards = status["shards"].as_array();
    shards.is_some_and(|shards| shards.iter().any(|shard| shard["disk_full"] == true))
}

/// Merges the first two ranges of users while a node's disk is full.
fn merge_while_full(caller: &Caller, full: &Home) {
    let merged = || {
        let known = caller.ranges()?;
        let mut users = known.iter().filter(|(id, _)| **id != SYSTEM_RANGE.0);
        let first = users
            .find(|(_, range)| range.start.is_empty())?
            .0
            .to_string();
        if known.len() < 3 {
            let at = ["range", "split", &first, "--at", "55", "--hold", "0s"];
            caller.cli(&at);
        }
        let merge = caller.cli(&["range", "merge", &first, "--timeout", "10s"]);
        let why = String::from_utf8_lossy(&merge.stderr).into_owned();
        println!("merge on a full disk: {} {}", merge.status, why.trim());
        merge.status.success().then_some(())
    };
    assert!(is_full(full), "the disk has room");
    wait_for("a merge on a full disk", merged);
    assert!(is_full(full), "the disk has room");
}

#[test]
fn ranges_split_and_merge_while_the_disk_of_a_node_is_full() {
    let temp = tempfile::tempdir().expect("a folder");
    let Some(disk) = available(SmallDisk::new(&temp.path().join("disk"), DISK_MIB)) else {
        return;
    };
    let mut homes = cluster::homes(temp.path());
    homes[0].folder = disk.folder().join("data");
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let caller = Caller::new(&homes);
    let check = caller.check(FULL_FOR.as_secs() * 2 + SECONDS_AFTER, 8, seed());
    let operator = Operator::begin(&caller, seed());
    // The load and the operator work for a while before, and while the disk is full.
    std::thread::sleep(FULL_FOR / 2);
    disk.fill();
    wait_for("a full disk", || is_full(&homes[0]).then_some(()));
    std::thread::sleep(FULL_FOR);
    let tally = operator.end();
    merge_while_full(&caller, &homes[0]);
    disk.make_room();
    wait_for("room", || (!is_full(&homes[0])).then_some(()));
    all_serve(&caller, "a full disk");
    conclude(check);
    println!("alike after {:?}", wait_until_alike(&homes));
    assert_worked(&tally);
    for node in nodes.iter_mut().flatten() {
        assert!(node.is_running());
    }
    // The nodes must end before their disk is unmounted.
    drop(nodes);
    drop(disk);
}

#[test]
fn ranges_split_and_merge_while_a_node_comes_back_without_its_folder() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let caller = Caller::new(&homes);
    caller.set("dead-after", "5s");
    let check = caller.check(SECONDS, 8, seed());
    let operator = Operator::begin(&caller, seed());
    // The load and the operator work for a while with all nodes.
    std::thread::sleep(Duration::from_secs(3));
    running[2].take().expect("it runs").kill();
    std::fs::remove_dir_all(&homes[2].folder).expect("it is removed");
    running[2] = Some(homes[2].start());
    let begun = Instant::now();
    wait_for("replicas on the node that came back", || {
        let known = nodes(&homes[0])?;
        let alive: Vec<u64> = (known.iter())
            .filter(|(_, (state, _))| state == "alive")
            .map(|(id, _)| *id)
            .collect();
        let ranges = ranges(&homes[0])?;
        let is_whole = |range: &cluster::Range| {
            let mut voters = range.voters.clone();
            voters.sort_unstable();
            range.leader.is_some() && voters == alive
        };
        (alive.len() == 3 && ranges.values().all(is_whole)).then_some(())
    });
    println!("replaced after {:?}", begun.elapsed());
    let tally = operator.end();
    conclude(check);
    println!("alike after {:?}", wait_until_alike(&homes));
    assert_worked(&tally);
    drop(running);
}
