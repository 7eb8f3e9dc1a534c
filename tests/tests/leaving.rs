//! Nodes that leave on an operator's order, as real processes: drained for a restart, decommissioned,
//! removed, and refused when they come back.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use rangedb_tests::cluster::{
    self, Caller, homes_at, joining, nodes, ranges, start_all, wait_for, wait_until_alike,
    wait_until_replicated,
};
use rangedb_tests::http::{Response, request};
use rangedb_tests::load::{Load, run};
use rangedb_tests::process::{Home, Node, command, free_port, succeeded};
use serde_json::{Value, json};

/// The exit code of an order that was refused.
const REFUSED: i32 = 3;
/// The exit code of an order whose end is not known.
const UNKNOWN: i32 = 4;
/// The exit code of an order that took effect and whose answer could not be printed.
const UNPRINTED: i32 = 6;
/// The exit code of an order that no node was reached for.
const UNREACHABLE: i32 = 5;

fn id(home: &Home) -> u64 {
    cluster::status(home)["node"].as_u64().expect("an id")
}

/// Gives an order about a node through another one.
fn order(by: &Home, verb: &str, node: u64, flags: &[&str]) -> Output {
    by.cli(&[&["node", verb, &node.to_string()], flags].concat())
}

/// The words of an order that was refused.
fn refused(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(REFUSED), "{complaint}");
    complaint
}

fn post(home: &Home, node: u64, verb: &str, body: &[u8]) -> Response {
    request(home, "POST", &format!("nodes/{node}/{verb}"), body)
}

/// The nodes by their ids, as the manager shows them.
fn listed(home: &Home, node: u64) -> Option<Value> {
    let shown = request(home, "GET", "nodes", b"").json();
    let mut nodes = shown["nodes"].as_array()?.iter();
    nodes.find(|shown| shown["id"] == node).cloned()
}

/// The lines of progress, of which the last says that all is done.
fn progress(printed: &str) -> Vec<Value> {
    let lines = printed.lines().filter(|line| line.starts_with('{'));
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let last = lines.last().expect("a line");
    assert_eq!(last["done"], true, "{printed}");
    lines
}

/// Three nodes that hold all ranges, and a fourth that has joined them.
fn four_nodes(folder: &Path) -> (Vec<Home>, Vec<Option<Node>>) {
    let mut homes = cluster::homes(folder);
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    homes.push(joining(folder, "fourth", &homes));
    running.push(Some(homes[3].start()));
    (homes, running)
}

#[test]
fn a_rolling_restart_with_drains_under_load_fails_no_request() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        for place in 0..homes.len() {
            let (home, other) = (&homes[place], &homes[(place + 1) % homes.len()]);
            let node = id(home);
            let printed = succeeded(&order(other, "drain", node, &["--wait"]));
            let lines = progress(&printed);
            let last = lines.last().expect("a line");
            assert_eq!(
                (&last["draining"], &last["leaders_left"]),
                (&json!(node), &json!(0)),
                "{printed}"
            );
            assert_eq!(home.page("/readyz").0, 503, "it drains");
            load.goes_on();
            let leads = |range: &cluster::Range| range.leader == Some(node);
            let shown = ranges(other).expect("it answers");
            assert!(!shown.values().any(leads), "{shown:?}");
            let process = running[place].take().expect("it runs");
            process.signal("TERM");
            assert_eq!(process.wait().code(), Some(0), "{}", home.log());
            running[place] = Some(home.start());
            let shown = listed(other, node).expect("it is known");
            assert_eq!(
                shown["membership"], "draining",
                "the order outlives the process"
            );
            succeeded(&order(other, "undrain", node, &[]));
            wait_until_replicated(&homes);
            load.goes_on();
        }
        let seen = load.end().await;
        seen.assert_unharmed("restarts after drains");
    });
}

