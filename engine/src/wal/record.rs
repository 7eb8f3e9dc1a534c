//! Records: a batch holds them one after the other. They are the same in all formats of the log.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind |
//! | 8 | range id, little endian as all numbers |
//! | 8 | replica id |
//! | 4 | length of the body |
//! | n | body |
//!
//! | kind | record | body |
//! |---|---|---|
//! | 1 | a blank entry | log id, 4 bytes of zero |
//! | 2 | an entry of commands | log id, CRC-32C of the rest (4), the commands |
//! | 3 | an entry of a membership | log id, CRC-32C of the rest (4), the membership |
//! | 4 | vote | term (8), leader (8), whether it is committed (1) |
//! | 5 | truncation | whether anything is kept (1), the last index kept (8) |
//! | 6 | purge | log id |
//! | 7 | commit hint | log id |
//! | 8 | replica created | data id (8), whether its log starts after an entry (1), that log id, descriptor, membership |
//! | 9 | replica removed | nothing |
//! | 10 | data ids reserved | the last one (8); range and replica are 0 |
//! | 11 | replica born of a split | as kind 8, then the parent's range (8) and replica (8), the log id of the split |
//! | 12 | snapshot installed | data id (8), its last log id, whether later entries stay (1), state |
//! | 13 | identity of the log | the log's random id (16), the node's start (8), flushes that its tables had taken (8); range and replica are 0 |
//!
//! A log id is term, leader and index (8 each). Descriptor, membership and state follow their
//! length (4). The CRC of an entry is the one that its leader computed when it encoded the entry
//! ([`Body`]). In a log that rangedb 0.1 wrote in format 1 the node that appended the entry
//! computed it. It is the same function of the same bytes, so it counts the same.
//!
//! An unknown kind in a batch whose checksum holds was written by a newer version, and is refused.

use bytes::Bytes;

use crate::types::{DataId, RangeId, ReplicaId};
use crate::wal::{
    Birth, Body, Created, Group, InstalledSnapshot, LogEntry, LogId, LogMark, Payload, Vote,
};

const ENTRY_BLANK: u8 = 1;
const ENTRY_COMMANDS: u8 = 2;
const ENTRY_MEMBERSHIP: u8 = 3;
const VOTE: u8 = 4;
const TRUNCATE: u8 = 5;
const PURGE: u8 = 6;
const COMMIT: u8 = 7;
const CREATED: u8 = 8;
const REMOVED: u8 = 9;
const DATA_IDS: u8 = 10;
const BORN: u8 = 11;
const INSTALLED_SNAPSHOT: u8 = 12;
const MARK: u8 = 13;

/// Bytes before a record's body.
pub const HEADER_LEN: usize = 21;
const LOG_ID_LEN: usize = 24;
const CRC_LEN: usize = 4;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry of a group's log. The same entry may come again: its segment had to go.
    Entry(Group, LogEntry),
    /// A group's vote.
    Vote(Group, Vote),
    /// Entries after this index are dropped; `None`: all of them.
    Truncate(Group, Option<u64>),
    /// Entries up to this one are dropped.
    Purge(Group, LogId),
    /// This entry and those before it were known to be committed.
    Commit(Group, LogId),
    /// A replica was created.
    Created(Created),
    /// A replica was removed for good.
    Removed(Group),
    /// Data ids up to this one may be in use.
    DataIds(DataId),
    /// A replica has installed a snapshot.
    InstalledSnapshot(Group, InstalledSnapshot),
    /// Identifies the log.
    Mark(LogMark),
}

