//! The edges of the protocol's rules, against a live node: what is just allowed, what is just not,
//! and that a refusal says which value breaks which rule.

use std::time::Duration;

use rangedb_protocol::handshake::{Handshake, Verdict};
use rangedb_protocol::limits::{ADMIN_COMMAND_LEN_MAX, KEY_LEN_MAX};
use rangedb_protocol::{ErrorCode, Reply, RequestBody, Session, frame};

use super::{code, start, version};
use crate::test_node::{Received, TestClient};

fn scan<'a>(start: &'a [u8], end: &'a [u8], reverse: bool) -> RequestBody<'a> {
    RequestBody::Scan {
        start: Some(start),
        end: Some(end),
        rows_max: 0,
        bytes_max: 0,
        continuation: None,
        reverse,
        keys_only: false,
    }
}

fn message(received: &Received) -> String {
    match received.reply() {
        Reply::Error(error) => error.message,
        other => panic!("no error: {other:?}"),
    }
}

#[test]
fn a_scan_may_begin_and_end_just_after_the_longest_key() {
    let node = start(&[]);
    let mut client = node.connect(0, true);
    let longest = vec![0x61; KEY_LEN_MAX];
    version(&client.put(&longest, b"v"));
    version(&client.put(b"b", b"v"));
    let after = [&longest[..], &[0]].concat();
    let keys = |received: &Received| match received.reply() {
        Reply::Rows { rows, .. } => rows.iter().map(|row| row.key.len()).collect::<Vec<_>>(),
        other => panic!("no rows: {other:?}"),
    };
    let longer = [&after[..], &[0]].concat();
    for reverse in [false, true] {
        let found = client.ask(scan(&longest, &after, reverse));
        assert_eq!(keys(&found), [KEY_LEN_MAX]);
        let found = client.ask(scan(&after, b"c", reverse));
        assert_eq!(keys(&found), [1]);
        for refused in [scan(&longer, b"c", reverse), scan(b"a", &longer, reverse)] {
            let refused = client.ask(refused);
            assert_eq!(code(&refused), ErrorCode::Invalid);
            assert!(message(&refused).contains("4098"), "{}", message(&refused));
        }
    }
    node.stop(Duration::from_secs(5));
}

#[test]
fn a_role_that_is_unknown_is_refused_with_a_verdict() {
    let node = start(&[]);
    for role in [2, 7, 255] {
        let mut bytes = Handshake::client(0).encode();
        bytes[8] = role;
        let mut client = TestClient::new(node.address);
        client.send(&bytes);
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.verdict, Verdict::RoleRefused, "role {role}");
        assert!(client.receive().is_none(), "the connection ends");
    }
    node.stop(Duration::from_secs(5));
}

#[test]
fn a_write_that_calls_itself_answered_is_refused() {
    let node = start(&[]);
    let mut client = node.connect(0, true);
    let good = client.session();
    let put = |session| RequestBody::put(b"k", b"v", session);
    let session = Session {
        lowest_unanswered: good.sequence + 1,
        ..good
    };
    let refused = client.ask(put(session));
    assert_eq!(code(&refused), ErrorCode::Invalid);
    assert!(message(&refused).contains("lowest_unanswered"));
    // It has left no mark: the write and its retry are what they would have been.
    let session = Session {
        lowest_unanswered: good.sequence,
        ..good
    };
    let first = version(&client.ask(put(session)));
    assert_eq!(version(&client.ask(put(session))), first);
    node.stop(Duration::from_secs(5));
}

#[test]
fn requests_before_a_bad_frame_are_answered() {
    let node = start(&["m"]);
    // Bad in its table, and in its length.
    let mut table = Vec::new();
    frame::encode(99, 6, b"no table", &mut table);
    for bad in [table, vec![3, 0, 0, 0]] {
        let mut client = node.connect(0, false);
        let mut bytes = Vec::new();
        // Writes of both shards take until they are durable; scans run as tasks.
        let mut asked = Vec::new();
        for key in [b"a", b"z", b"b", b"y"] {
            let session = client.session();
            let put = RequestBody::put(key, b"v", session);
            asked.push(client.encode(put, &mut bytes));
            asked.push(client.encode(scan(b"a", b"m", false), &mut bytes));
        }
        bytes.extend_from_slice(&bad);
        // Nothing behind it is taken.
        client.encode(RequestBody::Get { key: b"a" }, &mut bytes);
        client.send(&bytes);
        let mut answered = Vec::new();
        while let Some(received) = client.receive() {
            match received.reply() {
                Reply::Written { .. } | Reply::Rows { .. } => answered.push(received.id),
                Reply::Error(error) => {
                    assert_eq!(
                        (received.id, error.code),
                        (99, Ok(ErrorCode::MalformedFrame))
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        answered.sort_unstable();
        assert_eq!(answered, asked);
    }
    node.stop(Duration::from_secs(5));
}

#[test]
fn an_admin_command_that_is_too_long_is_refused_for_that() {
    let node = start(&[]);
    let mut client = node.connect(0, true);
    let command = " ".repeat(ADMIN_COMMAND_LEN_MAX + 1);
    let refused = client.ask(RequestBody::Admin { command: &command });
    assert_eq!(code(&refused), ErrorCode::Invalid);
    let words = message(&refused);
    assert!(
        words.contains("16385") && words.contains("16384"),
        "{words}"
    );
    node.stop(Duration::from_secs(5));
}
