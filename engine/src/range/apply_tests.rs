//! Apply against rows in a map: every command, every refusal, and the session pairs.

use std::collections::BTreeMap;

use super::*;
use crate::range::command::{self, Action, Command, Entry};
use crate::range::{Descriptor, Keyspace};
use crate::request::{Condition, Mutation, Write};
use crate::types::{ClientId, Epoch, KeyRange, RangeId};

#[derive(Default)]
struct MapRows(BTreeMap<Vec<u8>, BTreeMap<Timestamp, Option<Vec<u8>>>>);

impl Rows for MapRows {
    fn newest<R>(
        &self,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError> {
        let newest = self
            .0
            .get(key)
            .and_then(|versions| versions.last_key_value());
        Ok(look(
            newest.map(|(version, value)| (*version, value.as_deref())),
        ))
    }

    fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        let versions = self.0.entry(key.to_vec()).or_default();
        let newest = versions.last_key_value().map(|(newest, _)| *newest);
        assert!(
            newest.is_none_or(|newest| newest < version),
            "versions of a key rise"
        );
        versions.insert(version, value.map(<[u8]>::to_vec));
    }
}

const EPOCH: Epoch = Epoch {
    version: 1,
    conf: 1,
};

struct Machine {
    state: RangeState,
    rows: MapRows,
    time: u64,
    sequence: u64,
}

impl Machine {
    fn new() -> Machine {
        let descriptor = Descriptor {
            range: RangeId(7),
            epoch: EPOCH,
            keyspace: Keyspace::User,
            keys: KeyRange {
                start: b"b".to_vec(),
                end: Some(b"y".to_vec()),
            },
            replicas: Vec::new(),
        };
        let state = RangeState::created(descriptor, bytes::Bytes::new(), None);
        Machine {
            state,
            rows: MapRows::default(),
            time: 100,
            sequence: 0,
        }
    }

    fn fresh_pair(&mut self) -> SessionPair {
        self.sequence += 1;
        SessionPair {
            client: ClientId(1),
            sequence: self.sequence,
            lowest_unanswered: 1,
            first_tried: Timestamp::from_ms(self.time),
        }
    }

    fn apply_at(&mut self, timestamp: Timestamp, epoch: Epoch, action: Action<'_>) -> Applied {
        let commands = vec![Command {
            timestamp: timestamp.0,
            epoch,
            action,
        }];
        let bytes = command::encode(&Entry {
            ceiling: 5,
            commands,
        })
        .expect("encodes");
        let entry = command::access(&bytes).expect("can be read");
        apply_entry(&mut self.state, &mut self.rows, entry)
            .expect("applies")
            .remove(0)
    }

    fn retry(&mut self, write: &Write, pair: &SessionPair) -> Outcome {
        self.time += 1;
        let now = Timestamp::from_ms(self.time);
        match self.apply_at(now, EPOCH, Action::of(write, pair)) {
            Applied::Outcome(outcome) => outcome,
            Applied::Again => panic!("the timestamp is above the last"),
        }
    }

    fn write(&mut self, write: &Write) -> Outcome {
        let pair = self.fresh_pair();
        self.retry(write, &pair)
    }

    fn put(&mut self, key: &'static str, value: &'static str) -> Outcome {
        self.write(&Write::Put {
            key: key.into(),
            value: value.into(),
        })
    }

    fn value(&self, key: &str) -> Option<String> {
        let look = |found: Option<(Timestamp, Option<&[u8]>)>| {
            found.and_then(|(_, v)| v.map(|v| String::from_utf8_lossy(v).into_owned()))
        };
        self.rows
            .newest(key.as_bytes(), look)
            .expect("a map can be read")
    }
}

fn version(outcome: &Outcome) -> Timestamp {
    match outcome {
        Outcome::Done { version, .. } | Outcome::Number { version, .. } => *version,
        other => panic!("not written: {other:?}"),
    }
}

fn increment(key: &'static str, delta: i64) -> Write {
    Write::Increment {
        key: key.into(),
        delta,
    }
}

#[test]
fn put_and_delete() {
    let mut machine = Machine::new();
    machine.put("k", "");
    assert_eq!(machine.value("k").as_deref(), Some(""));
    let deleted = machine.write(&Write::Delete { key: "k".into() });
    assert!(matches!(deleted, Outcome::Done { existed: true, .. }));
    assert_eq!(machine.value("k"), None);
    let again = machine.write(&Write::Delete { key: "k".into() });
    assert!(matches!(again, Outcome::Done { existed: false, .. }));
}

#[test]
fn compare_and_swap_by_absence_value_and_version() {
    let mut machine = Machine::new();
    let cas = |condition, value: Option<&'static str>| Write::CompareAndSwap {
        key: "k".into(),
        condition,
        value: value.map(Into::into),
    };
    let created = machine.write(&cas(Condition::Absent, Some("1")));
    let first = version(&created);
    let refused = machine.write(&cas(Condition::Absent, Some("2")));
    assert_eq!(
        refused,
        Outcome::ConditionFailed {
            current: Some(first)
        }
    );
    let refused = machine.write(&cas(Condition::Value("x".into()), Some("2")));
    assert_eq!(
        refused,
        Outcome::ConditionFailed {
            current: Some(first)
        }
    );
    let second = version(&machine.write(&cas(Condition::Value("1".into()), Some("2"))));
    assert_eq!(
        machine.write(&cas(Condition::Version(first), Some("3"))),
        Outcome::ConditionFailed {
            current: Some(second)
        }
    );
    version(&machine.write(&cas(Condition::Version(second), None)));
    assert_eq!(machine.value("k"), None);
    let refused = machine.write(&cas(Condition::Version(second), Some("4")));
    assert_eq!(refused, Outcome::ConditionFailed { current: None });
}

