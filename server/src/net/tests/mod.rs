//! A live node over real sockets: what clients may do, and what they may not.

mod allocations;
mod edges;
mod garbage;
mod times;
mod tls;

use std::io::Write;
use std::time::{Duration, Instant};

use rangedb_engine::env::Clock;
use rangedb_engine::types::Timestamp;
use rangedb_protocol::handshake::{ANY_SHARD, Handshake, Role, Verdict};
use rangedb_protocol::{Change, ErrorCode, Expected, Fate, Mutation, Reply, RequestBody};

use crate::context::ClientLimits;
use crate::env::SystemClock;
use crate::test_node::{Received, TestClient, TestNode};

fn start(split_at: &[&str]) -> TestNode {
    TestNode::start(split_at, ClientLimits::default())
}

fn version(received: &Received) -> u64 {
    match received.reply() {
        Reply::Written { version, .. } => version,
        other => panic!("not written: {other:?}"),
    }
}

fn code(received: &Received) -> ErrorCode {
    match received.reply() {
        Reply::Error(error) => error.code.expect("a known code"),
        other => panic!("no error: {other:?}"),
    }
}

fn value(client: &mut TestClient, key: &[u8]) -> Option<Vec<u8>> {
    match client.ask(RequestBody::Get { key }).reply() {
        Reply::Value { value, .. } => value.map(<[u8]>::to_vec),
        other => panic!("no value: {other:?}"),
    }
}

#[test]
fn every_operation_works() {
    let node = start(&[]);
    let mut client = node.connect(0, true);
    assert_eq!(value(&mut client, b"k"), None);
    let first = version(&client.put(b"k", b"one"));
    assert_eq!(value(&mut client, b"k").as_deref(), Some(&b"one"[..]));

    let session = client.session();
    let condition = Expected::Version(first);
    let swap = RequestBody::compare_and_swap(b"k", condition, Some(b"2"), session);
    let second = version(&client.ask(swap));
    assert!(second > first);
    let session = client.session();
    let swap = RequestBody::compare_and_swap(b"k", condition, None, session);
    let failed = client.ask(swap);
    assert_eq!(
        failed.reply(),
        Reply::ConditionFailed {
            current: Some(second),
            condition: 0
        }
    );

    let session = client.session();
    let number = client.ask(RequestBody::add(b"k", 40, session));
    assert!(matches!(
        number.reply(),
        Reply::Written { numbers, .. } if *numbers == [42]
    ));

    let session = client.session();
    let mutations = vec![
        Mutation {
            key: b"a",
            change: Change::to(Some(b"")),
        },
        Mutation {
            key: b"k",
            change: Change::to(None),
        },
        Mutation {
            key: b"z",
            change: Change::to(Some(b"last")),
        },
    ];
    let written = client.ask(RequestBody::write(mutations, session));
    assert!(version(&written) > second);
    assert_eq!(value(&mut client, b"a").as_deref(), Some(&b""[..]));
    assert_eq!(value(&mut client, b"k"), None);

    let session = client.session();
    let deleted = client.ask(RequestBody::delete(b"a", session));
    assert!(matches!(
        deleted.reply(),
        Reply::Written { existed: true, .. }
    ));
    assert_eq!(
        code(&client.ask(RequestBody::Get { key: b"" })),
        ErrorCode::Invalid
    );
    node.stop(Duration::from_secs(5));
}

#[test]
fn a_write_that_is_tried_again_is_done_once() {
    let node = start(&[]);
    let mut client = node.connect(0, true);
    let session = client.session();
    let once = RequestBody::add(b"n", 1, session);
    let first = client.ask(once.clone());
    let again = client.ask(once);
    assert_eq!(first.reply(), again.reply());
    assert_eq!(value(&mut client, b"n").as_deref(), Some(&b"1"[..]));
    node.stop(Duration::from_secs(5));
}

