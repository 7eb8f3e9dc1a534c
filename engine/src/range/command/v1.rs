//! Entries of the first format, which older logs hold: read, and written anew in today's.
//!
//! Their payload is an rkyv archive and nothing after it. It ends with the number of its commands,
//! which is far below 2^24, so that its last byte is always zero: by that it is told from the later
//! formats, which end with the number of their format.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use rkyv::rancor;

use crate::error::Fatal;
use crate::range::command::{self, Action, Command, RangeOrder};
use crate::request::{Batch, Expected, RequestId};
use crate::types::{ClientId, Epoch, Timestamp};

type Bytes = Box<[u8]>;

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct EntryV1 {
    ceiling: u64,
    commands: Vec<CommandV1>,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct CommandV1 {
    timestamp: u64,
    epoch: Epoch,
    action: ActionV1,
}

#[derive(Clone, Copy, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct RequestIdV1 {
    client: u128,
    sequence: u64,
    lowest_unanswered: u64,
    first_tried: u64,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
enum ActionV1 {
    Put {
        request_id: RequestIdV1,
        key: Bytes,
        value: Bytes,
    },
    Delete {
        request_id: RequestIdV1,
        key: Bytes,
    },
    CompareAndSwap {
        request_id: RequestIdV1,
        key: Bytes,
        expected: ExpectedV1,
        change: ChangeV1,
    },
    Increment {
        request_id: RequestIdV1,
        key: Bytes,
        delta: i64,
    },
    Multi {
        request_id: RequestIdV1,
        changes: Vec<KeyChangeV1>,
    },
    SetGcThreshold {
        threshold: u64,
    },
    Nothing,
    Digest {
        number: u64,
    },
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
enum ExpectedV1 {
    Absent,
    Value(Bytes),
    Version(u64),
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
enum ChangeV1 {
    Set(Bytes),
    Remove,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct KeyChangeV1 {
    key: Bytes,
    change: ChangeV1,
}

/// The bytes of an entry of the first format, written anew in today's. What they do when they are
/// applied is the same to the last row and request of a session: replicas of both are compared.
///
/// # Errors
/// The bytes are no entry of the first format.
pub fn convert(bytes: &[u8]) -> Result<Vec<u8>, Fatal> {
    let entry = rkyv::from_bytes::<EntryV1, rancor::Error>(bytes)
        .map_err(|e| Fatal::Inconsistent(format!("a log entry cannot be read: {e}")))?;
    let actions: Vec<(u64, Epoch, Owned)> = entry
        .commands
        .into_iter()
        .map(|c| (c.timestamp, c.epoch, Owned::from(c.action)))
        .collect();
    let commands = actions.iter().map(|(timestamp, epoch, action)| Command {
        timestamp: *timestamp,
        epoch: *epoch,
        action: match action {
            Owned::Write(request_id, batch) => Action::Write {
                request_id: *request_id,
                batch,
            },
            Owned::Order(order) => Action::Order(order),
        },
    });
    command::encode_bytes(&command::Entry {
        ceiling: entry.ceiling,
        commands: commands.collect(),
    })
}

/// What an action owns while it is written anew.
enum Owned {
    Write(RequestId, Batch),
    Order(RangeOrder),
}

impl From<ActionV1> for Owned {
    fn from(action: ActionV1) -> Owned {
        match action {
            ActionV1::Put {
                request_id,
                key,
                value,
            } => Owned::Write(request_id.into(), Batch::put(key.into(), value.into())),
            ActionV1::Delete { request_id, key } => {
                Owned::Write(request_id.into(), Batch::delete(key.into()))
            }
            ActionV1::CompareAndSwap {
                request_id,
                key,
                expected,
                change,
            } => {
                let expected = match expected {
                    ExpectedV1::Absent => Expected::Absent,
                    ExpectedV1::Value(value) => Expected::Value(value.into()),
                    ExpectedV1::Version(version) => Expected::Version(Timestamp(version)),
                };
                let value = change.value().map(Into::into);
                let batch = Batch::compare_and_swap(key.into(), expected, value);
                Owned::Write(request_id.into(), batch)
            }
            ActionV1::Increment {
                request_id,
                key,
                delta,
            } => Owned::Write(request_id.into(), Batch::add(key.into(), delta)),
            ActionV1::Multi {
                request_id,
                changes,
            } => Owned::Write(request_id.into(), multi(changes)),
            ActionV1::SetGcThreshold { threshold } => {
                Owned::Order(RangeOrder::SetGcThreshold { threshold })
            }
            ActionV1::Nothing => Owned::Order(RangeOrder::NoOp),
            ActionV1::Digest { number } => Owned::Order(RangeOrder::Digest { number }),
        }
    }
}

/// A write of several keys did not look whether there was something to delete. A batch with one
/// mutation does, so the mutation is there twice: the batch then does what the old write did.
fn multi(changes: Vec<KeyChangeV1>) -> Batch {
    let alone = changes.len() == 1;
    let changes = changes
        .into_iter()
        .map(|c| (c.key.into(), c.change.value().map(Into::into)));
    let mut batch = Batch::set_all(changes);
    if alone {
        batch.mutations.extend(batch.mutations.first().cloned());
    }
    batch
}

impl ChangeV1 {
    fn value(self) -> Option<Bytes> {
        match self {
            ChangeV1::Set(value) => Some(value),
            ChangeV1::Remove => None,
        }
    }
}

impl From<RequestIdV1> for RequestId {
    fn from(request_id: RequestIdV1) -> RequestId {
        RequestId {
            client: ClientId(request_id.client),
            sequence: request_id.sequence,
            lowest_unanswered: request_id.lowest_unanswered,
            first_tried: Timestamp(request_id.first_tried),
        }
    }
}

#[cfg(test)]
pub(in crate::range) mod tests {
    use super::*;
    use crate::range::command::format;
    use crate::range::command::{ArchivedAction, ArchivedRangeOrder};

    const REQUEST_ID: RequestIdV1 = RequestIdV1 {
        client: 1 << 90,
        sequence: 2,
        lowest_unanswered: 1,
        first_tried: 77,
    };

    fn bytes(text: &str) -> Bytes {
        text.as_bytes().into()
    }

    /// An entry of the first format, with commands of these actions.
    fn entry_of(actions: Vec<ActionV1>) -> Vec<u8> {
        let epoch = Epoch {
            version: 3,
            conf: 4,
        };
        let command = |(timestamp, action)| CommandV1 {
            timestamp,
            epoch,
            action,
        };
        let entry = EntryV1 {
            ceiling: 9,
            commands: (100..).zip(actions).map(command).collect(),
        };
        let bytes = rkyv::to_bytes::<rancor::Error>(&entry).expect("encodes");
        bytes.to_vec()
    }

    /// An entry with each action that the first format has, and one with none.
    pub fn samples() -> [Vec<u8>; 2] {
        let (request_id, key) = (REQUEST_ID, || bytes("a key that stands at an address"));
        let all = vec![
            ActionV1::Put {
                request_id,
                key: key(),
                value: bytes("v"),
            },
            ActionV1::Delete {
                request_id,
                key: key(),
            },
            ActionV1::CompareAndSwap {
                request_id,
                key: key(),
                expected: ExpectedV1::Value(bytes("v")),
                change: ChangeV1::Remove,
            },
            ActionV1::Increment {
                request_id,
                key: key(),
                delta: -3,
            },
            ActionV1::Multi {
                request_id,
                changes: vec![KeyChangeV1 {
                    key: key(),
                    change: ChangeV1::Set(bytes("v")),
                }],
            },
            ActionV1::SetGcThreshold { threshold: 5 },
            ActionV1::Nothing,
            ActionV1::Digest { number: 6 },
        ];
        [entry_of(all), entry_of(Vec::new())]
    }

    fn convert_all(actions: Vec<ActionV1>) -> Vec<u8> {
        let old = entry_of(actions);
        format::current(&old).expect("is converted").into_owned()
    }

    fn batch_of(action: ActionV1) -> Batch {
        let new = convert_all(vec![action]);
        let entry = command::access(&new).expect("is read");
        let command = entry.commands.first().expect("one command");
        assert_eq!(
            (entry.ceiling.to_native(), command.timestamp.to_native()),
            (9, 100)
        );
        assert_eq!(
            command.epoch.epoch(),
            Epoch {
                version: 3,
                conf: 4
            }
        );
        let ArchivedAction::Write { request_id, batch } = &command.action else {
            panic!("a write");
        };
        assert_eq!(request_id.to_native(), RequestId::from(REQUEST_ID));
        rkyv::deserialize::<Batch, rancor::Error>(batch).expect("a batch")
    }

    #[test]
    fn every_write_of_the_first_format_is_a_batch() {
        let (request_id, key) = (REQUEST_ID, || bytes("k"));
        let put = ActionV1::Put {
            request_id,
            key: key(),
            value: bytes("v"),
        };
        assert_eq!(batch_of(put), Batch::put("k".into(), "v".into()));
        let delete = ActionV1::Delete {
            request_id,
            key: key(),
        };
        assert_eq!(batch_of(delete), Batch::delete("k".into()));
        let add = ActionV1::Increment {
            request_id,
            key: key(),
            delta: -3,
        };
        assert_eq!(batch_of(add), Batch::add("k".into(), -3));
        for (old, new) in [
            (ExpectedV1::Absent, Expected::Absent),
            (ExpectedV1::Value(bytes("")), Expected::Value("".into())),
            (ExpectedV1::Version(7), Expected::Version(Timestamp(7))),
        ] {
            let swap = ActionV1::CompareAndSwap {
                request_id,
                key: key(),
                expected: old,
                change: ChangeV1::Set(bytes("v")),
            };
            let wanted = Batch::compare_and_swap("k".into(), new, Some("v".into()));
            assert_eq!(batch_of(swap), wanted);
        }
        let change = |key: &str, value: Option<&str>| KeyChangeV1 {
            key: bytes(key),
            change: value.map_or(ChangeV1::Remove, |value| ChangeV1::Set(bytes(value))),
        };
        let changes = vec![change("a", Some("1")), change("b", None)];
        let wanted = Batch::set_all([("a".into(), Some("1".into())), ("b".into(), None)]);
        assert_eq!(
            batch_of(ActionV1::Multi {
                request_id,
                changes
            }),
            wanted
        );
        // A lone delete of such a write never looked whether the key is there.
        let changes = vec![change("b", None)];
        let wanted = Batch::set_all([("b".into(), None), ("b".into(), None)]);
        assert_eq!(
            batch_of(ActionV1::Multi {
                request_id,
                changes
            }),
            wanted
        );
    }

    #[test]
    fn orders_of_the_range_and_an_entry_of_nothing_stay() {
        let new = convert_all(vec![
            ActionV1::Nothing,
            ActionV1::SetGcThreshold { threshold: 5 },
            ActionV1::Digest { number: 6 },
        ]);
        let entry = command::access(&new).expect("is read");
        let orders = entry.commands.iter().map(|command| match &command.action {
            ArchivedAction::Order(ArchivedRangeOrder::NoOp) => (0, 0),
            ArchivedAction::Order(ArchivedRangeOrder::SetGcThreshold { threshold }) => {
                (1, threshold.to_native())
            }
            ArchivedAction::Order(ArchivedRangeOrder::Digest { number }) => (2, number.to_native()),
            _ => panic!("an order"),
        });
        assert_eq!(orders.collect::<Vec<_>>(), [(0, 0), (1, 5), (2, 6)]);
        let empty = convert_all(Vec::new());
        assert!(
            command::access(&empty)
                .expect("is read")
                .commands
                .is_empty()
        );
    }

    /// The number of commands ends an entry of the first format.
    #[test]
    fn the_formats_cannot_be_taken_for_each_other() {
        assert!((crate::limits::ENTRY_COMMANDS_MAX as u32).to_le_bytes()[3] == 0);
        assert!(format::current(&[7, 7, 9]).is_err());
        assert!(format::current(&[]).is_err());
        let new = convert_all(vec![ActionV1::Nothing]);
        assert_eq!(new.last(), Some(&command::FORMAT));
    }
}