#[test]
fn what_would_leave_a_range_without_a_majority_is_refused_with_the_reason() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let ids: Vec<u64> = homes.iter().map(id).collect();

    let unknown = post(&homes[0], 77, "drain", b"");
    assert_eq!(unknown.status, 404, "{}", unknown.json());
    assert!(
        refused(&order(&homes[0], "drain", 77, &[]))
            .contains("there is no node 77; `rangedb node ls`")
    );
    let too_few = refused(&order(&homes[0], "decommission", ids[2], &[]));
    assert!(too_few.contains("2 other active nodes"), "{too_few}");
    let dry_run = post(&homes[0], ids[2], "decommission", b"{\"dry_run\":true}");
    assert_eq!(dry_run.status, 200);
    let blocked = dry_run.json()["blocked"].as_array().map(Vec::len);
    assert_eq!(blocked, ranges(&homes[0]).map(|ranges| ranges.len()));
    let alive = post(&homes[0], ids[2], "remove", b"");
    assert_eq!(
        (alive.status, &alive.json()["error"]),
        (409, &json!("conflict"))
    );

    // The second of two drains would leave one voter.
    succeeded(&order(&homes[0], "drain", ids[2], &["--wait"]));
    succeeded(&order(&homes[0], "drain", ids[2], &["--wait"]));
    let second = refused(&order(&homes[0], "drain", ids[1], &["--wait"]));
    assert!(second.contains("1 of its 3 voters"), "{second}");
    let to_drained = homes[0].cli(&["range", "transfer-leader", "2", "--to", &ids[2].to_string()]);
    assert!(refused(&to_drained).contains("draining"), "{to_drained:?}");
    succeeded(&order(&homes[0], "undrain", ids[2], &[]));

    // So would the drain of a node while another is gone.
    running[2].take().expect("it runs").kill();
    wait_for("a node that is silent", || {
        (nodes(&homes[0])?.get(&ids[2])?.0 == "silent").then_some(())
    });
    let alone = refused(&order(&homes[0], "drain", ids[1], &[]));
    assert!(alone.contains("1 of its 3 voters"), "{alone}");
}

#[test]
fn a_drain_outlives_the_node_that_is_killed_and_the_command_that_gives_up() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    let caller = Caller::new(&homes);
    let node = id(&homes[2]);
    assert_eq!(post(&homes[0], node, "drain", b"").status, 200);
    running[2].take().expect("it runs").kill();
    // What it led is elected elsewhere.
    caller.first_writes();
    // The end of the drain of a node that does not come back in time is not known, unless it has come
    // already: others lead all that it led. Within a millisecond it may not even have been given.
    let late = order(&homes[0], "drain", node, &["--wait", "--timeout", "1ms"]);
    let code = late.status.code();
    assert!(
        [Some(UNKNOWN), Some(REFUSED), Some(UNREACHABLE), Some(0)].contains(&code),
        "{late:?}"
    );
    running[2] = Some(homes[2].start());
    let printed = succeeded(&order(&homes[0], "drain", node, &["--wait"]));
    progress(&printed);
    wait_until_alike(&homes);
    let shown = listed(&homes[0], node).expect("it is known");
    assert_eq!(
        (&shown["membership"], &shown["leaders"]),
        (&json!("draining"), &json!(0)),
        "{shown}"
    );
    succeeded(&order(&homes[1], "undrain", node, &[]));
    wait_for("a leader there", || {
        let shown = listed(&homes[0], node)?;
        (shown["membership"] == "active" && shown["leaders"].as_u64()? > 0).then_some(())
    });
    wait_for("a node that is ready", || {
        (homes[2].page("/readyz").0 == 200).then_some(())
    });
}

