//! The replicated state of a range besides its rows, and the row in which the tree keeps it.

pub mod merged_borders;

use rkyv::rancor;

use crate::raft::{AppliedMembership, AppliedState};
use crate::range::Descriptor;
use crate::range::rows::data_parts::LaterPart;
use crate::range::sessions::Sessions;
use crate::types::{MergeId, RangeId, ReplicaId, Timestamp};
use crate::wal::LogId;
use merged_borders::{MergedBorder, MergedBorders};

/// The log of a range starts after this entry, whether the range was bootstrapped or split off.
pub const FIRST: LogId = LogId {
    term: 1,
    leader: ReplicaId(0),
    index: 10,
};

/// What applying the log has made of a range, without its rows.
#[derive(Debug)]
pub struct RangeState {
    /// Its interval, epoch and replicas.
    pub descriptor: Descriptor,
    /// The last entry applied; `None` in a replica that waits for its first entry or snapshot.
    pub applied: Option<LogId>,
    /// The membership in force and the entry that set it.
    pub membership: AppliedMembership,
    /// The timestamp of the last command applied; every entry raises it.
    pub last_ts: Timestamp,
    /// No earlier leader served a read above this timestamp.
    pub ceiling: Timestamp,
    /// Reads at or below this are refused: versions that they need may be gone.
    pub gc_threshold: Timestamp,
    /// The session table, by which a write is applied at most once.
    pub sessions: Sessions,
    /// The merge for which the range is frozen, if it is: it applies no write; see
    /// [`crate::range::split_merge::merge`].
    pub frozen: Option<MergeId>,
    /// The borders between ranges that it has taken over.
    pub borders: MergedBorders,
}

/// The state as a row: a flush writes it, and so records how far the range is applied.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct StateRow {
    descriptor: Descriptor,
    applied: Option<RowLogId>,
    membership_set: Option<RowLogId>,
    membership: Vec<u8>,
    last_ts: Timestamp,
    ceiling: Timestamp,
    gc_threshold: Timestamp,
    session_horizon: Timestamp,
}

/// The last byte of a row that has more than a [`StateRow`]. A plain row ends with the highest byte of a
/// timestamp, which is lower for hundreds of years.
const EXTENDED: u8 = 0xff;

/// The last byte of a row that has borders, too.
const WITH_BORDERS: u8 = 0xfe;

/// The row of a range that is frozen, or whose rows lie under several data ids. Older releases refuse it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct ExtendedRow {
    state: StateRow,
    frozen: Option<MergeId>,
    /// See [`crate::range::rows::data_parts::DataParts::others`].
    parts: Vec<LaterPart>,
}

/// The row of a range that has taken over others not long ago. Older releases refuse it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct BordersRow {
    extended: ExtendedRow,
    /// See [`MergedBorders::all`].
    borders: Vec<MergedBorder>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct RowLogId {
    term: u64,
    leader: u64,
    index: u64,
}

impl RowLogId {
    fn of(id: LogId) -> RowLogId {
        RowLogId {
            term: id.term,
            leader: id.leader.0,
            index: id.index,
        }
    }

    fn log_id(self) -> LogId {
        LogId {
            term: self.term,
            leader: ReplicaId(self.leader),
            index: self.index,
        }
    }
}

impl RangeState {
    /// The state of a new range, as of the entry `first`.
    pub fn created(
        descriptor: Descriptor,
        membership: bytes::Bytes,
        first: Option<LogId>,
    ) -> RangeState {
        RangeState {
            descriptor,
            applied: first,
            membership: AppliedMembership {
                log_id: None,
                body: membership,
            },
            last_ts: Timestamp::ZERO,
            ceiling: Timestamp::ZERO,
            gc_threshold: Timestamp::ZERO,
            sessions: Sessions::default(),
            frozen: None,
            borders: MergedBorders::default(),
        }
    }

    /// The range.
    pub fn range(&self) -> RangeId {
        self.descriptor.range
    }

    /// How far the range is applied.
    pub fn applied_state(&self) -> AppliedState {
        AppliedState {
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    /// The bytes of the state's row, with the parts of the replica's rows besides the first: none of them
    /// is sent. The session table has rows of its own.
    ///
    /// # Errors
    /// The encoder failed, which no state in memory can cause.
    pub fn encode(&self, parts: &[LaterPart]) -> Result<Vec<u8>, rancor::Error> {
        let state = StateRow {
            descriptor: self.descriptor.clone(),
            applied: self.applied.map(RowLogId::of),
            membership_set: self.membership.log_id.map(RowLogId::of),
            membership: self.membership.body.to_vec(),
            last_ts: self.last_ts,
            ceiling: self.ceiling,
            gc_threshold: self.gc_threshold,
            session_horizon: self.sessions.horizon(),
        };
        let has_borders = !self.borders.all().is_empty();
        if self.frozen.is_none() && parts.is_empty() && !has_borders {
            return rkyv::to_bytes::<rancor::Error>(&state).map(|bytes| bytes.to_vec());
        }
        let extended = ExtendedRow {
            state,
            frozen: self.frozen,
            parts: parts.to_vec(),
        };
        let (mut bytes, last) = match has_borders {
            false => (
                rkyv::to_bytes::<rancor::Error>(&extended)?.to_vec(),
                EXTENDED,
            ),
            true => {
                let borders = self.borders.all().to_vec();
                let row = BordersRow { extended, borders };
                (
                    rkyv::to_bytes::<rancor::Error>(&row)?.to_vec(),
                    WITH_BORDERS,
                )
            }
        };
        bytes.push(last);
        Ok(bytes)
    }

    /// Reads what [`RangeState::encode`] wrote: the state, with an empty session table, and the parts.
    ///
    /// # Errors
    /// The bytes are not a state row.
    pub fn decode(bytes: &[u8]) -> Result<(RangeState, Vec<LaterPart>), rancor::Error> {
        let with_borders = match bytes.split_last() {
            Some((&WITH_BORDERS, row)) => rkyv::from_bytes::<BordersRow, rancor::Error>(row)?,
            Some((&EXTENDED, row)) => BordersRow {
                extended: rkyv::from_bytes::<ExtendedRow, rancor::Error>(row)?,
                borders: Vec::new(),
            },
            _ => BordersRow {
                extended: ExtendedRow {
                    state: rkyv::from_bytes::<StateRow, rancor::Error>(bytes)?,
                    frozen: None,
                    parts: Vec::new(),
                },
                borders: Vec::new(),
            },
        };
        let BordersRow { extended, borders } = with_borders;
        let ExtendedRow {
            state: row,
            frozen,
            parts,
        } = extended;
        let state = RangeState {
            descriptor: row.descriptor,
            applied: row.applied.map(RowLogId::log_id),
            membership: AppliedMembership {
                log_id: row.membership_set.map(RowLogId::log_id),
                body: row.membership.into(),
            },
            last_ts: row.last_ts,
            ceiling: row.ceiling,
            gc_threshold: row.gc_threshold,
            sessions: Sessions::new(row.session_horizon),
            frozen,
            borders: MergedBorders::new(borders),
        };
        Ok((state, parts))
    }
}
