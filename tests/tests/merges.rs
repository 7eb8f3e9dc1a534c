//! Ranges of the real binary are split and merged again while clients work.
//!
//! What else may happen meanwhile is tried in `bounds.rs`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rangedb_engine::types::SYSTEM_RANGE;
use rangedb_tests::cluster::{
    homes, ranges, start_all, wait_for, wait_until_alike, wait_until_replicated,
};
use rangedb_tests::load::{Load, run};
use rangedb_tests::process::Home;
use serde_json::Value;

/// The users' ranges by their first keys, in hexadecimal digits; `None` while a leader has not reported.
fn try_starts(home: &Home) -> Option<Vec<(String, u64)>> {
    let all = ranges(home)?;
    let users = all.iter().filter(|(id, _)| **id != SYSTEM_RANGE.0);
    let mut starts: Vec<_> = users
        .map(|(id, range)| (range.start.clone(), *id))
        .collect();
    starts.sort();
    Some(starts)
}

fn starts(home: &Home) -> Vec<(String, u64)> {
    wait_for("reports of all ranges", || try_starts(home))
}

/// The id of the range that holds a key.
fn try_range_of(home: &Home, key: &str) -> Result<u64, String> {
    let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    let starts = try_starts(home).ok_or("the ranges are not known")?;
    let found = starts.iter().rfind(|(start, _)| *start <= hex);
    found.map(|found| found.1).ok_or_else(|| key.to_owned())
}

fn range_of(home: &Home, key: &str) -> u64 {
    wait_for("reports of all ranges", || try_range_of(home, key).ok())
}

