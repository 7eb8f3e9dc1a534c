//! Ranges of three real nodes of two shards are split at many keys within a minute, while clients with exact
//! models work, and are merged again by the cluster itself until only those of the beginning are left.
//! Afterwards all content is compared with the models, also after a kill of all nodes at once, and the idle
//! cost with that before.
//!
//! `RANGEDB_SPLITS=1000` makes so many splits instead of [`SPLITS`]; `RANGEDB_SOAK_SECONDS` makes
//! [`SPLITS_OF_SOAK`] again and again for at least that long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rangedb_client::Client;
use rangedb_client::admin::Range;
use rangedb_tests::cluster::{
    homes_of, start_all, variable, wait_until_alike, wait_until_replicated,
};
use rangedb_tests::load::{client, run};
use rangedb_tests::model::{Modellers, POSITIONS, assert_same, key_at, plain_client};
use rangedb_tests::process::{Home, Node};

/// Splits without `RANGEDB_SPLITS`.
const SPLITS: u64 = 100;
/// Splits of each round of the soak.
const SPLITS_OF_SOAK: u64 = 1000;
/// So many splits must be made in a minute, also on a busy machine.
const SPLITS_PER_MINUTE: u64 = 500;
/// People who split ranges at single keys at the same time.
const OPERATORS: usize = 4;
/// The pause of each client after a call: while ranges are split, and while they are merged.
const BUSY: Duration = Duration::from_millis(10);
const CALM: Duration = Duration::from_millis(500);
/// How long ranges are merged while the clients are busy still.
const MERGED_BUSY: Duration = Duration::from_secs(10);
/// How long an order of an operator is given again while it is refused.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long nothing may be merged while ranges are left that should be: the manager tries a merge that has
/// failed again after one minute, and then after two.
const STILL_MAX: Duration = Duration::from_secs(240);
/// The time over which idle cost is measured, and how long it may take until nodes are idle.
const IDLE: Duration = Duration::from_secs(4);
const IDLE_WITHIN: Duration = Duration::from_secs(60);

/// The cost of all nodes together while they do nothing.
#[derive(Clone, Copy)]
struct Idle {
    /// CPU time, in thousandths of a core.
    cpu: u64,
    threads: u64,
    /// Open files and sockets.
    files: u64,
    /// Memory, in MiB.
    mib: u64,
}

impl std::fmt::Display for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Idle {
            cpu,
            threads,
            files,
            mib,
        } = self;
        write!(
            f,
            "{cpu} thousandths of a core, {threads} threads, {files} files, {mib} MiB"
        )
    }
}

/// A line of `/proc/PID/status`.
fn status_of(node: &Node, name: &str) -> u64 {
    let path = format!("/proc/{}/status", node.id());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).expect(name)
}

/// The CPU time of all threads so far, in ticks of 10 ms.
fn ticks(nodes: &[Option<Node>]) -> u64 {
    let of = |node: &Node| {
        let path = format!("/proc/{}/stat", node.id());
        let stat = std::fs::read_to_string(path).expect("it runs");
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
        ticks(11) + ticks(12)
    };
    nodes.iter().flatten().map(of).sum()
}

fn idle(nodes: &[Option<Node>]) -> Idle {
    let (before, begun) = (ticks(nodes), Instant::now());
    std::thread::sleep(IDLE);
    let used_ms = (ticks(nodes) - before) * 10;
    let sum = |of: &dyn Fn(&Node) -> u64| nodes.iter().flatten().map(of).sum();
    let files = |node: &Node| {
        let files = std::fs::read_dir(format!("/proc/{}/fd", node.id()));
        files.expect("it runs").count() as u64
    };
    Idle {
        cpu: used_ms * 1000 / begun.elapsed().as_millis() as u64,
        threads: sum(&|node| status_of(node, "Threads:")),
        files: sum(&files),
        mib: sum(&|node| status_of(node, "VmRSS:") / 1024),
    }
}

/// The CPU time that idle nodes may take, which took so much before. Two ticks of the clock more in each
/// second of each node are noise.
fn idle_max(before: Idle) -> u64 {
    before.cpu * 3 / 2 + 60
}

/// Waits until nodes cost about as little as before.
fn assert_idle(nodes: &[Option<Node>], before: Idle) {
    let begun = Instant::now();
    let after = loop {
        let after = idle(nodes);
        if after.cpu <= idle_max(before) || begun.elapsed() > IDLE_WITHIN {
            break after;
        }
    };
    println!("idle before: {before}; after: {after}");
    assert!(after.cpu <= idle_max(before), "{before}; {after}");
    // Threads that wait for files come and go.
    let threads_max = before.threads + before.threads / 10;
    assert!(after.threads <= threads_max, "{before}; {after}");
}

