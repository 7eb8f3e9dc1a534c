//! Plain clients of a cluster of three real processes, and ranges that have lost their majority.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rangedb_protocol::handshake::{
    ANY_SHARD, HANDSHAKE_REPLY_LEN, Handshake, HandshakeReply, Verdict,
};
use rangedb_protocol::{
    ErrorCode, ErrorReply, Fate, FlatBufferBuilder, KeyRead, Reply, Request, RequestBody, Session,
    frame,
};
use rangedb_tests::cluster::{
    Caller, KEYS, addresses, hold_leaders, homes_of, leader, ranges, start_all, wait_for,
    wait_until_replicated,
};
use rangedb_tests::process::{Home, Node, cli};

/// Starts all nodes, and waits until every range can be written to, several nodes lead, and the
/// leaders stay.
fn started(homes: &[Home]) -> Vec<Option<Node>> {
    let nodes = start_all(homes);
    wait_until_replicated(homes);
    wait_for("leaders on several nodes", || {
        let leaders: BTreeSet<_> = KEYS.iter().map(|key| leader(homes, key)).collect();
        (leaders.len() > 1).then_some(())
    });
    hold_leaders(homes);
    Caller::new(homes).first_writes();
    nodes
}

/// A connection of a client that follows no routes, or of one that does.
struct Plain {
    stream: TcpStream,
    /// The client's id in its sessions. A local port would not do: connections to other nodes may have the same,
    /// and the first write of the second one would be taken for a repeated one.
    client: u128,
    sequence: u64,
    received: Vec<u8>,
}

/// The reply to a request.
#[derive(Debug, PartialEq)]
enum TestReply {
    Value(Option<Vec<u8>>),
    Written,
    Rows(usize),
    Error(ErrorCode, Fate),
}

/// The reply for one of several keys.
#[derive(Debug, PartialEq)]
enum Key {
    Value(Vec<u8>),
    Absent,
    Error(ErrorCode),
    NotRead,
}

impl From<KeyRead<'_, '_>> for Key {
    fn from(read: KeyRead<'_, '_>) -> Key {
        match read {
            KeyRead::Value { value, .. } => Key::Value(value.to_vec()),
            KeyRead::Absent => Key::Absent,
            KeyRead::Failed(error) => Key::Error(error.code.expect("a known code")),
            KeyRead::NotRead => Key::NotRead,
        }
    }
}

impl Plain {
    fn connect(home: &Home, shard: u16) -> Plain {
        Plain::connect_as(home, shard, false)
    }

    fn connect_as(home: &Home, shard: u16, smart: bool) -> Plain {
        let mut stream = TcpStream::connect(&home.listen).expect("it listens");
        let handshake = Handshake {
            smart,
            ..Handshake::client(shard)
        };
        stream.write_all(&handshake.encode()).expect("sent");
        let mut answer = [0; HANDSHAKE_REPLY_LEN];
        stream.read_exact(&mut answer).expect("an answer");
        let answer = HandshakeReply::decode(&answer).expect("an answer");
        assert_eq!(answer.verdict, Verdict::Accepted);
        let timeout = Some(Duration::from_secs(20));
        stream.set_read_timeout(timeout).expect("set");
        Plain {
            stream,
            client: rand::random(),
            sequence: 0,
            received: Vec::new(),
        }
    }

    fn call(&mut self, body: RequestBody<'_>, deadline_ms: u32) -> TestReply {
        self.ask(body, deadline_ms, |reply| match reply {
            Reply::Value { value, .. } => TestReply::Value(value.map(<[u8]>::to_vec)),
            Reply::Written { .. } => TestReply::Written,
            Reply::Rows { rows, .. } => TestReply::Rows(rows.len()),
            Reply::Error(error) => {
                let ErrorReply { code, fate, .. } = *error;
                TestReply::Error(code.expect("a known code"), fate)
            }
            other => panic!("{other:?}"),
        })
    }

