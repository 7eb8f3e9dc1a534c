//! Clients that write all the time while something happens to the cluster, through the real client,
//! with figures of what they notice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rangedb_client::{Client, ClientOptions};
use tokio::task::JoinHandle;

use crate::cluster::{KEYS, addresses, wait_for};
use crate::process::Home;

/// Writes that must succeed before the next fault.
const WRITES: u64 = 1000;
/// Tasks that write.
const WRITERS: usize = 8;
/// No call may take longer; its deadline.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The rate is the number of answers in a window that begins at any of these moments.
const BUCKET_MS: u128 = 100;
const BUCKETS_OF_WINDOW: usize = 10;

/// A client of the cluster.
///
/// # Panics
/// No node answers.
pub async fn client(homes: &[Home]) -> Client {
    let options = ClientOptions::new(addresses(homes).split(',')).timeout(TIMEOUT);
    Client::connect(options).await.expect("a client")
}

/// The observations of one writer.
#[derive(Default)]
pub struct Seen {
    /// Keys and the versions under which they were acknowledged.
    pub acknowledged: Vec<(String, u64)>,
    /// Answers by the number of the bucket in which they came.
    buckets: BTreeMap<usize, u64>,
    /// Failed calls by their code.
    pub errors: BTreeMap<String, u64>,
    /// The longest call.
    pub slowest: Duration,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.acknowledged.extend(other.acknowledged);
        for (bucket, count) in other.buckets {
            *self.buckets.entry(bucket).or_default() += count;
        }
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
        self.slowest = self.slowest.max(other.slowest);
    }

    /// The fewest answers in any whole second between the first answer and the last.
    pub fn worst_second(&self) -> u64 {
        let (Some((&first, _)), Some((&last, _))) = (
            self.buckets.first_key_value(),
            self.buckets.last_key_value(),
        ) else {
            return 0;
        };
        let all: Vec<u64> = (first..last)
            .map(|bucket| self.buckets.get(&bucket).copied().unwrap_or(0))
            .collect();
        let windows = all.windows(BUCKETS_OF_WINDOW);
        windows.map(|window| window.iter().sum()).min().unwrap_or(0)
    }

    /// Prints what clients noticed while `what` happened.
    ///
    /// # Panics
    /// A call failed, or nothing was written for a second.
    pub fn assert_unharmed(&self, what: &str) {
        println!(
            "{what}: {} writes, {} in the worst second, longest call {:?}, failed {:?}",
            self.acknowledged.len(),
            self.worst_second(),
            self.slowest,
            self.errors
        );
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        assert!(self.worst_second() > 0, "nothing was written for a second");
    }
}

/// Writes a new key each time, in all ranges.
async fn write(
    client: Client,
    index: usize,
    len: usize,
    (stop, written): (Arc<AtomicBool>, Arc<AtomicU64>),
) -> Seen {
    let (mut seen, begun) = (Seen::default(), Instant::now());
    let mut number = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = format!("{}-{index}-{number}", KEYS[number % KEYS.len()]);
        let asked = Instant::now();
        match client.put(&key, vec![b'v'; len]).await {
            Ok(version) => {
                written.fetch_add(1, Ordering::Relaxed);
                seen.acknowledged.push((key, version));
                let bucket = begun.elapsed().as_millis() / BUCKET_MS;
                *seen.buckets.entry(bucket as usize).or_default() += 1;
            }
            Err(error) => {
                *seen.errors.entry(format!("{:?}", error.code)).or_default() += 1;
            }
        }
        seen.slowest = seen.slowest.max(asked.elapsed());
    }
    seen
}

/// Writers in the background.
pub struct Load {
    client: Client,
    stop: Arc<AtomicBool>,
    /// Writes that were acknowledged.
    written: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Seen>>,
}

impl Load {
    /// Begins to write values of this length.
    pub async fn begin(homes: &[Home], len: usize) -> Load {
        let client = client(homes).await;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let write = |index| {
            let shared = (stop.clone(), Arc::clone(&written));
            tokio::spawn(write(client.clone(), index, len, shared))
        };
        let writers = (0..WRITERS).map(write).collect();
        Load {
            client,
            stop,
            written,
            writers,
        }
    }

    /// Waits until some more is written.
    ///
    /// # Panics
    /// This takes longer than a minute.
    pub fn goes_on(&self) {
        let enough = self.written.load(Ordering::Relaxed) + WRITES;
        wait_for("writes", || {
            (self.written.load(Ordering::Relaxed) >= enough).then_some(())
        });
    }

    /// Ends it, and finds everything that was acknowledged.
    ///
    /// # Panics
    /// Something that was acknowledged is lost.
    pub async fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for writer in self.writers {
            all.add(writer.await.expect("it ends"));
        }
        for (key, version) in &all.acknowledged {
            let value = self.client.get(key).await.expect("it is read");
            let found = value.map(|value| value.version);
            assert_eq!(found, Some(*version), "{key} is lost");
        }
        all
    }
}

/// Runs a test that is a client itself.
///
/// # Panics
/// There can be no runtime.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(work)
}
