//! Ranges of the real binary are split while clients work.
//!
//! What else may happen meanwhile is tried in `bounds.rs`.

use std::collections::BTreeMap;
use std::time::Instant;

use rangedb_engine::types::SYSTEM_RANGE;
use rangedb_tests::cluster::{
    Range, homes, ranges, start_all, wait_for, wait_until_alike, wait_until_replicated,
};
use rangedb_tests::load::{Load, client, run};
use rangedb_tests::process::Home;

/// The id of the range that holds a key; `None` while a leader has not reported.
fn range_of(home: &Home, key: &str) -> Option<u64> {
    let all = ranges(home)?;
    let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    let users = all.iter().filter(|(id, _)| **id != SYSTEM_RANGE.0);
    let before = users.filter(|(_, range)| range.start <= hex);
    let found = before.max_by_key(|(_, range)| range.start.clone());
    found.map(|(id, _)| *id)
}

/// Splits the range that holds a key, at the key; gives what the command says if it fails.
fn split(homes: &[Home], key: &str) -> Result<(), String> {
    let range = range_of(&homes[0], key).ok_or("the ranges are not known")?;
    let id = range.to_string();
    let output = homes[0].cli(&["range", "split", &id, "--at", key, "--timeout", "10s"]);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Checks that the users' ranges lie side by side and are led.
fn check_tile(ranges: &BTreeMap<u64, Range>, at_least: usize) {
    let mut starts: Vec<&str> = ranges.values().map(|range| range.start.as_str()).collect();
    let count = starts.len();
    starts.sort_unstable();
    assert!(count >= at_least, "{ranges:#?}");
    assert!(
        ranges.values().all(|range| range.leader.is_some()),
        "{ranges:#?}"
    );
}

#[test]
fn ranges_are_split_under_load_and_no_call_fails() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let before = wait_for("reports of all ranges", || ranges(&homes[0])).len();
    let seen = run(async {
        let load = Load::begin(&homes, 100).await;
        tokio::task::block_in_place(|| load.goes_on());
        for place in ["a", "x"] {
            for index in 0..8 {
                let key = format!("{place}-{index}-3");
                // A range that was just born has no term until its leader has reported.
                tokio::task::block_in_place(|| {
                    wait_for("reports of all ranges", || ranges(&homes[0]));
                });
                let begun = Instant::now();
                let split = tokio::task::block_in_place(|| split(&homes, &key));
                split.unwrap_or_else(|why| panic!("{key}: {why}"));
                println!("split at {key} after {:?}", begun.elapsed());
            }
        }
        tokio::task::block_in_place(|| load.goes_on());
        load.end().await
    });
    seen.assert_unharmed("16 splits");
    wait_until_alike(&homes);
    let after = wait_for("reports of all ranges", || ranges(&homes[0]));
    check_tile(&after, before + 16);
    drop(nodes);
}

#[test]
fn a_range_that_grows_is_split_because_of_its_size() {
    const VALUES: usize = 5_000;
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let node = home.start();
    home.set("range-size-max", "16MiB");
    let before = wait_for("reports of all ranges", || ranges(&home)).len();
    run(async {
        let client = client(std::slice::from_ref(&home)).await;
        // In the order of the keys, and the last ones again and again.
        for number in 0..VALUES {
            let value = vec![b'v'; 12_000];
            let put = client.put(format!("key-{number:06}"), value).await;
            put.unwrap_or_else(|error| panic!("key-{number:06}: {error:?}"));
        }
        // 57 MiB: at least four ranges of 16 MiB.
        let home = home.clone();
        tokio::task::block_in_place(|| {
            wait_for("splits because of size", || {
                (ranges(&home)?.len() >= before + 3).then_some(())
            });
        });
        for number in (0..VALUES).step_by(97) {
            let found = client
                .get(format!("key-{number:06}"))
                .await
                .expect("it is read");
            assert!(found.is_some(), "key-{number:06}");
        }
    });
    let splits = home.metric_with("rangedb_splits_total", "reason=\"size\"");
    assert!(splits >= 3.0, "{splits}");
    assert_eq!(
        home.metric_with("rangedb_splits_total", "reason=\"manual\""),
        0.0
    );
    node.kill();
    // What was split is split after a restart.
    let _node = home.start();
    let after = wait_for("leaders of all ranges", || {
        let known = ranges(&home)?;
        known
            .values()
            .all(|range| range.leader.is_some())
            .then_some(known)
    });
    check_tile(&after, before + 3);
}

#[test]
fn many_keys_at_once_make_ranges_that_all_nodes_lead() {
    /// Keys, which are all in the last of the first ranges.
    const KEYS: usize = 500;
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let before = wait_for("reports of all ranges", || ranges(&homes[0])).len();
    let file = temp.path().join("keys");
    let keys: String = (0..KEYS).map(|n| format!("n-{n:04}\n")).collect();
    std::fs::write(&file, keys).expect("it is written");
    let begun = Instant::now();
    let file = file.to_str().expect("a name");
    // On a busy machine an order may end without an answer; then the command is repeated.
    let split = ["range", "split", "--at-file", file, "--timeout", "2m"];
    let is_done = (0..3).any(|_| {
        let output = homes[1].cli(&split);
        println!("{}", String::from_utf8_lossy(&output.stderr));
        output.status.success()
    });
    assert!(is_done, "the keys were not split");
    println!("{KEYS} keys after {:?}", begun.elapsed());
    let led = wait_for("leaders that are spread evenly", || {
        let mut users = ranges(&homes[0])?;
        users.remove(&SYSTEM_RANGE.0);
        let mut led: BTreeMap<u64, usize> = BTreeMap::new();
        for range in users.values() {
            *led.entry(range.leader?).or_default() += 1;
        }
        let (most, least) = (led.values().max()?, led.values().min()?);
        (users.len() == before - 1 + KEYS && led.len() == 3 && most * 10 <= least * 12)
            .then_some(led)
    });
    println!("led evenly after {:?}: {led:?}", begun.elapsed());
    check_tile(
        &wait_for("reports of all ranges", || ranges(&homes[0])),
        before + KEYS,
    );
    // Nearly all ranges were led where they are from their birth on.
    let log: String = homes.iter().map(Home::log).collect();
    let handed_over = log.matches("to hand its leadership to replica").count();
    println!("{handed_over} leaderships went elsewhere");
    assert!(
        handed_over < KEYS / 4,
        "{handed_over} leaderships went elsewhere"
    );
    drop(nodes);
}
