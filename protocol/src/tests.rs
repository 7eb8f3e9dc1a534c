//! Tests that all tables are read back, that their bytes are fixed, and that other bytes are
//! refused.

mod fuzz;

use std::borrow::Cow;

use super::*;

fn requests<'a>() -> Vec<Request<'a>> {
    let session = Session {
        client: 1 << 100 | 7,
        sequence: 3,
        lowest_unanswered: 2,
        first_tried: 99,
    };
    let write = |batch| RequestBody::Batch { batch, session };
    let bodies = vec![
        RequestBody::Get { key: b"k" },
        write(Batch::of(b"k", Change::Put(b""))),
        write(Batch::of(b"k", Change::Delete)),
        write(Batch::of(b"k", Change::Delete).when(b"k", Expected::Value(b""))),
        write(Batch::of(b"k", Change::Put(b"v")).when(b"k", Expected::Absent)),
        write(
            Batch::of(b"k", Change::Put(b""))
                .when(b"k", Expected::Version(5))
                .when(b"other", Expected::Exists),
        ),
        write(Batch::of(b"k", Change::Add(-4))),
        write(Batch {
            conditions: Vec::new(),
            mutations: [
                (b"a", Change::Put(b"1".as_slice())),
                (b"b", Change::Delete),
                (b"c", Change::Add(i64::MAX)),
            ]
            .map(|(key, change)| Mutation { key, change })
            .into_iter()
            .collect(),
        }),
        RequestBody::Scan {
            start: Some(b"a"),
            end: None,
            rows_max: 10,
            bytes_max: 0,
            continuation: Some(b"token"),
            reverse: false,
            keys_only: false,
        },
        RequestBody::Directory,
        RequestBody::Status,
        RequestBody::Admin {
            command: r#"{"command":"nodes"}"#,
        },
    ];
    let keyless =
        |body: &RequestBody<'_>| matches!(body, RequestBody::Directory | RequestBody::Status);
    let aimed =
        |body: &RequestBody<'_>| !keyless(body) && !matches!(body, RequestBody::Admin { .. });
    let request = |body| Request {
        target: aimed(&body).then_some(Target {
            range: 4,
            version: 5,
            conf: 6,
        }),
        deadline_ms: if keyless(&body) { 0 } else { 250 },
        token: 77,
        body,
    };
    bodies.into_iter().map(request).collect()
}

/// Scans with fields that were added later.
fn later_scans<'a>() -> Vec<Request<'a>> {
    let scan = |reverse, keys_only| Request {
        body: RequestBody::Scan {
            start: None,
            end: Some(b"z"),
            rows_max: 0,
            bytes_max: 9,
            continuation: None,
            reverse,
            keys_only,
        },
        target: None,
        deadline_ms: 250,
        token: 77,
    };
    vec![scan(true, false), scan(false, true), scan(true, true)]
}

/// Multi-gets, which were added later.
fn multi_gets<'a>() -> Vec<Request<'a>> {
    let of = |keys| Request {
        body: RequestBody::MultiGet { keys },
        target: None,
        deadline_ms: 250,
        token: 77,
    };
    vec![of(vec![b"k"]), of(vec![b"a", b"", b"other", b"a"])]
}

/// The replies to multi-gets.
fn values<'a>() -> Vec<Reply<'a>> {
    let moved = ErrorReply {
        code: Ok(ErrorCode::Moved),
        fate: Fate::NotApplied,
        retry_after_ms: 5,
        message: "elsewhere".to_owned(),
        routes: vec![sample_route()],
    };
    let value = |version, len| KeyResult::Value { version, len };
    let results = vec![
        value(9, 3),
        KeyResult::Absent,
        KeyResult::Failed(0),
        value(8, 0),
        KeyResult::NotRead,
        value(7, 1),
        KeyResult::Failed(0),
    ];
    let one = Values {
        results: vec![value(9, 1)],
        values: b"v",
        errors: Vec::new(),
    };
    let all = Values {
        results,
        values: b"onev",
        errors: vec![moved],
    };
    vec![Reply::Values(one), Reply::Values(all)]
}