/// Runs a command of `range`; gives what it says if it fails.
fn range(home: &Home, args: &[&str]) -> Result<(), String> {
    let args: Vec<&str> = ["range"].iter().chain(args).copied().collect();
    let output = home.cli(&args);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What a command prints as JSON.
fn json(home: &Home, args: &[&str]) -> Value {
    let output = home.cli(&[args, &["--format", "json"]].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The range in the JSON of `range ls`.
fn shown(home: &Home, id: u64) -> Value {
    let all = json(home, &["range", "ls"]);
    let mut all = all["ranges"].as_array().expect("a list").iter();
    all.find(|range| range["id"] == id)
        .expect("it is shown")
        .clone()
}

/// The outcomes of the decisions to merge a range for a reason with this word.
fn merges(home: &Home, id: u64, reason: &str) -> Vec<String> {
    let all = json(home, &["balance"]);
    let all = all["decisions"].as_array().expect("a list").iter();
    let merges = all.filter(|one| {
        let why = one["reason"].as_str().unwrap_or_default();
        let expected = one["expected"].as_str().unwrap_or_default();
        let is_whole = one["kind"] == "merge" && expected.contains("the keys of range");
        is_whole && one["range"] == id && why.contains(reason)
    });
    let outcome = |one: &Value| one["outcome"].as_str().unwrap_or_default().to_owned();
    merges.map(outcome).collect()
}

fn split(home: &Home, key: &str) -> Result<(), String> {
    let id = try_range_of(home, key)?.to_string();
    range(home, &["split", &id, "--at", key, "--timeout", "10s"])
}

/// Merges the range that holds a key with its right neighbour.
fn merge(home: &Home, key: &str) -> Result<(), String> {
    let id = try_range_of(home, key)?.to_string();
    range(home, &["merge", &id, "--timeout", "30s"])
}

#[test]
fn ranges_are_merged_under_load_and_no_call_fails() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let before = starts(&homes[0]);
    let keys: Vec<String> = (0..6).map(|index| format!("a-{index}-3")).collect();
    let seen = run(async {
        let load = Load::begin(&homes, 100).await;
        tokio::task::block_in_place(|| {
            load.goes_on();
            for key in &keys {
                starts(&homes[0]);
                split(&homes[0], key).unwrap_or_else(|why| panic!("split at {key}: {why}"));
            }
            load.goes_on();
            // From the right: the range left of each border takes over what begins there.
            for key in keys.iter().rev() {
                starts(&homes[1]);
                let begun = Instant::now();
                let left = format!("{}2", &key[..4]);
                merge(&homes[1], &left).unwrap_or_else(|why| panic!("merge at {key}: {why}"));
                println!("merged at {key} after {:?}", begun.elapsed());
            }
            load.goes_on();
        });
        load.end().await
    });
    seen.assert_unharmed("6 splits and 6 merges");
    wait_until_alike(&homes);
    assert_eq!(
        starts(&homes[0]),
        before,
        "the ranges are those of the beginning"
    );
    let merges: f64 = homes
        .iter()
        .map(|home| home.metric_with("rangedb_merges_total", "outcome=\"done\""))
        .sum();
    assert!(merges >= 6.0, "{merges}");
    drop(nodes);
}

#[test]
fn a_neighbour_on_another_shard_moves_first_and_what_was_merged_is_there_after_a_kill() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let node = home.start();
    for key in ["a", "l", "m", "z"] {
        home.put(key, "value");
    }
    let two = wait_for("two ranges", || {
        try_starts(&home).filter(|starts| starts.len() == 2)
    });
    let left = two[0].1;
    let before = shown(&home, left);
    assert_eq!(before["replicas"][0]["parts"], 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("it is after 1970").as_millis() as u64;
    let born = before["born_ms"].as_u64().expect("a number");
    assert!(born <= now && now < born + 600_000, "{born} {now}");
    merge(&home, "a").expect("it is merged");
    assert_eq!(starts(&home), two[..1]);
    assert_eq!(merges(&home, left, "operator"), ["done"]);
    wait_for("the rows of both ranges in one", || {
        (shown(&home, left)["replicas"][0]["parts"] == 2).then_some(())
    });
    let refused = range(&home, &["merge", &left.to_string()]);
    refused.expect_err("it has no right neighbour");
    assert_eq!(
        merges(&home, left, "operator"),
        ["done"],
        "what is refused is no decision"
    );
    home.put("n", "value");
    node.kill();
    let node = home.start();
    wait_for("the range after the kill", || {
        (try_starts(&home)?.as_slice() == &two[..1]).then_some(())
    });
    assert_eq!(shown(&home, left)["born_ms"], born, "it is the same range");
    for key in ["a", "l", "m", "n", "z"] {
        let got = home.cli(&["get", key]);
        assert!(got.status.success(), "{key}: {got:?}");
    }
    let scan = home.cli(&["scan", "--format", "json"]);
    let rows = String::from_utf8_lossy(&scan.stdout)
        .matches("\"key\"")
        .count();
    assert_eq!(rows, 5, "{scan:?}");
    let last = two[0].1.to_string();
    for (id, why) in [
        (last.as_str(), "has the last keys"),
        ("1", "the cluster's own records"),
        ("99", "there is no range 99"),
    ] {
        let refused = range(&home, &["merge", id]).expect_err("it cannot be merged");
        assert!(refused.contains(why), "{refused}");
    }
    drop(node);
}

#[test]
fn neighbours_that_are_small_and_cold_are_merged_unless_they_are_held() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let before = wait_for("the first range", || {
        try_starts(&home).filter(|starts| !starts.is_empty())
    });
    let id = range_of(&home, "a").to_string();
    range(&home, &["split", &id, "--at", "t", "--hold", "0s"]).expect("it is split");
    starts(&home);
    let held = ["split", &id, "--at", "g", "--at", "p", "--hold", "1h"];
    range(&home, &held).expect("it is split");
    assert_eq!(starts(&home).len(), before.len() + 3);
    home.set("merge-after", "1s");
    wait_for("the merge of what is not held", || {
        let now = try_starts(&home)?;
        (now.len() == before.len() + 2).then_some(())
    });
    let left = range_of(&home, "p");
    wait_for("the end of the decision", || {
        (merges(&home, left, "small") == ["done"]).then_some(())
    });
    for key in ["g", "p"] {
        let id = range_of(&home, key).to_string();
        range(&home, &["release", &id]).expect("it is released");
    }
    wait_for("the other merges", || {
        let now = try_starts(&home)?;
        (now.len() == before.len()).then_some(())
    });
}
