//! Clients that read, write and scan all the time, each with a model of its own keys: no other client writes
//! them, so each answer has exactly one right value, whatever happens to the ranges meanwhile.
//!
//! A position is a number below [`POSITIONS`]. [`key_at`] gives the border at a position; keys of clients at
//! that position come right after it. Positions lie in all ranges with which test clusters begin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_client::{Client, ClientOptions, Error};
use tokio::task::JoinHandle;

use crate::cluster::{KEYS, addresses};
use crate::load::TIMEOUT;
use crate::process::Home;

/// Positions at which there may be borders and keys.
pub const POSITIONS: u32 = 9_000;
/// Clients; half of them follow routes, the requests of the others are forwarded.
const CLIENTS: usize = 8;
/// Keys of each client.
const KEYS_OF_CLIENT: usize = 400;
/// Positions that a scan spans at most.
const SPAN_MAX: u32 = 400;
/// Keys of a multi-get.
const KEYS_AT_ONCE: usize = 8;

/// Keys with their values.
pub type Rows = BTreeMap<String, String>;

/// The border at a position.
pub fn key_at(position: u32) -> String {
    let place = position as usize * KEYS.len() / POSITIONS as usize;
    format!("{}{position:04}", KEYS[place.min(KEYS.len() - 1)])
}

/// Observations of clients.
#[derive(Default)]
pub struct Seen {
    /// What the clients' keys hold at the end.
    pub rows: Rows,
    /// Keys that clients use, also those that have no value at the end.
    pub keys: BTreeSet<String>,
    /// How long each call took, in order of time.
    took: Vec<Duration>,
    /// Failed calls.
    failed: Vec<String>,
    /// Answers that differ from the model.
    wrong: Vec<String>,
}

impl Seen {
    /// Prints what clients noticed while `what` happened.
    ///
    /// # Panics
    /// A call failed, or an answer differs from the model.
    pub fn assert_unharmed(&self, what: &str) {
        let mut took = self.took.clone();
        took.sort_unstable();
        let at = |share: f64| {
            let index = (took.len() as f64 * share) as usize;
            took.get(index.min(took.len().saturating_sub(1)))
                .copied()
                .unwrap_or_default()
        };
        println!(
            "{what}: {} calls, median {:?}, p99 {:?}, longest {:?}, {} failed, {} wrong",
            took.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            self.failed.len(),
            self.wrong.len()
        );
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        assert!(self.failed.is_empty(), "{:#?}", self.failed);
    }
}

/// What is shared with the clients.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The pause of a client after each call, in milliseconds.
    pause_ms: AtomicU64,
    calls: AtomicU64,
}

/// A client and its model.
struct Modeller {
    client: Client,
    number: usize,
    /// The positions of its keys.
    positions: Vec<u32>,
    random: StdRng,
    writes: u64,
    seen: Seen,
}

impl Modeller {
    fn new(client: Client, number: usize, seed: u64) -> Modeller {
        let mut random = StdRng::seed_from_u64(seed ^ (number as u64) << 32);
        let mut positions = Vec::with_capacity(KEYS_OF_CLIENT);
        while positions.len() < KEYS_OF_CLIENT {
            positions.push(random.random_range(0..POSITIONS));
        }
        Modeller {
            client,
            number,
            positions,
            random,
            writes: 0,
            seen: Seen::default(),
        }
    }

    fn key(&mut self) -> String {
        let position = self.positions[self.random.random_range(0..self.positions.len())];
        let key = format!("{}-{}", key_at(position), self.number);
        self.seen.keys.insert(key.clone());
        key
    }

    fn check(&mut self, key: &str, found: Option<&[u8]>) {
        let wanted = self.seen.rows.get(key).map(String::as_bytes);
        if found != wanted {
            let found = found.map(String::from_utf8_lossy);
            let wanted = wanted.map(String::from_utf8_lossy);
            let wrong = format!("{key} holds {found:?}, and should hold {wanted:?}");
            self.seen.wrong.push(wrong);
        }
    }

    async fn put(&mut self) -> Result<(), Error> {
        let key = self.key();
        self.writes += 1;
        let value = format!("{}-{}-{:-<80}", self.number, self.writes, "");
        self.client.put(&key, &value).await?;
        self.seen.rows.insert(key, value);
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), Error> {
        let key = self.key();
        let deleted = self.client.delete(&key).await?;
        let existed = self.seen.rows.remove(&key).is_some();
        if deleted.existed != existed {
            let wrong = format!("the delete of {key} says that it existed: {}", !existed);
            self.seen.wrong.push(wrong);
        }
        Ok(())
    }

    async fn get(&mut self) -> Result<(), Error> {
        let key = self.key();
        let found = self.client.get(&key).await?;
        self.check(&key, found.as_ref().map(|found| &found.value[..]));
        Ok(())
    }

    async fn get_many(&mut self) -> Result<(), Error> {
        let keys: Vec<String> = (0..KEYS_AT_ONCE).map(|_| self.key()).collect();
        let all = self.client.get_many(&keys).await;
        for (key, found) in keys.iter().zip(all) {
            let found = found?;
            self.check(key, found.as_ref().map(|found| &found.value[..]));
        }
        Ok(())
    }