fn sample_route() -> Route {
    Route {
        range: 1,
        version: 2,
        conf: 3,
        start: b"a".to_vec(),
        end: Some(b"b".to_vec()),
        leader: Some((4, 5)),
        address: "127.0.0.1:7400".to_owned(),
    }
}

fn replies<'a>() -> Vec<Reply<'a>> {
    let range = RangeState {
        route: sample_route(),
        system: true,
        replica: 1,
        term: 2,
        applied: 3,
        durable: 4,
        last_timestamp: 5,
        gc_threshold: 6,
        waiting: 7,
        sessions: 8,
    };
    let shard = ShardState {
        shard: 1,
        ranges: vec![range],
        pressure: 0.5,
        ..Default::default()
    };
    let node = NodeState {
        cluster: "c".to_owned(),
        node: 1,
        release: "0.1.0".to_owned(),
        health: "ok".to_owned(),
        uptime_ms: 3,
        shards: vec![shard],
    };
    vec![
        Reply::Value {
            value: None,
            version: 0,
        },
        Reply::Value {
            value: Some(b""),
            version: 9,
        },
        Reply::Written {
            version: 9,
            existed: true,
            numbers: Cow::default(),
        },
        Reply::Written {
            version: 9,
            existed: false,
            numbers: vec![-1, i64::MIN].into(),
        },
        Reply::ConditionFailed {
            current: None,
            condition: 0,
        },
        Reply::ConditionFailed {
            current: Some(8),
            condition: 3,
        },
        Reply::Rows {
            rows: vec![Row {
                key: b"a",
                value: b"",
                version: 1,
            }],
            continuation: Some(b"token"),
            at: 6,
        },
        Reply::Routes(vec![
            sample_route(),
            Route {
                end: None,
                leader: None,
                ..sample_route()
            },
        ]),
        Reply::Node(Box::new(node)),
        Reply::Admin {
            json: r#"{"nodes":[]}"#,
        },
        Reply::Error(Box::new(ErrorReply {
            code: Ok(ErrorCode::Moved),
            fate: Fate::NotApplied,
            retry_after_ms: 5,
            message: "elsewhere".to_owned(),
            routes: vec![sample_route()],
        })),
        Reply::Error(Box::new(ErrorReply {
            code: Err(60_000),
            fate: Fate::Unknown,
            retry_after_ms: 0,
            message: String::new(),
            routes: Vec::new(),
        })),
    ]
}

/// The state of a node with its use of memory, a field that was added later.
fn state_with_memory() -> Reply<'static> {
    let cache = MemoryUse {
        name: "block_cache".to_owned(),
        used: 5,
        bound: 9,
        hits: 2,
        misses: 1,
    };
    let shard = ShardState {
        memory: vec![cache, MemoryUse::default()],
        ..Default::default()
    };
    Reply::Node(Box::new(NodeState {
        shards: vec![shard],
        ..Default::default()
    }))
}

/// The refusal of a key whose range was split, with routes in a field that was added later.
fn moved_by_a_split() -> Reply<'static> {
    let other = Route {
        range: 9,
        start: b"b".to_vec(),
        end: None,
        ..sample_route()
    };
    Reply::Error(Box::new(ErrorReply {
        code: Ok(ErrorCode::Moved),
        fate: Fate::NotApplied,
        retry_after_ms: 0,
        message: "elsewhere".to_owned(),
        routes: vec![sample_route(), other.clone(), other],
    }))
}

#[test]
fn requests_and_replies_are_read_back() {
    let mut builder = FlatBufferBuilder::new();
    let encoded = |(id, request): (u64, Request<'_>)| {
        let mut bytes = Vec::new();
        request.encode(id, &mut FlatBufferBuilder::new(), &mut bytes);
        bytes
    };
    let later = || later_scans().into_iter().chain(multi_gets());
    let all = || (5..).zip(requests().into_iter().chain(later()));
    let frames: Vec<Vec<u8>> = all().map(encoded).collect();
    for ((id, request), bytes) in all().zip(&frames) {
        let frame = frame::decode(bytes).expect("good").expect("whole");
        assert_eq!(frame.id, id);
        assert_eq!(
            Request::decode(frame.kind, frame.body).expect("good"),
            request
        );
    }
    let all = replies()
        .into_iter()
        .chain(values())
        .chain([state_with_memory(), moved_by_a_split()]);
    for (id, reply) in (5..).zip(all) {
        let mut bytes = Vec::new();
        reply.encode(id, 44, &mut builder, &mut bytes);
        let frame = frame::decode(&bytes).expect("good").expect("whole");
        let (again, now) = Reply::decode(frame.kind, frame.body).expect("good");
        assert_eq!((frame.id, now, again), (id, 44, reply));
    }
}

