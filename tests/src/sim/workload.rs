//! The work of the simulated clients, and what they record for the invariants.
//!
//! Each hand of a client does one thing after the other. It reads; it writes registers and other
//! rows, with and without conditions; it increments counters; it writes pairs of rows that must
//! stay equal; it writes bursts of up to 1,500 rows at once; it reads many rows in one request; and it
//! scans in pages, in either direction: the present, a moment ahead, or a moment that was scanned
//! before. Few writes of a register overlap, so that the check can try all their orders. For all rows,
//! those of bursts too, every version is compared with the acknowledged writes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::request::{self, Batch, Condition, Outcome, ScanRequest, Versioned};
use rangedb_engine::types::{Blob, Timestamp};
use rangedb_loadgen::check::history::{Action, Expected, Operation};

use super::client::{Effort, ReadRow, SimClient};
use super::executor::{self, OUTSIDE};
use super::runtime::SimRuntime;
use crate::invariants;
use crate::invariants::rows::Value;

/// A snapshot in the future lies at most this many milliseconds ahead.
const AHEAD_MAX_MS: u64 = 450;
/// The keys of scans: pairs, rows of bursts, and registers.
const SCANNED: (&str, &str) = ("cp", "cs");
/// The most writes of a usual burst, of a larger one, and of the largest.
const BURSTS: [u64; 3] = [12, 60, 1_500];
/// The length of a few of the values, in bytes.
const LONG_VALUE: usize = 64 << 10;

fn nanos() -> u64 {
    executor::current().now().as_nanos() as u64
}

/// A write of one row, and what to record about it.
struct RowWrite {
    key: String,
    write: Batch,
    action: Action,
    /// The value after the write.
    value: Value,
    /// The version that a compare-and-swap expects; zero if it expects no value.
    expected: Option<Timestamp>,
}

impl SimClient {
    /// Works with all hands until the run stops the client.
    pub async fn run(self: Rc<SimClient>) {
        for _ in 1..self.hands {
            self.seen.clients.set(self.seen.clients.get() + 1);
            executor::current().spawn_on(OUTSIDE, self.clone().work());
        }
        self.work().await;
    }

    async fn work(self: Rc<SimClient>) {
        while !self.stop.get() {
            let most = 20_000 * self.hands;
            SimRuntime::sleep(Duration::from_micros(self.random.between(10, most))).await;
            match self.random.below(43) {
                0..12 => self.read_row(self.register(), true).await,
                12..14 => self.read_row(self.burst_key(), false).await,
                14..26 => self.write_register().await,
                26..32 => self.increment(self.effort()).await,
                32..36 => self.write_pair().await,
                36..38 => self.scan_now().await,
                38..40 => self.scan_snapshot().await,
                40..42 => self.read_rows().await,
                _ => self.burst().await,
            }
        }
        self.seen.clients.set(self.seen.clients.get() - 1);
    }

    /// The effort for the next write: some have a deadline, and some of these are very short.
    fn effort(&self) -> Effort {
        let deadline_ms = match self.random.below(6) {
            0 => Some(self.random.between(1, 60)),
            1 | 2 => Some(self.random.between(60, 3_000)),
            _ => None,
        };
        Effort {
            deadline: deadline_ms.map(Duration::from_millis),
        }
    }

    /// A random register of this client; they are few, and spread over all shards.
    fn register(&self) -> String {
        let place = ["c", "c", "g", "x"][self.random.below(4) as usize];
        format!("{place}r{}", self.random.below(self.registers))
    }

    fn burst_key(&self) -> String {
        let place = ["c", "c", "g", "x"][self.random.below(4) as usize];
        format!("{place}q{}", self.random.below(8))
    }

    /// Reads the newest version of a row. `alone`: few writes of this row overlap.
    async fn read_row(&self, key: String, alone: bool) {
        let (invoked, least) = (nanos(), self.seen.known(&key));
        let before = self.seen.rows.borrow().newest(&key);
        let read = self.read(key.as_bytes(), |found| {
            found.map(|(value, version)| (number(value), version))
        });
        let Some(found) = read.await else { return };
        let rows = self.seen.rows.borrow();
        rows.check_read(&self.seen, &key, before, found);
        if let Some((_, version)) = found {
            self.seen.version(&key, version, least);
        }
        if alone {
            let found = found.map(|(value, _)| value);
            self.add(&key, Action::Get { found }, invoked, true);
        }
    }