#[test]
fn a_node_is_decommissioned_and_removed_and_refused_when_it_comes_back() {
    let temp = tempfile::tempdir().expect("a folder");
    let (homes, mut running) = four_nodes(temp.path());
    let caller = Caller::new(&homes[1..]);
    caller.first_writes();
    let (node, by) = (id(&homes[0]), &homes[1]);
    wait_for("four nodes", || {
        let nodes = nodes(by)?;
        let alive = nodes.values().filter(|(state, _)| state == "alive");
        (alive.count() == 4).then_some(())
    });
    let foreseen = succeeded(&order(by, "decommission", node, &["--dry-run"]));
    assert!(foreseen.contains("would move to"), "{foreseen}");
    let printed = succeeded(&order(by, "decommission", node, &["--wait"]));
    let lines = progress(&printed);
    let last = lines.last().expect("a line");
    assert_eq!(
        (&last["decommissioning"], &last["replicas_left"]),
        (&json!(node), &json!(0)),
        "{printed}"
    );
    let shown = listed(by, node).expect("it is known");
    assert_eq!(
        (&shown["membership"], &shown["replicas"]),
        (&json!("decommissioned"), &json!(0)),
        "{shown}"
    );
    caller.first_writes();
    running[0].take().expect("it runs").kill();
    wait_for("a node that is silent", || {
        (nodes(by)?.get(&node)?.0 == "silent").then_some(())
    });
    assert_eq!(
        by.cli(&["status"]).status.code(),
        Some(0),
        "it is not missed"
    );
    succeeded(&order(by, "remove", node, &[]));
    assert_eq!(listed(by, node), None);
    let mut back = homes[0].try_start();
    if let Ok(node) = &mut back {
        wait_for("the end of the process", || {
            (!node.is_running()).then_some(())
        });
    }
    let log = homes[0].log();
    assert!(log.contains("was removed from the cluster"), "{log}");
    // Its folder says so from now on.
    let (code, why) = homes[0].refused();
    assert!(code != 0 && why.contains("was removed"), "{code}: {why}");
}

/// Gives an order whose answer cannot be printed, again and again while it is refused: the exit code says
/// that it took effect.
fn takes_effect_unprinted(by: &Home, words: &[&str]) {
    wait_for(&format!("{words:?} takes effect"), || {
        let full = File::options().write(true).open("/dev/full");
        let mut rangedb = command("rangedb");
        rangedb.args(words).args(["--addr", &by.listen]);
        let output = rangedb.stdout(full.expect("a device that is full"));
        let output = output.output().expect("it runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(REFUSED) => None,
            code => {
                assert_eq!(code, Some(UNPRINTED), "{words:?}: {complaint}");
                assert!(complaint.contains("was applied"), "{complaint}");
                Some(())
            }
        }
    });
}

#[test]
fn every_order_that_took_effect_says_so_if_its_answer_cannot_be_printed() {
    let temp = tempfile::tempdir().expect("a folder");
    let (homes, mut running) = four_nodes(temp.path());
    let (by, node, fourth) = (&homes[1], id(&homes[0]), id(&homes[3]));
    let printed = succeeded(&order(by, "drain", node, &["--format", "json"]));
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(printed, json!({ "started": true, "done": false }));
    succeeded(&order(by, "undrain", node, &[]));
    let (node, fourth) = (node.to_string(), fourth.to_string());
    for words in [
        &["put", "k", "v"][..],
        &["incr", "n"],
        &["delete", "k"],
        &["cas", "k", "--if-absent", "v"],
        &["write", "put", "k", "v"],
        &["config", "set", "dead-after", "6m"],
        &["range", "split", "2", "--at", "Q"],
        &["range", "scatter"],
        &["range", "release", "2"],
        &["range", "merge", "2", "--timeout", "30s"],
        &["range", "transfer-leader", "2"],
        &["reload"],
        &["node", "drain", &node],
        &["node", "drain", &node, "--wait", "--timeout", "30s"],
        &["node", "undrain", &node],
        &["node", "decommission", &fourth],
        &[
            "node",
            "decommission",
            &fourth,
            "--wait",
            "--timeout",
            "30s",
        ],
    ] {
        takes_effect_unprinted(by, words);
    }
    succeeded(&by.cli(&[
        "node",
        "decommission",
        &fourth,
        "--wait",
        "--timeout",
        "30s",
    ]));
    running[3].take().expect("it runs").kill();
    takes_effect_unprinted(by, &["node", "remove", &fourth]);
}