/// The bytes of version 2 do not change: a change here needs a new version.
#[test]
fn the_bytes_of_all_tables_are_fixed() {
    let mut builder = FlatBufferBuilder::new();
    let mut bytes = Vec::new();
    for (id, request) in (1..).zip(requests()) {
        request.encode(id, &mut builder, &mut bytes);
    }
    for (id, reply) in (1..).zip(replies()) {
        reply.encode(id, 44, &mut builder, &mut bytes);
    }
    assert_fixed("version-2.bin", &bytes);
    bytes.clear();
    for (id, request) in (1..).zip(later_scans()) {
        request.encode(id, &mut builder, &mut bytes);
    }
    assert_fixed("version-2-scans.bin", &bytes);
    bytes.clear();
    for (id, request) in (1..).zip(multi_gets()) {
        request.encode(id, &mut builder, &mut bytes);
    }
    for (id, reply) in (1..).zip(values()) {
        reply.encode(id, 44, &mut builder, &mut bytes);
    }
    assert_fixed("version-2-multi-gets.bin", &bytes);
    bytes.clear();
    moved_by_a_split().encode(1, 44, &mut builder, &mut bytes);
    assert_fixed("version-2-moved.bin", &bytes);
}

#[test]
fn a_client_of_an_older_schema_reads_the_first_of_several_routes() {
    let mut bytes = Vec::new();
    moved_by_a_split().encode(1, 44, &mut FlatBufferBuilder::new(), &mut bytes);
    let frame = frame::decode(&bytes).expect("good").expect("whole");
    let table = flatbuffers::root::<crate::generated::wire::Error<'_>>(frame.body).expect("good");
    let first = table.route().map(|route| crate::reply::route(&route));
    assert_eq!(first, Some(sample_route()));
}

/// Compares bytes with those of a fixture.
fn assert_fixed(name: &str, bytes: &[u8]) {
    let path = format!("{}/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("RANGEDB_MAKE_FIXTURES").is_some() {
        std::fs::write(&path, bytes).expect("written");
    }
    let fixture = std::fs::read(&path).expect("is there");
    assert!(bytes == fixture, "the encoding of {name} has changed");
}

#[test]
fn each_key_gets_its_own_part_of_the_values() {
    let [_, Reply::Values(values)] = &values()[..] else {
        panic!("two replies");
    };
    let found = |value, version| KeyRead::Value { value, version };
    let reads: Vec<KeyRead<'_, '_>> = values.keys().collect();
    let wanted = [
        found(b"one", 9),
        KeyRead::Absent,
        KeyRead::Failed(&values.errors[0]),
        found(b"", 8),
        KeyRead::NotRead,
        found(b"v", 7),
        KeyRead::Failed(&values.errors[0]),
    ];
    assert_eq!(reads, wanted);
}

#[test]
fn values_that_do_not_fit_their_results_are_refused() {
    let value = |len| KeyResult::Value { version: 1, len };
    for results in [
        vec![value(2)],
        vec![value(4)],
        vec![value(3), value(u32::MAX), value(u32::MAX), value(2)],
        vec![value(3), KeyResult::Failed(0)],
    ] {
        let reply = Reply::Values(Values {
            results,
            values: b"one",
            errors: Vec::new(),
        });
        let mut bytes = Vec::new();
        reply.encode(1, 2, &mut FlatBufferBuilder::new(), &mut bytes);
        let frame = frame::decode(&bytes).expect("good").expect("whole");
        let decoded = Reply::decode(frame.kind, frame.body);
        assert!(matches!(decoded, Err(BadReply::BadValues)), "{reply:?}");
    }
}