    async fn scan(&mut self) -> Result<(), Error> {
        let from = self.random.random_range(0..POSITIONS);
        let to = from + self.random.random_range(1..SPAN_MAX);
        let (start, end) = (key_at(from), key_at(to));
        let reverse = self.random.random_bool(0.5);
        let mut scan = self.client.scan(start.as_str()..end.as_str());
        if reverse {
            scan = scan.reverse();
        }
        let mut rows = scan.collect().await?;
        if reverse {
            rows.reverse();
        }
        let mine = format!("-{}", self.number);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = rows.iter().map(|row| (text(&row.key), text(&row.value)));
        let found: Vec<(String, String)> = found.filter(|(key, _)| key.ends_with(&mine)).collect();
        let wanted = self.seen.rows.range(start.clone()..end.clone());
        let wanted: Vec<(String, String)> = wanted
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if found != wanted {
            let wrong = format!(
                "a scan from {start} to {end}, reverse {reverse}, gives {found:?}, not {wanted:?}"
            );
            self.seen.wrong.push(wrong);
        }
        Ok(())
    }

    /// Makes calls until `shared` says stop.
    async fn work(mut self, shared: Arc<Shared>) -> Seen {
        while !shared.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let kind = self.random.random_range(0..100);
            let (name, done) = match kind {
                0..45 => ("put", self.put().await),
                45..55 => ("delete", self.delete().await),
                55..85 => ("get", self.get().await),
                85..93 => ("multi-get", self.get_many().await),
                _ => ("scan", self.scan().await),
            };
            let took = begun.elapsed();
            self.seen.took.push(took);
            if let Err(error) = done {
                self.seen
                    .failed
                    .push(format!("{name} after {took:?}: {error}"));
                // Whether a write has happened may be unknown: from here on the model is not exact.
                break;
            }
            shared.calls.fetch_add(1, Ordering::Relaxed);
            let pause = shared.pause_ms.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.seen
    }
}

/// Clients with models at work.
pub struct Modellers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<Seen>>,
}

impl Modellers {
    /// Begins to work, with a pause after each call of each client.
    ///
    /// # Panics
    /// No node answers.
    pub async fn begin(homes: &[Home], seed: u64, pause: Duration) -> Modellers {
        let shared = Arc::new(Shared::default());
        let mut tasks = Vec::with_capacity(CLIENTS);
        for number in 0..CLIENTS {
            let client = match number % 2 {
                0 => crate::load::client(homes).await,
                _ => plain_client(&homes[number % homes.len()]).await,
            };
            let modeller = Modeller::new(client, number, seed);
            tasks.push(tokio::spawn(modeller.work(shared.clone())));
        }
        let modellers = Modellers { shared, tasks };
        modellers.pause_for(pause);
        modellers
    }

    /// Sets the pause of each client after each call.
    pub fn pause_for(&self, pause: Duration) {
        let millis = pause.as_millis() as u64;
        self.shared.pause_ms.store(millis, Ordering::Relaxed);
    }

    /// How many calls have ended well.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Whether a client has ended by itself, because a call failed.
    pub fn has_failed(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Ends the work; gives what all clients have seen.
    ///
    /// # Panics
    /// A client has panicked.
    pub async fn end(self) -> Seen {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for task in self.tasks {
            let seen = task.await.expect("a client ends");
            all.rows.extend(seen.rows);
            all.keys.extend(seen.keys);
            all.took.extend(seen.took);
            all.failed.extend(seen.failed);
            all.wrong.extend(seen.wrong);
        }
        all
    }
}

/// A client that follows no routes: a node forwards its requests.
///
/// # Panics
/// The node does not answer.
pub async fn plain_client(home: &Home) -> Client {
    let address = addresses(std::slice::from_ref(home));
    let options = ClientOptions::new([address])
        .timeout(TIMEOUT)
        .forwarded(true);
    Client::connect(options).await.expect("a client")
}

/// Compares all that a cluster holds with a model, by a scan of all keys and by gets.
///
/// # Panics
/// They differ, or a call fails.
pub async fn assert_same(client: &Client, seen: &Seen) {
    let rows = client.scan(..).collect().await.expect("a scan of all keys");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let rows = rows.iter().map(|row| (text(&row.key), text(&row.value)));
    let found: Vec<(String, String)> = rows.collect();
    let wanted = seen.rows.iter();
    let wanted: Vec<(String, String)> = wanted
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let differs = found
        .iter()
        .zip(&wanted)
        .find(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{} rows instead of {}; the first that differ: {differs:?}",
        found.len(),
        wanted.len()
    );
    let keys: Vec<&String> = seen.keys.iter().collect();
    for keys in keys.chunks(100) {
        for (key, found) in keys.iter().zip(client.get_many(keys).await) {
            let found = found.unwrap_or_else(|error| panic!("{key}: {error}"));
            let found = found.map(|found| text(&found.value));
            assert_eq!(found.as_ref(), seen.rows.get(*key), "{key}");
        }
    }
    println!("{} rows are those of the model", found.len());
}
