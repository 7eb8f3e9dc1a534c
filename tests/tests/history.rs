//! The history of a real node: nothing depends on it, whatever becomes of its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_tests::cluster::{homes, start_all, status, variable, wait_for, wait_until_replicated};
use rangedb_tests::http::request;
use rangedb_tests::net::available;
use rangedb_tests::net::small_disk::SmallDisk;
use rangedb_tests::process::{Home, Node};
use serde_json::Value;

/// Places that are damaged, one before each start, and times that a node is killed.
const DAMAGED: u64 = 100;
const KILLS: u64 = 12;
/// The journal may be cut off at any place, as a crash in the middle of a write does, and the list of files may
/// name some that are needed no more.
const BEARS_DAMAGE: [&str; 2] = ["0.jnl", "sealed"];
/// Files that are not of the database: one that says nothing, and the last words of the run.
const OTHERS: [&str; 2] = ["lock", "running"];
/// A disk with room for an empty database, and little more.
const DISK_MIB: u64 = 16;

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// The events that the node tells, or `None` while it has no history to tell of.
fn events(home: &Home) -> Option<Vec<Value>> {
    let output = home.cli(&["history", "--format", "json", "--from", "2h"]);
    let told: Value = serde_json::from_slice(&output.stdout).ok()?;
    told["events"].as_array().cloned()
}

fn has(events: &[Value], kind: &str) -> bool {
    events.iter().any(|event| event["kind"] == kind)
}

/// The node serves, and its history is told.
fn assert_serves(home: &Home, number: u64) {
    let value = number.to_string();
    home.put("k", &value);
    assert_eq!(
        home.cli(&["get", "k"]).stdout,
        format!("{value}\n").as_bytes()
    );
    wait_for("a history", || {
        events(home).filter(|events| !events.is_empty())
    });
}

/// Changes some bytes of one file at random; gives the file.
fn damage(folder: &Path, random: &mut StdRng) -> PathBuf {
    let mut all = files(folder);
    all.retain(|file| OTHERS.iter().all(|other| !file.ends_with(other)));
    let file = all.swap_remove(random.random_range(0..all.len()));
    let mut bytes = fs::read(&file).expect("it is read");
    // fjall makes room in its journal, which says nothing.
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        bytes = vec![7; 40];
    } else {
        let at = random.random_range(0..end);
        let (before, end) = (bytes.clone(), (at + 8).min(bytes.len()));
        while bytes == before {
            random.fill(&mut bytes[at..end]);
        }
    }
    fs::write(&file, bytes).expect("it is written");
    file
}

#[test]
fn a_node_starts_whatever_bytes_of_its_history_are_damaged() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let history = home.folder.join("history");
    home.start().kill();
    let mut random = StdRng::seed_from_u64(variable("RANGEDB_SEED").unwrap_or(1));
    let mut put_aside = 0;
    for number in 0..DAMAGED {
        let file = damage(&history, &mut random);
        let before = home.log().len();
        let node = home.start();
        assert_serves(&home, number);
        let log = home.log().split_off(before);
        let is_told = log.contains("event=\"history_damaged\"");
        put_aside += u64::from(is_told);
        let may_be_borne = BEARS_DAMAGE.iter().any(|name| file.ends_with(name));
        assert!(
            is_told || may_be_borne,
            "{} is damaged:\n{log}",
            file.display()
        );
        let aside = fs::read_dir(&home.folder).expect("a folder").flatten();
        let aside = aside.filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("history.damaged-")
        });
        let aside = aside.count();
        assert!(
            aside <= 1 && (!is_told || aside == 1),
            "one is put aside, not {aside}"
        );
        match number % 2 {
            0 => node.kill(),
            _ => {
                node.signal("TERM");
                assert_eq!(node.wait().code(), Some(0));
            }
        }
    }
    println!("{DAMAGED} places damaged, {put_aside} times put aside");
    assert!(put_aside > DAMAGED / 4, "{put_aside}");
}

/// Has the node write events, as fast as it takes them.
fn write_events(home: &Home, number: u64) {
    let value = format!("{}m", 5 + number % 2);
    let _ = home.cli(&["config", "set", "dead-after", &value, "--timeout", "1s"]);
}

#[test]
fn a_kill_while_it_is_written_damages_no_history() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let mut random = StdRng::seed_from_u64(variable("RANGEDB_SEED").unwrap_or(1));
    for number in 0..KILLS {
        let node = home.start();
        let pause = Duration::from_millis(random.random_range(0..600));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for event in 0..5 {
                    write_events(&home, number + event);
                }
            });
            std::thread::sleep(pause);
            node.kill();
        });
    }
    let _node: Node = home.start();
    assert_serves(&home, 7);
    let told = wait_for("the crash before this start", || {
        events(&home).filter(|events| has(events, "crash"))
    });
    let crashes = told.iter().filter(|event| event["kind"] == "crash").count() as u64;
    let starts = told
        .iter()
        .filter(|event| event["kind"] == "node_starting")
        .count() as u64;
    println!("{KILLS} kills: {crashes} crashes and {starts} starts are told");
    // What was written last may be gone with the process.
    assert!(crashes > KILLS / 2 && starts > KILLS / 2, "{told:?}");
    let log = home.log();
    assert!(!log.contains("history_damaged"), "{log}");
}

