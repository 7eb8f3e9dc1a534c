//! The messages between replicas of one range, and their encoding.
//!
//! A request is an envelope (version, kind, range, sender, receiver) and a body by kind; a response
//! is one byte of kind and a body. Two kinds of message go between shards, not replicas, and have
//! no envelope: the heartbeat of a shard, and the messages of the cluster's management
//! ([`crate::cluster`]). Numbers are little endian; an optional field follows a byte, 0 or 1, that
//! says whether it is there. Nothing received is trusted: bytes that are not a message decode to
//! `None` and get the answer [`Answer::Refused`]. Pure.

use bytes::Bytes;

use crate::types::{Location, NodeId, RangeId, ReplicaId, ShardId, Timestamp};
use crate::wal::{Body, LogEntry, LogId, Payload, Vote};

/// The version of this encoding; the receiver refuses any other.
const VERSION: u8 = 2;
/// Kinds without an envelope.
const BEAT: u8 = 6;
const CLUSTER: u8 = 7;
/// A kind of request with an envelope; its number comes after those.
const LOST: u8 = 8;

/// The addresses of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The range of both replicas.
    pub range: RangeId,
    /// The sender.
    pub from: ReplicaId,
    /// The receiver. A shard where this replica does not live refuses.
    pub to: ReplicaId,
}

/// A message to a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A request from one replica to another.
    Question(Envelope, Question),
    /// A shard's heartbeat.
    Heartbeat {
        /// The shard that sends it.
        from: Location,
        /// The ranges that the sender leads and that have a replica on the receiver.
        leads: Vec<Led>,
    },
    /// See [`crate::cluster::message`].
    Cluster(Bytes),
}

/// A range in the heartbeat of the shard that leads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// The range.
    pub range: RangeId,
    /// The leader's term.
    pub term: u64,
    /// The index of the last entry that the leader has applied.
    pub applied: u64,
}

/// A request for a vote or a pre-vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidacy {
    /// The vote that the candidate asks for.
    pub vote: Vote,
    /// The candidate's last entry.
    pub last: Option<LogId>,
    /// Whether the leader asked the candidate to campaign.
    pub transfer: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Entries, or none as a heartbeat.
    Append {
        /// The leader's vote.
        vote: Vote,
        /// The entry before the first.
        previous: Option<LogId>,
        /// The last entry that the leader knows to be committed.
        committed: Option<LogId>,
        /// The entries, in order.
        entries: Vec<LogEntry>,
    },
    /// Asks for a vote.
    Vote(Candidacy),
    /// Asks whether a vote would be given.
    PreVote(Candidacy),
    /// Asks the receiver to campaign: leadership transfer.
    Transfer {
        /// The leader's vote.
        vote: Vote,
        /// The leader's last entry.
        last: Option<LogId>,
    },
    /// A part of a snapshot.
    Snapshot(SnapshotPart),
    /// Tells the receiver that it lacks entries that it had acknowledged to the leader.
    Lost {
        /// The leader's vote.
        vote: Vote,
        /// The last entry that the receiver had acknowledged.
        acknowledged: LogId,
    },
}

/// A version of a row, as it travels in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    /// The row's key, without the data id in front.
    pub key: Bytes,
    /// The timestamp of the version.
    pub version: Timestamp,
    /// The value; `None`: a delete mark.
    pub value: Option<Bytes>,
}

