//! Bytes that no good client sends, against a live node: an error or an end, and nothing stays.

use std::io::Write;
use std::time::{Duration, Instant};

use rangedb_protocol::continuation::Continuation;
use rangedb_protocol::handshake::Handshake;
use rangedb_protocol::limits::FRAME_LEN_MAX;
use rangedb_protocol::{Change, Expected, Mutation, Reply, RequestBody, Session, frame};

use super::{start, value};
use crate::test_node::TestClient;

/// Frames that the node has to make something of.
const FRAMES: usize = 100_000;
/// What the process may have grown by: the session table remembers each made-up client, and
/// memtables fill. A leak of a buffer for each connection would be many times more.
const GROWTH_MAX: usize = 64 << 20;

/// Marsaglia's xorshift, so that a failure can be seen again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// A good frame of each kind.
fn good_frames(client: &mut TestClient) -> Vec<Vec<u8>> {
    let session = Session {
        client: 99,
        sequence: 5,
        ..client.session()
    };
    let mutations = vec![
        Mutation {
            key: b"a",
            change: Change::to(Some(b"1")),
        },
        Mutation {
            key: b"b",
            change: Change::to(None),
        },
    ];
    let condition = Expected::Value(b"old");
    let token = Continuation {
        start: b"a".to_vec(),
        end: Some(b"b".to_vec()),
        at: None,
        ..Continuation::default()
    };
    let token = token.encode();
    let bodies = [
        RequestBody::Get { key: b"key" },
        RequestBody::put(b"key", b"value", session),
        RequestBody::delete(b"key", session),
        RequestBody::compare_and_swap(b"key", condition, Some(b"new"), session),
        RequestBody::add(b"number", 3, session),
        RequestBody::write(mutations, session),
        RequestBody::Scan {
            start: Some(b"a"),
            end: Some(b"z"),
            rows_max: 3,
            bytes_max: 0,
            continuation: None,
            reverse: false,
            keys_only: false,
        },
        RequestBody::Scan {
            start: None,
            end: None,
            rows_max: 0,
            bytes_max: 0,
            continuation: Some(&token),
            reverse: false,
            keys_only: false,
        },
        RequestBody::Directory,
        RequestBody::Status,
    ];
    let encode = |body| {
        let mut bytes = Vec::new();
        client.encode(body, &mut bytes);
        bytes
    };
    bodies.into_iter().map(encode).collect()
}

/// Some bytes made of good frames; whether the node is left waiting for more of them.
fn bad_frame(random: &mut Random, good: &[Vec<u8>]) -> (Vec<u8>, bool) {
    let mut bytes = good[random.below(good.len())].clone();
    match random.below(20) {
        // A frame of noise.
        0 => {
            let len = random.below(200);
            let noise = random.bytes(len);
            bytes.clear();
            frame::encode(1, random.below(12) as u16, &noise, &mut bytes);
            (bytes, false)
        }
        // Noise without a frame.
        1 => {
            let len = random.below(64) + 1;
            (random.bytes(len), true)
        }
        // A part of a frame.
        2 => {
            bytes.truncate(random.below(bytes.len()));
            (bytes, true)
        }
        // A length that is too long, or too short for a header.
        3 => {
            let len = FRAME_LEN_MAX + 1 + random.below(1 << 20);
            bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
            (bytes, true)
        }
        4 => {
            bytes[..4].copy_from_slice(&(random.below(12) as u32).to_le_bytes());
            (bytes, true)
        }
        // A good length, and a table with wrong bytes.
        _ => {
            for _ in 0..=random.below(3) {
                let at = 12 + random.below(bytes.len() - 12);
                bytes[at] = random.below(256) as u8;
            }
            (bytes, false)
        }
    }
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("it is there");
    text.split(' ')
        .nth(1)
        .expect("resident pages")
        .parse::<usize>()
        .expect("a number")
        * 4096
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("it is there")
        .count()
}

/// A connection with some frames on it, up to the first that ends it. Counts what was handled.
fn one_connection(node: std::net::SocketAddr, random: &mut Random, good: &[Vec<u8>]) -> usize {
    let mut client = TestClient::new(node);
    // Closed by a reset, so that no port stays taken for a minute.
    socket2::SockRef::from(&client.stream)
        .set_linger(Some(Duration::ZERO))
        .expect("set");
    let mut bytes = Handshake::client(random.below(2) as u16).encode().to_vec();
    if random.below(50) == 0 {
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
    let mut sent = 0;
    let mut waits = false;
    while sent < 16 && !waits {
        let (frame, more) = bad_frame(random, good);
        bytes.extend_from_slice(&frame);
        waits = more;
        sent += 1;
    }
    if client.stream.write_all(&bytes).is_err() {
        // Ended while this was being sent: the handshake was bad, or a frame.
        return 1;
    }
    if random.below(20) == 0 {
        // Gone without a word, with replies on the way.
        return sent;
    }
    if waits {
        // It may have ended meanwhile.
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
    }
    if client.answer().is_none() {
        return 1;
    }
    let mut handled = 0;
    while handled < sent {
        match client.receive() {
            Some(received) => {
                // Whatever it is, it is a good reply.
                let _: Reply<'_> = received.reply();
                handled += 1;
            }
            None => return handled + 1,
        }
    }
    handled
}

#[test]
fn a_hundred_thousand_bad_frames_leave_nothing_behind() {
    let node = start(&["m"]);
    let mut client = node.connect(0, true);
    let good = good_frames(&mut client);
    let mut random = Random(88_172_645_463_325_252);
    let mut handled = 0;
    let mut before = None;
    while handled < FRAMES {
        handled += one_connection(node.address, &mut random, &good);
        if before.is_none() && handled > FRAMES / 5 {
            before = Some((resident_bytes(), descriptors()));
        }
    }
    // All connections but one have ended, or end now.
    let waiting = Instant::now();
    loop {
        let status = client.ask(RequestBody::Status);
        let Reply::Node(state) = status.reply() else {
            panic!("no state")
        };
        let connections: u32 = state.shards.iter().map(|shard| shard.connections).sum();
        if connections == 1 {
            break;
        }
        assert!(
            waiting.elapsed() < Duration::from_secs(10),
            "{connections} connections stay"
        );
    }
    let (resident, open) = before.expect("a fifth of the way");
    let growth = resident_bytes().saturating_sub(resident);
    assert!(growth < GROWTH_MAX, "the process grew by {growth} bytes");
    assert!(
        descriptors() <= open + 8,
        "{} descriptors, {open} before",
        descriptors()
    );
    assert_eq!(value(&mut client, b"absent"), None);
    // A request that was never answered, or a reply that was never sent, would hold this up.
    let stopping = Instant::now();
    node.stop(Duration::from_secs(60));
    assert!(stopping.elapsed() < Duration::from_secs(30));
}