#[test]
fn lengths_that_are_not_those_of_the_keys_are_refused() {
    let mut bytes = Vec::new();
    let body = RequestBody::MultiGet {
        keys: vec![b"first", b"second"],
    };
    let request = Request {
        body,
        target: None,
        deadline_ms: 0,
        token: 0,
    };
    request.encode(1, &mut FlatBufferBuilder::new(), &mut bytes);
    let [five, six] = [5u32, 6].map(u32::to_le_bytes);
    let lengths = [five, six].concat();
    let at = bytes.windows(8).position(|eight| eight == lengths);
    let at = at.expect("the lengths");
    for (place, length) in [(at, 4), (at, 6), (at + 4, 7), (at + 4, u32::MAX)] {
        let mut changed = bytes.clone();
        changed[place..place + 4].copy_from_slice(&u32::to_le_bytes(length));
        let frame = frame::decode(&changed).expect("good").expect("whole");
        let decoded = Request::decode(frame.kind, frame.body);
        assert!(matches!(decoded, Err(BadRequest::KeyLengths)), "{length}");
    }
}

#[test]
fn the_command_of_an_admin_request_is_bounded() {
    let mut builder = FlatBufferBuilder::new();
    for (len, fits) in [
        (limits::ADMIN_COMMAND_LEN_MAX, true),
        (limits::ADMIN_COMMAND_LEN_MAX + 1, false),
    ] {
        let command = " ".repeat(len);
        let body = RequestBody::Admin { command: &command };
        let request = Request {
            body,
            target: None,
            deadline_ms: 0,
            token: 0,
        };
        let mut bytes = Vec::new();
        request.encode(1, &mut builder, &mut bytes);
        let frame = frame::decode(&bytes).expect("good").expect("whole");
        let decoded = Request::decode(frame.kind, frame.body);
        assert_eq!(decoded.is_ok(), fits);
        assert_eq!(matches!(decoded, Err(BadRequest::LongCommand(_))), !fits);
    }
}

#[test]
fn unknown_kinds_are_told_apart() {
    assert!(matches!(
        Request::decode(999, &[]),
        Err(BadRequest::UnknownKind(999))
    ));
    assert!(matches!(
        Reply::decode(999, &[]),
        Err(BadReply::UnknownKind(999))
    ));
}

#[test]
fn mutated_bytes_never_panic() {
    let mut builder = FlatBufferBuilder::new();
    let mut frames = Vec::new();
    let later = later_scans().into_iter().chain(multi_gets());
    for request in requests().into_iter().chain(later) {
        let mut bytes = Vec::new();
        request.encode(1, &mut builder, &mut bytes);
        frames.push(bytes);
    }
    for reply in replies()
        .into_iter()
        .chain(values())
        .chain([state_with_memory()])
    {
        let mut bytes = Vec::new();
        reply.encode(1, 2, &mut builder, &mut bytes);
        frames.push(bytes);
    }
    let mut x = 88_172_645_463_325_252u64;
    let mut random = |limit: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as usize % limit
    };
    let mut refused = 0;
    for _ in 0..100_000 {
        let mut bytes = frames[random(frames.len())].clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        if random(3) == 0 {
            bytes.truncate(random(bytes.len()));
        }
        let Ok(Some(frame)) = frame::decode(&bytes) else {
            refused += 1;
            continue;
        };
        let request = Request::decode(frame.kind, frame.body);
        let reply = Reply::decode(frame.kind, frame.body);
        refused += usize::from(request.is_err() && reply.is_err());
    }
    assert!(refused > 10_000, "mutations are noticed: {refused}");
}

/// A connection of version 1 is refused by its handshake. If a frame of version 1 arrives
/// nevertheless, its writes of one key have unknown kinds, and a frame of a kind still in use
/// decodes to a request or an error.
#[test]
fn frames_of_version_1_are_told_apart() {
    let mut rest: &[u8] = include_bytes!("../fixtures/version-1.bin");
    let mut kinds = Vec::new();
    while let Some(frame) = frame::decode(rest).expect("the fixture holds whole frames") {
        rest = &rest[frame.len..];
        if frame.kind < 0x8000 {
            let request = Request::decode(frame.kind, frame.body);
            let is_unknown = matches!(request, Err(BadRequest::UnknownKind(_)));
            assert_eq!(is_unknown, (2..=5).contains(&frame.kind), "{request:?}");
            kinds.push(frame.kind);
        }
    }
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}