#[test]
fn two_of_five_nodes_leave_at_once_under_load_and_no_call_fails() {
    let temp = tempfile::tempdir().expect("a folder");
    let listen = [(); 5].map(|()| format!("127.0.0.1:{}", free_port()));
    let homes = homes_at(temp.path(), &listen, "1");
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    // More ranges, so that there is something to do.
    for key in [
        "a-2", "a-4", "a-6", "d-2", "d-4", "d-6", "z-2", "z-4", "z-6",
    ] {
        wait_for("the range of a key", || {
            let known = ranges(&homes[0])?;
            let start: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
            // An order whose end was not known may have been carried out.
            if known.values().any(|range| range.start == start) {
                return Some(());
            }
            let users = known
                .iter()
                .filter(|(id, range)| **id > 1 && range.start <= start);
            let (range, _) = users.max_by_key(|(_, range)| range.start.clone())?;
            let range = range.to_string();
            let output = homes[0].cli(&["range", "split", &range, "--at", key]);
            output.status.success().then_some(())
        });
    }
    wait_until_replicated(&homes);
    let (leaving, staying) = homes.split_at(2);
    let ids: Vec<u64> = leaving.iter().map(id).collect();
    let seen = run(async {
        let load = Load::begin(&homes, 100).await;
        tokio::task::block_in_place(|| {
            load.goes_on();
            let second = ids[1].to_string();
            let printed = succeeded(&order(
                &staying[0],
                "decommission",
                ids[0],
                &[&second, "--wait"],
            ));
            let lines: Vec<Value> = printed
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            for node in &ids {
                let of_node = || lines.iter().filter(|line| line["decommissioning"] == *node);
                let last = of_node().next_back().expect("a line");
                let left = (&last["done"], &last["replicas_left"]);
                assert_eq!(left, (&json!(true), &json!(0)), "{printed}");
                assert!(last["ranges_per_minute"].is_u64(), "{printed}");
                let shown = listed(&staying[0], *node).expect("it is known");
                let held = (&shown["membership"], &shown["replicas"]);
                assert_eq!(held, (&json!("decommissioned"), &json!(0)), "{shown}");
            }
            println!("{printed}");
            load.goes_on();
            for node in &mut running[..2] {
                let node = node.take().expect("it runs");
                node.signal("TERM");
                assert_eq!(node.wait().code(), Some(0));
            }
            load.goes_on();
            for node in &ids {
                succeeded(&order(&staying[0], "remove", *node, &[]));
            }
            let known = ranges(&staying[0]).expect("it answers");
            assert!(
                known.values().all(|range| range.voters.len() == 3),
                "{known:?}"
            );
        });
        load.end().await
    });
    seen.assert_unharmed("two of five nodes leave");
}

#[test]
fn a_dead_node_that_others_have_replaced_is_not_missed_and_can_be_removed() {
    let temp = tempfile::tempdir().expect("a folder");
    let (homes, mut running) = four_nodes(temp.path());
    homes[1].set("dead-after", "4s");
    let (node, by) = (id(&homes[0]), &homes[1]);
    running[0].take().expect("it runs").kill();
    wait_for("a node that is silent", || {
        (nodes(by)?.get(&node)?.0 == "silent").then_some(())
    });
    assert!(refused(&order(by, "remove", node, &[])).contains("neither dead nor"));
    wait_for("a cluster that is whole", || {
        let dead = nodes(by)?.get(&node)?.0 == "dead";
        (dead && by.cli(&["status"]).status.code() == Some(0)).then_some(())
    });
    succeeded(&order(by, "remove", node, &[]));
    assert_eq!(listed(by, node), None);
    let gone = refused(&order(by, "drain", node, &[]));
    assert!(gone.contains("was removed"), "{gone}");
    std::fs::remove_dir_all(&homes[0].folder).expect("removed");
    running[0] = Some(homes[0].start());
    wait_for("a new node", || {
        let nodes = nodes(by)?;
        let alive = nodes.values().filter(|(state, _)| state == "alive");
        (alive.count() == 4).then_some(())
    });
    assert!(id(&homes[0]) > node, "another id");
    assert_eq!(by.cli(&["status"]).status.code(), Some(0));
}

#[test]
fn a_node_that_is_told_to_stop_serves_for_a_while_and_says_that_it_stops() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1", "--drain-wait", "4s"]);
    let mut node = home.start();
    node.signal("TERM");
    wait_for("a node that is not ready", || {
        (home.page("/readyz").0 == 503).then_some(())
    });
    assert_eq!(request(&home, "PUT", "kv/k", b"v").status, 200);
    home.put("k", "w");
    assert!(node.is_running());
    assert_eq!(node.wait().code(), Some(0), "{}", home.log());
}