#[test]
fn versions_keep_to_the_clock_however_many_writes_there_are() {
    let node = start(&[]);
    let mut client = node.connect(0, true);
    let mut last = 0;
    for _ in 0..100 {
        last = version(&client.put(b"k", b"v"));
    }
    let ahead = Timestamp(last).ms() as i64 - SystemClock.wall_ms() as i64;
    assert!(ahead < 2000, "the last version lies {ahead} ms ahead");
    node.stop(Duration::from_secs(5));
}

#[test]
fn scans_go_on_over_the_border_of_ranges() {
    let node = start(&["m"]);
    let mut client = node.connect(ANY_SHARD_SEEN, false);
    for key in ["a", "b", "c", "m", "x", "y"] {
        version(&client.put(key.as_bytes(), b"v"));
    }
    let scan = Scan {
        interval: (Some(b"b"), Some(b"y")),
        ..Scan::default()
    };
    assert_eq!(scanned(&mut client, &scan), ["b", "c", "m", "x"]);
    node.stop(Duration::from_secs(5));
}

/// A scan in pages of one row.
#[derive(Default)]
struct Scan {
    interval: (Option<&'static [u8]>, Option<&'static [u8]>),
    reverse: bool,
    keys_only: bool,
}

/// The keys of all its pages. The first request alone says what is scanned.
fn scanned(client: &mut TestClient, scan: &Scan) -> Vec<String> {
    let mut seen = Vec::new();
    let mut token: Option<Vec<u8>> = None;
    loop {
        let is_first = token.is_none();
        let page = client.ask(RequestBody::Scan {
            start: scan.interval.0.filter(|_| is_first),
            end: scan.interval.1.filter(|_| is_first),
            rows_max: 1,
            bytes_max: 0,
            continuation: token.as_deref(),
            reverse: scan.reverse && is_first,
            keys_only: scan.keys_only && is_first,
        });
        let Reply::Rows {
            rows, continuation, ..
        } = page.reply()
        else {
            panic!("no rows")
        };
        assert!(rows.len() <= 1);
        for row in rows {
            assert_eq!(row.value.is_empty(), scan.keys_only);
            seen.push(String::from_utf8(row.key.to_vec()).expect("a text"));
        }
        token = continuation.map(<[u8]>::to_vec);
        if token.is_none() {
            return seen;
        }
    }
}

#[test]
fn scans_in_reverse_go_on_in_the_range_to_the_left() {
    let node = start(&["d", "m", "m\0", "x"]);
    let mut client = node.connect(ANY_SHARD_SEEN, false);
    let all = ["a", "c", "d", "l", "m", "m\0", "n", "x", "y"];
    for key in all {
        version(&client.put(key.as_bytes(), b"v"));
    }
    let bounds: [Option<&'static [u8]>; 8] = [
        None,
        Some(b""),
        Some(b"\0"),
        Some(b"d"),
        Some(b"d\0"),
        Some(b"m"),
        Some(b"m\0"),
        Some(b"x"),
    ];
    for (start, end) in bounds.iter().flat_map(|a| bounds.map(|b| (*a, b))) {
        for keys_only in [false, true] {
            let mut scan = Scan {
                interval: (start, end),
                reverse: true,
                keys_only,
            };
            let inside = |key: &&&str| {
                let key = key.as_bytes();
                start.is_none_or(|start| start <= key) && end.is_none_or(|end| key < end)
            };
            let wanted: Vec<&str> = all.iter().filter(inside).copied().collect();
            let mut found = scanned(&mut client, &scan);
            found.reverse();
            assert_eq!(found, wanted, "{start:?} to {end:?}");
            scan.reverse = false;
            assert_eq!(scanned(&mut client, &scan), wanted, "{start:?} to {end:?}");
        }
    }
    node.stop(Duration::from_secs(5));
}