/// A part of a snapshot: its rows, then its end, all with the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotPart {
    /// Rows in the order in which they must be inserted, with a checksum over them.
    Rows {
        /// The sender's id of this snapshot.
        number: u64,
        /// The index of this part, from 0.
        place: u64,
        /// The rows.
        rows: Vec<SnapshotRow>,
    },
    /// The end, after all rows.
    End {
        /// The sender's id of this snapshot.
        number: u64,
        /// How many parts of rows were sent.
        parts: u64,
        /// The leader's vote.
        vote: Vote,
        /// The last entry that the snapshot covers.
        last: LogId,
        /// The encoded state of the range, as in its row in the tree.
        state: Bytes,
        /// Versions at or below this may be missing.
        gc_threshold: Timestamp,
    },
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The replica is not there or not ready, or the request made no sense.
    Refused,
    /// All entries are durable.
    Appended,
    /// Entries up to this one are durable.
    AppendedUpTo(Option<LogId>),
    /// The receiver has another entry, or none, where the entry before the first should be.
    Conflict,
    /// The receiver has voted for a newer leader or candidate.
    HigherVote(Vote),
    /// The answer to a candidate.
    Voted {
        /// The receiver's vote.
        vote: Vote,
        /// Whether that vote is for the candidate.
        granted: bool,
        /// The receiver's last entry.
        last: Option<LogId>,
    },
    /// The request was carried out, or is being carried out.
    Done,
    /// The snapshot is installed, or was not needed; the receiver's vote.
    Installed(Vote),
    /// What the receiver acknowledged is lost, and it has removed itself for good.
    Lost,
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn log_id(&mut self, id: LogId) {
        self.number(id.term);
        self.number(id.leader.0);
        self.number(id.index);
    }

    fn some_log_id(&mut self, id: Option<LogId>) {
        self.0.push(u8::from(id.is_some()));
        if let Some(id) = id {
            self.log_id(id);
        }
    }

    fn vote(&mut self, vote: Vote) {
        self.number(vote.term);
        self.number(vote.leader.0);
        self.0.push(u8::from(vote.committed));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0
            .extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn candidacy(&mut self, candidacy: &Candidacy) {
        self.vote(candidacy.vote);
        self.some_log_id(candidacy.last);
        self.0.push(u8::from(candidacy.transfer));
    }

    fn row(&mut self, row: &SnapshotRow) {
        self.bytes(&row.key);
        self.number(row.version.0);
        self.0.push(u8::from(row.value.is_some()));
        if let Some(value) = &row.value {
            self.bytes(value);
        }
    }

    fn snapshot(&mut self, part: &SnapshotPart) {
        match part {
            SnapshotPart::Rows {
                number,
                place,
                rows,
            } => {
                self.0.push(0);
                self.number(*number);
                self.number(*place);
                let mut body = Writer(Vec::new());
                rows.iter().for_each(|row| body.row(row));
                self.number(u64::from(crc32c::crc32c(&body.0)));
                self.bytes(&body.0);
            }
            SnapshotPart::End {
                number,
                parts,
                vote,
                last,
                state,
                gc_threshold,
            } => {
                self.0.push(1);
                self.number(*number);
                self.number(*parts);
                self.vote(*vote);
                self.log_id(*last);
                self.bytes(state);
                self.number(gc_threshold.0);
            }
        }
    }

    fn entry(&mut self, entry: &LogEntry) {
        self.log_id(entry.id);
        let (kind, body) = match &entry.payload {
            Payload::Blank => (0, None),
            Payload::Commands(body) => (1, Some(body)),
            Payload::Membership(body) => (2, Some(body)),
        };
        self.0.push(kind);
        let checksum = body.map_or(0, Body::checksum);
        self.0.extend_from_slice(&checksum.to_le_bytes());
        self.bytes(body.map_or(&[], |body| &**body));
    }
}

/// The bytes of a request.
pub fn encode(envelope: Envelope, question: &Question) -> Bytes {
    let mut to = Writer(Vec::with_capacity(64));
    let kind = match question {
        Question::Append { .. } => 1,
        Question::Vote(_) => 2,
        Question::PreVote(_) => 3,
        Question::Transfer { .. } => 4,
        Question::Snapshot(_) => 5,
        Question::Lost { .. } => LOST,
    };
    to.0.extend_from_slice(&[VERSION, kind]);
    to.number(envelope.range.0);
    to.number(envelope.from.0);
    to.number(envelope.to.0);
    match question {
        Question::Append {
            vote,
            previous,
            committed,
            entries,
        } => {
            to.vote(*vote);
            to.some_log_id(*previous);
            to.some_log_id(*committed);
            entries.iter().for_each(|entry| to.entry(entry));
        }
        Question::Vote(candidacy) | Question::PreVote(candidacy) => to.candidacy(candidacy),
        Question::Transfer { vote, last } => {
            to.vote(*vote);
            to.some_log_id(*last);
        }
        Question::Snapshot(part) => to.snapshot(part),
        Question::Lost { vote, acknowledged } => {
            to.vote(*vote);
            to.log_id(*acknowledged);
        }
    }
    to.0.into()
}

