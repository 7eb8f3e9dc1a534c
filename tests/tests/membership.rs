//! Nodes that come, go, move and are copied, as real processes: a cluster that grows by `--join`, a
//! wiped node that comes back as a new one, a node that is dead for good, one at a new address, and a
//! folder that two processes use.

use std::time::Duration;

use rangedb_tests::cluster::{
    Caller, KEYS, SECRET, homes, joining, nodes, ranges, start_all, wait_for, wait_until_alike,
    wait_until_replicated,
};
use rangedb_tests::http::request;
use rangedb_tests::process::{Home, free_port, succeeded};
use serde_json::json;

/// Waits until a node, by its id, has no replica, or some.
fn wait_for_replicas(home: &Home, node: u64, has_some: bool) {
    wait_for("replicas that move", || {
        let ranges = ranges(home)?;
        let settled = ranges
            .values()
            .all(|range| range.voters.len() == 3 && range.leader.is_some());
        let some = ranges.values().any(|range| range.voters.contains(&node));
        (settled && some == has_some).then_some(())
    });
}

/// Orders that need node 1, which has been killed, are refused until it is back: by one node that runs.
fn orders_to_a_silent_node_are_busy(home: &Home) {
    let silent = || (nodes(home)?.get(&1)?.0 == "silent").then_some(());
    wait_for("a node that is silent", silent);
    let led = || {
        let ranges = request(home, "GET", "ranges", b"").json();
        let mut users = ranges["ranges"].as_array()?.iter();
        let led = users.find(|range| {
            let leader = range["leader_node"].as_u64();
            range["system"] == false && leader.is_some_and(|leader| leader != 1)
        });
        led?["id"].as_u64()
    };
    let id = wait_for("a range that another node leads", led);
    let path = format!("ranges/{id}/transfer-leader");
    let refused = request(home, "POST", &path, b"{\"to\":1}");
    let told = refused.json();
    assert_eq!(
        (refused.status, &told["error"]),
        (503, &json!("busy")),
        "{told}"
    );
    assert_eq!(told["fate"], "not_applied", "{told}");
    let retry_after = refused.header("retry-after").expect("a hint");
    assert!(
        retry_after.parse::<u64>().is_ok_and(|seconds| seconds > 0),
        "{retry_after}"
    );
    let order = [
        "range",
        "transfer-leader",
        &id.to_string(),
        "--to",
        "1",
        "--timeout",
        "1.5s",
    ];
    let output = home.cli(&order);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{complaint}");
    assert!(complaint.contains("(busy, not applied)"), "{complaint}");
}

#[test]
fn a_cluster_of_one_grows_to_four_and_is_steered() {
    let temp = tempfile::tempdir().expect("a folder");
    let first = temp.path().join("first");
    std::fs::create_dir(&first).expect("a folder");
    let flags = [
        "--shards",
        "1",
        "--split-at",
        "check-4,m",
        "--cluster-secret",
        SECRET,
    ];
    let mut homes = vec![Home::new(&first, &flags)];
    let mut running = vec![homes[0].start()];
    for key in KEYS {
        homes[0].put(key, "before");
    }
    for name in ["second", "third"] {
        homes.push(joining(temp.path(), name, &homes));
        running.push(homes.last().expect("one").start());
    }
    wait_until_replicated(&homes);
    running.swap_remove(0).kill();
    let caller = Caller::new(&homes);
    for key in KEYS {
        let read = || caller.cli(&["get", key]).status.success().then_some(());
        wait_for("a read of what was written before", read);
        assert_eq!(caller.cli(&["get", key]).stdout, b"before\n");
    }
    orders_to_a_silent_node_are_busy(&homes[1]);
    running.push(homes[0].start());
    wait_until_replicated(&homes);

    // Steering: another leader, a replica on a fourth node, a setting.
    homes[0].set("balance", "off");
    homes.push(joining(temp.path(), "fourth", &homes));
    running.push(homes[3].start());
    wait_for("the fourth node", || {
        (nodes(&homes[0])?.len() == 4).then_some(())
    });
    let before = ranges(&homes[1]).expect("it answers");
    let (id, range) = before
        .iter()
        .find(|(id, _)| **id != 1)
        .expect("a range of users");
    let (id, from) = (id.to_string(), range.leader.expect("it is led"));
    let transfer = || {
        let output = homes[1].cli(&["range", "transfer-leader", &id]);
        output.status.success().then_some(())
    };
    wait_for("a transfer that is taken", transfer);
    let led_by_other = || {
        let now = ranges(&homes[1])?;
        let leader = now.get(&id.parse().ok()?)?.leader?;
        (leader != from).then_some(())
    };
    wait_for("another leader", led_by_other);
    let from = from.to_string();
    let moved = || {
        let order = ["range", "move-replica", &id, "--from", &from, "--to", "4"];
        let output = homes[2].cli(&order);
        let complaint = String::from_utf8_lossy(&output.stderr);
        // Another change may be under way, or a replica have come there before balance was off.
        let done = output.status.success() || complaint.contains("(conflict, not applied)");
        assert!(
            done || complaint.contains("(busy, not applied)"),
            "{complaint}"
        );
        done.then_some(())
    };
    wait_for("an order that is taken", moved);
    wait_for_replicas(&homes[1], 4, true);
    let nowhere = homes[1].cli(&["range", "transfer-leader", &id, "--to", "77"]);
    assert_eq!(nowhere.status.code(), Some(3), "{nowhere:?}");
    let history = succeeded(&homes[3].cli(&["config", "history"]));
    assert!(
        history.contains("balance") && history.contains("off"),
        "{history}"
    );
    let unknown = homes[0].cli(&["config", "set", "no-such-thing", "1"]);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    for key in KEYS {
        assert_eq!(caller.cli(&["get", key]).stdout, b"before\n");
    }
    drop(running);
}