#[test]
fn the_bytes_of_a_scan_count_what_is_sent() {
    let node = start(&[]);
    let mut client = node.connect(0, false);
    for key in ["a", "b", "c", "d"] {
        version(&client.put(key.as_bytes(), &[7; 1000]));
    }
    let mut rows = |bytes_max, reverse, keys_only| {
        let page = client.ask(RequestBody::Scan {
            start: None,
            end: None,
            rows_max: 0,
            bytes_max,
            continuation: None,
            reverse,
            keys_only,
        });
        let Reply::Rows { rows, .. } = page.reply() else {
            panic!("no rows")
        };
        rows.len()
    };
    for reverse in [false, true] {
        assert_eq!(rows(2002, reverse, false), 2);
        assert_eq!(rows(2001, reverse, false), 1);
        assert_eq!(rows(1, reverse, false), 1);
        assert_eq!(rows(4, reverse, true), 4);
        assert_eq!(rows(3, reverse, true), 3);
    }
    node.stop(Duration::from_secs(5));
}

/// The shard that the tests of forwarding talk to.
const ANY_SHARD_SEEN: u16 = 0;

#[test]
fn a_foreign_key_is_forwarded_for_the_plain_and_named_to_the_smart() {
    let node = start(&["m"]);
    let mut plain = node.connect(0, false);
    let written = version(&plain.put(b"z", b"far"));
    assert_eq!(value(&mut plain, b"z").as_deref(), Some(&b"far"[..]));
    let routes = plain.ask(RequestBody::Directory);
    let Reply::Routes(routes) = routes.reply() else {
        panic!("no routes")
    };
    assert_eq!(routes.len(), 2);
    assert_eq!(routes[1].start, b"m");
    assert_eq!(routes[1].leader, Some((1, 1)));

    let mut smart = node.connect(0, true);
    let moved = smart.ask(RequestBody::Get { key: b"z" });
    let Reply::Error(error) = moved.reply() else {
        panic!("no error")
    };
    assert_eq!(
        (error.code, error.fate),
        (Ok(ErrorCode::Moved), Fate::NotApplied)
    );
    assert_eq!(error.routes, routes[1..]);
    let mut there = node.connect(1, true);
    let read = there.ask(RequestBody::Get { key: b"z" });
    assert_eq!(
        read.reply(),
        Reply::Value {
            value: Some(b"far"),
            version: written
        }
    );

    let session = plain.session();
    let mutations = vec![
        Mutation {
            key: b"a",
            change: Change::to(Some(b"1")),
        },
        Mutation {
            key: b"z",
            change: Change::to(Some(b"1")),
        },
    ];
    let both = plain.ask(RequestBody::write(mutations, session));
    assert_eq!(code(&both), ErrorCode::SeveralRanges);
    let status = plain.ask(RequestBody::Status);
    let Reply::Node(state) = status.reply() else {
        panic!("no state")
    };
    assert_eq!(state.health, "ok");
    let connections: Vec<u32> = state.shards.iter().map(|shard| shard.connections).collect();
    assert_eq!(connections, [2, 1]);
    node.stop(Duration::from_secs(5));
}

#[test]
fn a_connection_reaches_the_shard_it_names_whichever_accepts_it() {
    let node = start(&["h", "p"]);
    for round in 0..64u16 {
        let shard = round % 3;
        // The first request comes in the same packet as the handshake.
        let mut client = TestClient::new(node.address);
        let mut bytes = Handshake::client(shard).encode().to_vec();
        client.encode(
            RequestBody::Get {
                key: &[[b'a'], [b'h'], [b'p']][usize::from(shard)],
            },
            &mut bytes,
        );
        client.send(&bytes);
        let answer = client.answer().expect("an answer");
        assert_eq!(
            (answer.verdict, answer.shard, answer.shards),
            (Verdict::Accepted, shard, 3)
        );
        assert_eq!((answer.node, answer.cluster), (1, 7));
        let got = client.receive().expect("a reply");
        assert_eq!(
            got.reply(),
            Reply::Value {
                value: None,
                version: 0
            }
        );
    }
    node.stop(Duration::from_secs(5));
}

