//! What the simulated clients do, and what they remember for the invariants.
//!
//! Each client does one thing after the other: reads, conditional and plain writes of registers,
//! increments of counters, writes of pairs that must stay equal, and scans of the pairs in pages:
//! now, at a moment ahead, or again at one that was scanned before.

use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::{Condition, Mutation, Outcome, ScanRequest, Versioned, Write};
use rangedb_engine::shard::Shard;
use rangedb_engine::types::{Blob, Timestamp};
use rangedb_loadgen::check::history::{Action, Expected, Operation};

use super::client::SimClient;
use super::executor;
use super::runtime::SimRuntime;
use crate::invariants;

/// A snapshot ahead lies within so many milliseconds.
const AHEAD_MAX_MS: u64 = 450;

fn nanos() -> u64 {
    executor::current().now().as_nanos() as u64
}

impl SimClient {
    /// Works until told to stop.
    pub async fn run(self) {
        while !self.stop.get() {
            SimRuntime::sleep(Duration::from_micros(self.random.between(10, 20_000))).await;
            match self.random.below(20) {
                0..7 => self.read_register().await,
                7..13 => self.write_register().await,
                13..16 => self.increment().await,
                16..18 => self.write_pair().await,
                18 => self.scan_pairs().await,
                _ => self.scan_snapshot().await,
            }
        }
        self.seen.clients.set(self.seen.clients.get() - 1);
    }

    fn register(&self) -> String {
        let letter = char::from(b'a' + self.random.below(26) as u8);
        // Few keys, spread over all shards.
        format!(
            "{}r{}",
            if self.random.once_in(2) { 'c' } else { 'x' },
            self.random.below(self.registers)
        )
        .replace('x', if letter < 'n' { "g" } else { "x" })
    }

    async fn read_register(&self) {
        let key = self.register();
        let (invoked, least) = (nanos(), self.seen.known(&key));
        let read = self.read(key.as_bytes(), |found| {
            found.map(|(value, version)| (number(value), version))
        });
        let Ok(found) = read.await else { return };
        if let Some((_, version)) = found {
            self.seen.version(&key, version, least);
        }
        self.add(
            &key,
            Action::Get {
                found: found.map(|(value, _)| value),
            },
            invoked,
            true,
        );
    }

    fn add(&self, key: &str, action: Action, invoked: u64, known: bool) {
        let returned = known.then(nanos);
        let operation = Operation {
            client: self.number,
            action,
            invoked,
            returned,
        };
        self.seen
            .history
            .borrow_mut()
            .add(&key.to_owned(), operation);
    }

    async fn write_register(&self) {
        let key = self.register();
        let bytes = Blob::from(key.clone());
        let value = u64::from(self.number) << 32 | (self.sequence.get() + 1);
        let text = Blob::from(format!(
            "{value}:{}",
            "x".repeat(self.random.below(300) as usize)
        ));
        let reached = self.reach(&bytes).await;
        let present = reached.and_then(|reached| {
            let get = |shard: &Shard<_>| {
                shard.get(&bytes, None, |found| {
                    found.map(|(value, version)| (Blob::copy_from_slice(value), version))
                })
            };
            reached.ask(get).ok()
        });
        let kind = self.random.below(5);
        let (write, action) = match (kind, present) {
            (0, _) => (
                Write::Delete { key: bytes.clone() },
                Action::Delete { existed: None },
            ),
            (1 | 2, Some(present)) => self.compare_and_swap(&bytes, present, (value, text)),
            _ => (
                Write::Put {
                    key: bytes.clone(),
                    value: text,
                },
                Action::Put { value },
            ),
        };
        let (invoked, least) = (nanos(), self.seen.known(&key));
        let (action, known) = match self.write(&bytes, write).await {
            Ok(Outcome::Done { version, existed }) => {
                self.seen.version(&key, version, least);
                let action = match action {
                    Action::Delete { .. } => Action::Delete {
                        existed: Some(existed),
                    },
                    Action::CompareAndSwap { expected, new, .. } => Action::CompareAndSwap {
                        expected,
                        new,
                        swapped: Some(true),
                    },
                    other => other,
                };
                (action, true)
            }
            Ok(Outcome::ConditionFailed { .. }) => match action {
                Action::CompareAndSwap { expected, new, .. } => (
                    Action::CompareAndSwap {
                        expected,
                        new,
                        swapped: Some(false),
                    },
                    true,
                ),
                other => {
                    self.seen
                        .violation(format!("{key}: {other:?} failed a condition"));
                    return;
                }
            },
            Ok(other) => {
                self.seen
                    .violation(format!("{key}: unexpected outcome {other:?}"));
                return;
            }
            Err(true) => (action, false),
            Err(false) => return,
        };
        self.add(&key, action, invoked, known);
    }