/// The bytes of a shard's heartbeat.
pub fn encode_beat(from: Location, leads: &[Led]) -> Bytes {
    let mut to = Writer(vec![VERSION, BEAT]);
    to.number(from.node.0);
    to.number(u64::from(from.shard.0));
    for led in leads {
        to.number(led.range.0);
        to.number(led.term);
        to.number(led.applied);
    }
    to.0.into()
}

/// The response to a heartbeat: the ranges in which the receiver has applied less than the leader.
pub fn encode_behind(behind: &[RangeId]) -> Bytes {
    let mut to = Writer(Vec::new());
    behind.iter().for_each(|range| to.number(range.0));
    to.0.into()
}

/// Reads what [`encode_behind`] wrote.
pub fn decode_behind(bytes: Bytes) -> Option<Vec<RangeId>> {
    Reader { rest: bytes }.all(|from| from.number().map(RangeId))
}

/// The bytes of a message of the cluster's management.
pub fn encode_cluster(message: &[u8]) -> Bytes {
    let mut to = vec![VERSION, CLUSTER];
    to.extend_from_slice(message);
    to.into()
}

/// The bytes of a response.
pub fn encode_answer(answer: &Answer) -> Bytes {
    let mut to = Writer(Vec::new());
    match answer {
        Answer::Refused => to.0.push(0),
        Answer::Appended => to.0.push(1),
        Answer::AppendedUpTo(id) => {
            to.0.push(2);
            to.some_log_id(*id);
        }
        Answer::Conflict => to.0.push(3),
        Answer::HigherVote(vote) => {
            to.0.push(4);
            to.vote(*vote);
        }
        Answer::Voted {
            vote,
            granted,
            last,
        } => {
            to.0.push(5);
            to.vote(*vote);
            to.0.push(u8::from(*granted));
            to.some_log_id(*last);
        }
        Answer::Done => to.0.push(6),
        Answer::Installed(vote) => {
            to.0.push(7);
            to.vote(*vote);
        }
        Answer::Lost => to.0.push(8),
    }
    to.0.into()
}

/// Reads fields from bytes; every length is checked before it is used.
struct Reader {
    rest: Bytes,
}

impl Reader {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, _) = self.rest.split_first_chunk::<N>()?;
        let bytes = *bytes;
        self.rest = self.rest.slice(N..);
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        if len > self.rest.len() {
            return None;
        }
        Some(self.rest.split_to(len))
    }

    fn log_id(&mut self) -> Option<LogId> {
        Some(LogId {
            term: self.number()?,
            leader: ReplicaId(self.number()?),
            index: self.number()?,
        })
    }

    fn some_log_id(&mut self) -> Option<Option<LogId>> {
        match self.flag()? {
            true => self.log_id().map(Some),
            false => Some(None),
        }
    }

    fn vote(&mut self) -> Option<Vote> {
        Some(Vote {
            term: self.number()?,
            leader: ReplicaId(self.number()?),
            committed: self.flag()?,
        })
    }

    fn candidacy(&mut self) -> Option<Candidacy> {
        Some(Candidacy {
            vote: self.vote()?,
            last: self.some_log_id()?,
            transfer: self.flag()?,
        })
    }

    fn entry(&mut self) -> Option<LogEntry> {
        let id = self.log_id()?;
        let (kind, checksum) = (self.byte()?, u32::from_le_bytes(self.take()?));
        let body = Body::with_checksum(self.bytes()?, checksum);
        if !body.is_intact() {
            return None;
        }
        let payload = match kind {
            0 if body.is_empty() => Payload::Blank,
            1 => Payload::Commands(body),
            2 => Payload::Membership(body),
            _ => return None,
        };
        Some(LogEntry { id, payload })
    }

    fn row(&mut self) -> Option<SnapshotRow> {
        let (key, version) = (self.bytes()?, Timestamp(self.number()?));
        let value = match self.flag()? {
            true => Some(self.bytes()?),
            false => None,
        };
        Some(SnapshotRow {
            key,
            version,
            value,
        })
    }

    fn snapshot(&mut self) -> Option<SnapshotPart> {
        match self.byte()? {
            0 => {
                let (number, place) = (self.number()?, self.number()?);
                let (crc, body) = (self.number()?, self.bytes()?);
                if u64::from(crc32c::crc32c(&body)) != crc {
                    return None;
                }
                let rows = Reader { rest: body }.all(Reader::row)?;
                Some(SnapshotPart::Rows {
                    number,
                    place,
                    rows,
                })
            }
            1 => Some(SnapshotPart::End {
                number: self.number()?,
                parts: self.number()?,
                vote: self.vote()?,
                last: self.log_id()?,
                state: self.bytes()?,
                gc_threshold: Timestamp(self.number()?),
            }),
            _ => None,
        }
    }

    /// Reads until the bytes end.
    fn all<T>(&mut self, read: impl Fn(&mut Reader) -> Option<T>) -> Option<Vec<T>> {
        let mut all = Vec::new();
        while !self.rest.is_empty() {
            all.push(read(self)?);
        }
        Some(all)
    }
}

