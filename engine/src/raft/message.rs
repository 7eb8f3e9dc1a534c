//! The messages between replicas of one range, and their encoding.
//!
//! A request is an envelope (range, sender, receiver) and a body; a response is a value of its own.
//! Two kinds of message go between shards, not replicas, and have no envelope: the heartbeat of a
//! shard, and the messages of the cluster's manager ([`crate::cluster`]). The bytes are those of
//! [`crate::codec`]: the entries of an append and the rows of a snapshot are written to them once,
//! and are slices of them where they are read. Nothing received is trusted: bytes that are not a
//! message, or hold an entry or rows that are not those of their sender, decode to `None` and get
//! the answer [`RaftResponse::Refused`]. Pure.

#![allow(
    missing_docs,
    reason = "what rkyv derives for enums has fields without docs"
)]

use bytes::Bytes;

use rkyv::with::Map;

use crate::codec::{self, Shared};
use crate::types::{Location, RangeId, ReplicaId, Timestamp};
use crate::wal::{LogEntry, LogId, Vote};

/// The version of all messages; the receiver refuses any other.
const VERSION: u8 = 4;

/// What a message takes besides its entries and rows, at most, unless it is a heartbeat.
const HEAD_LEN: usize = 192;
/// What an entry takes besides its payload.
const ENTRY_HEAD_LEN: usize = 40;
/// What a row takes besides its key and its value.
const ROW_HEAD_LEN: usize = 28;

/// The addresses of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Envelope {
    /// The range of both replicas.
    pub range: RangeId,
    /// The sender.
    pub from: ReplicaId,
    /// The receiver. A shard where this replica does not live refuses.
    pub to: ReplicaId,
}

/// A message to a shard.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Message {
    /// A request from one replica to another.
    Request(Envelope, RaftRequest),
    /// A shard's heartbeat.
    Heartbeat {
        /// The shard that sends it.
        from: Location,
        /// The ranges that the sender leads and that have a replica on the receiver.
        leads: Vec<Led>,
        /// The 99th percentile of the sender's durable writes of the last two seconds, in
        /// microseconds; `None` if there were none.
        write_p99_micros: Option<u32>,
        /// The time of the cluster as the sender knows it: what nodes know drifts apart by no more than a
        /// beat, also between nodes that have no range in common.
        now: Timestamp,
    },
    /// See [`crate::cluster::message`].
    Cluster(#[rkyv(with = Shared)] Bytes),
}

/// A range in the heartbeat of the shard that leads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Led {
    /// The range that the sender leads.
    pub range: RangeId,
    /// The leader's term.
    pub term: u64,
    /// The index of the last entry that the leader has applied.
    pub applied: u64,
}