/// Appends one record.
pub fn encode(record: &Record, to: &mut Vec<u8>) {
    let no_group = Group {
        range: RangeId(0),
        replica: ReplicaId(0),
    };
    match record {
        Record::Entry(group, entry) => encode_entry(*group, entry, to),
        Record::Vote(group, vote) => framed(VOTE, *group, to, |to| {
            to.extend_from_slice(&vote.term.to_le_bytes());
            to.extend_from_slice(&vote.leader.0.to_le_bytes());
            to.push(u8::from(vote.committed));
        }),
        Record::Truncate(group, after) => framed(TRUNCATE, *group, to, |to| {
            to.push(u8::from(after.is_some()));
            to.extend_from_slice(&after.unwrap_or(0).to_le_bytes());
        }),
        Record::Purge(group, id) => framed(PURGE, *group, to, |to| put_log_id(*id, to)),
        Record::Commit(group, id) => framed(COMMIT, *group, to, |to| put_log_id(*id, to)),
        Record::Created(created) => framed(created_kind(created), created.group, to, |to| {
            to.extend_from_slice(&created.data_id.0.to_le_bytes());
            to.push(u8::from(created.first.is_some()));
            let none = LogId {
                term: 0,
                leader: ReplicaId(0),
                index: 0,
            };
            put_log_id(created.first.unwrap_or(none), to);
            put_bytes(&created.descriptor, to);
            put_bytes(&created.membership, to);
            if let Some(Birth { parent, split }) = created.birth {
                to.extend_from_slice(&parent.range.0.to_le_bytes());
                to.extend_from_slice(&parent.replica.0.to_le_bytes());
                put_log_id(split, to);
            }
        }),
        Record::Removed(group) => framed(REMOVED, *group, to, |_| ()),
        Record::InstalledSnapshot(group, installed) => {
            framed(INSTALLED_SNAPSHOT, *group, to, |to| {
                to.extend_from_slice(&installed.data_id.0.to_le_bytes());
                put_log_id(installed.last, to);
                to.push(u8::from(installed.keeps_later));
                put_bytes(&installed.state, to);
            })
        }
        Record::Mark(mark) => framed(MARK, no_group, to, |to| {
            to.extend_from_slice(&mark.log.to_le_bytes());
            to.extend_from_slice(&mark.start.to_le_bytes());
            to.extend_from_slice(&mark.flushes.to_le_bytes());
        }),
        Record::DataIds(up_to) => framed(DATA_IDS, no_group, to, |to| {
            to.extend_from_slice(&up_to.0.to_le_bytes());
        }),
    }
}

fn created_kind(created: &Created) -> u8 {
    match created.birth {
        Some(_) => BORN,
        None => CREATED,
    }
}

/// Appends an entry's record.
fn encode_entry(group: Group, entry: &LogEntry, to: &mut Vec<u8>) {
    let payload = encode_entry_head(group, entry, to);
    to.extend_from_slice(payload.map_or(&[], |body| &**body));
}

/// Appends an entry's record without its payload, which must follow it; gives the payload.
pub fn encode_entry_head<'a>(
    group: Group,
    entry: &'a LogEntry,
    to: &mut Vec<u8>,
) -> Option<&'a Body> {
    let (kind, body) = match &entry.payload {
        Payload::Blank => (ENTRY_BLANK, None),
        Payload::Commands(body) => (ENTRY_COMMANDS, Some(body)),
        Payload::Membership(body) => (ENTRY_MEMBERSHIP, Some(body)),
    };
    let len = LOG_ID_LEN + CRC_LEN + entry.payload.len();
    put_header(kind, group, len as u32, to);
    put_log_id(entry.id, to);
    // The leader's checksum: a new one would hide a change of the bytes on their way here.
    to.extend_from_slice(&body.map_or(0, Body::checksum).to_le_bytes());
    body
}

/// Length of an entry's record in bytes.
pub fn entry_len(entry: &LogEntry) -> usize {
    HEADER_LEN + LOG_ID_LEN + CRC_LEN + entry.payload.len()
}

fn put_header(kind: u8, group: Group, len: u32, to: &mut Vec<u8>) {
    to.push(kind);
    to.extend_from_slice(&group.range.0.to_le_bytes());
    to.extend_from_slice(&group.replica.0.to_le_bytes());
    to.extend_from_slice(&len.to_le_bytes());
}

fn framed(kind: u8, group: Group, to: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    put_header(kind, group, 0, to);
    let begin = to.len();
    body(to);
    let len = (to.len() - begin) as u32;
    if let Some(location) = to.get_mut(begin - 4..begin) {
        location.copy_from_slice(&len.to_le_bytes());
    }
}

fn put_log_id(id: LogId, to: &mut Vec<u8>) {
    to.extend_from_slice(&id.term.to_le_bytes());
    to.extend_from_slice(&id.leader.0.to_le_bytes());
    to.extend_from_slice(&id.index.to_le_bytes());
}

fn put_bytes(bytes: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    to.extend_from_slice(bytes);
}

/// Reads the records of one batch one by one.
pub struct Reader<'a> {
    rest: &'a [u8],
    read: usize,
}

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Its bytes are not a record.
    #[error("a record's bytes do not make sense")]
    Malformed,
    /// An entry's bytes are not those that its leader encoded.
    #[error(
        "the bytes of entry {} do not match the checksum that its leader gave it; \
         a memory or a disk has changed them",
        .0.index
    )]
    OtherBytes(LogId),
    /// A newer version wrote it.
    #[error("record kind {0} is unknown to this version of rangedb")]
    UnknownKind(u8),
}

