//! Fuzz tests of every decoder of the protocol.

use rangedb_fuzz::{Meter, fuzz, fuzz_repaired};

use super::*;
use crate::admin::Command;
use crate::continuation::Continuation;
use crate::handshake::{ANY_SHARD, Handshake, HandshakeReply, Verdict};

fn encoded(count: usize, mut encode: impl FnMut(usize, &mut Vec<u8>)) -> Vec<Vec<u8>> {
    let frame = |index| {
        let mut bytes = Vec::new();
        encode(index, &mut bytes);
        bytes
    };
    (0..count).map(frame).collect()
}

fn request_frames() -> Vec<Vec<u8>> {
    let all: Vec<Request<'_>> = [requests(), multi_gets()].concat();
    let mut builder = FlatBufferBuilder::new();
    encoded(all.len(), |index, to| {
        all[index].encode(7, &mut builder, to)
    })
}

fn reply_frames() -> Vec<Vec<u8>> {
    let all: Vec<Reply<'_>> = [replies(), values()].concat();
    let mut builder = FlatBufferBuilder::new();
    encoded(all.len(), |index, to| {
        all[index].encode(7, 44, &mut builder, to)
    })
}

/// Sets the length field of a frame to the frame's length.
fn repair_length(bytes: &mut [u8]) {
    let len = bytes.len().saturating_sub(frame::LENGTH_LEN) as u32;
    if let Some(place) = bytes.first_chunk_mut() {
        *place = len.to_le_bytes();
    }
}

fn check_frame(bytes: &[u8], meter: &mut Meter) -> bool {
    let Ok(Some(found)) = meter.decode(|| frame::decode(bytes)) else {
        return false;
    };
    let mut again = Vec::new();
    frame::encode(found.id, found.kind, found.body, &mut again);
    assert_eq!(frame::decode(&again), Ok(Some(found)));
    true
}

fn check_request(bytes: &[u8], meter: &mut Meter) -> bool {
    let mut again = Vec::new();
    let Ok(Some(found)) = frame::decode(bytes) else {
        return false;
    };
    let Ok(request) = meter.decode(|| Request::decode(found.kind, found.body)) else {
        return false;
    };
    request.encode(found.id, &mut FlatBufferBuilder::new(), &mut again);
    let again = frame::decode(&again).expect("good").expect("whole");
    let second = Request::decode(again.kind, again.body).expect("good");
    assert_eq!(second, request);
    true
}

fn check_reply(bytes: &[u8], meter: &mut Meter) -> bool {
    let Ok(Some(found)) = frame::decode(bytes) else {
        return false;
    };
    let Ok((reply, now)) = meter.decode(|| Reply::decode(found.kind, found.body)) else {
        return false;
    };
    let mut again = Vec::new();
    reply.encode(found.id, now, &mut FlatBufferBuilder::new(), &mut again);
    let again = frame::decode(&again).expect("good").expect("whole");
    let second = Reply::decode(again.kind, again.body).expect("good");
    // Compare as text, because NaN differs from itself. A zero has no sign on the wire.
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}").replace("-0.0", "0.0");
    assert_eq!(text(&second), text(&(reply, now)));
    true
}

#[test]
fn frames() {
    let frames = [request_frames(), reply_frames()].concat();
    fuzz_repaired("frames", &frames, repair_length, check_frame);
}

#[test]
fn request_tables() {
    let tally = fuzz_repaired("requests", &request_frames(), repair_length, check_request);
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn reply_tables() {
    let tally = fuzz_repaired("replies", &reply_frames(), repair_length, check_reply);
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn handshakes_and_their_answers() {
    let handshakes = [Handshake::client(3), Handshake::client(ANY_SHARD)];
    let handshakes = handshakes.map(|handshake| handshake.encode().to_vec());
    fuzz("handshakes", &handshakes, |bytes, meter| {
        let Ok(bytes) = bytes.try_into() else {
            return false;
        };
        let Ok(handshake) = meter.decode(|| Handshake::decode(bytes)) else {
            return false;
        };
        assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
        true
    });
    let answer = HandshakeReply {
        verdict: Verdict::UnknownShard,
        version: 1,
        shard: 2,
        shards: 4,
        node: 5,
        cluster: 6,
    };
    fuzz("answers", &[answer.encode().to_vec()], |bytes, meter| {
        let Ok(bytes) = bytes.try_into() else {
            return false;
        };
        let Some(answer) = meter.decode(|| HandshakeReply::decode(bytes)) else {
            return false;
        };
        assert_eq!(HandshakeReply::decode(&answer.encode()), Some(answer));
        true
    });
}

#[test]
fn continuations() {
    let token = |start: &[u8], end: Option<&[u8]>, at| {
        let token = Continuation {
            start: start.to_vec(),
            end: end.map(<[u8]>::to_vec),
            at,
            until: at.map(|_| start.to_vec()),
            reverse: end.is_some(),
            keys_only: at.is_some(),
        };
        token.encode()
    };
    let tokens = [
        token(b"", None, None),
        token(b"next\0key", Some(b"z"), Some(7)),
        token(&[0xff; 300], Some(b""), None),
    ];
    let repair = |bytes: &mut [u8]| {
        if let Some((token, checksum)) = bytes.split_last_chunk_mut() {
            *checksum = crc32c::crc32c(token).to_le_bytes();
        }
    };
    let tally = fuzz_repaired("continuations", &tokens, repair, |bytes, meter| {
        let Ok(token) = meter.decode(|| Continuation::decode(bytes)) else {
            return false;
        };
        assert_eq!(Continuation::decode(&token.encode()), Ok(token));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn admin_commands() {
    let corpus = [
        r#"{"command":"nodes"}"#,
        r#"{"command":"transfer_leader","range":7,"to":2}"#,
        r#"{"command":"move_replica","range":1,"from":1,"to_node":2,"to_shard":3}"#,
        r#"{"command":"split_range","range":7,"at":["6d","ff"],"hold_ms":5}"#,
        r#"{"command":"scatter_ranges","start":"61","end":null}"#,
        r#"{"command":"config_set","name":"balance","value":"off"}"#,
        r#"{"command":"history","node":3,"from_ms":1,"to_ms":2,"step":"hour"}"#,
        r#"{"command":"node_leaving","node":3,"dry_run":true}"#,
    ];
    let corpus = corpus.map(|text| text.as_bytes().to_vec());
    let tally = fuzz("admin commands", &corpus, |bytes, meter| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return false;
        };
        let Ok(command) = meter.decode(|| Command::parse(text)) else {
            return false;
        };
        let again = serde_json::to_string(&command).expect("a command has a text");
        assert_eq!(Command::parse(&again), Ok(command));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}