    fn ask<T>(
        &mut self,
        body: RequestBody<'_>,
        deadline_ms: u32,
        take: impl FnOnce(Reply<'_>) -> T,
    ) -> T {
        let request = Request {
            body,
            target: None,
            deadline_ms,
            token: 0,
        };
        let mut bytes = Vec::new();
        request.encode(9, &mut FlatBufferBuilder::new(), &mut bytes);
        self.stream.write_all(&bytes).expect("sent");
        self.received.clear();
        loop {
            if let Some(found) = frame::decode(&self.received).expect("a frame") {
                assert_eq!(found.id, 9);
                let (reply, _) = Reply::decode(found.kind, found.body).expect("a reply");
                return take(reply);
            }
            let mut piece = [0; 4096];
            let len = self.stream.read(&mut piece).expect("more");
            assert!(len > 0, "the connection was closed");
            self.received.extend_from_slice(&piece[..len]);
        }
    }

    fn get(&mut self, key: &str) -> TestReply {
        self.get_within(key, 5000)
    }

    fn get_within(&mut self, key: &str, deadline_ms: u32) -> TestReply {
        let key = key.as_bytes();
        self.call(RequestBody::Get { key }, deadline_ms)
    }

    /// Reads several keys in one request.
    fn multi_get(&mut self, keys: &[&str]) -> Vec<Key> {
        let keys = keys.iter().map(|key| key.as_bytes()).collect();
        let body = RequestBody::MultiGet { keys };
        self.ask(body, 5000, |reply| match reply {
            Reply::Values(values) => values.keys().map(Key::from).collect(),
            other => panic!("{other:?}"),
        })
    }

    fn put(&mut self, key: &str, value: &str, deadline_ms: u32) -> TestReply {
        let session = self.session();
        let (key, value) = (key.as_bytes(), value.as_bytes());
        self.call(RequestBody::put(key, value, session), deadline_ms)
    }

    fn session(&mut self) -> Session {
        self.sequence += 1;
        Session {
            client: self.client,
            sequence: self.sequence,
            lowest_unanswered: self.sequence,
            first_tried: now(),
        }
    }
}

/// About the cluster's time.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    (now.expect("after 1970").as_millis() as u64) << 16
}

#[test]
fn a_plain_client_asks_any_node_and_shard_for_anything() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "2");
    let nodes = started(&homes);
    for (number, home) in homes.iter().enumerate() {
        for shard in [0, 1, ANY_SHARD] {
            let mut plain = Plain::connect(home, shard);
            for key in KEYS {
                let value = format!("{number}-{shard}");
                assert_eq!(
                    plain.put(key, &value, 5000),
                    TestReply::Written,
                    "{number}/{shard} {key}"
                );
                let wanted = TestReply::Value(Some(value.into_bytes()));
                assert_eq!(plain.get(key), wanted, "{number}/{shard} {key}");
                let scan = RequestBody::Scan {
                    start: Some(key.as_bytes()),
                    end: None,
                    rows_max: 0,
                    bytes_max: 0,
                    continuation: None,
                    reverse: false,
                    keys_only: false,
                };
                assert_eq!(
                    plain.call(scan, 5000),
                    TestReply::Rows(1),
                    "{number}/{shard} {key}"
                );
                // A reverse scan begins in the range of the last key before its end.
                let after = format!("{key}\0");
                let scan = RequestBody::Scan {
                    start: None,
                    end: Some(after.as_bytes()),
                    rows_max: 0,
                    bytes_max: 0,
                    continuation: None,
                    reverse: true,
                    keys_only: true,
                };
                assert_eq!(
                    plain.call(scan, 5000),
                    TestReply::Rows(1),
                    "{number}/{shard} {key}"
                );
            }
        }
    }

    for (number, home) in homes.iter().enumerate() {
        for shard in [0, 1] {
            let mut plain = Plain::connect(home, shard);
            let results = plain.multi_get(&[&KEYS[..], &["none", "", KEYS[0]]].concat());
            let value = |result: &Key| matches!(result, Key::Value(value) if value == b"2-65535");
            let (read, others) = results.split_at(KEYS.len());
            assert!(read.iter().all(value), "{number}/{shard}: {results:?}");
            assert_eq!(others[..2], [Key::Absent, Key::Error(ErrorCode::Invalid)]);
            assert!(value(&others[2]), "{number}/{shard}: {results:?}");
        }
    }

    // The leader's node hangs once the request is there: what became of a write is not known.
    let led_by = leader(&homes, "a");
    let mut plain = Plain::connect(&homes[(led_by + 1) % 3], ANY_SHARD);
    assert_eq!(plain.put("a", "before", 5000), TestReply::Written);
    let hangs = nodes[led_by].as_ref().expect("it runs");
    hangs.signal("STOP");
    let put = plain.put("a", "during", 300);
    assert_eq!(put, TestReply::Error(ErrorCode::Unknown, Fate::Unknown));
    hangs.signal("CONT");
}

