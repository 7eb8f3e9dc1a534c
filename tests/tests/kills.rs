//! Kills of the real binary under load, again and again on one folder: every
//! acknowledged write is there, none is there in part, and no retried write is applied twice.
//!
//! Five kills; with `RANGEDB_SOAK_SECONDS` they go on for that long, and at least fifty times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_client::{Batch, Client, ClientOptions, Fate};
use rangedb_tests::process::Home;

const KILLS: u32 = 5;
const SOAK_KILLS: u32 = 50;
/// Clients of each kind.
const CLIENTS: usize = 8;
/// A call goes on over a restart.
const TIMEOUT: Duration = Duration::from_secs(20);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How often a client's writes were acknowledged, and of how many the fate is unknown.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    acknowledged: i64,
    unknown: i64,
}

impl Counts {
    /// Counts an answer; what was surely not applied counts nowhere.
    fn add<T>(&mut self, answer: &Result<T, rangedb_client::Error>) {
        match answer {
            Ok(_) => self.acknowledged += 1,
            Err(error) if error.fate == Fate::NotApplied => {}
            Err(_) => self.unknown += 1,
        }
    }

    fn allows(self, found: i64) -> bool {
        (self.acknowledged..=self.acknowledged + self.unknown).contains(&found)
    }
}

/// Adds one to a counter, over and over.
async fn increment(client: Client, index: usize, stop: Arc<AtomicBool>) -> Counts {
    let mut counts = Counts::default();
    let key = format!("count-{index}");
    while !stop.load(Ordering::Relaxed) {
        counts.add(&client.increment(&key, 1).await);
    }
    counts
}

/// Writes the same number under two keys at once, over and over: the next one each time. Gives the
/// last number that was acknowledged, and the last that may have been applied.
async fn write_pairs(client: Client, index: usize, stop: Arc<AtomicBool>) -> (i64, i64) {
    let (mut number, mut acknowledged, mut possible) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (key, value) = (|side| format!("pair-{index}-{side}"), number.to_string());
        let both = Batch::new()
            .put(key("left"), &value)
            .put(key("right"), &value);
        match client.batch(&both).await {
            Ok(_) => (acknowledged, possible) = (number, number),
            Err(error) if error.fate == Fate::NotApplied => {}
            Err(_) => possible = number,
        }
    }
    (acknowledged, possible)
}

/// Writes a new key each time.
async fn put_keys(client: Client, index: usize, stop: Arc<AtomicBool>) -> Vec<(String, u64)> {
    let mut acknowledged = Vec::new();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = format!("key-{index}-{number}");
        let value = vec![b'v'; 1 + (number as usize * 37) % 3000];
        if let Ok(version) = client.put(&key, value).await {
            acknowledged.push((key, version));
        }
    }
    acknowledged
}

async fn number(client: &Client, key: &str) -> i64 {
    let value = client.get(key).await.expect("it is read");
    value.map_or(0, |value| {
        let text = String::from_utf8_lossy(&value.value).into_owned();
        text.parse().expect("a number")
    })
}

async fn load_while_killed(home: &Home, kills: u32, until: Instant, random: &mut StdRng) {
    let options = ClientOptions::new([&home.listen]).timeout(TIMEOUT);
    let mut node = home.start();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut increments, mut pairs, mut puts) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..CLIENTS {
        let client = Client::connect(options.clone()).await.expect("a client");
        increments.push(tokio::spawn(increment(client.clone(), index, stop.clone())));
        pairs.push(tokio::spawn(write_pairs(
            client.clone(),
            index,
            stop.clone(),
        )));
        puts.push(tokio::spawn(put_keys(client, index, stop.clone())));
    }
    let (mut killed, mut slowest, mut replayed) = (0, Duration::ZERO, 0.0_f64);
    while killed < kills || Instant::now() < until {
        let after = Duration::from_millis(random.random_range(20..800));
        tokio::time::sleep(after).await;
        node = tokio::task::block_in_place(|| {
            replayed = replayed.max(home.metric("rangedb_replay_bytes"));
            node.kill();
            home.start()
        });
        killed += 1;
        slowest = slowest.max(node.started_in);
    }
    stop.store(true, Ordering::Relaxed);

    let client = Client::connect(options).await.expect("a client");
    let mut writes = 0;
    for (index, counts) in increments.into_iter().enumerate() {
        let counts = counts.await.expect("it ends");
        let found = number(&client, &format!("count-{index}")).await;
        assert!(counts.allows(found), "count-{index}: {found}, {counts:?}");
        writes += counts.acknowledged;
    }
    for (index, pairs) in pairs.into_iter().enumerate() {
        let (acknowledged, possible) = pairs.await.expect("it ends");
        let left = number(&client, &format!("pair-{index}-left")).await;
        let right = number(&client, &format!("pair-{index}-right")).await;
        assert_eq!(left, right, "pair-{index}: half of a write");
        assert!(
            (acknowledged..=possible).contains(&left),
            "pair-{index}: {left}, acknowledged {acknowledged}, possible {possible}"
        );
        writes += acknowledged;
    }
    for keys in puts {
        for (key, version) in keys.await.expect("it ends") {
            let value = client.get(&key).await.expect("it is read");
            let found = value.map(|value| value.version);
            assert_eq!(found, Some(version), "{key}");
            writes += 1;
        }
    }
    println!(
        "{killed} kills, {writes} writes acknowledged and found, slowest start {slowest:?}, \
         most replayed {:.1} MiB",
        replayed / f64::from(1 << 20)
    );
    drop(client);
    node.signal("TERM");
    let status = tokio::task::block_in_place(|| node.wait());
    assert_eq!(status.code(), Some(0), "{}", home.log());
}

#[test]
fn what_was_acknowledged_survives_kills() {
    let soak = variable("RANGEDB_SOAK_SECONDS");
    let seed = variable("RANGEDB_SEED").unwrap_or(1);
    let temp = tempfile::tempdir().expect("a folder");
    // The split is within the keys of each kind of client.
    let flags = ["--shards", "2", "--split-at", "count-4,key-3,pair-4"];
    let home = Home::new(temp.path(), &flags);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let until = Instant::now() + Duration::from_secs(soak.unwrap_or(0));
    let kills = if soak.is_some() { SOAK_KILLS } else { KILLS };
    let mut random = StdRng::seed_from_u64(seed);
    runtime.block_on(load_while_killed(&home, kills, until, &mut random));
}
