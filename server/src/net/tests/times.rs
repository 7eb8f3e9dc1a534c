//! Times that clients make up.

use std::time::Duration;

use rangedb_engine::env::Clock;
use rangedb_engine::types::Timestamp;
use rangedb_protocol::continuation::Continuation;
use rangedb_protocol::{Change, ErrorCode, Fate, Mutation, Reply, RequestBody, Session};

use super::{code, start, value, version};
use crate::env::SystemClock;
use crate::test_node::{Received, TestClient, TestNode};

/// By how many milliseconds a time lies ahead of the present.
fn ahead(time: Timestamp) -> i64 {
    time.ms() as i64 - SystemClock.wall_ms() as i64
}

fn from_now(ms: u64) -> Timestamp {
    Timestamp::from_ms(SystemClock.wall_ms() + ms)
}

fn is_refused(received: &Received) -> bool {
    match received.reply() {
        Reply::Error(error) if error.code == Ok(ErrorCode::ClockOutOfBounds) => {
            assert_eq!(error.fate, Fate::NotApplied);
            assert!(error.message.contains("ms ahead"), "{}", error.message);
            true
        }
        _ => false,
    }
}

/// Checks with an honest client that the node still accepts the time that it sent before any client lied.
fn assert_usable(node: &TestNode, told: Timestamp) {
    let mut honest = node.connect(0, false);
    let session = Session {
        first_tried: told.0,
        ..honest.session()
    };
    let put = RequestBody::put(b"honest", b"v", session);
    let written = honest.ask_with(put, told.0);
    assert!(ahead(Timestamp(version(&written))) < 1000);
    assert_eq!(value(&mut honest, b"honest").as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_token_just_above_each_reply_does_not_move_time_on() {
    let node = start(&["m"]);
    for is_smart in [false, true] {
        let mut client = node.connect(0, is_smart);
        let told = client.ask(RequestBody::Directory).now();
        let mut now = told;
        let (mut refused, mut furthest) = (0, 0);
        for _ in 0..3_000 {
            // The second shard's keys, too: what is forwarded carries the token along.
            let key: &[u8] = if refused % 2 == 0 { b"a" } else { b"z" };
            let received = client.ask_with(RequestBody::Get { key }, now.plus_ms(499).0);
            now = received.now();
            refused += u32::from(is_refused(&received));
            furthest = furthest.max(ahead(now));
        }
        assert!(furthest <= 500, "{furthest} ms ahead");
        assert!(refused > 1_000, "{refused} were refused");
        assert_usable(&node, told);
    }
    node.stop(Duration::from_secs(5));
}

#[test]
fn no_request_of_any_kind_takes_a_time_that_is_too_far_ahead() {
    let node = start(&[]);
    let mut client = node.connect(0, false);
    let told = client.ask(RequestBody::Directory).now();
    for by_ms in [600, 3_600_000, 25 * 3_600_000, u64::from(u32::MAX)] {
        let bodies = |client: &mut TestClient| {
            [
                RequestBody::Get { key: b"k" },
                RequestBody::Directory,
                RequestBody::Status,
                RequestBody::Admin {
                    command: "{\"command\":\"nodes\"}",
                },
                RequestBody::put(b"k", b"v", client.session()),
                RequestBody::Scan {
                    start: None,
                    end: None,
                    rows_max: 0,
                    bytes_max: 0,
                    continuation: None,
                    reverse: false,
                    keys_only: false,
                },
            ]
        };
        for body in bodies(&mut client) {
            let received = client.ask_with(body, from_now(by_ms).0);
            assert!(is_refused(&received), "{by_ms}: {:?}", received.reply());
        }
    }
    let last = client.ask_with(RequestBody::Get { key: b"k" }, u64::MAX);
    assert!(is_refused(&last));
    assert!(ahead(last.now()) < 1000);
    assert_eq!(value(&mut client, b"k"), None, "nothing was written");
    assert_usable(&node, told);
    node.stop(Duration::from_secs(5));
}

#[test]
fn a_first_try_in_the_future_is_refused_for_every_kind_of_write() {
    let node = start(&[]);
    let mut client = node.connect(0, false);
    for by_ms in [600, 23 * 3_600_000, 25 * 3_600_000] {
        let session = |client: &mut TestClient| Session {
            first_tried: from_now(by_ms).0,
            ..client.session()
        };
        let put = RequestBody::put(b"k", b"v", session(&mut client));
        let delete = RequestBody::delete(b"k", session(&mut client));
        let increment = RequestBody::add(b"k", 1, session(&mut client));
        let write = RequestBody::write(
            vec![Mutation {
                key: b"k",
                change: Change::to(Some(b"v")),
            }],
            session(&mut client),
        );
        for body in [put, delete, increment, write] {
            let received = client.ask(body);
            assert!(is_refused(&received), "{by_ms}: {:?}", received.reply());
        }
    }
    assert_eq!(value(&mut client, b"k"), None);
    // Clocks may differ by this much.
    let session = Session {
        first_tried: from_now(400).0,
        ..client.session()
    };
    version(&client.ask(RequestBody::put(b"k", b"v", session)));
    node.stop(Duration::from_secs(5));
}

#[test]
fn a_continuation_in_the_future_is_refused_and_one_just_ahead_of_each_reply_moves_nothing() {
    let node = start(&[]);
    let mut client = node.connect(0, false);
    let told = client.ask(RequestBody::Directory).now();
    version(&client.put(b"k", b"v"));
    let scan = |client: &mut TestClient, at: u64| {
        let token = Continuation {
            start: b"a".to_vec(),
            end: None,
            at: Some(at),
            ..Continuation::default()
        };
        client.ask(RequestBody::Scan {
            start: None,
            end: None,
            rows_max: 0,
            bytes_max: 0,
            continuation: Some(&token.encode()),
            reverse: false,
            keys_only: false,
        })
    };
    for at in [from_now(600).0, from_now(3_600_000).0, u64::MAX] {
        let received = scan(&mut client, at);
        assert!(is_refused(&received), "{:?}", received.reply());
    }
    let (mut now, mut refused) = (told, 0);
    for _ in 0..300 {
        let received = scan(&mut client, now.plus_ms(499).0);
        now = received.now();
        refused += u32::from(is_refused(&received));
        assert!(ahead(now) < 1000, "{} ms ahead", ahead(now));
    }
    assert!(refused > 100, "{refused} were refused");
    assert_eq!(
        code(&scan(&mut client, u64::MAX)),
        ErrorCode::ClockOutOfBounds
    );
    assert_usable(&node, told);
    node.stop(Duration::from_secs(5));
}
