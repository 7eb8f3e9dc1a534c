//! Hot ranges and hot keys of the real binary: they are shown, split because of their load, and moved to the
//! shard that is idle.
//!
//! What counts is the CPU time of the shards' threads. So node and load come before other work of the machine,
//! if the test may say so.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rangedb_tests::cluster::{ranges, wait_for};
use rangedb_tests::http::request;
use rangedb_tests::load::{client, run};
use rangedb_tests::process::{Background, Home, Node, binary, command, without_settings};
use serde_json::Value;

/// How long a test waits for a split. The load of a range and of a shard is a mean over 10 s, must last for
/// 10 s more, and is measured anew after a split.
const SPLIT_TIMEOUT: Duration = Duration::from_secs(240);
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The command that lets another one run before others, if that is allowed.
fn before_others() -> &'static [&'static str] {
    const BEFORE_OTHERS: &[&str] = &["chrt", "--rr", "1"];
    let tried = Command::new("chrt").args(["--rr", "1", "true"]).output();
    match tried.is_ok_and(|output| output.status.success()) {
        true => BEFORE_OTHERS,
        false => &[],
    }
}

/// A node with two shards and one range of users' keys.
fn start(home: &Home) -> Node {
    let log = |home: &Home| Stdio::from(home.log_file());
    let node = home.start_with(before_others(), log(home), log(home));
    wait_for("reports of all ranges", || {
        let known = ranges(home)?;
        let led = known.values().all(|range| range.leader.is_some());
        (led && known.len() == 2).then_some(())
    });
    node
}

fn home(folder: &std::path::Path) -> Home {
    Home::new(folder, &["--shards", "2"])
}

/// Runs a command until it is answered: node and load may leave others little of the machine.
fn cli(home: &Home, arguments: &[&str]) -> Output {
    wait_for("an answer", || {
        let output = home.cli(&[arguments, &["--timeout", "20s"]].concat());
        // No node was reached.
        (output.status.code() != Some(5)).then_some(output)
    })
}