#[test]
fn a_plain_client_is_never_told_that_a_leader_has_moved() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "2");
    let _nodes = started(&homes);
    let led = ranges(&homes[0]).expect("it answers");
    let ids: Vec<String> = (led.keys().filter(|id| **id != 1))
        .map(u64::to_string)
        .collect();
    let stop = AtomicBool::new(false);
    let calls = &|home: &Home, number: usize| {
        let mut plain = Plain::connect(home, ANY_SHARD);
        let mut calls = 0;
        while !stop.load(Ordering::Relaxed) {
            let key = KEYS[calls % KEYS.len()];
            let scan = RequestBody::Scan {
                start: Some(key.as_bytes()),
                end: None,
                rows_max: 1,
                bytes_max: 0,
                continuation: None,
                reverse: false,
                keys_only: false,
            };
            let put = plain.put(key, &format!("{number}-{calls}"), 5000);
            let (get, rows) = (plain.get(key), plain.call(scan, 5000));
            let all = plain.multi_get(&KEYS);
            let is_fine = |reply: &TestReply| match reply {
                TestReply::Error(ErrorCode::Unknown, _) => *reply == put,
                // A leader that has just stepped down has heard of no other for long, and takes itself
                // for one without a majority until it hears of the next one.
                TestReply::Error(code, _) => *code == ErrorCode::NoQuorum,
                TestReply::Value(value) => value.is_some(),
                TestReply::Written | TestReply::Rows(1) => true,
                TestReply::Rows(_) => false,
            };
            for reply in [&put, &get, &rows] {
                assert!(is_fine(reply), "{key}: {put:?}, {get:?}, {rows:?}");
            }
            let is_read =
                |key: &Key| matches!(key, Key::Value(_) | Key::Error(ErrorCode::NoQuorum));
            assert!(all.iter().all(is_read), "{all:?}");
            calls += 1;
        }
        calls
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (homes.iter().cycle().take(6).enumerate())
            .map(|(number, home)| scope.spawn(move || calls(home, number)))
            .collect();
        let mut moves = 0;
        for id in ids.iter().cycle().take(12) {
            let moved = homes[0].cli(&["range", "transfer-leader", id]);
            moves += usize::from(moved.status.success());
            // The clients make some calls between two moves.
            std::thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let calls = client.join().expect("no call fails");
            assert!(calls > 10, "{calls} calls");
        }
        assert!(moves > 3, "{moves} moves");
    });
}

#[test]
fn a_smart_client_is_told_the_same_for_every_kind_of_request() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "1");
    let _nodes = started(&homes);
    let led_by = leader(&homes, "a");
    let route_of = |reply: Reply<'_>| match reply {
        Reply::Routes(routes) => routes.into_iter().next().expect("a route"),
        Reply::Error(error) => {
            assert_eq!(error.code, Ok(ErrorCode::NotLeader), "{}", error.message);
            assert_eq!(error.fate, Fate::NotApplied);
            error.routes.into_iter().next().expect("a route")
        }
        other => panic!("{other:?}"),
    };
    for home in &homes {
        let mut smart = Plain::connect_as(home, ANY_SHARD, true);
        // Each node names the leader's address, the leader its own.
        let route = smart.ask(RequestBody::Directory, 0, route_of);
        assert_eq!(route.address, homes[led_by].listen);
    }
    for number in [1, 2] {
        let mut smart = Plain::connect_as(&homes[(led_by + number) % 3], ANY_SHARD, true);
        let session = smart.session();
        let requests = [
            RequestBody::Get { key: b"a" },
            RequestBody::put(b"a", b"v", session),
            RequestBody::delete(b"a", session),
            RequestBody::add(b"a", 1, session),
            RequestBody::Scan {
                start: Some(b"a"),
                end: None,
                rows_max: 0,
                bytes_max: 0,
                continuation: None,
                reverse: false,
                keys_only: false,
            },
        ];
        for request in requests {
            let route = smart.ask(request, 5000, route_of);
            assert_eq!(route.address, homes[led_by].listen);
        }
        // Keys have their errors each, and share one table of it.
        let keys = vec![&b"a"[..], b"", b"a"];
        smart.ask(RequestBody::MultiGet { keys }, 5000, |reply| {
            let Reply::Values(values) = reply else {
                panic!("{reply:?}");
            };
            assert_eq!(values.errors.len(), 2);
            let [
                KeyRead::Failed(moved),
                KeyRead::Failed(_),
                KeyRead::Failed(again),
            ] = values.keys().collect::<Vec<_>>()[..]
            else {
                panic!("{values:?}");
            };
            assert_eq!(moved, again);
            let route = route_of(Reply::Error(Box::new(moved.clone())));
            assert_eq!(route.address, homes[led_by].listen);
        });
    }
}