    /// Reads rows of all kinds and places in one multi-get.
    async fn read_rows(&self) {
        let mut keys: BTreeSet<String> = BTreeSet::new();
        for _ in 0..self.random.between(1, 4) {
            keys.insert(self.register());
            keys.insert(self.burst_key());
        }
        let pairs = self.seen.pairs.borrow().numbers();
        for pair in pairs {
            if self.random.once_in(2) {
                keys.extend(Self::pair_keys(pair));
            }
        }
        let invoked = nanos();
        let before: BTreeMap<&str, _> = (keys.iter())
            .map(|key| {
                let newest = self.seen.rows.borrow().newest(key);
                (key.as_str(), (newest, self.seen.known(key)))
            })
            .collect();
        let asked: Vec<Blob> = keys.iter().cloned().map(Blob::from).collect();
        let take = |read: Vec<ReadRow>| {
            let in_one_range = read.iter().filter(|read| read.key.starts_with('c'));
            let in_one_range: Vec<&ReadRow> = in_one_range.collect();
            invariants::moments::check(&self.seen, &in_one_range);
            for ReadRow { key, found } in read.iter().filter(|read| !read.key.starts_with("cp")) {
                let (newest, least) = before.get(key.as_str()).copied().unwrap_or_default();
                let found = (found.as_ref()).map(|(value, version)| (number(value), *version));
                let rows = self.seen.rows.borrow();
                rows.check_read(&self.seen, key, newest, found);
                if let Some((_, version)) = found {
                    self.seen.version(key, version, least);
                }
                if key.get(1..2) == Some("r") {
                    let found = found.map(|(value, _)| value);
                    self.add(key, Action::Get { found }, invoked, true);
                }
            }
        };
        self.multi_get(&asked, take).await;
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
        let row = self.draw(self.register(), true).await;
        self.write_row(row, self.effort(), true).await;
    }

    /// A new value, which no other write has.
    fn value(&self, may_be_long: bool) -> (u64, Blob) {
        self.values.set(self.values.get() + 1);
        let value = u64::from(self.number) << 32 | self.values.get();
        let len = match self.random.below(40) {
            0 if may_be_long => LONG_VALUE.min(self.segment_bytes() / 4),
            _ => 300,
        };
        let filler = "x".repeat(self.random.below(len as u64) as usize);
        (value, Blob::from(format!("{value}:{filler}")))
    }

    /// A random write of a row.
    async fn draw(&self, key: String, may_be_long: bool) -> RowWrite {
        let bytes = Blob::from(key.clone());
        let present = self.read(&bytes, |found| {
            found.map(|(value, version)| (Blob::copy_from_slice(value), version))
        });
        let present = present.await;
        let (value, text) = self.value(may_be_long);
        match (self.random.below(5), present) {
            (0, _) => RowWrite {
                key,
                write: Batch::delete(bytes),
                action: Action::Delete { existed: None },
                value: None,
                expected: None,
            },
            (1 | 2, Some(present)) => self.compare_and_swap(key, present, (value, text)),
            _ => RowWrite {
                key,
                write: Batch::put(bytes, text),
                action: Action::Put { value },
                value: Some(value),
                expected: None,
            },
        }
    }

    fn compare_and_swap(
        &self,
        key: String,
        present: Option<(Blob, Timestamp)>,
        (value, text): (u64, Blob),
    ) -> RowWrite {
        let expected = match &present {
            None => Expected::Absent,
            Some((present, _)) => Expected::Value(number(present)),
        };
        let version = present.as_ref().map(|(_, version)| *version);
        let condition = match present {
            None => request::Expected::Absent,
            Some((_, version)) if self.random.once_in(2) => request::Expected::Version(version),
            Some((present, _)) => request::Expected::Value(present),
        };
        let new = (!self.random.once_in(4)).then_some(value);
        RowWrite {
            write: Batch::compare_and_swap(Blob::from(key.clone()), condition, new.map(|_| text)),
            key,
            action: Action::CompareAndSwap {
                expected,
                new,
                swapped: None,
            },
            value: new,
            expected: Some(version.unwrap_or_default()),
        }
    }

    /// Writes a row. `alone`: few writes of this row overlap.
    async fn write_row(&self, row: RowWrite, effort: Effort, alone: bool) {
        let RowWrite {
            key,
            write,
            action,
            value,
            expected,
        } = row;
        let key = key.as_str();
        let (invoked, least) = (nanos(), self.seen.known(key));
        self.seen.rows.borrow_mut().sent(key, value);
        let written = self.write(key.as_bytes(), write, effort).await;
        let mut rows = self.seen.rows.borrow_mut();
        let (action, known) = match (written, action) {
            (Ok(Outcome::Done { version, existed }), action) => {
                self.seen.version(key, version, least);
                rows.applied(&self.seen, key, value, version);
                if let Some(expected) = expected {
                    rows.swapped(key, expected, version);
                }
                (answered(action, existed, true), true)
            }
            (Ok(Outcome::ConditionFailed { .. }), action @ Action::CompareAndSwap { .. }) => {
                rows.refused(key, value);
                (answered(action, false, false), true)
            }
            (Ok(other), _) => {
                let what = format!("{key}: unexpected outcome {other:?}");
                return self.seen.violation(what);
            }
            (Err(true), action) => (action, false),
            (Err(false), _) => return rows.refused(key, value),
        };
        drop(rows);
        if alone {
            self.add(key, action, invoked, known);
        }
    }