/// Reads a message; `None` if the bytes are not one of this version.
pub fn decode(bytes: Bytes) -> Option<Message> {
    let mut from = Reader { rest: bytes };
    let [VERSION, kind] = from.take()? else {
        return None;
    };
    match kind {
        BEAT => {
            let node = NodeId(from.number()?);
            let shard = ShardId(u16::try_from(from.number()?).ok()?);
            let leads = from.all(|from| {
                Some(Led {
                    range: RangeId(from.number()?),
                    term: from.number()?,
                    applied: from.number()?,
                })
            })?;
            let from = Location { node, shard };
            Some(Message::Heartbeat { from, leads })
        }
        CLUSTER => Some(Message::Cluster(from.rest)),
        _ => {
            let (envelope, question) = from.question(kind)?;
            Some(Message::Question(envelope, question))
        }
    }
}

impl Reader {
    fn question(&mut self, kind: u8) -> Option<(Envelope, Question)> {
        let from = self;
        let envelope = Envelope {
            range: RangeId(from.number()?),
            from: ReplicaId(from.number()?),
            to: ReplicaId(from.number()?),
        };
        let question = match kind {
            1 => Question::Append {
                vote: from.vote()?,
                previous: from.some_log_id()?,
                committed: from.some_log_id()?,
                entries: from.all(Reader::entry)?,
            },
            2 => Question::Vote(from.candidacy()?),
            3 => Question::PreVote(from.candidacy()?),
            4 => Question::Transfer {
                vote: from.vote()?,
                last: from.some_log_id()?,
            },
            5 => Question::Snapshot(from.snapshot()?),
            LOST => Question::Lost {
                vote: from.vote()?,
                acknowledged: from.log_id()?,
            },
            _ => return None,
        };
        from.rest.is_empty().then_some((envelope, question))
    }
}