fn json(home: &Home, arguments: &[&str]) -> Value {
    let output = cli(home, &[arguments, &["--format", "json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The ranges of users' keys, as `range ls` shows them.
fn users_ranges(home: &Home) -> Vec<Value> {
    let all = json(home, &["range", "ls"]);
    let all = all["ranges"].as_array().expect("a list").clone();
    all.into_iter()
        .filter(|range| range["system"] == false)
        .collect()
}

fn load(home: &Home, records: &str) {
    let mut command = command("loadgen");
    command.args(["load", "--addr", &home.listen, "--records", records]);
    let output = command.output().expect("loadgen runs");
    assert!(output.status.success(), "{output:?}");
}

/// Asks for records at full rate in the background.
fn ask(home: &Home, records: &str, workload: &[&str]) -> Background {
    let loadgen = binary("loadgen").display().to_string();
    let mut words = before_others().iter().copied().chain([loadgen.as_str()]);
    let mut command = Command::new(words.next().expect("a program"));
    without_settings(&mut command);
    command.args(words).args(["run", "--addr", &home.listen]);
    command.args(["--records", records, "--distribution", "uniform"]);
    command.args(["--connections", "8", "--depth", "4", "--duration", "30m"]);
    command.args(workload);
    Background::start(&mut command)
}

/// Waits for a condition, which takes long.
fn wait_long<T>(what: &str, home: &Home, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition() {
            println!("{what} after {:?}", begun.elapsed());
            return found;
        }
        if begun.elapsed() > SPLIT_TIMEOUT {
            let nodes = home.cli(&["node", "ls", "--format", "json"]);
            let ranges = users_ranges(home);
            panic!(
                "{what} does not come: {nodes:?} {ranges:#?}\n{}",
                home.log()
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn splits_by_load(home: &Home) -> f64 {
    home.metric_with("rangedb_splits_total", "reason=\"load\"")
}

#[test]
fn a_hot_range_is_split_and_the_idle_shard_takes_a_part() {
    const RECORDS: usize = 20_000;
    let temp = tempfile::tempdir().expect("a folder");
    let home = home(temp.path());
    let _node = start(&home);
    load(&home, &RECORDS.to_string());
    // Scans of up to 100 rows: the node has more to do with them than the client.
    let mut scans = ask(&home, &RECORDS.to_string(), &["--workload", "e"]);
    let hottest = |top: &str| json(&home, &["range", "hot", "--top", top]);
    wait_long("keys of the hot range", &home, || {
        let keys = hottest("1")["ranges"][0]["keys"].clone();
        (keys.as_array()?.len() == 10).then_some(())
    });
    wait_long("a split because of load", &home, || {
        (splits_by_load(&home) >= 1.0).then_some(())
    });
    wait_long("a part at each shard", &home, || {
        let all = users_ranges(&home);
        let leaders = all.iter().map(|range| range["leader_shard"].as_u64());
        let leaders: Option<BTreeSet<u64>> = leaders.collect();
        (leaders?.len() == 2).then_some(())
    });
    assert!(scans.is_running(), "the scans go on");
    drop(scans);
    let ours = |reason| home.metric_with("rangedb_splits_total", reason);
    assert_eq!(ours("reason=\"size\"") + ours("reason=\"manual\""), 0.0);
    let all = users_ranges(&home);
    assert!(all.len() >= 2, "{all:#?}");
    let found = run(async {
        let client = client(std::slice::from_ref(&home)).await;
        let mut rows = client.scan(rangedb_client::ScanOptions::default());
        let mut found = 0;
        while let Some(row) = rows.next().await {
            row.expect("it is read");
            found += 1;
        }
        found
    });
    assert!(found >= RECORDS, "{found}");
}

#[test]
fn a_hot_key_is_cut_out_and_shown_and_is_not_split_again() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = home(temp.path());
    let _node = start(&home);
    load(&home, "1");
    for neighbour in ["!", "~"] {
        home.put(neighbour, "v");
    }
    let rows = json(&home, &["scan", "--keys-only"]);
    let key = rows["rows"][1]["key"].as_str().expect("a key").to_owned();
    let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    let _gets = ask(&home, "1", &["--workload", "c", "--batch", "20"]);
    let alone = wait_long("a range of the key alone", &home, || {
        let all = users_ranges(&home);
        let alone = all.iter().find(|range| {
            range["start"] == hex.as_str() && range["end"] == format!("{hex}00").as_str()
        });
        alone.map(|range| range["id"].clone())
    });
    assert!(splits_by_load(&home) >= 2.0);
    let blocked = wait_long("a range that is not split again", &home, || {
        let all = users_ranges(&home);
        let found = all.iter().find(|range| range["id"] == alone)?;
        let blocked = found["split_blocked"].clone();
        (!blocked.is_null()).then_some(blocked)
    });
    assert_eq!(blocked["reason"], "single_key", "{blocked}");
    assert_eq!(blocked["key"], hex.as_str(), "{blocked}");
    assert!(blocked["since_ms"].as_u64() > Some(0), "{blocked}");
    let id = alone.to_string();
    let shown = cli(&home, &["range", "show", &id]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("single_key") && shown.contains(&key),
        "{shown}"
    );
    // Neighbours are ranges of their own, and nothing else was split.
    assert_eq!(users_ranges(&home).len(), 3);
    // The key is the hottest one, on the command line and over HTTP.
    let by_command = json(&home, &["range", "hot"]);
    assert_eq!(by_command["ranges"].as_array().map(Vec::len), Some(3));
    let (status, body) = home.page("/api/v1/ranges/hot?top=1");
    assert_eq!(status, 200, "{body}");
    let by_page: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(by_page["ranges"].as_array().map(Vec::len), Some(1));
    for hot in [by_command, by_page] {
        let hot = &hot["ranges"][0];
        assert_eq!(hot["id"], alone, "{hot}");
        assert_eq!(hot["keys"][0]["key"], hex.as_str(), "{hot}");
        assert!(hot["keys"][0]["share"].as_f64() > Some(0.9), "{hot}");
        assert!(hot["cpu_millis_per_second"].as_u64() > Some(250), "{hot}");
    }
    let log = home.log();
    let lines = log.lines().filter(|line| line.contains("split_blocked"));
    let of_reason = lines.filter(|line| line.contains("single_key")).count();
    assert_eq!(of_reason, 1, "{log}");
    let table = cli(&home, &["range", "hot", "--top", "1"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(&key), "{table}");
    for bad in ["0", "101"] {
        let refused = cli(&home, &["range", "hot", "--top", bad]);
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert_eq!(home.page(&format!("/api/v1/ranges/hot?top={bad}")).0, 400);
    }
    for bad in ["top=x", "bottom=1"] {
        assert_eq!(home.page(&format!("/api/v1/ranges/hot?{bad}")).0, 400);
    }
}

#[test]
fn a_range_is_split_into_equal_parts_by_command_and_only_if_it_has_the_keys() {
    const PARTS: usize = 4;
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = start(&home);
    let id = users_ranges(&home)[0]["id"].to_string();
    let refused = |id: &str, parts: &str, says: &str| {
        let output = home.cli(&["range", "split", id, "--into", parts]);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{complaint}");
        let names = complaint.contains(&format!("range {id}")) && complaint.contains(says);
        assert!(names, "{complaint}");
    };
    refused(&id, "2", "too few keys");
    for key in ["a", "b", "c"] {
        home.put(key, "v");
    }
    refused(&id, "9", "too few keys");
    for parts in ["0", "1", "1025", "4000000000"] {
        refused(&id, parts, "2 to 1024");
    }
    refused("999", "2", "there is no range");
    refused("1", "2", "users' keys");
    assert_eq!(users_ranges(&home).len(), 1, "nothing was changed");
    load(&home, "8000");
    let parts = PARTS.to_string();
    let split = json(&home, &["range", "split", &id, "--into", &parts]);
    let split = split["ranges"].as_array().expect("a list").clone();
    assert_eq!(split.len(), PARTS);
    assert_eq!(split[0]["id"].to_string(), id);
    let counts = run(async {
        let client = client(std::slice::from_ref(&home)).await;
        let mut rows = client.scan(rangedb_client::ScanOptions::default());
        let mut counts = vec![0; PARTS];
        while let Some(row) = rows.next().await {
            let row = row.expect("it is read");
            let key: String = row.key.iter().map(|byte| format!("{byte:02x}")).collect();
            let is_before = |part: &&Value| part["start"].as_str() <= Some(key.as_str());
            counts[split.iter().take_while(is_before).count() - 1] += 1;
        }
        counts
    });
    println!("{counts:?}");
    assert!(
        counts.iter().all(|count| (1500..2500).contains(count)),
        "{counts:?}"
    );
    // Over HTTP, into two.
    let last = split[PARTS - 1]["id"].to_string();
    let split = |body: &str| {
        let path = format!("ranges/{last}/split");
        request(&home, "POST", &path, body.as_bytes()).status
    };
    assert_eq!(split(r#"{"into":2,"at":["m"]}"#), 400);
    assert_eq!(split(r#"{"into":1}"#), 400);
    assert_eq!(users_ranges(&home).len(), PARTS);
    assert_eq!(split(r#"{"into":2}"#), 200);
    assert_eq!(users_ranges(&home).len(), PARTS + 1);
}