    fn compare_and_swap(
        &self,
        key: &Blob,
        present: Option<(Blob, Timestamp)>,
        (value, text): (u64, Blob),
    ) -> (Write, Action) {
        let expected = match &present {
            None => Expected::Absent,
            Some((present, _)) => Expected::Value(number(present)),
        };
        let condition = match present {
            None => Condition::Absent,
            Some((_, version)) if self.random.once_in(2) => Condition::Version(version),
            Some((present, _)) => Condition::Value(present),
        };
        let remove = self.random.once_in(4);
        let write = Write::CompareAndSwap {
            key: key.clone(),
            condition,
            value: (!remove).then_some(text),
        };
        let new = (!remove).then_some(value);
        (
            write,
            Action::CompareAndSwap {
                expected,
                new,
                swapped: None,
            },
        )
    }

    async fn increment(&self) {
        let key = format!("{}count", if self.random.once_in(2) { 'd' } else { 'y' });
        let delta = self.random.between(1, 3) as i64;
        let write = Write::Increment {
            key: Blob::from(key.clone()),
            delta,
        };
        let result = self.write(key.as_bytes(), write).await;
        let mut counters = self.seen.counters.borrow_mut();
        let (acknowledged, possible) = counters.entry(key.clone()).or_default();
        match result {
            Ok(Outcome::Number { .. }) => *acknowledged += delta,
            Ok(other) => {
                drop(counters);
                self.seen
                    .violation(format!("{key}: unexpected outcome {other:?}"));
            }
            Err(true) => *possible += delta,
            Err(false) => {}
        }
    }

    /// Each client has a pair of its own, in one range.
    fn pair_keys(number: u64) -> [String; 2] {
        [format!("cp{number:03}a"), format!("cp{number:03}b")]
    }

    async fn write_pair(&self) {
        let number = u64::from(self.number);
        let sequence = {
            let mut pairs = self.seen.pairs.borrow_mut();
            let (_, highest) = pairs.entry(number).or_default();
            *highest += 1;
            *highest
        };
        let mutations = Self::pair_keys(number).map(|key| Mutation {
            key: Blob::from(key),
            value: Some(Blob::from(sequence.to_string())),
        });
        let first = mutations[0].key.clone();
        let result = self
            .write(
                &first,
                Write::Multi {
                    mutations: mutations.to_vec(),
                },
            )
            .await;
        if result.is_ok() {
            let mut pairs = self.seen.pairs.borrow_mut();
            if let Some((acknowledged, _)) = pairs.get_mut(&number) {
                *acknowledged = sequence;
            }
        }
    }

    /// Scans all pairs as they are now.
    pub async fn scan_pairs(&self) {
        let before = self.seen.pairs.borrow().clone();
        if let Some((_, rows)) = self.scan_in_pages(None).await {
            invariants::pairs::check(&self.seen, &before, &rows);
        }
    }

    /// Scans all pairs as they will be in a moment, or were at one that was scanned before.
    async fn scan_snapshot(&self) {
        let read = self.seen.snapshots_read.borrow().all();
        let again = self.random.below(2 * read.len() as u64 + 1) as usize;
        let at = match read.get(again) {
            Some(at) => *at,
            None => {
                let Some(reached) = self.reach(b"cp").await else {
                    return;
                };
                reached
                    .ask(Shard::now)
                    .plus_ms(self.random.below(AHEAD_MAX_MS))
            }
        };
        self.scan_in_pages(Some(at)).await;
    }

    /// Scans all snapshots of pairs again that were read before.
    pub async fn scan_snapshots_again(&self) {
        let read = self.seen.snapshots_read.borrow().all();
        for at in read {
            self.scan_in_pages(Some(at)).await;
        }
    }

    /// Scans all pairs in pages, each on whatever node leads by then. Gives rows, and as of when.
    async fn scan_in_pages(
        &self,
        mut at: Option<Timestamp>,
    ) -> Option<(Timestamp, Vec<(Blob, Versioned)>)> {
        let rows_max = self.random.between(1, 5) as usize;
        let mut rows: Vec<(Blob, Versioned)> = Vec::new();
        let mut start = Blob::from_static(b"cp");
        loop {
            let scan = ScanRequest {
                start: Some(start),
                end: Some(Blob::from_static(b"cq")),
                rows_max,
                bytes_max: 0,
                at,
            };
            let reply = self.scan(scan).await?;
            let two = rows.last().zip(reply.rows.first());
            if two.is_some_and(|(a, b)| a.0 >= b.0) {
                self.seen.violation("a scan's pages overlap".to_owned());
            }
            rows.extend(reply.rows);
            let Some(next) = reply.next else {
                let mut read = self.seen.snapshots_read.borrow_mut();
                read.check(&self.seen, reply.at, rows.clone());
                return Some((reply.at, rows));
            };
            // Writes go on between the pages.
            SimRuntime::sleep(Duration::from_micros(self.random.between(1, 5000))).await;
            (start, at) = (next.start, next.at);
        }
    }
}

fn number(value: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(value);
    let digits = text.split(':').next().unwrap_or_default();
    digits.parse().unwrap_or(u64::MAX)
}