impl<'a> Reader<'a> {
    /// Reads the records in `payload`.
    pub fn new(payload: &'a [u8]) -> Reader<'a> {
        Reader {
            rest: payload,
            read: 0,
        }
    }

    /// The offset of the next record.
    pub fn offset(&self) -> usize {
        self.read
    }

    /// The next record, or `None` at the end.
    ///
    /// # Errors
    /// The bytes are not a record of this version.
    pub fn next(&mut self) -> Result<Option<Record>, BadRecord> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let kind = *self.take::<1>()?.first().ok_or(BadRecord::Malformed)?;
        let range = RangeId(self.number()?);
        let replica = ReplicaId(self.number()?);
        let len = u32::from_le_bytes(self.take::<4>()?) as usize;
        let (body, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(BadRecord::Malformed)?;
        self.rest = rest;
        self.read += len;
        let mut body = Reader::new(body);
        let record = body.record(kind, Group { range, replica })?;
        if !body.rest.is_empty() {
            return Err(BadRecord::Malformed);
        }
        Ok(Some(record))
    }

    fn record(&mut self, kind: u8, group: Group) -> Result<Record, BadRecord> {
        Ok(match kind {
            ENTRY_BLANK | ENTRY_COMMANDS | ENTRY_MEMBERSHIP => {
                let id = self.log_id()?;
                let checksum = u32::from_le_bytes(self.take()?);
                let bytes = Bytes::copy_from_slice(std::mem::take(&mut self.rest));
                let body = Body::with_checksum(bytes, checksum);
                if !body.is_intact() {
                    return Err(BadRecord::OtherBytes(id));
                }
                let payload = match kind {
                    ENTRY_COMMANDS => Payload::Commands(body),
                    ENTRY_MEMBERSHIP => Payload::Membership(body),
                    _ if body.is_empty() => Payload::Blank,
                    _ => return Err(BadRecord::Malformed),
                };
                Record::Entry(group, LogEntry { id, payload })
            }
            VOTE => {
                let (term, leader) = (self.number()?, ReplicaId(self.number()?));
                Record::Vote(
                    group,
                    Vote {
                        term,
                        leader,
                        committed: self.flag()?,
                    },
                )
            }
            TRUNCATE => {
                let (some, index) = (self.flag()?, self.number()?);
                Record::Truncate(group, some.then_some(index))
            }
            PURGE => Record::Purge(group, self.log_id()?),
            COMMIT => Record::Commit(group, self.log_id()?),
            CREATED | BORN => Record::Created(self.created(kind, group)?),
            REMOVED => Record::Removed(group),
            DATA_IDS => Record::DataIds(DataId(self.number()?)),
            MARK => Record::Mark(LogMark {
                log: self.take().map(u128::from_le_bytes)?,
                start: self.number()?,
                flushes: self.number()?,
            }),
            INSTALLED_SNAPSHOT => {
                let data_id = DataId(self.number()?);
                let (last, keeps_later) = (self.log_id()?, self.flag()?);
                let state = self.bytes()?;
                let installed = InstalledSnapshot {
                    data_id,
                    last,
                    keeps_later,
                    state,
                };
                Record::InstalledSnapshot(group, installed)
            }
            other => return Err(BadRecord::UnknownKind(other)),
        })
    }

    fn created(&mut self, kind: u8, group: Group) -> Result<Created, BadRecord> {
        let data_id = DataId(self.number()?);
        let (some, first) = (self.flag()?, self.log_id()?);
        let (descriptor, membership) = (self.bytes()?, self.bytes()?);
        let birth = match kind {
            BORN => Some(Birth {
                parent: Group {
                    range: RangeId(self.number()?),
                    replica: ReplicaId(self.number()?),
                },
                split: self.log_id()?,
            }),
            _ => None,
        };
        Ok(Created {
            group,
            data_id,
            descriptor,
            membership,
            first: some.then_some(first),
            birth,
        })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadRecord> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(BadRecord::Malformed)?;
        self.rest = rest;
        self.read += N;
        Ok(*bytes)
    }

    fn number(&mut self) -> Result<u64, BadRecord> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, BadRecord> {
        match self.take::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(BadRecord::Malformed),
        }
    }

    fn log_id(&mut self) -> Result<LogId, BadRecord> {
        let (term, leader) = (self.number()?, ReplicaId(self.number()?));
        Ok(LogId {
            term,
            leader,
            index: self.number()?,
        })
    }

    fn bytes(&mut self) -> Result<Bytes, BadRecord> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let (bytes, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(BadRecord::Malformed)?;
        self.rest = rest;
        self.read += len;
        Ok(Bytes::copy_from_slice(bytes))
    }
}