    /// Writes many rows at once.
    async fn burst(&self) {
        let most = match self.random.below(32) {
            0 => BURSTS[2],
            1..8 => BURSTS[1],
            _ => BURSTS[0],
        };
        let count = self.random.between(2, most);
        let effort = self.effort();
        let is_large = count > BURSTS[1];
        let writes = (0..count).map(|_| async move {
            match self.random.once_in(2) {
                true => self.increment(effort).await,
                false => {
                    let row = self.draw(self.burst_key(), !is_large).await;
                    self.write_row(row, effort, false).await;
                }
            }
        });
        join_all(writes).await;
    }

    async fn increment(&self, effort: Effort) {
        let place = ["c", "d", "y"][self.random.below(3) as usize];
        let key = format!("{place}count");
        let delta = self.random.between(1, 3) as i64;
        let write = Batch::add(Blob::from(key.clone()), delta);
        let result = self.write(key.as_bytes(), write, effort).await;
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

    /// The keys of a client's own pair, both in one range.
    fn pair_keys(number: u64) -> [String; 2] {
        [format!("cp{number:03}a"), format!("cp{number:03}b")]
    }

    async fn write_pair(&self) {
        // The writes of a pair come one after the other, so that their numbers rise in the log.
        if self.writes_pair.replace(true) {
            return;
        }
        let number = u64::from(self.number);
        let known = self.seen.pairs.borrow().known(number);
        let sequence = self.seen.pairs.borrow_mut().tried(number);
        let keys = Self::pair_keys(number).map(Blob::from);
        let value = Blob::from(sequence.to_string());
        let changes = keys.clone().map(|key| (key, Some(value.clone())));
        let mut write = Batch::set_all(changes);
        // Conditions on both keys, of which all hold or the second does not.
        let holds = !self.random.once_in(3);
        if let Some(known) = known.filter(|_| self.random.once_in(2)) {
            write.conditions = pair_conditions(keys.clone(), known, holds);
        }
        let is_refused = !write.conditions.is_empty() && !holds;
        let result = self.write(&keys[0], write, self.effort()).await;
        let mut pairs = self.seen.pairs.borrow_mut();
        match result {
            Ok(Outcome::ConditionFailed { condition: 1, .. }) if is_refused => {}
            Ok(Outcome::Done { .. }) if !is_refused => pairs.acknowledged(number, sequence),
            Ok(other) => {
                let what = format!("pair {number}, known to be {known:?}: outcome {other:?}");
                self.seen.violation(what);
            }
            Err(true) if !is_refused => pairs.in_doubt(number, sequence),
            Err(_) => {}
        }
        self.writes_pair.set(false);
    }

    /// Scans all keys as they are now.
    pub async fn scan_now(&self) {
        let before = self.seen.pairs.borrow().clone();
        let versions = self.seen.versions.borrow().clone();
        let Some(parts) = self.scan_in_pages(None).await else {
            return;
        };
        for part in parts {
            invariants::pairs::check(&self.seen, &before, &part.interval, &part.rows);
            let known = versions.range(part.interval.clone());
            let highest = known.map(|(_, version)| *version).max();
            if highest.is_some_and(|highest| part.at < highest) {
                self.seen.violation(format!(
                    "a scan of {:?} was at {}, where {highest:?} was acknowledged before",
                    part.interval, part.at
                ));
            }
        }
    }

    /// Scans all keys as they will be in a moment, or as they were at the moment of an earlier
    /// scan.
    async fn scan_snapshot(&self) {
        let read = self.seen.snapshots_read.borrow().all();
        let again = self.random.below(2 * read.len() as u64 + 1) as usize;
        let at = match read.get(again) {
            Some(at) => *at,
            None => {
                let Some(now) = self.cluster_time().await else {
                    return;
                };
                now.plus_ms(self.random.below(AHEAD_MAX_MS))
            }
        };
        self.scan_in_pages(Some(at)).await;
    }

    /// Repeats all scans of earlier moments.
    pub async fn scan_snapshots_again(&self) {
        let read = self.seen.snapshots_read.borrow().all();
        for at in read {
            self.scan_in_pages(Some(at)).await;
        }
    }

    /// Scans in pages, each on the node that leads by then. A scan of a given moment sees it in all
    /// ranges, any other one a moment of each range. Returns the rows of each moment.
    async fn scan_in_pages(&self, at: Option<Timestamp>) -> Option<Vec<ScanPart>> {
        let reverse = self.random.once_in(3);
        let mut scan = ScanRequest {
            start: Some(Blob::from_static(SCANNED.0.as_bytes())),
            end: Some(Blob::from_static(SCANNED.1.as_bytes())),
            reverse,
            rows_max: self.random.between(1, 9) as usize,
            at,
            ..ScanRequest::default()
        };
        let mut parts: Vec<ScanPart> = Vec::new();
        loop {
            let (from, until) = (text(scan.start.as_ref()), text(scan.end.as_ref()));
            let reply = self.scan(scan).await?;
            let rows = reply.rows.iter().map(|row| {
                let (value, version) = (Blob::copy_from_slice(row.value), row.version);
                (Blob::copy_from_slice(row.key), Versioned { value, version })
            });
            let rest = reply.next.as_ref();
            let interval = match reverse {
                true => rest.map_or(from, |rest| text(rest.end.as_ref()))..until,
                false => from..rest.map_or(until, |rest| text(rest.start.as_ref())),
            };
            match parts.last_mut() {
                Some(part) if part.at == reply.at => part.take(interval, rows),
                _ => parts.push(ScanPart {
                    at: reply.at,
                    interval,
                    rows: rows.collect(),
                }),
            }
            let Some(rest) = reply.next else { break };
            // Other writes happen between the pages.
            SimRuntime::sleep(Duration::from_micros(self.random.between(1, 5000))).await;
            scan = ScanRequest {
                at: at.or(rest.at),
                ..rest
            };
        }
        for part in &mut parts {
            if reverse {
                part.rows.reverse();
            }
            if !part.rows.is_sorted_by(|a, b| a.0 < b.0) {
                self.seen
                    .violation("a scan's rows are out of order".to_owned());
            }
        }
        let [whole] = parts.as_slice() else {
            parts.iter().for_each(|part| self.check_scan(part));
            return Some(parts);
        };
        let mut read = self.seen.snapshots_read.borrow_mut();
        read.check(&self.seen, whole.at, &whole.rows);
        self.check_scan(whole);
        Some(parts)
    }

    fn check_scan(&self, part: &ScanPart) {
        let found: BTreeMap<String, (u64, Timestamp)> = (part.rows.iter())
            .map(|(key, row)| {
                let key = String::from_utf8_lossy(key).into_owned();
                (key, (number(&row.value), row.version))
            })
            .collect();
        let known = self.seen.rows.borrow();
        known.check_scan(&self.seen, part.interval.clone(), part.at, &found);
    }
}

/// The part of a scan that shows one moment.
struct ScanPart {
    at: Timestamp,
    interval: Range<String>,
    rows: Vec<(Blob, Versioned)>,
}

impl ScanPart {
    /// Takes in what lies beside it.
    fn take(&mut self, interval: Range<String>, rows: impl Iterator<Item = (Blob, Versioned)>) {
        self.interval.start = interval.start.min(self.interval.start.clone());
        self.interval.end = interval.end.max(self.interval.end.clone());
        self.rows.extend(rows);
    }
}

fn text(border: Option<&Blob>) -> String {
    let border = border.map_or(&[][..], |border| border);
    String::from_utf8_lossy(border).into_owned()
}

/// Conditions on both keys of a pair that has this number (0: that was never written): that it is so,
/// or for the second key that it is not.
fn pair_conditions([first, second]: [Blob; 2], known: u64, holds: bool) -> Vec<Condition> {
    let is_so = || match known {
        0 => request::Expected::Absent,
        _ => request::Expected::Value(known.to_string().into()),
    };
    let is_not = match known {
        0 => request::Expected::Exists,
        _ => request::Expected::Absent,
    };
    let of = |key, expected| Condition { key, expected };
    let (expected, other) = (is_so(), if holds { is_so() } else { is_not });
    vec![of(first, expected), of(second, other)]
}

/// An action with its answer.
fn answered(action: Action, existed: bool, swapped: bool) -> Action {
    match action {
        Action::Delete { .. } => Action::Delete {
            existed: Some(existed),
        },
        Action::CompareAndSwap { expected, new, .. } => Action::CompareAndSwap {
            expected,
            new,
            swapped: Some(swapped),
        },
        other => other,
    }
}

pub(super) fn number(value: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(value);
    let digits = text.split(':').next().unwrap_or_default();
    digits.parse().unwrap_or(u64::MAX)
}
