//! What comes from another node, under bytes that were changed at random.

use bytes::Bytes;
use rangedb_fuzz::{Meter, fuzz, fuzz_repaired};

use crate::frame;
use crate::raft::convert::{decode_membership, encode_membership, members};
use crate::raft::message::{
    Envelope, Led, Message, RaftRequest, RaftResponse, SnapshotPart, SnapshotRow, VoteRequest,
};
use crate::raft::message::{decode, decode_response, decode_to_wake};
use crate::raft::message::{encode, encode_response, encode_to_wake};
use crate::types::{Location, NodeId, RangeId, ReplicaId, ReplicaPlace, ShardId, Timestamp};
use crate::wal::{Body, LogEntry, LogId, Payload, Vote};

const VOTE: Vote = Vote {
    term: 4,
    leader: ReplicaId(1),
    committed: true,
};
const PLACE: Location = Location {
    node: NodeId(7),
    shard: ShardId(2),
};

fn log_id(index: u64) -> LogId {
    LogId {
        term: 3,
        leader: ReplicaId(9),
        index,
    }
}

fn requests() -> Vec<RaftRequest> {
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
    let vote_request = VoteRequest {
        vote: VOTE,
        last: Some(log_id(7)),
        transfer: false,
    };
    let append = |entries| RaftRequest::Append {
        vote: VOTE,
        previous: None,
        committed: Some(log_id(2)),
        entries,
    };
    let rows = vec![row(Some("")), row(Some("value")), row(None)];
    let rows = SnapshotPart::rows(5, 0, rows);
    let end = SnapshotPart::End {
        number: 5,
        parts: 1,
        vote: VOTE,
        last: log_id(6),
        state: Bytes::from_static(b"state"),
        gc_threshold: Timestamp(9),
    };
    vec![
        append(Vec::new()),
        append(vec![entry(3, Payload::Blank)]),
        append(vec![
            entry(4, Payload::Commands(body("commands"))),
            entry(5, Payload::Membership(body("members"))),
        ]),
        RaftRequest::Vote(vote_request),
        RaftRequest::PreVote(vote_request),
        RaftRequest::Transfer {
            vote: VOTE,
            last: None,
        },
        RaftRequest::Snapshot(rows),
        RaftRequest::Snapshot(end),
        RaftRequest::Lost {
            vote: VOTE,
            acknowledged: log_id(6),
        },
    ]
}

fn messages() -> Vec<Vec<u8>> {
    let envelope = Envelope {
        range: RangeId(1),
        from: ReplicaId(2),
        to: ReplicaId(3),
    };
    let led = |range| Led {
        range: RangeId(range),
        term: 9,
        applied: 100,
    };
    let request = |request| Message::Request(envelope, request);
    let mut all: Vec<Message> = requests().into_iter().map(request).collect();
    all.push(Message::Heartbeat {
        from: PLACE,
        leads: vec![led(4), led(5)],
        write_p99_micros: Some(1_500),
        now: Timestamp(77),
    });
    all.push(Message::Cluster(Bytes::from_static(b"words")));
    all.iter().map(|message| encode(message).to_vec()).collect()
}

#[test]
fn messages_between_replicas_and_shards() {
    let tally = fuzz("messages", &messages(), |bytes, meter| {
        let bytes = Bytes::copy_from_slice(bytes);
        let Some(message) = meter.decode(|| decode(&bytes)) else {
            return false;
        };
        assert_eq!(decode(&encode(&message)), Some(message));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn responses() {
    let responses = [
        RaftResponse::Refused,
        RaftResponse::Appended,
        RaftResponse::AppendedUpTo(None),
        RaftResponse::AppendedUpTo(Some(log_id(1))),
        RaftResponse::Conflict,
        RaftResponse::HigherVote(VOTE),
        RaftResponse::Voted {
            vote: VOTE,
            granted: true,
            last: Some(log_id(2)),
        },
        RaftResponse::Done,
        RaftResponse::Installed(VOTE),
        RaftResponse::Lost,
    ];
    let corpus = responses.map(|response| encode_response(&response).to_vec());
    fuzz("answers", &corpus, |bytes, meter| {
        let Some(response) = meter.decode(|| decode_response(bytes)) else {
            return false;
        };
        assert_eq!(decode_response(&encode_response(&response)), Some(response));
        true
    });
    let to_wake = [
        encode_to_wake(&Vec::new()),
        encode_to_wake(&vec![RangeId(4), RangeId(u64::MAX)]),
    ];
    fuzz(
        "ranges to wake",
        &to_wake.map(|bytes| bytes.to_vec()),
        |bytes, meter| {
            let Some(to_wake) = meter.decode(|| decode_to_wake(bytes)) else {
                return false;
            };
            assert_eq!(decode_to_wake(&encode_to_wake(&to_wake)), Some(to_wake));
            true
        },
    );
}

/// Gives a frame its length and the checksums of what it holds.
fn repair_frame(bytes: &mut [u8]) {
    let Some((header, body)) = bytes.split_first_chunk_mut::<{ frame::HEADER_LEN }>() else {
        return;
    };
    header[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[16..20].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let head = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&head.to_le_bytes());
}

/// Decodes a frame, then the message in it.
fn check_frame(bytes: &[u8], meter: &mut Meter) -> bool {
    let Ok(Some(found)) = meter.decode(|| frame::decode(bytes)) else {
        return false;
    };
    let mut again = Vec::new();
    frame::encode(found.id, found.kind, found.body, &mut again);
    assert_eq!(frame::decode(&again), Ok(Some(found)));
    let body = Bytes::copy_from_slice(found.body);
    meter.decode(|| decode(&body));
    true
}

#[test]
fn frames_between_nodes() {
    let framed = |body: Vec<u8>| {
        let mut bytes = Vec::new();
        frame::encode(u64::MAX, 101, &body, &mut bytes);
        bytes
    };
    let corpus: Vec<Vec<u8>> = messages().into_iter().map(framed).collect();
    let tally = fuzz_repaired("frames of nodes", &corpus, repair_frame, check_frame);
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn memberships() {
    let voter = |id| ReplicaPlace {
        replica: ReplicaId(id),
        location: PLACE,
    };
    let corpus = [vec![voter(1)], vec![voter(1), voter(2), voter(3)]];
    let corpus = corpus.map(|voters| encode_membership(&members(&voters)).expect("bytes"));
    fuzz("memberships", &corpus, |bytes, meter| {
        let Ok(members) = meter.decode(|| decode_membership(bytes)) else {
            return false;
        };
        let again = encode_membership(&members).expect("bytes");
        assert_eq!(decode_membership(&again).expect("members"), members);
        true
    });
}
