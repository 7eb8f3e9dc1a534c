//! Apply against rows in a map: every command, every refusal, and the requests of sessions.

use std::collections::BTreeMap;

use super::*;
use crate::range::command::{self, Action, Command, Entry, RangeOrder};
use crate::range::{Descriptor, Keyspace};
use crate::request::{Batch, Change, Condition, Expected, Mutation};
use crate::types::{ClientId, Epoch, KeyRange, RangeId, ReplicaId};

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

    fn fresh_request_id(&mut self) -> RequestId {
        self.sequence += 1;
        RequestId {
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
        let entry = Entry {
            ceiling: 5,
            commands,
        };
        let bytes = command::encode(&entry, 0).expect("encodes");
        self.step(Payload::Commands(bytes)).results.remove(0)
    }

    /// Applies the next entry.
    fn step(&mut self, payload: Payload) -> Step {
        let index = self.state.applied.map_or(1, |applied| applied.index + 1);
        let id = LogId {
            term: 1,
            leader: ReplicaId(1),
            index,
        };
        let entry = LogEntry { id, payload };
        let step = apply(&mut self.state, &mut self.rows, &entry).expect("applies");
        assert_eq!(self.state.applied, Some(id));
        step
    }

    fn retry(&mut self, write: &Batch, request_id: &RequestId) -> Outcome {
        self.time += 1;
        let now = Timestamp::from_ms(self.time);
        match self.apply_at(
            now,
            EPOCH,
            Action::Write {
                request_id: *request_id,
                batch: write,
            },
        ) {
            Applied::Outcome(outcome) => outcome,
            Applied::Repropose => panic!("the timestamp is above the last"),
        }
    }

    fn write(&mut self, write: &Batch) -> Outcome {
        let request_id = self.fresh_request_id();
        self.retry(write, &request_id)
    }

    fn put(&mut self, key: &'static str, value: &'static str) -> Outcome {
        self.write(&Batch::put(key.into(), value.into()))
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

fn failed(current: Option<Timestamp>) -> Outcome {
    let condition = 0;
    Outcome::ConditionFailed { current, condition }
}

fn increment(key: &'static str, delta: i64) -> Batch {
    Batch::add(key.into(), delta)
}

#[test]
fn put_and_delete() {
    let mut machine = Machine::new();
    machine.put("k", "");
    assert_eq!(machine.value("k").as_deref(), Some(""));
    let deleted = machine.write(&Batch::delete("k".into()));
    assert!(matches!(deleted, Outcome::Done { existed: true, .. }));
    assert_eq!(machine.value("k"), None);
    let again = machine.write(&Batch::delete("k".into()));
    assert!(matches!(again, Outcome::Done { existed: false, .. }));
}

#[test]
fn compare_and_swap_by_absence_value_and_version() {
    let mut machine = Machine::new();
    let cas = |condition, value: Option<&'static str>| {
        Batch::compare_and_swap("k".into(), condition, value.map(Into::into))
    };
    let created = machine.write(&cas(Expected::Absent, Some("1")));
    let first = version(&created);
    let refused = machine.write(&cas(Expected::Absent, Some("2")));
    assert_eq!(refused, failed(Some(first)));
    let refused = machine.write(&cas(Expected::Value("x".into()), Some("2")));
    assert_eq!(refused, failed(Some(first)));
    let second = version(&machine.write(&cas(Expected::Value("1".into()), Some("2"))));
    assert_eq!(
        machine.write(&cas(Expected::Version(first), Some("3"))),
        failed(Some(second))
    );
    version(&machine.write(&cas(Expected::Version(second), None)));
    assert_eq!(machine.value("k"), None);
    let refused = machine.write(&cas(Expected::Version(second), Some("4")));
    assert_eq!(refused, failed(None));
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
    let change =
        |key: &'static str, value: Option<&'static str>| (key.into(), value.map(Into::into));
    let mutations = vec![
        change("k", Some("1")),
        change("m", Some("2")),
        change("k", None),
        change("k", Some("3")),
        change("m", None),
    ];
    machine.write(&Batch::set_all(mutations));
    assert_eq!(machine.value("k").as_deref(), Some("3"));
    assert_eq!(machine.value("m"), None);
}

#[test]
fn a_retry_is_not_applied_again() {
    let mut machine = Machine::new();
    let request_id = machine.fresh_request_id();
    let first = machine.retry(&increment("n", 1), &request_id);
    assert_eq!(machine.retry(&increment("n", 1), &request_id), first);
    assert_eq!(machine.value("n").as_deref(), Some("1"));
}

#[test]
fn a_retry_is_found_before_the_epoch_is_judged() {
    let mut machine = Machine::new();
    let request_id = machine.fresh_request_id();
    let write = Batch::put("k".into(), "1".into());
    let first = machine.retry(&write, &request_id);
    machine.state.descriptor.epoch.version = 2;
    assert_eq!(machine.retry(&write, &request_id), first);
    assert_eq!(machine.put("k", "2"), Outcome::Moved);
}

#[test]
fn a_change_of_members_refuses_no_write() {
    let mut machine = Machine::new();
    let mut put = |timestamp: u64, proposed: (u32, u32), now: (u32, u32)| {
        let epoch = |(version, conf)| Epoch { version, conf };
        let write = Batch::put("k".into(), "1".into());
        let request_id = machine.fresh_request_id();
        machine.state.descriptor.epoch = epoch(now);
        let action = Action::Write {
            request_id,
            batch: &write,
        };
        let applied = machine.apply_at(Timestamp(timestamp), epoch(proposed), action);
        applied != Applied::Outcome(Outcome::Moved)
    };
    assert!(put(1000, (1, 0), (1, 7)));
    assert!(!put(1001, (1, 0), (2, 1)));
    // An older release names the members, and its replicas have refused the write.
    assert!(put(1002, (2, 7), (2, 7)));
    assert!(!put(1003, (2, 6), (2, 7)));
}

#[test]
fn keys_outside_the_range_are_refused_at_apply() {
    let mut machine = Machine::new();
    assert_eq!(machine.put("a", "1"), Outcome::Moved);
    assert_eq!(machine.put("y", "1"), Outcome::Moved);
    let mutations = ["c", "z"].map(|key| (key.into(), None)).to_vec();
    assert_eq!(machine.write(&Batch::set_all(mutations)), Outcome::Moved);
    assert!(machine.rows.0.is_empty());
}

#[test]
fn a_timestamp_not_above_the_last_does_nothing() {
    let mut machine = Machine::new();
    let last = version(&machine.put("k", "1"));
    let request_id = machine.fresh_request_id();
    let write = Batch::put("k".into(), "2".into());
    assert_eq!(
        machine.apply_at(
            last,
            EPOCH,
            Action::Write {
                request_id,
                batch: &write
            }
        ),
        Applied::Repropose
    );
    assert_eq!(machine.value("k").as_deref(), Some("1"));
    // The pair was not used up.
    assert!(matches!(
        machine.retry(&write, &request_id),
        Outcome::Done { .. }
    ));
}

#[test]
fn thresholds_and_ceilings_never_go_back() {
    let mut machine = Machine::new();
    let at = |ms| Timestamp::from_ms(ms);
    machine.apply_at(
        at(1000),
        EPOCH,
        Action::Order(&RangeOrder::SetGcThreshold {
            threshold: at(500).0,
        }),
    );
    machine.apply_at(
        at(1001),
        EPOCH,
        Action::Order(&RangeOrder::SetGcThreshold {
            threshold: at(400).0,
        }),
    );
    assert_eq!(machine.state.gc_threshold, at(500));
    assert_eq!(machine.state.ceiling, Timestamp(5));
    machine.apply_at(
        at(1002),
        EPOCH,
        Action::Order(&RangeOrder::SetGcThreshold {
            threshold: at(5000).0,
        }),
    );
    assert_eq!(machine.state.gc_threshold, at(1002));
}

#[test]
fn a_damaged_entry_is_an_error() {
    let request_id = Machine::new().fresh_request_id();
    let write = Batch::put("k".into(), "value".into());
    let commands = vec![Command {
        timestamp: 9,
        epoch: EPOCH,
        action: Action::Write {
            request_id,
            batch: &write,
        },
    }];
    let entry = Entry {
        ceiling: 5,
        commands,
    };
    let bytes = command::encode(&entry, 0).expect("encodes");
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
    let row = machine.state.encode(&[]).expect("encodes");
    let (again, parts) = RangeState::decode(&row).expect("decodes");
    assert!(parts.is_empty());
    assert_eq!(again.descriptor, machine.state.descriptor);
    assert_eq!(again.applied, machine.state.applied);
    assert_eq!(again.last_ts, machine.state.last_ts);
    assert!(RangeState::decode(b"nonsense").is_err());
}

fn condition(key: &'static str, expected: Expected) -> Condition {
    let key = key.into();
    Condition { key, expected }
}

fn batch(
    conditions: Vec<Condition>,
    mutations: impl IntoIterator<Item = (&'static str, Change)>,
) -> Batch {
    let mutation = |(key, change): (&'static str, Change)| Mutation {
        key: key.into(),
        change,
    };
    Batch {
        conditions,
        mutations: mutations.into_iter().map(mutation).collect(),
    }
}

fn set(value: &'static str) -> Change {
    Change::to(Some(value.into()))
}

#[test]
fn a_batch_is_written_whole_if_all_its_conditions_hold() {
    let mut machine = Machine::new();
    let first = version(&machine.put("m", "1"));
    let conditions = || {
        vec![
            condition("k", Expected::Absent),
            condition("m", Expected::Version(first)),
            condition("m", Expected::Value("1".into())),
            condition("m", Expected::Exists),
        ]
    };
    let changes = || [("k", set("2")), ("n", set("3")), ("m", Change::Delete)];
    let written = machine.write(&batch(conditions(), changes()));
    assert!(matches!(written, Outcome::Done { existed: true, .. }));
    let values = |machine: &Machine| ["k", "n", "m"].map(|key| machine.value(key));
    let after = values(&machine);
    assert_eq!(after, [Some("2".to_owned()), Some("3".to_owned()), None]);
    // Now the first, the second, or the last of them does not hold.
    let second = version(&written);
    for (expected, place, current) in [
        (condition("k", Expected::Absent), 0, Some(second)),
        (condition("m", Expected::Exists), 0, None),
        (condition("n", Expected::Version(first)), 2, Some(second)),
    ] {
        let mut wanted = vec![
            condition("k", Expected::Exists),
            condition("n", Expected::Version(second)),
        ];
        wanted.insert(place, expected);
        let refused = machine.write(&batch(wanted, [("k", set("9")), ("o", set("9"))]));
        let condition = place as u32;
        assert_eq!(refused, Outcome::ConditionFailed { current, condition });
        assert_eq!(values(&machine), after);
        assert_eq!(machine.value("o"), None);
    }
}

#[test]
fn conditions_see_the_keys_as_they_were_before_the_batch() {
    let mut machine = Machine::new();
    let twice = batch(
        vec![
            condition("k", Expected::Absent),
            condition("k", Expected::Absent),
        ],
        [("k", set("1")), ("k", set("2"))],
    );
    version(&machine.write(&twice));
    assert_eq!(machine.value("k").as_deref(), Some("2"));
    assert!(matches!(
        machine.write(&twice),
        Outcome::ConditionFailed { condition: 0, .. }
    ));
}

#[test]
fn additions_of_a_batch_see_the_changes_before_them() {
    let mut machine = Machine::new();
    machine.put("n", "5");
    let add = |delta| Change::Add { delta };
    let transfer = batch(Vec::new(), [("n", add(-2)), ("m", add(2)), ("n", add(-1))]);
    let Outcome::Numbers { values, .. } = machine.write(&transfer) else {
        panic!("three numbers");
    };
    assert_eq!(*values, [3, 2, 2]);
    assert_eq!(machine.value("n").as_deref(), Some("2"));
    let mixed = batch(
        Vec::new(),
        [
            ("k", set("7")),
            ("k", add(1)),
            ("m", Change::Delete),
            ("n", set("x")),
        ],
    );
    assert!(matches!(
        machine.write(&mixed),
        Outcome::Number { value: 8, .. }
    ));
    assert_eq!(machine.value("k").as_deref(), Some("8"));
    assert_eq!(machine.value("m"), None);
    let gone = batch(Vec::new(), [("k", Change::Delete), ("k", add(4))]);
    assert!(matches!(
        machine.write(&gone),
        Outcome::Number { value: 4, .. }
    ));
}

#[test]
fn a_batch_whose_addition_is_refused_writes_nothing() {
    let mut machine = Machine::new();
    machine.put("n", "x");
    machine.put("m", "9223372036854775807");
    let add = |delta| Change::Add { delta };
    let no_number = batch(Vec::new(), [("k", set("1")), ("n", add(1))]);
    assert_eq!(machine.write(&no_number), Outcome::NotANumber);
    let too_large = batch(Vec::new(), [("k", set("1")), ("m", add(1))]);
    assert_eq!(machine.write(&too_large), Outcome::NumberOverflow);
    let of_a_value_just_set = batch(Vec::new(), [("k", set("y")), ("k", add(1))]);
    assert_eq!(machine.write(&of_a_value_just_set), Outcome::NotANumber);
    assert_eq!(machine.value("k"), None);
}

#[test]
fn conditions_outside_the_range_are_refused_at_apply() {
    let mut machine = Machine::new();
    let outside = batch(
        vec![condition("z", Expected::Absent)],
        [("k", set("1")), ("m", set("1"))],
    );
    assert_eq!(machine.write(&outside), Outcome::Moved);
    assert_eq!(machine.value("k"), None);
}

#[test]
fn what_an_entry_asks_for_besides_is_an_effect() {
    let mut machine = Machine::new();
    let blank = machine.step(Payload::Blank);
    let id = machine.state.applied.expect("it is applied");
    assert_eq!(blank.effects, [Effect::BeginTerm(id)]);
    assert!(blank.results.is_empty());
    let orders = [
        RangeOrder::Digest { number: 7 },
        RangeOrder::NoOp,
        RangeOrder::Digest { number: 8 },
    ];
    let actions = orders.iter().map(Action::Order);
    let command = |(timestamp, action)| Command {
        timestamp,
        epoch: EPOCH,
        action,
    };
    let entry = Entry {
        ceiling: 0,
        commands: (1000..).zip(actions).map(command).collect(),
    };
    let bytes = command::encode(&entry, 0).expect("encodes");
    let step = machine.step(Payload::Commands(bytes));
    assert_eq!(step.effects, [Effect::Digest(7), Effect::Digest(8)]);
    assert_eq!(step.results.len(), 3);
}

#[test]
fn an_entry_is_no_longer_than_its_writes_are_reckoned() {
    let request_id = Machine::new().fresh_request_id();
    let many = (0..4000).map(|number: u32| Mutation {
        key: number.to_string().into(),
        change: match number % 3 {
            0 => Change::to(Some("".into())),
            1 => Change::Delete,
            _ => Change::Add { delta: -1 },
        },
    });
    let conditions = vec![
        condition("k", Expected::Value("v".into())),
        condition("k", Expected::Version(Timestamp(9))),
    ];
    for batch in [
        Batch::put("k".into(), "".into()),
        Batch::compare_and_swap("k".into(), Expected::Absent, None),
        batch(conditions, [("k", set("v"))]),
        Batch {
            conditions: Vec::new(),
            mutations: many.collect(),
        },
    ] {
        let commands = vec![Command {
            timestamp: 9,
            epoch: EPOCH,
            action: Action::Write {
                request_id,
                batch: &batch,
            },
        }];
        let entry = Entry {
            ceiling: 5,
            commands,
        };
        let len = command::encode(&entry, 0).expect("encodes").len();
        let most = command::encoded_len_max(&batch);
        assert!(
            len <= most,
            "{len} of {most} bytes: {:?}",
            batch.first_key()
        );
    }
}
