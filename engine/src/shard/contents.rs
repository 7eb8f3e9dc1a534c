//! Everything that the replicas of a shard hold, for tests that compare replicas.
//!
//! This reads whole tables in one turn: no server in use may call it.

use std::ops::Bound;

use super::Shard;
use crate::env::Env;
use crate::error::Fatal;
use crate::lsm::keys;
use crate::range::replica::Replica;
use crate::range::sessions::SessionRow;
use crate::range::state::RangeState;
use crate::types::{Blob, Timestamp};
use crate::wal::{Group, LogId, LogState};

/// Everything that one replica holds.
#[derive(Debug)]
pub struct Contents {
    /// The range and the replica.
    pub group: Group,
    /// Its state, without the session table.
    pub state: RangeState,
    /// The session table, each client before its pairs.
    pub sessions: Vec<SessionRow>,
    /// All versions of users' rows, by key, the newest of each key first.
    pub rows: Vec<Version>,
}

/// A version of a user's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The user's key.
    pub key: Blob,
    /// The timestamp of the version.
    pub version: Timestamp,
    /// The value; `None`: a tombstone.
    pub value: Option<Blob>,
}

impl<E: Env> Shard<E> {
    /// Everything that each replica of this shard holds.
    ///
    /// # Errors
    /// The tree cannot be read.
    pub fn contents(&self) -> Result<Vec<Contents>, Fatal> {
        let replicas = self.inner.ranges.replicas().into_iter();
        replicas.map(|replica| of(&replica)).collect()
    }

    /// The state of each replica's log, and the ids of its entries.
    pub fn logs(&self) -> Vec<(Group, LogState, Vec<LogId>)> {
        self.inner.wal.contents()
    }
}

fn of<E: Env>(replica: &Replica<E>) -> Result<Contents, Fatal> {
    let encoding = |e: rkyv::rancor::Error| Fatal::Inconsistent(format!("a state: {e}"));
    let (state, sessions) = replica.with_state(|state| {
        let sessions: Vec<SessionRow> = state.sessions.rows().collect();
        let row = state.encode(&[]).map_err(encoding)?;
        Ok::<_, Fatal>((RangeState::decode(&row).map_err(encoding)?.0, sessions))
    })?;
    let mut rows = Vec::new();
    for (data_id, keys) in replica.intervals() {
        let (mut low, mut high) = (Vec::new(), Vec::new());
        keys::users_of(data_id, keys.interval(), &mut low, &mut high);
        let bounds = (
            Bound::Included(low.as_slice()),
            Bound::Excluded(high.as_slice()),
        );
        replica.store.scan(bounds, Timestamp::MAX, |scan| {
            while let Some(row) = scan.next_version(|key, version, value| Version {
                key: Blob::copy_from_slice(keys::user_part(key)),
                version,
                value: value.map(Blob::copy_from_slice),
            })? {
                rows.push(row);
            }
            Ok(())
        })?;
    }
    Ok(Contents {
        group: replica.group,
        state,
        sessions,
        rows,
    })
}