/// A request for a vote or a pre-vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct VoteRequest {
    /// The vote that the candidate asks for.
    pub vote: Vote,
    /// The candidate's last entry.
    pub last: Option<LogId>,
    /// Whether the leader asked the candidate to campaign.
    pub transfer: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum RaftRequest {
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
    Vote(VoteRequest),
    /// Asks whether a vote would be given.
    PreVote(VoteRequest),
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
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SnapshotRow {
    /// The row's key, without the data id in front.
    #[rkyv(with = Shared)]
    pub key: Bytes,
    /// The timestamp of the version.
    pub version: Timestamp,
    /// The value; `None`: a tombstone.
    #[rkyv(with = Map<Shared>)]
    pub value: Option<Bytes>,
}

/// A part of a snapshot: its rows, then its end, all with the same number.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum SnapshotPart {
    /// Rows in the order in which they must be inserted: see [`SnapshotPart::rows`].
    Rows {
        /// The sender's id of this snapshot.
        number: u64,
        /// The index of this part, from 0.
        place: u64,
        /// In the order given above.
        rows: Vec<SnapshotRow>,
        /// The sender's checksum of them.
        checksum: u32,
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
        #[rkyv(with = Shared)]
        state: Bytes,
        /// Versions at or below this may be missing.
        gc_threshold: Timestamp,
    },
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum RaftResponse {
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

impl SnapshotPart {
    /// A part with rows, and with their checksum.
    pub fn rows(number: u64, place: u64, rows: Vec<SnapshotRow>) -> SnapshotPart {
        SnapshotPart::Rows {
            number,
            place,
            checksum: checksum(&rows),
            rows,
        }
    }
}

/// A CRC-32C of rows: of each its key, its version, whether it has a value, and that.
fn checksum(rows: &[SnapshotRow]) -> u32 {
    rows.iter().fold(0, |sum, row| {
        let sum = crc32c::crc32c_append(sum, &row.key);
        let sum = crc32c::crc32c_append(sum, &row.version.0.to_le_bytes());
        let sum = crc32c::crc32c_append(sum, &[u8::from(row.value.is_some())]);
        crc32c::crc32c_append(sum, row.value.as_deref().unwrap_or_default())
    })
}

impl Message {
    /// Whether its entries and rows are those that their sender encoded.
    fn is_intact(&self) -> bool {
        match self {
            Message::Request(_, RaftRequest::Append { entries, .. }) => {
                entries.iter().all(|entry| entry.payload.is_intact())
            }
            Message::Request(
                _,
                RaftRequest::Snapshot(SnapshotPart::Rows {
                    rows,
                    checksum: sum,
                    ..
                }),
            ) => checksum(rows) == *sum,
            Message::Request(..) | Message::Heartbeat { .. } | Message::Cluster(_) => true,
        }
    }

    /// The length of its bytes, about.
    fn len(&self) -> usize {
        let more: usize = match self {
            Message::Request(_, RaftRequest::Append { entries, .. }) => {
                let entries = entries.iter();
                entries.map(|e| ENTRY_HEAD_LEN + e.payload.len()).sum()
            }
            Message::Request(_, RaftRequest::Snapshot(SnapshotPart::Rows { rows, .. })) => {
                let len =
                    |row: &SnapshotRow| row.key.len() + row.value.as_ref().map_or(0, Bytes::len);
                rows.iter().map(|row| ROW_HEAD_LEN + len(row)).sum()
            }
            Message::Request(_, RaftRequest::Snapshot(SnapshotPart::End { state, .. })) => {
                state.len()
            }
            Message::Request(..) => 0,
            Message::Heartbeat { leads, .. } => size_of_val(leads.as_slice()),
            Message::Cluster(bytes) => bytes.len(),
        };
        HEAD_LEN + more
    }
}

/// The bytes of a message.
pub fn encode(message: &Message) -> Bytes {
    codec::encode(VERSION, message, message.len()).into()
}

/// Reads a message; `None` if the bytes are not one of this version.
pub fn decode(bytes: &Bytes) -> Option<Message> {
    codec::decode_shared(VERSION, bytes).filter(Message::is_intact)
}

/// The bytes of a response.
pub fn encode_response(response: &RaftResponse) -> Bytes {
    codec::encode(VERSION, response, size_of::<RaftResponse>()).into()
}

/// Reads a response; `None` if the bytes are not one.
pub fn decode_response(bytes: &[u8]) -> Option<RaftResponse> {
    codec::decode(VERSION, bytes)
}

/// The response to a heartbeat: the ranges of which the sender, as their leader, must hear more or say more, so
/// that it may not sleep.
pub fn encode_to_wake(ranges: &Vec<RangeId>) -> Bytes {
    codec::encode(VERSION, ranges, HEAD_LEN).into()
}

/// Reads what [`encode_to_wake`] wrote.
pub fn decode_to_wake(bytes: &[u8]) -> Option<Vec<RangeId>> {
    codec::decode(VERSION, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, ShardId};
    use crate::wal::{Body, Payload};

    fn log_id(index: u64) -> LogId {
        LogId {
            term: 3,
            leader: ReplicaId(9),
            index,
        }
    }

    fn samples() -> Vec<RaftRequest> {
        let vote = Vote {
            term: 4,
            leader: ReplicaId(1),
            committed: true,
        };
        let vote_request = VoteRequest {
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
            RaftRequest::Append {
                vote,
                previous: None,
                committed: Some(log_id(2)),
                entries: vec![
                    entry(3, Payload::Blank),
                    entry(4, Payload::Commands(body("commands"))),
                    entry(5, Payload::Membership(body("members"))),
                ],
            },
            RaftRequest::Vote(vote_request),
            RaftRequest::PreVote(VoteRequest {
                last: None,
                transfer: true,
                ..vote_request
            }),
            RaftRequest::Transfer { vote, last: None },
            RaftRequest::Snapshot(SnapshotPart::rows(
                5,
                0,
                vec![row(Some("")), row(Some("value")), row(None)],
            )),
            RaftRequest::Snapshot(SnapshotPart::End {
                number: 5,
                parts: 1,
                vote,
                last: log_id(6),
                state: Bytes::from_static(b"state"),
                gc_threshold: Timestamp(9),
            }),
            RaftRequest::Lost {
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

    fn encoded(request: &RaftRequest) -> Bytes {
        encode(&Message::Request(ENVELOPE, request.clone()))
    }

    #[test]
    fn questions_are_read_back_and_by_this_version_alone() {
        for request in samples() {
            let bytes = encoded(&request);
            let whole = Message::Request(ENVELOPE, request.clone());
            assert!(bytes.len() <= 1 + whole.len(), "{request:?}");
            assert_eq!(decode(&bytes), Some(whole));
            let mut other = bytes.to_vec();
            other[0] += 1;
            assert_eq!(decode(&other.into()), None);
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
        let words = Bytes::from_static(b"words");
        let heartbeat = Message::Heartbeat {
            from,
            leads,
            write_p99_micros: Some(1_500),
            now: Timestamp(77),
        };
        for message in [heartbeat, Message::Cluster(words)] {
            let bytes = encode(&message);
            assert!(bytes.len() <= 1 + message.len(), "{message:?}");
            assert_eq!(decode(&bytes), Some(message));
        }
        let to_wake = vec![RangeId(4)];
        assert_eq!(decode_to_wake(&encode_to_wake(&to_wake)), Some(to_wake));
    }

    #[test]
    fn damaged_questions_never_panic() {
        for request in samples() {
            let bytes = encoded(&request);
            for at in 0..bytes.len() {
                drop(decode(&bytes.slice(..at)));
                for flip in [1, 0x80, 0xff] {
                    let mut damaged = bytes.to_vec();
                    damaged[at] ^= flip;
                    drop(decode(&damaged.into()));
                }
            }
        }
    }

    #[test]
    fn an_append_with_other_bytes_than_its_leader_encoded_is_none() {
        let append = |body| {
            let payload = Payload::Commands(body);
            let entries = vec![LogEntry {
                id: log_id(4),
                payload,
            }];
            let samples = samples().swap_remove(0);
            let RaftRequest::Append { vote, .. } = samples else {
                panic!("the first sample is an append");
            };
            encoded(&RaftRequest::Append {
                vote,
                previous: None,
                committed: None,
                entries,
            })
        };
        let whole = Body::seal(Bytes::from_static(b"commands"));
        let good = append(whole.clone()).to_vec();
        assert!(decode(&good.clone().into()).is_some());
        let found = good.windows(whole.len()).position(|bytes| bytes == &*whole);
        let begin = found.expect("the body is there");
        for at in begin..begin + whole.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert_eq!(decode(&bad.into()), None, "bit {bit} of byte {at}");
            }
        }
        for bit in 0..32 {
            let other = Body::with_checksum(whole.bytes().clone(), whole.checksum() ^ 1 << bit);
            assert_eq!(decode(&append(other)), None, "bit {bit} of the checksum");
        }
    }

    #[test]
    fn rows_that_changed_since_they_were_read_are_none() {
        let row = |key: &'static str, version, value: Option<&'static str>| SnapshotRow {
            key: Bytes::from(key),
            version: Timestamp(version),
            value: value.map(Bytes::from),
        };
        let good = row("key", 8, Some(""));
        let part = SnapshotPart::rows(5, 0, vec![good.clone()]);
        let SnapshotPart::Rows { checksum, .. } = part else {
            panic!("a part with rows");
        };
        let others = [
            row("kex", 8, Some("")),
            row("key", 9, Some("")),
            row("key", 8, None),
            row("key", 8, Some("x")),
        ];
        for (row, is_read) in others
            .map(|row| (row, false))
            .into_iter()
            .chain([(good, true)])
        {
            let bytes = encoded(&RaftRequest::Snapshot(SnapshotPart::Rows {
                number: 5,
                place: 0,
                rows: vec![row.clone()],
                checksum,
            }));
            assert_eq!(decode(&bytes).is_some(), is_read, "{row:?}");
        }
    }

    #[test]
    fn entries_lie_in_the_message_that_they_were_read_from() {
        let bytes = encoded(&samples().swap_remove(0));
        let read = decode(&bytes);
        let Some(Message::Request(_, RaftRequest::Append { entries, .. })) = read else {
            panic!("an append");
        };
        let bodies = entries.iter().filter_map(|entry| match &entry.payload {
            Payload::Blank => None,
            Payload::Commands(body) | Payload::Membership(body) => Some(body.as_ptr()),
        });
        assert!(bodies.clone().count() > 1);
        assert!(
            bodies
                .clone()
                .all(|body| bytes.as_ptr_range().contains(&body))
        );
    }

    #[test]
    fn answers_are_read_back() {
        let vote = Vote {
            term: 4,
            leader: ReplicaId(1),
            committed: false,
        };
        let responses = [
            RaftResponse::Refused,
            RaftResponse::Appended,
            RaftResponse::AppendedUpTo(None),
            RaftResponse::AppendedUpTo(Some(log_id(1))),
            RaftResponse::Conflict,
            RaftResponse::HigherVote(vote),
            RaftResponse::Voted {
                vote,
                granted: true,
                last: Some(log_id(2)),
            },
            RaftResponse::Done,
            RaftResponse::Installed(vote),
            RaftResponse::Lost,
        ];
        for response in responses {
            assert_eq!(decode_response(&encode_response(&response)), Some(response));
        }
        assert_eq!(decode_response(&[9]), None);
        assert_eq!(decode_response(&[]), None);
    }
}