/// The users' ranges in the order of their keys, checked to tile the key space; `None` while one of them is
/// not known to be led.
async fn tile(client: &Client) -> Option<Vec<Range>> {
    let mut ranges = client.admin().ranges().await.ok()?;
    ranges.retain(|range| !range.system);
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    let is_led = |range: &Range| range.leader_node.is_some() && !range.unavailable;
    let is_tiled = ranges
        .windows(2)
        .all(|two| two[0].end.as_ref() == Some(&two[1].start))
        && ranges.first()?.start.is_empty()
        && ranges.last()?.end.is_none();
    (is_tiled && ranges.iter().all(is_led)).then_some(ranges)
}

/// How many ranges users have; retried until the manager answers.
async fn count(client: &Client) -> usize {
    loop {
        if let Ok(ranges) = client.admin().ranges().await {
            return ranges.iter().filter(|range| !range.system).count();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn wait_for_tile(client: &Client) -> Vec<Range> {
    let begun = Instant::now();
    loop {
        if let Some(ranges) = tile(client).await {
            return ranges;
        }
        assert!(begun.elapsed() < WAIT_TIMEOUT, "the ranges do not tile");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What operators know of the users' ranges: their ids by their first keys.
type Known = Mutex<BTreeMap<Vec<u8>, u64>>;

/// Asks which ranges there are.
async fn look(client: &Client, known: &Known) {
    let ranges = client.admin().ranges().await.unwrap_or_default();
    let users = ranges.into_iter().filter(|range| !range.system);
    let now = users.map(|range| (range.start, range.id));
    known.lock().expect("no panic").extend(now);
}

/// Splits at keys, one order each; an order that is refused is given again.
async fn split_one_by_one(
    client: Client,
    (keys, known): (&Mutex<Vec<String>>, &Known),
    refused: &AtomicU64,
) {
    let admin = client.admin();
    let next = || keys.lock().expect("no panic").pop();
    while let Some(key) = next() {
        let (begun, at) = (Instant::now(), key.clone().into_bytes());
        loop {
            let holder = {
                let known = known.lock().expect("no panic");
                let holder = known.range(..=at.clone()).next_back();
                holder.map(|(start, range)| (start.clone(), *range))
            };
            let (start, range) = holder.expect("all keys are in ranges");
            if start == at {
                break;
            }
            let order = [at.clone()];
            let split = admin.split_range(range, &order, Some(Duration::ZERO)).await;
            match split {
                Ok(split) => {
                    let parts = split.ranges.into_iter().map(|part| (part.start, part.id));
                    known.lock().expect("no panic").extend(parts);
                    break;
                }
                Err(why) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                    assert!(begun.elapsed() < WAIT_TIMEOUT, "no split at {key}: {why}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    look(&client, known).await;
                }
            }
        }
    }
}

/// Has half of the keys split by one order with a file, the others by single orders.
async fn split_all(homes: &[Home], keys: &[String], file: &std::path::Path) {
    let begun = Instant::now();
    let (in_file, single) = keys.split_at(keys.len() / 2);
    std::fs::write(file, in_file.join("\n")).expect("it is written");
    let order = [
        "range",
        "split",
        "--hold",
        "0s",
        "--timeout",
        "60s",
        "--at-file",
    ];
    let order = [&order[..], &[file.to_str().expect("a name")]].concat();
    // As the command says, it is repeated if a part of it was refused or its end is not known, as when
    // another node manages the cluster by now.
    loop {
        let split = tokio::task::block_in_place(|| homes[0].cli(&order));
        if split.status.success() {
            break;
        }
        let complaint = String::from_utf8_lossy(&split.stderr);
        println!("{}", complaint.trim());
        assert!(begun.elapsed() < WAIT_TIMEOUT * 3, "{complaint}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!(
        "{} splits by a file in {:?}",
        in_file.len(),
        begun.elapsed()
    );
    let (begun_singly, refused) = (Instant::now(), AtomicU64::new(0));
    let (left, known) = (Mutex::new(single.to_vec()), Known::default());
    look(&client(homes).await, &known).await;
    let mut operators = Vec::with_capacity(OPERATORS);
    for number in 0..OPERATORS {
        let client = client(&homes[number % homes.len()..]).await;
        operators.push(split_one_by_one(client, (&left, &known), &refused));
    }
    futures_util::future::join_all(operators).await;
    println!(
        "{} splits by single orders in {:?}; {refused:?} orders were refused",
        single.len(),
        begun_singly.elapsed()
    );
    let allowed = Duration::from_secs(10 + 60 * keys.len() as u64 / SPLITS_PER_MINUTE);
    assert!(begun.elapsed() < allowed, "{:?}", begun.elapsed());
}

/// Waits until at most `wanted` ranges are left, or until the time is up. Fails if the number of ranges does not fall
/// for [`STILL_MAX`].
async fn merged(client: &Client, wanted: usize, within: Option<Duration>) {
    let begun = Instant::now();
    let (mut least, mut since) = (usize::MAX, Instant::now());
    while within.is_none_or(|within| begun.elapsed() < within) {
        let now = count(client).await;
        if now <= wanted {
            return;
        }
        if now < least {
            (least, since) = (now, Instant::now());
        }
        assert!(
            since.elapsed() < STILL_MAX,
            "{now} ranges are left for {STILL_MAX:?}: {:?}",
            client.admin().ranges().await
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// How long keys were not served: counts by the upper bounds of `rangedb_range_bounds_change_seconds`.
fn not_served(homes: &[Home]) -> Vec<(String, f64)> {
    let pages: Vec<String> = homes.iter().map(|home| home.page("/metrics").1).collect();
    let mut bounds: Vec<(String, f64)> = Vec::new();
    for line in pages.iter().flat_map(|page| page.lines()) {
        let bucket = line.strip_prefix("rangedb_range_bounds_change_seconds_bucket{");
        let Some((labels, count)) = bucket.and_then(|rest| rest.rsplit_once("} ")) else {
            continue;
        };
        let le = labels.split("le=\"").nth(1).unwrap_or_default();
        let le = le.trim_end_matches('"').to_owned();
        let count: f64 = count.parse().expect("a number");
        match bounds.iter_mut().find(|(bound, _)| *bound == le) {
            Some((_, sum)) => *sum += count,
            None => bounds.push((le, count)),
        }
    }
    bounds
}

/// Prints how many of the changes between two looks took how long.
fn print_not_served(what: &str, before: &[(String, f64)], after: &[(String, f64)]) {
    let counts = after.iter().zip(before);
    let counts = counts.map(|((le, after), (_, before))| (le, after - before));
    let shown: Vec<String> = counts
        .map(|(le, count)| format!("{le} s: {count}"))
        .collect();
    println!("{what}: keys not served for up to {}", shown.join(", "));
}

/// Splits and merges, and checks everything.
async fn split_and_merge(
    homes: &[Home],
    nodes: &mut [Option<Node>],
    file: &std::path::Path,
    (splits, seed): (u64, u64),
) {
    let mut random = StdRng::seed_from_u64(seed);
    let operator = client(homes).await;
    let before = wait_for_tile(&operator).await;
    let idle_before = idle(nodes);
    operator
        .admin()
        .config_set("merge", "off")
        .await
        .expect("a setting");
    operator
        .admin()
        .config_set("merge-after", "1s")
        .await
        .expect("a setting");
    let mut keys = BTreeSet::new();
    while keys.len() < splits as usize {
        keys.insert(key_at(random.random_range(1..POSITIONS)));
    }
    let mut keys: Vec<String> = keys.into_iter().collect();
    keys.shuffle(&mut random);
    let begun = Instant::now();
    let modellers = Modellers::begin(homes, seed, BUSY).await;
    let at_first = not_served(homes);
    split_all(homes, &keys, file).await;
    let split = wait_for_tile(&operator).await;
    assert_eq!(split.len(), before.len() + keys.len());
    println!(
        "{} calls while it was split, in {:?}",
        modellers.calls(),
        begun.elapsed()
    );
    let after_splits = not_served(homes);
    print_not_served("splits", &at_first, &after_splits);

    let begun = Instant::now();
    operator
        .admin()
        .config_set("merge", "on")
        .await
        .expect("a setting");
    merged(&operator, before.len(), Some(MERGED_BUSY)).await;
    println!(
        "{} ranges after {:?} of merges",
        count(&operator).await,
        begun.elapsed()
    );
    modellers.pause_for(CALM);
    merged(&operator, before.len(), None).await;
    println!(
        "{} ranges after {:?} of merges",
        count(&operator).await,
        begun.elapsed()
    );
    print_not_served("merges", &after_splits, &not_served(homes));
    let seen = modellers.end().await;
    seen.assert_unharmed("splits and merges");

    let after = wait_for_tile(&operator).await;
    let borders = |ranges: &[Range]| -> Vec<Vec<u8>> {
        ranges.iter().map(|range| range.start.clone()).collect()
    };
    assert_eq!(borders(&after), borders(&before));
    tokio::task::block_in_place(|| wait_until_alike(homes));
    for home in homes {
        assert_same(&plain_client(home).await, &seen).await;
    }
    assert_idle(nodes, idle_before);
    for node in nodes.iter_mut() {
        node.take().expect("it runs").kill();
    }
    for (node, started) in nodes.iter_mut().zip(start_all(homes)) {
        *node = started;
    }
    assert_same(&plain_client(&homes[1]).await, &seen).await;
    // The next round begins without rows.
    for key in seen.rows.keys() {
        operator.delete(key).await.expect("it is deleted");
    }
}

#[test]
fn many_ranges_are_split_and_merged_again_under_load_and_all_is_as_before() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "2");
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let seconds = variable("RANGEDB_SOAK_SECONDS");
    let splits = match seconds {
        Some(_) => SPLITS_OF_SOAK,
        None => variable("RANGEDB_SPLITS").unwrap_or(SPLITS),
    };
    let mut seed = variable("RANGEDB_SEED").unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or_default());
    loop {
        let file = temp.path().join("keys");
        run(split_and_merge(&homes, &mut nodes, &file, (splits, seed)));
        if Instant::now() >= until {
            break;
        }
        seed += 1;
    }
}