#[test]
fn who_cannot_be_served_is_told_why() {
    let node = start(&["m"]);
    let fair = Handshake::client(0);
    for (handshake, verdict) in [
        (Handshake { shard: 2, ..fair }, Verdict::UnknownShard),
        (
            Handshake {
                version_min: 7,
                version_max: 9,
                ..fair
            },
            Verdict::NoCommonVersion,
        ),
        (Handshake { tls: true, ..fair }, Verdict::NoTls),
        (
            Handshake {
                role: Role::Peer,
                version_max: crate::peers::VERSION,
                ..fair
            },
            Verdict::RoleRefused,
        ),
        (
            Handshake {
                shard: ANY_SHARD,
                ..fair
            },
            Verdict::Accepted,
        ),
    ] {
        let mut client = TestClient::new(node.address);
        client.send(&handshake.encode());
        // What follows does not keep the answer from arriving.
        client.send(&[0; 100]);
        assert_eq!(client.answer().expect("an answer").verdict, verdict);
    }
    let mut stranger = TestClient::new(node.address);
    stranger.send(b"GET / HTTP/1.1\r\n");
    assert!(stranger.answer().is_none());
    node.stop(Duration::from_secs(5));
}

#[test]
fn there_are_no_more_connections_than_the_limit_and_none_that_says_nothing() {
    let limits = ClientLimits {
        handshake_timeout: Duration::from_millis(100),
        ..ClientLimits::default()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let node = TestNode::start_with(folder.path(), &[], limits, 3);
    let mut clients: Vec<_> = (0..3).map(|_| node.connect(0, true)).collect();
    let mut late = TestClient::new(node.address);
    late.send(&Handshake::client(0).encode());
    assert_eq!(
        late.answer().expect("an answer").verdict,
        Verdict::TooManyConnections
    );
    let mut silent = TestClient::new(node.address);
    assert!(silent.answer().is_none(), "cut off without a handshake");
    // A permit that is given up can be taken.
    assert_eq!(value(&mut clients[1], b"k"), None);
    clients.pop();
    let taken = (0..1000).any(|_| {
        let mut client = TestClient::new(node.address);
        client.send(&Handshake::client(0).encode());
        client.answer().expect("an answer").verdict == Verdict::Accepted
    });
    assert!(taken);
    node.stop(Duration::from_secs(5));
}

#[test]
fn bad_frames_are_answered_and_end_the_connection() {
    let node = start(&[]);
    let mut client = node.connect(0, true);
    let mut bytes = Vec::new();
    rangedb_protocol::frame::encode(5, 999, b"whatever", &mut bytes);
    client.send(&bytes);
    let unknown = client.receive().expect("a reply");
    assert_eq!((unknown.id, code(&unknown)), (5, ErrorCode::UnknownKind));
    assert_eq!(value(&mut client, b"k"), None, "the connection lives on");

    bytes.clear();
    rangedb_protocol::frame::encode(6, 6, b"no table", &mut bytes);
    client.send(&bytes);
    let malformed = client.receive().expect("a reply");
    assert_eq!(
        (malformed.id, code(&malformed)),
        (6, ErrorCode::MalformedFrame)
    );
    assert!(client.receive().is_none());

    let mut client = node.connect(0, true);
    let mut bytes = u32::MAX.to_le_bytes().to_vec();
    bytes.extend_from_slice(&9u64.to_le_bytes());
    client.send(&bytes);
    let large = client.receive().expect("a reply");
    assert_eq!((large.id, code(&large)), (9, ErrorCode::FrameTooLarge));
    assert!(client.receive().is_none());

    let mut client = node.connect(0, true);
    client.send(&3u32.to_le_bytes());
    assert!(client.receive().is_none());
    node.stop(Duration::from_secs(5));
}

#[test]
fn each_request_of_a_long_row_gets_one_reply() {
    let node = start(&["m"]);
    let mut client = node.connect(0, false);
    let count = 6000u64;
    let mut bytes = Vec::new();
    for number in 0..count {
        let key = format!("{}{number}", if number % 3 == 0 { "z" } else { "a" });
        let session = client.session();
        let body = match number % 5 {
            0 => RequestBody::Get {
                key: key.as_bytes(),
            },
            _ => RequestBody::put(key.as_bytes(), b"v", session),
        };
        client.encode(body, &mut bytes);
    }
    let mut sending = client.stream.try_clone().expect("a socket");
    let sender = std::thread::spawn(move || sending.write_all(&bytes).expect("sent"));
    let mut seen = vec![false; count as usize];
    let mut refused = 0;
    for _ in 0..count {
        let received = client.receive().expect("a reply");
        let seen = &mut seen[received.id as usize - 1];
        assert!(
            !std::mem::replace(seen, true),
            "one reply for {}",
            received.id
        );
        match received.reply() {
            Reply::Error(error) => {
                let limits = [Ok(ErrorCode::TooManyInFlight), Ok(ErrorCode::Overloaded)];
                assert!(limits.contains(&error.code), "{error:?}");
                assert!(error.fate == Fate::NotApplied && error.retry_after_ms > 0);
                refused += 1;
            }
            Reply::Value { .. } | Reply::Written { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    sender.join().expect("all is sent");
    assert!(refused < count / 2, "{refused}");
    assert_eq!(value(&mut client, b"nothing"), None);
    node.stop(Duration::from_secs(5));
}

#[test]
fn a_frame_that_does_not_go_on_ends_its_connection_and_no_other() {
    let limits = ClientLimits {
        frame_timeout: Duration::from_millis(400),
        ..ClientLimits::default()
    };
    let node = TestNode::start(&[], limits);
    let mut idle = node.connect(0, true);
    let mut halves: Vec<TestClient> = [1, 10, 100]
        .into_iter()
        .map(|len| {
            let mut client = node.connect(0, true);
            let mut bytes = Vec::new();
            client.encode(RequestBody::Get { key: &[b'k'; 200] }, &mut bytes);
            client.send(&bytes[..len]);
            client
        })
        .collect();
    // One sends all the time, and always a part of the next request.
    let mut busy = node.connect(0, true);
    let mut bytes = Vec::new();
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        busy.encode(RequestBody::Get { key: b"k" }, &mut bytes);
        let part = bytes.len() - 5;
        busy.send(&bytes[..part]);
        bytes.drain(..part);
        if sent > 0 {
            assert!(busy.receive().is_some());
        }
        sent += 1;
        // Slow, but within the time limit of a frame.
        std::thread::sleep(Duration::from_millis(50));
    }
    for half in &mut halves {
        assert!(half.receive().is_none());
    }
    assert_eq!(value(&mut idle, b"k"), None, "an idle one lives on");
    node.stop(Duration::from_secs(5));
}

#[test]
fn requests_without_memory_are_refused_and_their_connections_live_on() {
    let limits = ClientLimits {
        frames_len_max: 4 << 20,
        ..ClientLimits::default()
    };
    let node = TestNode::start(&[], limits);
    let big = vec![7; 1 << 20];
    let mut clients: Vec<_> = (0..6).map(|_| node.connect(0, true)).collect();
    let mut rest = Vec::new();
    for client in &mut clients {
        let session = client.session();
        let mut bytes = Vec::new();
        let put = RequestBody::put(b"big", &big, session);
        client.encode(put, &mut bytes);
        let last = bytes.split_off(bytes.len() - 100);
        client.send(&bytes);
        rest.push(last);
    }
    let mut refused = 0;
    for (client, rest) in clients.iter_mut().zip(rest) {
        client.send(&rest);
        let received = client.receive().expect("a reply");
        match received.reply() {
            Reply::Error(error) => {
                assert_eq!(error.code, Ok(ErrorCode::Overloaded), "{error:?}");
                assert!(error.fate == Fate::NotApplied && error.retry_after_ms > 0);
                refused += 1;
            }
            Reply::Written { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((1..6).contains(&refused), "{refused}");
    for client in &mut clients {
        assert_eq!(value(client, b"nothing"), None);
        version(&client.put(b"big", &big));
    }
    node.stop(Duration::from_secs(5));
}

#[test]
fn silent_connections_keep_nobody_out() {
    let limits = ClientLimits {
        handshakes_max: 8,
        ..ClientLimits::default()
    };
    let node = TestNode::start(&[], limits);
    let mut silent: Vec<_> = (0..40).map(|_| TestClient::new(node.address)).collect();
    let begun = Instant::now();
    let mut client = node.connect(0, true);
    assert_eq!(value(&mut client, b"k"), None);
    assert!(begun.elapsed() < limits.handshake_timeout / 2);
    // The oldest connection was evicted, and got the reason.
    let answer = silent[0].answer().expect("an answer");
    assert_eq!(answer.verdict, Verdict::TooManyConnections);
    node.stop(Duration::from_secs(5));
}

#[test]
fn who_does_not_read_is_paused_and_then_cut_off() {
    let limits = ClientLimits {
        write_timeout: Duration::from_millis(300),
        ..ClientLimits::default()
    };
    let node = TestNode::start(&[], limits);
    let mut client = node.connect(0, true);
    version(&client.put(b"big", &vec![7; 1 << 20]));
    let mut bytes = Vec::new();
    for _ in 0..400 {
        client.encode(RequestBody::Get { key: b"big" }, &mut bytes);
    }
    client.send(&bytes);
    // Another client is served meanwhile, and sees the slow one go.
    let mut other = node.connect(0, true);
    let begun = Instant::now();
    loop {
        assert_eq!(value(&mut other, b"k"), None);
        let status = other.ask(RequestBody::Status);
        let Reply::Node(state) = status.reply() else {
            panic!("no state")
        };
        if state.shards[0].connections == 1 {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the slow reader was not cut off"
        );
        std::thread::yield_now();
    }
    let mut len = 0;
    while let Some(received) = client.receive() {
        assert!(matches!(received.reply(), Reply::Value { .. }));
        len += 1;
    }
    assert!(
        len < 100,
        "{len} replies of a megabyte were prepared for who read none"
    );
    node.stop(Duration::from_secs(5));
}

#[test]
fn what_was_acknowledged_before_a_stop_is_there_after_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = ClientLimits::default();
    let node = TestNode::start_in(folder.path(), &["m"], limits);
    let mut client = node.connect(0, false);
    // Once the node has closed the connection its address can no longer be asked for.
    let address = client.stream.peer_addr().expect("connected");
    let mut bytes = Vec::new();
    for number in 0..1000u32 {
        let key = format!("{}{number}", if number % 2 == 0 { "z" } else { "a" });
        let session = client.session();
        client.encode(RequestBody::put(key.as_bytes(), b"v", session), &mut bytes);
    }
    client.send(&bytes);
    let first = client.receive().expect("a reply");
    let mut done: Vec<u64> = vec![first.id];
    let stopper = std::thread::spawn(move || node.stop(Duration::from_secs(10)));
    while let Some(received) = client.receive() {
        match received.reply() {
            Reply::Written { .. } => done.push(received.id),
            Reply::Error(error) => assert_eq!(error.fate, Fate::NotApplied, "{error:?}"),
            other => panic!("{other:?}"),
        }
    }
    stopper.join().expect("it stops");
    assert!(std::net::TcpStream::connect(address).is_err());

    let node = TestNode::start_in(folder.path(), &["m"], limits);
    let mut client = node.connect(1, false);
    for id in done {
        let key = format!("{}{}", if id % 2 == 1 { "z" } else { "a" }, id - 1);
        assert_eq!(
            value(&mut client, key.as_bytes()).as_deref(),
            Some(&b"v"[..]),
            "{key}"
        );
    }
    node.stop(Duration::from_secs(5));
}
