//! Nodes of the real binary that are started with more shards than before, or fewer, while clients work:
//! what the last shards hold moves to the others, and nothing is lost, also if the node is killed on the
//! way.

use std::time::{Duration, Instant};

use rangedb_tests::cluster::{
    self, Caller, conclude, homes_of, ranges, start_all, wait_for, wait_until_replicated,
};
use rangedb_tests::http::request;
use rangedb_tests::load::{Load, Seen, run};
use rangedb_tests::process::{Home, Node};
use serde_json::Value;

/// Borders of the first ranges: four ranges, and the keys of [`Load`] are in the first three.
const BORDERS: &str = "check-4,m,zz";

/// Starts the node with another number of shards from now on.
fn set_shards(home: &mut Home, shards: u16) {
    let at = home.flags.iter().position(|flag| flag == "--shards");
    home.flags[at.expect("the flag") + 1] = shards.to_string();
}

/// The shards that a start opens, and how many of them are given up, as `node.json` says.
fn shards(home: &Home) -> Option<(u64, u64)> {
    let text = std::fs::read(home.folder.join("node.json")).ok()?;
    let value: Value = serde_json::from_slice(&text).ok()?;
    let leaving = value["leaving_shards"].as_u64().unwrap_or(0);
    Some((value["shards"].as_u64()?, leaving))
}

/// Waits until the node gives no shard up any more.
fn wait_until_settled(home: &Home, wanted: u16) {
    wait_for("shards that hold nothing", || {
        (shards(home)? == (u64::from(wanted), 0)).then_some(())
    });
}

/// The places of all replicas, as NODE/SHARD, in the view of the manager.
fn places(home: &Home) -> Option<Vec<String>> {
    let shown = request(home, "GET", "ranges", b"");
    if shown.status != 200 {
        return None;
    }
    let shown = shown.json();
    let replicas = shown["ranges"].as_array()?.iter();
    let replicas =
        replicas.flat_map(|range| range["replicas"].as_array().cloned().unwrap_or_default());
    Some(
        replicas
            .map(|at| format!("{}/{}", at["node"], at["shard"]))
            .collect(),
    )
}

fn terminate(node: Node, home: &Home) {
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0), "{}", home.log());
}

/// The numbers of the shards that have a folder.
fn folders(home: &Home) -> Vec<u16> {
    let entries = std::fs::read_dir(&home.folder).expect("it is listed");
    let numbers = entries.filter_map(|entry| {
        let name = entry.expect("a name").file_name();
        name.to_str()?.strip_prefix("shard-")?.parse().ok()
    });
    let mut numbers: Vec<u16> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

/// No call has failed, though nobody serves while the only node starts.
fn assert_none_failed(seen: &Seen, what: &str) {
    println!(
        "{what}: {} writes, longest call {:?}, failed {:?}",
        seen.acknowledged.len(),
        seen.slowest,
        seen.errors
    );
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
}

#[test]
fn a_node_that_is_alone_goes_from_four_shards_to_two_to_one_to_three_and_keeps_every_row() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut home = Home::new(temp.path(), &["--shards", "4", "--split-at", BORDERS]);
    let mut node = Some(home.start());
    run(async {
        let load = Load::begin(std::slice::from_ref(&home), 100).await;
        tokio::task::block_in_place(|| {
            load.goes_on();
            for shards in [2, 1, 3] {
                set_shards(&mut home, shards);
                terminate(node.take().expect("it runs"), &home);
                node = Some(home.start());
                load.goes_on();
                wait_until_settled(&home, shards);
                load.goes_on();
                // What is not given stays as it was.
                let given = std::mem::take(&mut home.flags);
                node.take().expect("it runs").kill();
                node = Some(home.start());
                home.flags = given;
                let all: Vec<u16> = (0..shards).collect();
                assert_eq!(folders(&home), all, "the next start removes the others");
                load.goes_on();
            }
            // The shard that was made anew takes a replica.
            wait_for("a replica on shard 2", || {
                let flags = ["--from", "1", "--to", "1/2"];
                let words = [&["range", "move-replica", "2"], &flags[..]].concat();
                let moved = home.cli(&words);
                println!("{moved:?}");
                places(&home)?.iter().any(|at| at == "1/2").then_some(())
            });
            load.goes_on();
        });
        let seen = load.end().await;
        assert_none_failed(&seen, "four shards, two, one and three");
    });
}

#[test]
fn a_node_that_is_killed_while_it_gives_shards_up_loses_nothing_and_may_change_its_mind() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut home = Home::new(temp.path(), &["--shards", "4", "--split-at", BORDERS]);
    let mut node = Some(home.start());
    run(async {
        let load = Load::begin(std::slice::from_ref(&home), 100).await;
        tokio::task::block_in_place(|| {
            load.goes_on();
            // Each start is killed somewhere on the way, the earlier the less has moved.
            for (round, shards) in [1, 1, 3, 2, 4, 1, 1, 1].into_iter().enumerate() {
                set_shards(&mut home, shards);
                node.take().expect("it runs").kill();
                node = Some(home.start());
                std::thread::sleep(Duration::from_millis(150 + 350 * round as u64));
            }
            wait_until_settled(&home, 1);
            wait_for("all replicas on shard 0", || {
                places(&home)?.iter().all(|at| at == "1/0").then_some(())
            });
            load.goes_on();
            set_shards(&mut home, 2);
            node.take().expect("it runs").kill();
            node = Some(home.start());
            assert_eq!(folders(&home), [0, 1]);
            assert_eq!(shards(&home), Some((2, 0)));
            load.goes_on();
        });
        let seen = load.end().await;
        assert_none_failed(&seen, "kills while shards are given up");
    });
}

#[test]
fn histories_are_linearizable_while_a_node_of_three_changes_its_shards() {
    const SECONDS: u64 = 30;
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes_of(temp.path(), "2");
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let check = Caller::new(&homes).check(SECONDS, 8, 1);
    let begun = Instant::now();
    let mut changes = 0;
    let mut numbers = [1, 3, 2, 1].into_iter().cycle();
    while begun.elapsed() < Duration::from_secs(SECONDS - 10) {
        let shards = numbers.next().expect("it goes round");
        set_shards(&mut homes[1], shards);
        let node = nodes[1].take().expect("it runs");
        match changes % 2 {
            0 => terminate(node, &homes[1]),
            _ => node.kill(),
        }
        nodes[1] = Some(homes[1].start());
        wait_until_settled(&homes[1], shards);
        changes += 1;
    }
    conclude(check);
    println!("{changes} changes");
    assert!(changes >= 2, "{changes} changes");
    wait_until_replicated(&homes);
    let id = cluster::status(&homes[1])["node"].as_u64().expect("an id");
    let (kept, _) = shards(&homes[1]).expect("it is read");
    let known = wait_for("the places of all replicas", || places(&homes[0]));
    for at in known {
        let (node, shard) = at.split_once('/').expect("a place");
        if node == id.to_string() {
            assert!(shard.parse::<u64>().expect("a number") < kept, "{at}");
        }
    }
    assert!(ranges(&homes[0]).is_some_and(|ranges| ranges.values().all(|r| r.leader.is_some())));
}