#[test]
fn a_history_on_a_full_disk_pauses_and_goes_on() {
    let temp = tempfile::tempdir().expect("a folder");
    let Some(disk) = available(SmallDisk::new(&temp.path().join("disk"), DISK_MIB)) else {
        return;
    };
    let home = Home::new(temp.path(), &["--shards", "1"]);
    home.start().kill();
    // Only the history lies on the small disk.
    let (history, place) = (home.folder.join("history"), disk.folder().join("history"));
    fs::remove_dir_all(&history).expect("removed");
    fs::create_dir(&place).expect("made");
    std::os::unix::fs::symlink(&place, &history).expect("linked");
    disk.fill();
    let mut node = home.start();
    let log = || home.log();
    wait_for("a pause", || {
        log().contains("event=\"history_paused\"").then_some(())
    });
    for number in 0..20 {
        let value = number.to_string();
        home.put("k", &value);
    }
    assert_eq!(home.page("/livez").0, 200);
    assert_eq!(home.page("/readyz").0, 200);
    disk.make_room();
    wait_for("a history that goes on", || {
        log().contains("event=\"history_resumed\"").then_some(())
    });
    assert_serves(&home, 7);
    let told = events(&home).expect("a history");
    assert!(
        has(&told, "node_starting"),
        "what waited is there: {told:?}"
    );
    assert!(node.is_running());
    assert!(!log().contains("history_damaged"), "{}", log());
    // The node must end before its disk is unmounted.
    drop(node);
    drop(disk);
}

/// The library that shows another wall clock to a process: where the variable `FAKETIME_LIBRARY` says, or where
/// Debian's package `libfaketime` has it.
fn faketime() -> Result<PathBuf, String> {
    let arch = std::env::consts::ARCH;
    let usual = format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1");
    let path = std::env::var_os("FAKETIME_LIBRARY").map_or_else(|| usual.into(), PathBuf::from);
    match path.is_file() {
        true => Ok(path),
        false => Err(format!("there is no {}", path.display())),
    }
}

#[test]
fn a_clock_that_goes_a_day_ahead_and_back_loses_no_event() {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let Some(library) = available(faketime()) else {
        return;
    };
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let clock = temp.path().join("clock");
    let set = |offset: &str| fs::write(&clock, format!("{offset}\n")).expect("it is written");
    let start = || {
        let mut start = home.start_command();
        start
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", &clock);
        start
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let mut node = Node::spawn(&mut start, home.log_file());
        assert!(node.becomes_ready(), "{}", home.log());
        node
    };
    set("+0");
    let node = start();
    assert_serves(&home, 1);
    for (number, (offset, way)) in (2..).zip([("+1d", "ahead by"), ("+0", "back by")]) {
        set(offset);
        wait_for(way, || home.log().contains(way).then_some(()));
        assert_serves(&home, number);
    }
    // The clock is wrong at a start, too, and right again at the next.
    node.kill();
    set("+1d");
    let node = start();
    assert_serves(&home, 4);
    node.kill();
    set("+0");
    let node = start();
    assert_serves(&home, 5);
    let told = events(&home).expect("a history");
    let times = |kind: &str| {
        let of_kind = told.iter().filter(|event| event["kind"] == kind);
        let times = of_kind.map(|event| {
            event["t"]
                .as_str()
                .map(str::to_owned)
                .or_else(|| Some(event["t"].to_string()))
        });
        let mut times: Vec<u64> = times
            .map(|t| t.and_then(|t| t.parse().ok()).expect("a time"))
            .collect();
        times.sort_unstable();
        times
    };
    let (jumps, starts) = (times("clock_jumped"), times("node_starting"));
    assert_eq!((jumps.len(), starts.len()), (2, 3), "{told:?}");
    assert!(
        jumps[1] - jumps[0] > DAY_MS / 2,
        "one was told a day ahead: {jumps:?}"
    );
    assert!(starts[2] - starts[0] > DAY_MS / 2, "{starts:?}");
    assert!(has(&told, "crash"), "{told:?}");
    assert!(!home.log().contains("history_damaged"), "{}", home.log());
    drop(node);
}

/// The history that a command tells.
fn told(home: &Home, flags: &[&str]) -> Option<Value> {
    let asked = ["history", "--format", "json", "--from", "1h"];
    let output = home.cli(&[&asked, flags].concat());
    serde_json::from_slice(&output.stdout).ok()
}

/// The member of each minute of a history.
fn by_minute(told: &Value, name: &str) -> BTreeMap<u64, u64> {
    let minutes = told["minutes"].as_array().expect("minutes").iter();
    let figure = |minute: &Value, name: &str| minute[name].as_u64().expect("a number");
    minutes
        .map(|minute| (figure(minute, "t"), figure(minute, name)))
        .collect()
}

