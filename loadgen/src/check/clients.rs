//! The clients of a consistency check. They write unique values to a few keys, read them back, and
//! record when each operation was sent and answered.
//!
//! All clients run on one thread with one clock. A second thread checks what is settled: all
//! operations that have ended, up to the moment at which the oldest one under way was sent. A
//! client that is refused or loses its connection goes on with its next operation: a restart of the
//! server shows as writes of unknown fate.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::history::{Action, Expected, Moment, Operation, RegisterState, ValueId};
use super::{Checker, Verdict};
use crate::database::{Condition, Database, Failure};

/// Most operations on their way to the checking thread; beyond it the clients wait.
const OPERATIONS_WAITING_MAX: usize = 1 << 16;
/// How often settled operations are passed to the checking thread.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);
/// Pause of a client after a failure.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);
/// Longest filler after the number in a value.
const FILLER_LEN_MAX: usize = 200;
/// Digits of the number in a value.
const NUMBER_LEN: usize = 16;
/// The id of a value that no client of this check has written.
const FOREIGN: ValueId = ValueId::MAX;

/// The options of a check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// How many clients run at the same time.
    pub clients: u32,
    /// How many keys they share.
    pub keys: u32,
    /// How long they run.
    pub duration: Duration,
    /// Seed of the random choice of operations. It does not decide how they interleave.
    pub seed: u64,
    /// A part of every key's name: each check has its own keys, which are absent at first.
    pub run: u64,
}

/// The result of a check.
#[derive(Debug)]
pub struct Checked {
    /// The verdict, by the numbers of keys.
    pub verdict: Verdict<u32>,
    /// Failures by code.
    pub errors: BTreeMap<Cow<'static, str>, u64>,
    /// How many operations were answered.
    pub answered: u64,
}

enum Message {
    Add(u32, Operation),
    Advance(Moment),
}

/// The state that all clients share.
struct Recorder {
    started: Instant,
    /// When each client's operation under way was sent.
    under_way: Vec<Option<Moment>>,
    ended: Vec<(u32, Operation)>,
    errors: BTreeMap<Cow<'static, str>, u64>,
    answered: u64,
    next_value: ValueId,
}

impl Recorder {
    fn now(&self) -> Moment {
        self.started.elapsed().as_nanos() as Moment
    }
}

/// Runs one client for each database handle, and checks what they saw.
pub async fn run<D: Database>(databases: Vec<D>, options: CheckOptions) -> Checked {
    let (sender, receiver) = sync_channel(OPERATIONS_WAITING_MAX);
    let checker = std::thread::spawn(move || check(&receiver));
    let clients = databases.len();
    let recorder = Rc::new(RefCell::new(Recorder {
        started: Instant::now(),
        under_way: vec![None; clients],
        ended: Vec::new(),
        errors: BTreeMap::new(),
        answered: 0,
        next_value: 1,
    }));
    let until = Instant::now() + options.duration;
    let mut tasks = Vec::new();
    for (index, database) in databases.into_iter().enumerate() {
        let random = SmallRng::seed_from_u64(options.seed.wrapping_mul(0x1_0000) + index as u64);
        let client = Client {
            index,
            database,
            recorder: recorder.clone(),
            random,
            options,
        };
        tasks.push(tokio::task::spawn_local(client.run(until)));
    }
    while tasks.iter().any(|task| !task.is_finished()) {
        tokio::time::sleep(SETTLE_INTERVAL).await;
        send_recorded(&recorder, &sender);
    }
    send_recorded(&recorder, &sender);
    drop(sender);
    let verdict = checker.join().expect("the checker does not panic");
    let recorder = recorder.borrow();
    Checked {
        verdict,
        errors: recorder.errors.clone(),
        answered: recorder.answered,
    }
}

fn check(receiver: &Receiver<Message>) -> Verdict<u32> {
    let mut checker: Checker<u32> = Checker::default();
    let mut failed_before = 0;
    for message in receiver {
        match message {
            Message::Add(key, operation) => checker.add(&key, operation),
            Message::Advance(until) => {
                let failed = checker.advance(until);
                if failed > failed_before {
                    eprintln!("{failed} keys are not linearizable or cannot be decided");
                    failed_before = failed;
                }
            }
        }
    }
    checker.finish()
}