/// Reads a response; `None` if the bytes are not one.
pub fn decode_answer(bytes: Bytes) -> Option<Answer> {
    let mut from = Reader { rest: bytes };
    let answer = match from.byte()? {
        0 => Answer::Refused,
        1 => Answer::Appended,
        2 => Answer::AppendedUpTo(from.some_log_id()?),
        3 => Answer::Conflict,
        4 => Answer::HigherVote(from.vote()?),
        5 => Answer::Voted {
            vote: from.vote()?,
            granted: from.flag()?,
            last: from.some_log_id()?,
        },
        6 => Answer::Done,
        7 => Answer::Installed(from.vote()?),
        8 => Answer::Lost,
        _ => return None,
    };
    from.rest.is_empty().then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(index: u64) -> LogId {
        LogId {
            term: 3,
            leader: ReplicaId(9),
            index,
        }
    }

    fn samples() -> Vec<Question> {
        let vote = Vote {
            term: 4,
            leader: ReplicaId(1),
            committed: true,
        };
        let candidacy = Candidacy {
            vote,
            last: Some(log_id(7)),
            transfer: false,
        };
        let entry = |index, payload| LogEntry {
            id: log_id(index),
            payload,
        };
        let body = |bytes: &'static str| Body::seal(Bytes::from(bytes));
        let row = |value: Option<&'static str>| SnapshotRow {
            key: Bytes::from_static(b"k"),
            version: Timestamp(8),
            value: value.map(Bytes::from),
        };
        vec![
            Question::Append {
                vote,
                previous: None,
                committed: Some(log_id(2)),
                entries: vec![
                    entry(3, Payload::Blank),
                    entry(4, Payload::Commands(body("commands"))),
                    entry(5, Payload::Membership(body("members"))),
                ],
            },
            Question::Vote(candidacy),
            Question::PreVote(Candidacy {
                last: None,
                transfer: true,
                ..candidacy
            }),
            Question::Transfer { vote, last: None },
            Question::Snapshot(SnapshotPart::Rows {
                number: 5,
                place: 0,
                rows: vec![row(Some("")), row(Some("value")), row(None)],
            }),
            Question::Snapshot(SnapshotPart::End {
                number: 5,
                parts: 1,
                vote,
                last: log_id(6),
                state: Bytes::from_static(b"state"),
                gc_threshold: Timestamp(9),
            }),
            Question::Lost {
                vote,
                acknowledged: log_id(6),
            },
        ]
    }

    const ENVELOPE: Envelope = Envelope {
        range: RangeId(1),
        from: ReplicaId(2),
        to: ReplicaId(3),
    };

    #[test]
    fn questions_are_read_back_and_their_parts_are_not() {
        for question in samples() {
            let bytes = encode(ENVELOPE, &question);
            let whole = Message::Question(ENVELOPE, question.clone());
            assert_eq!(decode(bytes.clone()), Some(whole));
            for len in 0..bytes.len() {
                let part = decode(bytes.slice(..len));
                // An append may end after any of its entries.
                let is_append = matches!(part, Some(Message::Question(_, Question::Append { .. })));
                assert!(part.is_none() || is_append, "{question:?} cut to {len}");
            }
        }
    }

    #[test]
    fn beats_and_messages_of_the_cluster_are_read_back() {
        let from = Location {
            node: NodeId(7),
            shard: ShardId(2),
        };
        let led = |range, term, applied| Led {
            range: RangeId(range),
            term,
            applied,
        };
        let leads = vec![led(4, 9, 100), led(5, 1, 0)];
        let bytes = encode_beat(from, &leads);
        assert_eq!(
            decode(bytes.clone()),
            Some(Message::Heartbeat { from, leads })
        );
        assert_eq!(decode(bytes.slice(..bytes.len() - 1)), None);
        let behind = vec![RangeId(4)];
        assert_eq!(decode_behind(encode_behind(&behind)), Some(behind));
        let message = Bytes::from_static(b"words");
        assert_eq!(
            decode(encode_cluster(&message)),
            Some(Message::Cluster(message))
        );
    }

    #[test]
    fn damaged_questions_never_panic() {
        for question in samples() {
            let bytes = encode(ENVELOPE, &question);
            for at in 0..bytes.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut damaged = bytes.to_vec();
                    damaged[at] ^= flip;
                    drop(decode(damaged.into()));
                }
            }
        }
    }

    #[test]
    fn an_append_with_other_bytes_than_its_leader_encoded_is_none() {
        let append = samples().swap_remove(0);
        let good = encode(ENVELOPE, &append).to_vec();
        for body in [&b"commands"[..], b"members"] {
            let found = good.windows(body.len()).position(|bytes| bytes == body);
            let begin = found.expect("the body is there");
            // The checksum and the length stand before it.
            for at in (begin - 8..begin - 4).chain(begin..begin + body.len()) {
                for bit in 0..8 {
                    let mut bad = good.clone();
                    bad[at] ^= 1 << bit;
                    assert_eq!(decode(bad.into()), None, "bit {bit} of byte {at}");
                }
            }
        }
    }

    #[test]
    fn answers_are_read_back() {
        let vote = Vote {
            term: 4,
            leader: ReplicaId(1),
            committed: false,
        };
        let answers = [
            Answer::Refused,
            Answer::Appended,
            Answer::AppendedUpTo(None),
            Answer::AppendedUpTo(Some(log_id(1))),
            Answer::Conflict,
            Answer::HigherVote(vote),
            Answer::Voted {
                vote,
                granted: true,
                last: Some(log_id(2)),
            },
            Answer::Done,
            Answer::Installed(vote),
            Answer::Lost,
        ];
        for answer in answers {
            assert_eq!(decode_answer(encode_answer(&answer)), Some(answer));
        }
        assert_eq!(decode_answer(Bytes::from_static(&[9])), None);
        assert_eq!(decode_answer(Bytes::new()), None);
    }
}
