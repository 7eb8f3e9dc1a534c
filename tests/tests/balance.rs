//! Load moves between the shards of a real node by itself, and what operators see of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rangedb_tests::http::request;
use rangedb_tests::load::{client, run};
use rangedb_tests::process::{Home, succeeded};
use serde_json::Value;

/// How long the balancer may take on a machine that does other things, too.
const WAIT_TIMEOUT: Duration = Duration::from_mins(4);
/// Clients that load ranges at the same time.
const CLIENTS: usize = 16;
/// The first keys of the ranges; the first range has what comes before.
const BORDERS: &str = "b,c,d,e,f,g,h";
const KEYS: [&str; 8] = ["a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1"];

fn shown(home: &Home, arguments: &[&str]) -> Value {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let output = home.cli(&[arguments, &["--format", "json"]].concat());
        match serde_json::from_slice(&output.stdout) {
            Ok(value) if output.status.success() => return value,
            _ => assert!(Instant::now() < until, "{arguments:?}: {output:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The shard that leads each range, by the first key of the range; those that have a leader.
fn led(home: &Home) -> BTreeMap<String, u64> {
    let ranges = shown(home, &["range", "ls"]);
    let users = ranges["ranges"].as_array().expect("a list").iter();
    let users = users.filter(|range| range["system"] == false);
    let led = users.filter_map(|range| {
        let start = range["start"].as_str().expect("a key").to_owned();
        Some((start, range["leader_shard"].as_u64()?))
    });
    led.collect()
}

/// Waits until something is so. It looks seldom, because the commands take CPU time from the load.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + WAIT_TIMEOUT;
    while !is_so() {
        assert!(
            Instant::now() < until,
            "not within {WAIT_TIMEOUT:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn load_on_ranges_of_one_shard_moves_to_the_other_shard_of_the_node() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", BORDERS]);
    let _node = home.start();
    eventually("leaders of all ranges", || led(&home).len() == KEYS.len());
    let before = led(&home);
    let hex = |key: &str| match key {
        "a1" => String::new(),
        key => format!("{:02x}", key.as_bytes()[0]),
    };
    let keys: Vec<&str> = KEYS
        .into_iter()
        .filter(|key| before[&hex(key)] == 0)
        .collect();
    assert!(keys.len() >= 2, "{before:?}");
    run(async {
        let client = client(std::slice::from_ref(&home)).await;
        let ends = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS).map(|number| {
            let (client, ends) = (client.clone(), ends.clone());
            let key = keys[number % keys.len()].to_owned();
            tokio::spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    let put = client.put(&key, "v").await;
                    put.unwrap_or_else(|error| panic!("{key}: {error:?}"));
                    for _ in 0..8 {
                        let got = client.get(&key).await;
                        got.unwrap_or_else(|error| panic!("{key}: {error:?}"));
                    }
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        let (looks_at, keys) = (home.clone(), keys.clone());
        tokio::task::spawn_blocking(move || {
            eventually("loaded ranges on both shards", || {
                let led = led(&looks_at);
                let shards = keys.iter().filter_map(|key| led.get(&hex(key)));
                let moved = shards.filter(|shard| **shard == 1).count();
                0 < moved && moved < keys.len()
            });
            eventually("CPU time on both shards", || {
                let nodes = shown(&looks_at, &["node", "ls"]);
                let cpu = nodes["nodes"][0]["shards_cpu"].as_array().expect("a list");
                let cpu = cpu.iter().filter_map(Value::as_f64);
                let (least, most) = cpu.fold((f64::MAX, 0.0), |(least, most), cpu| {
                    (cpu.min(least), cpu.max(most))
                });
                println!("CPU time of the shards: {least} and {most} thousandths of a core");
                least > most / 4.0
            });
        })
        .await
        .expect("it looks");
        ends.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("no call fails");
        }
    });
    let decisions = shown(&home, &["balance"]);
    let moved = decisions["decisions"].as_array().expect("a list").iter();
    let moved: Vec<&Value> = moved.filter(|one| one["kind"] == "move_replica").collect();
    assert!(!moved.is_empty(), "{decisions}");
    for one in &moved {
        let (from, to) = (&one["from"], &one["to"]);
        assert_eq!((from, to), (&Value::from("1/0"), &Value::from("1/1")));
        let reason = one["reason"].as_str().expect("a text");
        assert!(reason.contains("CPU time"), "{reason}");
    }
    assert!(
        moved.iter().any(|one| one["outcome"] == "done"),
        "{decisions}"
    );
    let metric = home.metric_with("rangedb_moves_total", "kind=\"move_replica\"");
    assert!(metric >= 1.0, "{metric}");
}

#[test]
fn ranges_of_an_interval_are_scattered_over_shards_and_bad_orders_are_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2"]);
    let _node = home.start();
    eventually("a range", || led(&home).len() == 1);
    let range = shown(&home, &["range", "ls"])["ranges"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|range| range["system"] == false)
        .and_then(|range| range["id"].as_u64())
        .expect("an id");
    // From the right, a few keys at a time: many at once would be scattered by the split.
    let id = range.to_string();
    let borders: Vec<&str> = BORDERS.split(',').collect();
    for keys in borders.rchunks(2) {
        let at = keys.iter().flat_map(|key| ["--at", *key]);
        let order: Vec<&str> = ["range", "split", &id].into_iter().chain(at).collect();
        succeeded(&home.cli(&order));
    }
    eventually("leaders of all ranges", || led(&home).len() == KEYS.len());
    let before = led(&home);
    let shard = before[""];
    assert!(before.values().all(|at| *at == shard), "{before:?}");

    // The start after the end, an empty interval, and flags that there are not.
    for (arguments, code) in [
        (&["--start", "z", "--end", "a"][..], 3),
        (&["--start", "a", "--end", "a"], 3),
        (&["--end", ""], 3),
        (&["--begin", "a"], 2),
    ] {
        let refused = home.cli(&[&["range", "scatter"][..], arguments].concat());
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
        assert!(!refused.stderr.is_empty());
    }
    let body = br#"{"start":"z","end":"a"}"#;
    let refused = request(&home, "POST", "ranges/scatter", body);
    assert_eq!(refused.status, 400, "{}", refused.head);

    // Three of the ranges, one of which moves.
    let scattered = shown(&home, &["range", "scatter", "--start", "e", "--end", "h"]);
    assert_eq!(scattered["orders"], 1, "of three");
    eventually("the move", || {
        led(&home).values().filter(|at| **at != shard).count() == 1
    });
    let scattered = request(&home, "POST", "ranges/scatter", b"");
    assert_eq!(scattered.status, 200, "{}", scattered.head);
    assert_eq!(scattered.json()["orders"], 3);
    eventually("four ranges on each shard", || {
        led(&home).values().filter(|at| **at != shard).count() == 4
    });
    eventually("the ends of the orders", || {
        let decisions = request(&home, "GET", "balance", b"").json();
        let decisions = decisions["decisions"].as_array().cloned();
        let decisions = decisions.expect("a list");
        let scattered = decisions.iter().filter(|one| {
            let reason = one["reason"].as_str().unwrap_or_default();
            reason.contains("scatter") && one["outcome"] == "done"
        });
        scattered.count() == 4
    });
    let table = home.cli(&["balance"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        text.contains("move_replica") && text.contains("split"),
        "{text}"
    );
}