#[test]
fn increment_counts_absent_as_zero_and_refuses_what_is_no_number() {
    let mut machine = Machine::new();
    let outcome = machine.write(&increment("n", -5));
    assert!(matches!(outcome, Outcome::Number { value: -5, .. }));
    machine.put("n", "9223372036854775807");
    assert_eq!(machine.write(&increment("n", 1)), Outcome::NumberOverflow);
    for bad in ["", "-", "+1", " 1", "1x", "99999999999999999999"] {
        machine.put("n", bad);
        assert_eq!(
            machine.write(&increment("n", 1)),
            Outcome::NotANumber,
            "{bad:?}"
        );
        assert_eq!(machine.value("n").as_deref(), Some(bad));
    }
}

#[test]
fn of_a_key_written_twice_the_last_change_wins() {
    let mut machine = Machine::new();
    let change = |key: &'static str, value: Option<&'static str>| Mutation {
        key: key.into(),
        value: value.map(Into::into),
    };
    let mutations = vec![
        change("k", Some("1")),
        change("m", Some("2")),
        change("k", None),
        change("k", Some("3")),
        change("m", None),
    ];
    machine.write(&Write::Multi { mutations });
    assert_eq!(machine.value("k").as_deref(), Some("3"));
    assert_eq!(machine.value("m"), None);
}

#[test]
fn a_retry_is_not_applied_again() {
    let mut machine = Machine::new();
    let pair = machine.fresh_pair();
    let first = machine.retry(&increment("n", 1), &pair);
    assert_eq!(machine.retry(&increment("n", 1), &pair), first);
    assert_eq!(machine.value("n").as_deref(), Some("1"));
}

#[test]
fn a_retry_is_found_before_the_epoch_is_judged() {
    let mut machine = Machine::new();
    let pair = machine.fresh_pair();
    let write = Write::Put {
        key: "k".into(),
        value: "1".into(),
    };
    let first = machine.retry(&write, &pair);
    machine.state.descriptor.epoch.version = 2;
    assert_eq!(machine.retry(&write, &pair), first);
    assert_eq!(machine.put("k", "2"), Outcome::Moved);
}

#[test]
fn keys_outside_the_range_are_refused_at_apply() {
    let mut machine = Machine::new();
    assert_eq!(machine.put("a", "1"), Outcome::Moved);
    assert_eq!(machine.put("y", "1"), Outcome::Moved);
    let mutations = ["c", "z"]
        .map(|key| Mutation {
            key: key.into(),
            value: None,
        })
        .to_vec();
    assert_eq!(machine.write(&Write::Multi { mutations }), Outcome::Moved);
    assert!(machine.rows.0.is_empty());
}

#[test]
fn a_timestamp_not_above_the_last_does_nothing() {
    let mut machine = Machine::new();
    let last = version(&machine.put("k", "1"));
    let pair = machine.fresh_pair();
    let write = Write::Put {
        key: "k".into(),
        value: "2".into(),
    };
    assert_eq!(
        machine.apply_at(last, EPOCH, Action::of(&write, &pair)),
        Applied::Again
    );
    assert_eq!(machine.value("k").as_deref(), Some("1"));
    // The pair was not used up.
    assert!(matches!(machine.retry(&write, &pair), Outcome::Done { .. }));
}

#[test]
fn thresholds_and_ceilings_never_go_back() {
    let mut machine = Machine::new();
    let at = |ms| Timestamp::from_ms(ms);
    machine.apply_at(
        at(1000),
        EPOCH,
        Action::CollectBelow {
            threshold: at(500).0,
        },
    );
    machine.apply_at(
        at(1001),
        EPOCH,
        Action::CollectBelow {
            threshold: at(400).0,
        },
    );
    assert_eq!(machine.state.gc_threshold, at(500));
    assert_eq!(machine.state.ceiling, Timestamp(5));
    machine.apply_at(
        at(1002),
        EPOCH,
        Action::CollectBelow {
            threshold: at(5000).0,
        },
    );
    assert_eq!(machine.state.gc_threshold, at(1002));
}

#[test]
fn a_damaged_entry_is_an_error() {
    let pair = Machine::new().fresh_pair();
    let write = Write::Put {
        key: "k".into(),
        value: "value".into(),
    };
    let commands = vec![Command {
        timestamp: 9,
        epoch: EPOCH,
        action: Action::of(&write, &pair),
    }];
    let bytes = command::encode(&Entry {
        ceiling: 5,
        commands,
    })
    .expect("encodes");
    for len in 0..bytes.len() - 1 {
        // Some prefixes may still look like an entry; none may panic.
        let _ = command::access(&bytes[..len]);
    }
    assert!(command::access(&[]).is_err());
    assert!(command::access(&[0xff; 64]).is_err());
}

#[test]
fn the_state_row_round_trips() {
    let mut machine = Machine::new();
    machine.put("k", "1");
    machine.state.applied = Some(crate::wal::LogId {
        term: 2,
        leader: crate::types::ReplicaId(3),
        index: 11,
    });
    let again = RangeState::decode(&machine.state.encode().expect("encodes")).expect("decodes");
    assert_eq!(again.descriptor, machine.state.descriptor);
    assert_eq!(again.applied, machine.state.applied);
    assert_eq!(again.last_ts, machine.state.last_ts);
    assert!(RangeState::decode(b"nonsense").is_err());
}
