//! A write that was proposed before a change of its range's bounds and is applied after it: it has no
//! effect, and its sender learns that the range has moved.
//!
//! One entry is applied to the state of a range; there is no cluster around it.

use std::collections::BTreeMap;

use bytes::Bytes;
use rangedb_engine::lsm::LsmError;
use rangedb_engine::range::apply::{self, Applied};
use rangedb_engine::range::command::{self, Action, Command, Entry};
use rangedb_engine::range::rows::Rows;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::range::{Descriptor, Keyspace};
use rangedb_engine::request::{Batch, Outcome, RequestId};
use rangedb_engine::types::{ClientId, Epoch, KeyRange, RangeId, ReplicaId, Timestamp};
use rangedb_engine::wal::{Group, LogEntry, LogId, Payload};

use super::random::Random;
use crate::invariants::epochs;

/// The newest version of each key.
#[derive(Default)]
struct Newest(BTreeMap<Vec<u8>, (Timestamp, Option<Vec<u8>>)>);

impl Rows for Newest {
    fn newest<R>(
        &self,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError> {
        let found = self.0.get(key);
        Ok(look(
            found.map(|(version, value)| (*version, value.as_deref())),
        ))
    }

    fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        let value = value.map(<[u8]>::to_vec);
        self.0.insert(key.to_vec(), (version, value));
    }
}

/// Why a seed fails, if it does.
pub fn failure(seed: u64) -> Option<String> {
    apply_after_change(seed).err()
}

fn apply_after_change(seed: u64) -> Result<(), String> {
    let random = Random::new(seed, 1);
    let proposed = random.between(1, 9) as u32;
    let descriptor = Descriptor {
        range: RangeId(7),
        epoch: Epoch {
            version: proposed + random.between(1, 3) as u32,
            conf: random.between(1, 9) as u32,
        },
        keyspace: Keyspace::User,
        keys: KeyRange::all(),
        replicas: Vec::new(),
    };
    let group = Group {
        range: descriptor.range,
        replica: ReplicaId(1),
    };
    let batch = Batch::put("key".into(), "value".into());
    let request_id = RequestId {
        client: ClientId(1),
        sequence: 1,
        lowest_unanswered: 1,
        first_tried: Timestamp::from_ms(1),
    };
    let command = Command {
        timestamp: Timestamp::from_ms(2).0,
        epoch: Epoch {
            version: proposed,
            conf: 0,
        },
        action: Action::Write {
            request_id,
            batch: &batch,
        },
    };
    let entry = Entry {
        ceiling: 0,
        commands: vec![command],
    };
    let bytes = command::encode(&entry, 0).map_err(|fatal| fatal.to_string())?;
    let entry = LogEntry {
        id: LogId {
            term: 1,
            leader: ReplicaId(1),
            index: 1,
        },
        payload: Payload::Commands(bytes),
    };
    let mut state = RangeState::created(descriptor, Bytes::new(), None);
    let mut rows = Newest::default();
    let step = apply::apply(&mut state, &mut rows, &entry).map_err(|fatal| fatal.to_string())?;
    epochs::check(group, &entry, &step.results, &state)?;
    if step.results != [Applied::Outcome(Outcome::Moved)] {
        return Err(format!("the write is answered with {:?}", step.results));
    }
    match rows.0.is_empty() {
        true => Ok(()),
        false => Err("a write that is answered with `moved` has written".to_owned()),
    }
}