/// Passes on the operations that have ended, and the moment up to which no more will be added.
fn send_recorded(recorder: &RefCell<Recorder>, sender: &SyncSender<Message>) {
    let (ended, until) = {
        let mut recorder = recorder.borrow_mut();
        let oldest = recorder.under_way.iter().flatten().min().copied();
        let until = oldest.unwrap_or_else(|| recorder.now());
        (std::mem::take(&mut recorder.ended), until)
    };
    let added = ended
        .into_iter()
        .map(|(key, operation)| Message::Add(key, operation));
    for message in added.chain([Message::Advance(until)]) {
        // The checking thread ends only after the sender is dropped.
        let _ = sender.send(message);
    }
}

struct Client<D> {
    index: usize,
    database: D,
    recorder: Rc<RefCell<Recorder>>,
    random: SmallRng,
    options: CheckOptions,
}

/// An operation to perform.
enum Request {
    Get,
    Put {
        value: ValueId,
    },
    Delete,
    CompareAndSwap {
        condition: CasCondition,
        new: RegisterState,
    },
}

enum CasCondition {
    Absent,
    Value(ValueId, Vec<u8>),
    Version(ValueId, u64),
}

/// What a client last read of a key.
#[derive(Clone)]
struct Seen {
    value: ValueId,
    bytes: Vec<u8>,
    version: u64,
}

