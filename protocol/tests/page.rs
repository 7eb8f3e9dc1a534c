//! Checks what the protocol page states: its table of errors, its limits, and its dump of an exchange.
//! Another test runs a client that was written from the page against a node.

use std::fmt::Write as _;

use rangedb_protocol::handshake::{Handshake, HandshakeReply, VERSION, Verdict};
use rangedb_protocol::{
    ErrorCode, FlatBufferBuilder, Reply, Request, RequestBody, Session, Target, limits,
};

const PAGE: &str = include_str!("../PROTOCOL.md");

/// The rows of the page's table of errors: those whose first two cells are a number and a name.
fn rows() -> Vec<(u16, &'static str, Vec<&'static str>)> {
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
        let number = cells.first()?.parse().ok()?;
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        Some((number, name, cells))
    };
    let (_, errors) = PAGE
        .split_once("\n# Errors\n")
        .expect("a chapter of errors");
    errors.lines().filter_map(row).collect()
}

#[test]
fn every_error_code_is_on_the_page_under_its_number() {
    let listed: Vec<(u16, &str)> = rows().iter().map(|row| (row.0, row.1)).collect();
    let mut known: Vec<(u16, &str)> = ErrorCode::ALL
        .iter()
        .map(|code| (*code as u16, code.name()))
        .collect();
    known.sort_unstable();
    assert_eq!(
        listed, known,
        "PROTOCOL.md, table of errors: | number | `name` | ..."
    );
    for (_, name, cells) in rows() {
        assert_eq!(cells.len(), 5, "{name}");
        let fates = ["not applied", "unknown", "either"];
        assert!(fates.contains(&cells[3]), "{name}: {}", cells[3]);
        assert!(
            cells[4].starts_with("yes") || cells[4].starts_with("no"),
            "{name}: {}",
            cells[4]
        );
    }
}

#[test]
fn the_limits_are_on_the_page() {
    let grouped = |number: usize| {
        let digits = number.to_string();
        let mut text = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        text
    };
    for limit in [
        limits::KEY_LEN_MAX,
        limits::BOUND_LEN_MAX,
        limits::VALUE_LEN_MAX,
        limits::BATCH_LEN_MAX,
        limits::BATCH_OPS_MAX,
        limits::BATCH_ADDITIONS_MAX,
        limits::MULTI_GET_KEYS_MAX,
        limits::MULTI_GET_KEYS_LEN_MAX,
        limits::MULTI_GET_VALUES_LEN_MAX,
        limits::MULTI_GET_ERRORS_MAX,
        limits::FRAME_LEN_MAX,
        limits::IN_FLIGHT_MAX,
        limits::SCAN_ROWS_MAX,
        limits::SCAN_BYTES_MAX,
        limits::ADMIN_COMMAND_LEN_MAX,
    ] {
        assert!(PAGE.contains(&grouped(limit)), "{limit}");
    }
}

fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{:04x}  {}", 16 * line, hex.join(" ")).expect("a text");
    }
    text
}

/// The exchange that the page shows.
fn exchange() -> [Vec<u8>; 4] {
    let answer = HandshakeReply {
        verdict: Verdict::Accepted,
        version: VERSION,
        shard: 0,
        shards: 2,
        node: 1,
        cluster: 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f,
    };
    let now = 1_764_000_000_000 << 16;
    let session = Session {
        client: 0xa0a1_a2a3_a4a5_a6a7_b0b1_b2b3_b4b5_b6b7,
        sequence: 1,
        lowest_unanswered: 1,
        first_tried: now,
    };
    let body = RequestBody::put(b"k", b"v", session);
    let target = Target {
        range: 2,
        version: 1,
        conf: 1,
    };
    let request = Request {
        body,
        target: Some(target),
        deadline_ms: 5000,
        token: now,
    };
    let version = now + (3 << 16);
    let reply = Reply::Written {
        version,
        existed: false,
        numbers: Vec::new().into(),
    };
    let mut builder = FlatBufferBuilder::new();
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    request.encode(7, &mut builder, &mut asked);
    reply.encode(7, version, &mut builder, &mut answered);
    [
        Handshake::client(0).encode().to_vec(),
        answer.encode().to_vec(),
        asked,
        answered,
    ]
}

#[test]
fn the_dump_of_an_exchange_is_true() {
    let shown: Vec<&str> = PAGE
        .split("```text\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .collect();
    let exchanged = exchange().map(|bytes| dump(&bytes));
    assert_eq!(shown, exchanged, "it should be:\n{}", exchanged.join("\n"));
}