#[test]
fn what_went_to_a_node_that_has_stopped_is_given_up_when_it_is_silent() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "2");
    let nodes = started(&homes);
    let led_by = leader(&homes, "a");
    let asked = &homes[(led_by + 1) % 3];
    let [mut reads, mut writes] = [(); 2].map(|()| Plain::connect(asked, ANY_SHARD));
    assert_eq!(writes.put("a", "before", 0), TestReply::Written);
    assert_eq!(
        reads.get_within("a", 0),
        TestReply::Value(Some(b"before".to_vec()))
    );
    let hangs = nodes[led_by].as_ref().expect("it runs");
    hangs.signal("STOP");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let write = scope.spawn(|| (writes.put("a", "during", 0), begun.elapsed()));
        let (read, read_after) = (reads.get_within("a", 0), begun.elapsed());
        let (written, written_after) = write.join().expect("it ends");
        println!("read: {read:?} after {read_after:?}");
        println!("written: {written:?} after {written_after:?}");
        assert_eq!(
            read,
            TestReply::Error(ErrorCode::NotLeader, Fate::NotApplied)
        );
        assert_eq!(written, TestReply::Error(ErrorCode::Unknown, Fate::Unknown));
        let slowest = read_after.max(written_after);
        assert!(slowest < Duration::from_millis(2500), "{slowest:?}");
    });
    hangs.signal("CONT");
}

#[test]
fn a_deadline_holds_when_the_majority_has_just_gone() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "1");
    let nodes = started(&homes);
    let led_by = leader(&homes, "a");
    let others = (1..3).map(|other| nodes[(led_by + other) % 3].as_ref().expect("it runs"));
    let others: Vec<&Node> = others.collect();
    let mut clients = [(); 3].map(|()| Plain::connect(&homes[led_by], ANY_SHARD));
    for client in &mut clients {
        assert_eq!(client.put("a", "before", 0), TestReply::Written);
    }
    others.iter().for_each(|other| other.signal("STOP"));
    std::thread::scope(|scope| {
        for (client, deadline_ms) in clients.iter_mut().zip([150, 400, 700]) {
            scope.spawn(move || {
                let begun = Instant::now();
                let reply = client.put("a", "during", deadline_ms);
                let took = begun.elapsed();
                println!("{deadline_ms} ms: {reply:?} after {took:?}");
                // Writes that wait behind the first one are no longer proposed.
                assert!(matches!(reply, TestReply::Error(..)), "{reply:?}");
                // Without a deadline of its own the write would be refused after a second.
                let most = Duration::from_millis(u64::from(deadline_ms) + 250);
                assert!(took < most, "{deadline_ms} ms: {took:?}");
            });
        }
    });
    // Requests with a later deadline are refused after a second.
    let begun = Instant::now();
    let reply = clients[0].put("a", "during", 5000);
    assert!(
        matches!(reply, TestReply::Error(ErrorCode::NoQuorum, _)),
        "{reply:?}"
    );
    assert!(begun.elapsed() < Duration::from_millis(1800), "{begun:?}");
    others.iter().for_each(|other| other.signal("CONT"));
}

#[test]
fn without_a_majority_everything_ends_in_time_with_no_quorum() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "2");
    let mut nodes = started(&homes);
    // The one that stays leads a range, and follows in others.
    let stays = leader(&homes, "a");
    for (number, node) in nodes.iter_mut().enumerate() {
        if number != stays {
            node.take().expect("it runs").kill();
        }
    }
    let list = addresses(&homes);
    for key in KEYS {
        for command in [&["put", key, "2"][..], &["get", key]] {
            let begun = Instant::now();
            let ended = cli(&list, &[command, &["--timeout", "4s"]].concat());
            let complaint = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(begun.elapsed() < Duration::from_millis(4600), "{command:?}");
            assert!(complaint.contains("no_quorum"), "{command:?}: {complaint}");
            let code = ended.status.code();
            let wanted: &[i32] = if command[0] == "put" { &[3, 4] } else { &[3] };
            assert!(
                code.is_some_and(|code| wanted.contains(&code)),
                "{command:?}: {code:?}"
            );
        }
    }
    // Where no leader is known to begin with, nothing was proposed.
    let mut plain = Plain::connect(&homes[stays], ANY_SHARD);
    let reply = KEYS.map(|key| plain.put(key, "3", 3000));
    for reply in &reply {
        assert!(
            matches!(
                reply,
                TestReply::Error(ErrorCode::NoQuorum, Fate::NotApplied | Fate::Unknown)
            ),
            "{reply:?}"
        );
    }
    assert!(reply.contains(&TestReply::Error(ErrorCode::NoQuorum, Fate::NotApplied)));
    // Requests without a deadline do not wait for ever either.
    for key in KEYS {
        let begun = Instant::now();
        for reply in [plain.put(key, "4", 0), plain.get_within(key, 0)] {
            let is_left = matches!(reply, TestReply::Error(ErrorCode::NoQuorum, _));
            assert!(is_left, "{key}: {reply:?}");
        }
        assert!(
            begun.elapsed() < Duration::from_millis(3500),
            "{key}: {begun:?}"
        );
    }
    // A majority is there again.
    let back = (stays + 1) % 3;
    nodes[back] = Some(homes[back].start());
    Caller::new(&homes).first_writes();
}