impl<D: Database> Client<D> {
    async fn run(mut self, until: Instant) {
        let mut seen: Vec<Option<Seen>> = vec![None; self.options.keys as usize];
        while Instant::now() < until {
            let key = self.random.random_range(0..self.options.keys);
            let request = self.choose(&seen[key as usize]);
            let invoked = {
                let mut recorder = self.recorder.borrow_mut();
                let now = recorder.now();
                recorder.under_way[self.index] = Some(now);
                now
            };
            let result = self.perform(key, &request, &mut seen[key as usize]).await;
            if self.record(key, invoked, result).is_err() {
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }

    fn choose(&mut self, seen: &Option<Seen>) -> Request {
        let new_value = |recorder: &RefCell<Recorder>| {
            let mut recorder = recorder.borrow_mut();
            recorder.next_value += 1;
            recorder.next_value
        };
        match self.random.random_range(0..100) {
            0..45 => Request::Get,
            45..70 => Request::Put {
                value: new_value(&self.recorder),
            },
            70..80 => Request::Delete,
            choice => {
                let condition = match seen {
                    Some(seen) if choice % 2 == 0 => {
                        CasCondition::Value(seen.value, seen.bytes.clone())
                    }
                    Some(seen) => CasCondition::Version(seen.value, seen.version),
                    None => CasCondition::Absent,
                };
                // To remove a key that must be absent would be no operation.
                let may_remove = !matches!(condition, CasCondition::Absent);
                let removes = may_remove && self.random.random_range(0..5) == 0;
                let new = (!removes).then(|| new_value(&self.recorder));
                Request::CompareAndSwap { condition, new }
            }
        }
    }

    /// Performs a request. Returns what is known of it, and whether it ended with an answer.
    async fn perform(
        &self,
        key: u32,
        request: &Request,
        seen: &mut Option<Seen>,
    ) -> (Action, Result<(), Failure>) {
        let key = key_name(key, &self.options);
        match request {
            Request::Get => match self.database.get(&key).await {
                Ok(found) => {
                    *seen = found.map(|found| {
                        let bytes = found.value.as_ref().to_vec();
                        Seen {
                            value: parse_value(&bytes),
                            bytes,
                            version: found.version,
                        }
                    });
                    let found = seen.as_ref().map(|seen| seen.value);
                    (Action::Get { found }, Ok(()))
                }
                Err(failure) => (Action::Get { found: None }, Err(failure)),
            },
            Request::Put { value } => {
                let result = self.database.put(&key, &value_bytes(*value)).await;
                (Action::Put { value: *value }, result)
            }
            Request::Delete => match self.database.delete(&key).await {
                Ok(existed) => (
                    Action::Delete {
                        existed: Some(existed),
                    },
                    Ok(()),
                ),
                Err(failure) => (Action::Delete { existed: None }, Err(failure)),
            },
            Request::CompareAndSwap { condition, new } => {
                let (expected, condition) = match condition {
                    CasCondition::Absent => (Expected::Absent, Condition::Absent),
                    CasCondition::Value(id, bytes) => {
                        (Expected::Value(*id), Condition::Value(bytes))
                    }
                    CasCondition::Version(id, version) => {
                        (Expected::Value(*id), Condition::Version(*version))
                    }
                };
                let bytes = new.map(value_bytes);
                let result = self
                    .database
                    .compare_and_swap(&key, condition, bytes.as_deref())
                    .await;
                let swapped = result.as_ref().ok().copied();
                let action = Action::CompareAndSwap {
                    expected,
                    new: *new,
                    swapped,
                };
                (action, result.map(|_| ()))
            }
        }
    }

    /// Adds to the history. Writes that were not applied, and reads without an answer, leave no
    /// trace.
    fn record(
        &self,
        key: u32,
        invoked: Moment,
        (action, result): (Action, Result<(), Failure>),
    ) -> Result<(), ()> {
        let mut recorder = self.recorder.borrow_mut();
        recorder.under_way[self.index] = None;
        let client = self.index as u32;
        match result {
            Ok(()) => {
                let returned = Some(recorder.now());
                recorder.answered += 1;
                recorder.ended.push((
                    key,
                    Operation {
                        client,
                        action,
                        invoked,
                        returned,
                    },
                ));
                Ok(())
            }
            Err(failure) => {
                *recorder.errors.entry(failure.code).or_default() += 1;
                if !failure.is_not_applied && !matches!(action, Action::Get { .. }) {
                    let returned = None;
                    recorder.ended.push((
                        key,
                        Operation {
                            client,
                            action,
                            invoked,
                            returned,
                        },
                    ));
                }
                Err(())
            }
        }
    }
}

/// Keys begin with two digits that spread them over the ranges of `split-keys`.
fn key_name(key: u32, options: &CheckOptions) -> Vec<u8> {
    let spread = u64::from(key) * 256 / u64::from(options.keys);
    format!("{spread:02x}-check-{:016x}-{key}", options.run).into_bytes()
}

/// A value is its number in hexadecimal digits, then a filler whose length and bytes follow from
/// the number.
fn value_bytes(value: ValueId) -> Vec<u8> {
    let mut bytes = format!("{value:0NUMBER_LEN$x}").into_bytes();
    let filler_len = (value as usize * 7919) % FILLER_LEN_MAX;
    bytes.resize(NUMBER_LEN + filler_len, b'a' + (value % 26) as u8);
    bytes
}

/// The number of a value, or [`FOREIGN`] if no client wrote exactly these bytes.
fn parse_value(bytes: &[u8]) -> ValueId {
    let digits = bytes
        .get(..NUMBER_LEN)
        .and_then(|digits| std::str::from_utf8(digits).ok());
    let value = digits.and_then(|digits| ValueId::from_str_radix(digits, 16).ok());
    value
        .filter(|&value| value != FOREIGN && value_bytes(value) == bytes)
        .unwrap_or(FOREIGN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Faults, MemoryDatabase};

    fn check_memory(faults: Faults) -> Checked {
        let options = CheckOptions {
            clients: 6,
            keys: 3,
            duration: Duration::from_millis(300),
            seed: 3,
            run: 1,
        };
        let database = MemoryDatabase::new(faults);
        let databases = vec![database; options.clients as usize];
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder
            .enable_all()
            .build_local(Default::default())
            .unwrap();
        runtime.block_on(run(databases, options))
    }

    #[test]
    fn good_database_passes() {
        let checked = check_memory(Faults::default());
        assert!(checked.answered > 100);
        assert_eq!(checked.verdict.operations, checked.answered);
        assert!(
            checked.verdict.violations.is_empty(),
            "{:?}",
            checked.verdict.smallest()
        );
    }

    #[test]
    fn failures_with_a_true_fate_pass() {
        let checked = check_memory(Faults {
            unknown_every: 97,
            refused_every: 31,
            ..Faults::default()
        });
        assert!(checked.verdict.unknown > 0 && checked.errors["refused"] > 0);
        assert!(
            checked.verdict.violations.is_empty(),
            "{:?}",
            checked.verdict.smallest()
        );
    }

    #[test]
    fn lost_writes_are_found() {
        let checked = check_memory(Faults {
            lost_every: 50,
            ..Faults::default()
        });
        let (_, history) = checked.verdict.smallest().expect("a lost write shows");
        assert!(history.operations.len() < 12, "{history}");
    }

    #[test]
    fn values_of_others_are_told_apart() {
        assert_eq!(parse_value(&value_bytes(77)), 77);
        let mut torn = value_bytes(77);
        torn.pop();
        assert_eq!(parse_value(&torn), FOREIGN);
        assert_eq!(parse_value(b""), FOREIGN);
    }
}