#[test]
fn a_node_that_joins_is_given_its_share_before_others_know_its_address() {
    const RANGES: usize = 60;
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let file = temp.path().join("keys");
    let keys: String = (0..RANGES).map(|n| format!("n-{n:02}\n")).collect();
    std::fs::write(&file, keys).expect("it is written");
    let file = file.to_str().expect("a name");
    let split = || {
        let output = homes[1].cli(&["range", "split", "--at-file", file]);
        output.status.success().then_some(())
    };
    wait_for("the split", split);

    homes.push(joining(temp.path(), "fourth", &homes));
    running.push(Some(homes[3].start()));
    wait_for("its share", || {
        let ranges = ranges(&homes[0])?;
        let on_it = ranges.values().filter(|range| range.voters.contains(&4));
        let are_whole = ranges.values().all(|range| range.voters.len() == 3);
        (on_it.count() > ranges.len() / 2 && are_whole).then_some(())
    });
    // A leader that does not know the address yet waits for it. Before, it gave up, and the node was avoided
    // for 15 s.
    let log: String = homes.iter().map(Home::log).collect();
    assert!(!log.contains("shard 4/0 does not answer"), "{log}");
    drop(running);
}

#[test]
fn a_wiped_node_comes_back_as_a_new_one_and_a_dead_one_is_replaced() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let caller = Caller::new(&homes);
    let made = caller.first_writes();
    assert!(made < Duration::from_secs(30), "{made:?}");
    let ids = || nodes(&homes[0]).map(|nodes| nodes.into_keys().collect::<Vec<_>>());
    assert_eq!(ids(), Some(vec![1, 2, 3]));

    running[2].take().expect("it runs").kill();
    std::fs::remove_dir_all(&homes[2].folder).expect("removed");
    running[2] = Some(homes[2].start());
    // The cluster gives up the old node at once, because another node has its address.
    wait_for_replicas(&homes[0], 4, true);
    wait_until_alike(&homes);
    // It is silent a few seconds after it was killed.
    let known = wait_for("the silence of the old node", || {
        let known = nodes(&homes[0])?;
        let alive = known.values().filter(|(state, _)| state == "alive");
        ((known.len(), alive.count()) == (4, 3)).then_some(known)
    });

    // A node that is silent for longer than `dead-after`.
    homes[0].set("dead-after", "5s");
    homes.push(joining(temp.path(), "fifth", &homes));
    running.push(Some(homes[3].start()));
    running[1].take().expect("it runs").kill();
    let dead = known
        .iter()
        .find(|(_, (_, address))| *address == homes[1].listen);
    let dead = *dead.expect("it was there").0;
    wait_for_replicas(&homes[2], dead, false);
    // Now one more node may be lost.
    let survivors = [homes[0].clone(), homes[2].clone(), homes[3].clone()];
    wait_until_alike(&survivors);
    running[0].take().expect("it runs").kill();
    Caller::new(&survivors).first_writes();
}

#[test]
fn a_node_returns_at_a_new_address_and_a_copy_stops_the_older_process() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    running[1].take().expect("it runs").kill();
    homes[1].listen = format!("127.0.0.1:{}", free_port());
    running[1] = Some(homes[1].start());
    let listed = || {
        let nodes = nodes(&homes[0])?;
        let at_new =
            |(state, address): &(String, String)| state == "alive" && *address == homes[1].listen;
        nodes.values().any(at_new).then_some(())
    };
    wait_for("the new address", listed);
    wait_until_alike(&homes);
    // The node counts as a voter: with another one gone, the rest is a majority.
    running[0].take().expect("it runs").kill();
    Caller::new(&homes[1..]).first_writes();
    running[0] = Some(homes[0].start());
    wait_until_alike(&homes);

    // A copy of a folder, started elsewhere.
    let mut copy = homes[2].clone();
    let older = running[2].take().expect("it runs");
    copy.folder = temp.path().join("copy");
    let status = std::process::Command::new("cp")
        .args(["-r", "--sparse=never"])
        .args([&homes[2].folder, &copy.folder])
        .status();
    assert!(status.is_ok_and(|status| status.success()));
    copy.listen = format!("127.0.0.1:{}", free_port());
    copy.http = format!("127.0.0.1:{}", free_port());
    let newer = copy.start();
    let ended = older.wait();
    assert!(!ended.success(), "{ended:?}");
    assert!(
        homes[2].log().contains("another process runs as node"),
        "{}",
        homes[2].log()
    );
    drop(newer);
}