#[test]
fn the_history_is_that_of_all_nodes_and_names_those_that_are_missing() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let ids = [0, 1, 2].map(|at| status(&homes[at])["node"].as_u64().expect("an id"));
    // Each node has work of its own: a leader serves what it was asked for, another one a route.
    for home in &homes {
        for number in 0..20 {
            let key = number.to_string();
            assert!(home.cli(&["put", &key, "value"]).status.success());
        }
    }
    let asked = |at: usize| told(&homes[0], &["--node", &ids[at].to_string()]);
    let begun = Instant::now();
    let over_http = |home: &Home| request(home, "GET", "history/all?from=1h", b"").json();
    let (alone, all, shown) = loop {
        assert!(begun.elapsed() < Duration::from_secs(100), "no minute ends");
        let all = told(&homes[0], &[]).expect("it is told");
        let alone = [0, 1, 2].map(|at| asked(at).expect("it is told"));
        let shown = over_http(&homes[0]);
        let after = told(&homes[0], &[]).expect("it is told");
        if all["minutes"] == after["minutes"]
            && by_minute(&all, "ops").values().any(|ops| *ops >= 60)
        {
            break (alone, all, shown);
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    let mut sorted = ids;
    sorted.sort_unstable();
    assert_eq!(all["nodes"], serde_json::json!(sorted), "{all}");
    assert_eq!(all["missing_nodes"], serde_json::json!([]), "{all}");
    for name in ["nodes", "missing_nodes", "minutes", "hours"] {
        assert_eq!(shown[name], all[name], "{name} over HTTP");
    }
    for name in ["ops", "errors"] {
        let mut sums = BTreeMap::new();
        for node in &alone {
            for (t, figure) in by_minute(node, name) {
                *sums.entry(t).or_default() += figure;
            }
        }
        assert_eq!(by_minute(&all, name), sums, "{name}");
    }
    let most = alone
        .iter()
        .flat_map(|node| by_minute(node, "p999_us").into_values());
    let most = most.max().expect("minutes");
    let merged = by_minute(&all, "p999_us").into_values().max();
    assert!(
        merged.is_some_and(|merged| (1..=most).contains(&merged)),
        "{merged:?} {most}"
    );
    let events = all["events"].as_array().expect("events");
    let at = |event: &Value| event["t"].as_u64().expect("a time");
    assert!(events.is_sorted_by_key(at), "{events:?}");
    for id in ids {
        let is_its = |event: &&Value| event["node"] == id && event["kind"] == "node_starting";
        assert!(
            events.iter().any(|event| is_its(&event)),
            "node {id}: {events:?}"
        );
    }
    nodes[2].take().expect("it runs").kill();
    let output = homes[0].cli(&["history"]);
    assert!(output.status.success(), "{output:?}");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        words.contains(&format!("node {} at {}", ids[2], homes[2].listen)),
        "{words}"
    );
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.starts_with("nodes "), "{shown}");
    let without = told(&homes[0], &[]).expect("it is told");
    assert_eq!(without["missing_nodes"][0]["node"], ids[2], "{without}");
    assert_eq!(
        without["nodes"].as_array().map(Vec::len),
        Some(2),
        "{without}"
    );
    let shown = over_http(&homes[0]);
    assert_eq!(shown["missing_nodes"][0]["node"], ids[2], "{shown}");
    assert_eq!(shown["missing_nodes"][0]["address"], homes[2].listen);
    assert_eq!(shown["nodes"], without["nodes"], "{shown}");
    assert_eq!(shown["nodes_unknown"], Value::Null, "{shown}");
    // Without a majority there is no other manager once this one is gone, and nobody else knows the nodes: the
    // node that answers tells its own history, and why.
    let manager = wait_for("a manager", || {
        let shown = request(&homes[0], "GET", "status", b"").json();
        let manager = shown["system_leader"]["node"].as_u64()?;
        ids[..2].iter().position(|id| *id == manager)
    });
    let left = 1 - manager;
    nodes[manager].take().expect("it runs").kill();
    wait_for("a list of nodes that cannot be read", || {
        let output = homes[left].cli(&["node", "ls", "--timeout", "1s"]);
        (!output.status.success()).then_some(())
    });
    let alone = told(&homes[left], &["--timeout", "3s"]).expect("it is told");
    for alone in [alone, over_http(&homes[left])] {
        assert_eq!(alone["nodes"], serde_json::json!([ids[left]]), "{alone}");
        assert_eq!(alone["missing_nodes"], serde_json::json!([]), "{alone}");
        let why = alone["nodes_unknown"].as_str().expect("a reason");
        assert!(!why.is_empty(), "{alone}");
        let events = alone["events"].as_array().expect("events");
        assert!(has(events, "node_starting"), "{alone}");
        assert!(events.iter().all(|event| event["node"] == ids[left]));
    }
    let output = homes[left].cli(&["history", "--timeout", "3s"]);
    assert!(output.status.success(), "{output:?}");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = "the other nodes are missing, since the list of nodes cannot be read: ";
    assert!(words.contains(told), "{words}");
}