/// Begins to drain a node, by a command that waits for the end.
fn draining(by: &Home, node: u64) -> Child {
    let mut rangedb = command("rangedb");
    rangedb.args([
        "node",
        "drain",
        &node.to_string(),
        "--wait",
        "--addr",
        &by.listen,
    ]);
    let piped = rangedb.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().expect("it starts")
}

#[test]
fn a_drain_may_be_ordered_twice_at_once_and_outlives_its_command() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let _running = start_all(&homes);
    wait_until_replicated(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        // The node that manages, by the two others and by itself.
        let manager = cluster::status(&homes[0])["system_leader"]["node"].as_u64();
        let manager = manager.expect("an id");
        let orders: Vec<Child> = homes.iter().map(|by| draining(by, manager)).collect();
        for order in orders {
            let printed = succeeded(&order.wait_with_output().expect("it ends"));
            let lines = progress(&printed);
            let last = lines.last().expect("a line");
            assert_eq!(
                (&last["draining"], &last["leaders_left"]),
                (&json!(manager), &json!(0))
            );
        }
        load.goes_on();
        succeeded(&order(&homes[0], "undrain", manager, &[]));
        // A command that is killed leaves the order in force. Another node manages now, and leads.
        let manager = cluster::status(&homes[0])["system_leader"]["node"].as_u64();
        let manager = manager.expect("an id");
        let mut killed = draining(&homes[0], manager);
        wait_for("an order", || {
            (listed(&homes[0], manager)?["membership"] == "draining").then_some(())
        });
        // It may have ended already.
        let _ = killed.kill();
        killed.wait().expect("it ends");
        wait_for("a node that leads nothing", || {
            (listed(&homes[0], manager)?["leaders"] == 0).then_some(())
        });
        load.goes_on();
        load.end()
            .await
            .assert_unharmed("drains ordered twice at once");
    });
}

#[test]
fn a_node_that_is_told_to_stop_while_it_drains_ends_in_order() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = cluster::homes(temp.path());
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    run(async {
        let load = Load::begin(&homes, 100).await;
        load.goes_on();
        let node = id(&homes[2]);
        let waits = draining(&homes[0], node);
        let process = running[2].take().expect("it runs");
        process.signal("TERM");
        assert_eq!(process.wait().code(), Some(0), "{}", homes[2].log());
        load.goes_on();
        let ended = waits.wait_with_output().expect("it ends");
        // The node may have been gone before the order came: two of three voters are left then.
        let refused = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(
            [Some(0), Some(REFUSED)].contains(&ended.status.code()),
            "{refused}"
        );
        running[2] = Some(homes[2].start());
        succeeded(&order(&homes[0], "undrain", node, &[]));
        wait_until_replicated(&homes);
        load.goes_on();
        load.end().await.assert_unharmed("a stop during a drain");
    });
}

#[test]
fn a_node_that_is_told_to_stop_while_it_starts_ends_in_order() {
    /// The end by SIGTERM, before the process has taken its signals.
    const SIGTERM: i32 = 15;
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let node = home.start();
    for key in ["a", "z"] {
        home.put(key, "v");
    }
    node.kill();
    let mut in_order = 0;
    for pause in (0..600).step_by(25) {
        let node = Node::spawn(&mut home.start_command(), home.log_file());
        std::thread::sleep(Duration::from_millis(pause));
        node.signal("TERM");
        let ended = node.wait();
        assert!(
            ended.code() == Some(0) || ended.signal() == Some(SIGTERM),
            "after {pause} ms: {ended}\n{}",
            home.log()
        );
        in_order += u32::from(ended.code() == Some(0));
    }
    println!("{in_order} of 24 starts were stopped in order");
    assert!(in_order > 12, "{in_order}");
    let _node = home.start();
    for key in ["a", "z"] {
        assert_eq!(home.cli(&["get", key]).stdout, b"v\n");
    }
}
