//! Encrypted connections, byte by byte, against a live node. What the real client makes of them is tested
//! with the real binary.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_certificates::{Ca, HOSTS, Signed};
use rangedb_protocol::handshake::{
    ANY_SHARD, HANDSHAKE_REPLY_LEN, Handshake, HandshakeReply, Role, Verdict,
};
use rangedb_protocol::{FlatBufferBuilder, Reply, Request, RequestBody, frame};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::garbage::Random;
use crate::config::Config;
use crate::config::raw::{Key, RawConfig};
use crate::context::ClientLimits;
use crate::node_settings::Settings;
use crate::test_node::{TestClient, TestNode};

fn limits() -> ClientLimits {
    ClientLimits {
        handshake_timeout: Duration::from_millis(500),
        ..ClientLimits::default()
    }
}

fn start(split_at: &[&str], settings: Arc<Settings>) -> TestNode {
    TestNode::start_secure(split_at, limits(), settings)
}

fn stop(node: TestNode) {
    node.stop(Duration::from_secs(5));
}

/// Settings of a node with this certificate, and perhaps a CA for those of clients.
fn settings(node: &Signed, ca: Option<&Ca>, more: &[(Key, &str)]) -> Arc<Settings> {
    let mut raw = RawConfig::new();
    raw.add_flag(Key::DataDir, Some(&"data".to_owned()));
    raw.add_flag(Key::TlsCert, Some(&node.certificate));
    raw.add_flag(Key::TlsKey, Some(&node.key));
    raw.add_flag(Key::TlsCa, ca.map(Ca::file).as_ref());
    for (key, value) in more {
        raw.add_flag(*key, Some(&(*value).to_owned()));
    }
    let config = Config::validate(&raw).expect("good settings");
    let same = raw.clone();
    Settings::new(raw, config, Box::new(move || Ok(same.clone())))
}

/// Does the handshake of TLS, and asks for a row.
fn try_row(node: &TestNode, ca: &Ca, identity: Option<&Signed>) -> io::Result<()> {
    let mut client = encrypted_as(node, ca, identity);
    client.write_all(&get(b"k", 1))?;
    client.read_exact(&mut [0; HANDSHAKE_REPLY_LEN])
}

#[test]
fn a_node_says_whether_it_wants_tls() {
    let ca = Ca::new("ca");
    let signed = ca.sign("node", HOSTS);
    for (mode, with, without) in [
        ("required", Verdict::Accepted, Verdict::TlsRequired),
        ("optional", Verdict::Accepted, Verdict::Accepted),
        ("off", Verdict::NoTls, Verdict::Accepted),
    ] {
        let node = start(&[], settings(&signed, None, &[(Key::Tls, mode)]));
        assert_eq!(verdict(&node, true), with, "{mode}");
        assert_eq!(verdict(&node, false), without, "{mode}");
        if with == Verdict::Accepted {
            try_row(&node, &ca, None).expect("it is served");
        }
        if without == Verdict::Accepted {
            assert_eq!(super::value(&mut node.connect(0, true), b"k"), None);
        }
        // Other nodes connect without TLS.
        let peer = Handshake {
            role: Role::Peer,
            tls: true,
            ..Handshake::client(ANY_SHARD)
        };
        let mut client = TestClient::new(node.address);
        client.send(&peer.encode());
        let answer = client.answer().expect("an answer");
        assert_ne!(answer.verdict, Verdict::Accepted);
        stop(node);
    }
}

#[test]
fn a_node_with_a_ca_tells_clients_what_is_wrong_with_their_certificates() {
    let (ca, clients) = (Ca::new("ca"), Ca::new("clients"));
    let own = ca.sign("node", HOSTS);
    let node = start(&[], settings(&own, Some(&clients), &[]));
    try_row(&node, &ca, Some(&clients.sign("client", &[]))).expect("it is signed");
    // So the node's own pages connect.
    try_row(&node, &ca, Some(&own)).expect("it is the node's own");
    for (identity, alert) in [
        (None, "CertificateRequired"),
        (Some(ca.sign("stranger", &[])), "UnknownCA"),
        (
            Some(clients.sign_until("late", &[], 2001)),
            "CertificateExpired",
        ),
    ] {
        let refused = try_row(&node, &ca, identity.as_ref()).expect_err("it is refused");
        assert!(refused.to_string().contains(alert), "{refused}");
    }
    stop(node);
}

/// The answer to a handshake that is not encrypted.
fn answer(node: &TestNode, tls: bool) -> (TestClient, HandshakeReply) {
    let mut client = TestClient::new(node.address);
    let handshake = Handshake {
        tls,
        smart: false,
        ..Handshake::client(ANY_SHARD)
    };
    client.send(&handshake.encode());
    let answer = client.answer().expect("an answer");
    (client, answer)
}

fn verdict(node: &TestNode, tls: bool) -> Verdict {
    answer(node, tls).1.verdict
}

/// A connection on which TLS is next.
fn accepted(node: &TestNode) -> TcpStream {
    let (client, answer) = answer(node, true);
    assert_eq!(answer.verdict, Verdict::Accepted);
    client.stream
}

/// An encrypted connection of another client than ours.
fn encrypted(node: &TestNode, ca: &Ca) -> StreamOwned<ClientConnection, TcpStream> {
    encrypted_as(node, ca, None)
}

fn encrypted_as(
    node: &TestNode,
    ca: &Ca,
    identity: Option<&Signed>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(ca.file()).expect("a certificate");
    roots.add(ca).expect("added");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version")
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some(Signed { certificate, key }) => {
            let chain = CertificateDer::from_pem_file(certificate).expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(key).expect("a key");
            config
                .with_client_auth_cert(vec![chain], key)
                .expect("they fit")
        }
    };
    let name = "localhost".try_into().expect("a name");
    let client = ClientConnection::new(Arc::new(config), name).expect("a connection");
    StreamOwned::new(client, accepted(node))
}

fn get(key: &[u8], id: u64) -> Vec<u8> {
    let request = Request {
        body: RequestBody::Get { key },
        target: None,
        deadline_ms: 0,
        token: 0,
    };
    let mut bytes = Vec::new();
    request.encode(id, &mut FlatBufferBuilder::new(), &mut bytes);
    bytes
}

/// Receives the answer of the protocol and these replies.
fn receive(from: &mut impl Read, replies: u64) {
    receive_answer(from);
    receive_replies(from, 1..=replies);
}

fn receive_answer(from: &mut impl Read) {
    let mut answer = [0; HANDSHAKE_REPLY_LEN];
    from.read_exact(&mut answer).expect("the encrypted answer");
    let answer = HandshakeReply::decode(&answer).expect("an answer");
    assert_eq!((answer.verdict, answer.cluster), (Verdict::Accepted, 7));
}

fn receive_replies(from: &mut impl Read, ids: RangeInclusive<u64>) {
    let (mut received, mut chunk) = (Vec::new(), [0; 4096]);
    for id in ids {
        let found = loop {
            if let Some(found) = frame::decode(&received).expect("good frames") {
                break found;
            }
            let len = from.read(&mut chunk).expect("received");
            assert_ne!(len, 0, "a reply is missing");
            received.extend_from_slice(&chunk[..len]);
        };
        assert_eq!(found.id, id);
        let (reply, _) = Reply::decode(found.kind, found.body).expect("a good reply");
        assert!(
            matches!(reply, Reply::Value { value: None, .. }),
            "{reply:?}"
        );
        let len = found.len;
        received.drain(..len);
    }
}

#[test]
fn requests_right_behind_the_handshake_and_before_close_notify_are_answered() {
    let ca = Ca::new("ca");
    let node = start(&[], settings(&ca.sign("node", HOSTS), None, &[]));
    for requests in [1, 100] {
        let mut client = encrypted(&node, &ca);
        // The first is sent with the end of the handshake, and some are records of their own.
        for id in 1..=requests {
            client.write_all(&get(b"k", id)).expect("written");
        }
        client.conn.send_close_notify();
        client.flush().expect("sent");
        receive(&mut client, requests);
        // The end is one that TLS knows.
        assert_eq!(client.read(&mut [0]).expect("close_notify"), 0);
    }
    stop(node);
}

#[test]
fn an_update_of_keys_is_obeyed_in_both_directions() {
    let ca = Ca::new("ca");
    let node = start(&[], settings(&ca.sign("node", HOSTS), None, &[]));
    let mut client = encrypted(&node, &ca);
    receive_answer(&mut client);
    for id in 1..=5 {
        // The node is asked for new keys of its own, too.
        client.conn.refresh_traffic_keys().expect("they change");
        client.write_all(&get(b"k", id)).expect("sent");
        receive_replies(&mut client, id..=id);
    }
    stop(node);
}

#[test]
fn a_frame_in_many_records_and_records_in_pieces_are_put_together() {
    let ca = Ca::new("ca");
    let node = start(&[], settings(&ca.sign("node", HOSTS), None, &[]));
    let mut client = encrypted(&node, &ca);
    client
        .conn
        .complete_io(&mut client.sock)
        .expect("a handshake");
    for id in 1..=3 {
        for byte in get(b"key", id) {
            client.conn.writer().write_all(&[byte]).expect("taken");
        }
        let mut records = Vec::new();
        while client.conn.wants_write() {
            client.conn.write_tls(&mut records).expect("written");
        }
        for (at, piece) in records.chunks(7).enumerate() {
            client.sock.write_all(piece).expect("sent");
            // So that the node receives the pieces apart.
            if at % 50 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    receive(&mut client, 3);
    stop(node);
}

/// Waits until the node has ended a connection; says after how long.
fn ended(stream: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    let mut rest = [0; 4096];
    while !matches!(stream.read(&mut rest), Ok(0) | Err(_)) {}
    begun.elapsed()
}

#[test]
fn a_slow_handshake_ends_in_time_and_holds_nobody_up() {
    let ca = Ca::new("ca");
    let node = start(&[], settings(&ca.sign("node", HOSTS), None, &[]));
    let mut silent: Vec<_> = (0..20).map(|_| accepted(&node)).collect();
    let mut hello = Vec::new();
    let mut beginning = encrypted(&node, &ca);
    beginning.conn.write_tls(&mut hello).expect("written");
    beginning
        .sock
        .write_all(&hello[..hello.len() / 2])
        .expect("sent");
    let begun = Instant::now();
    try_row(&node, &ca, None).expect("it is not held up");
    assert!(
        begun.elapsed() < limits().handshake_timeout,
        "{:?}",
        begun.elapsed()
    );
    // One byte at a time does not help.
    let mut slow = encrypted(&node, &ca);
    slow.conn.write_tls(&mut hello).expect("written");
    let mut sent = 0;
    for byte in &hello {
        if slow.sock.write_all(&[*byte]).is_err() {
            break;
        }
        sent += 1;
        std::thread::sleep(Duration::from_millis(10));
        if begun.elapsed() > Duration::from_secs(20) {
            break;
        }
    }
    assert!(sent < hello.len(), "all {sent} bytes were taken");
    for stream in silent.iter_mut().chain([&mut beginning.sock]) {
        assert!(ended(stream) < Duration::from_secs(10));
    }
    stop(node);
}

#[test]
fn an_incomplete_record_ends_in_time() {
    let ca = Ca::new("ca");
    let limits = ClientLimits {
        frame_timeout: Duration::from_millis(400),
        ..limits()
    };
    let node = TestNode::start_secure(&[], limits, settings(&ca.sign("node", HOSTS), None, &[]));
    let mut client = encrypted(&node, &ca);
    client
        .conn
        .complete_io(&mut client.sock)
        .expect("a handshake");
    client
        .sock
        .write_all(&[23, 3, 3, 64, 0, 1, 2, 3])
        .expect("sent");
    assert!(ended(&mut client.sock) < Duration::from_secs(10));
    stop(node);
}

#[test]
fn garbage_ends_its_connection_alone() {
    let ca = Ca::new("ca");
    let node = start(&["m"], settings(&ca.sign("node", HOSTS), None, &[]));
    let mut random = Random(11);
    let mut honest = encrypted(&node, &ca);
    honest
        .conn
        .complete_io(&mut honest.sock)
        .expect("a handshake");
    for text in [
        "GET / HTTP/1.1\r\n\r\n",
        "\0\0\0\0\0\0\0\0\0\0",
        "\u{16}\u{3}\u{1}\u{7f}\u{7f}",
    ] {
        let mut stream = accepted(&node);
        stream.write_all(text.as_bytes()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("shut down");
        assert!(ended(&mut stream) < Duration::from_secs(5), "{text:?}");
    }
    for round in 0..600 {
        let mut client = encrypted(&node, &ca);
        let mut bytes = Vec::new();
        match round % 3 {
            // Instead of a ClientHello: with the header of a record, so that it is looked at.
            0 => {
                let len = random.below(2000);
                bytes = random.bytes(len);
                let kind = 20 + random.below(5) as u8;
                let header = [
                    kind,
                    3,
                    1 + random.below(3) as u8,
                    (len >> 8) as u8,
                    len as u8,
                ];
                bytes.splice(0..0, header);
            }
            // A ClientHello with some other bytes in it.
            1 => {
                client.conn.write_tls(&mut bytes).expect("written");
                for _ in 0..=random.below(4) {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
            }
            // Records of a connection that has done the handshake.
            _ => {
                client
                    .conn
                    .complete_io(&mut client.sock)
                    .expect("a handshake");
                for id in 1..=3 {
                    client
                        .conn
                        .writer()
                        .write_all(&get(b"k", id))
                        .expect("taken");
                    client.conn.write_tls(&mut bytes).expect("written");
                }
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes.truncate(at),
                    _ => drop(bytes.splice(at..at, random.bytes(20))),
                }
            }
        }
        // The node may have ended the connection already.
        let _ = client.sock.write_all(&bytes);
        let _ = client.sock.shutdown(Shutdown::Write);
        assert!(
            ended(&mut client.sock) < Duration::from_secs(5),
            "round {round}"
        );
    }
    honest.write_all(&get(b"k", 1)).expect("sent");
    receive(&mut honest, 1);
    stop(node);
}

#[test]
fn a_reload_takes_a_new_certificate_and_refuses_a_broken_one() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let signed = ca.sign("node", HOSTS);
    let settings = settings(&signed, None, &[]);
    let node = start(&["m"], settings.clone());
    let mut earlier = encrypted(&node, &ca);
    earlier
        .conn
        .complete_io(&mut earlier.sock)
        .expect("a handshake");
    assert_eq!(settings.reload().applied, []);

    let new = other.sign("new", HOSTS);
    std::fs::copy(&new.certificate, &signed.certificate).expect("copied");
    let refused = settings.reload().refused;
    let names: Vec<_> = refused.iter().map(|one| one.name.as_deref()).collect();
    assert_eq!(names, [Some("tls-key")]);
    let reason = refused[0].reason.clone();
    assert!(
        reason.contains("not the key") && reason.contains("node.key"),
        "{reason}"
    );
    try_row(&node, &ca, None).expect("nothing has changed");

    std::fs::copy(&new.key, &signed.key).expect("copied");
    let answer = settings.reload();
    let names: Vec<_> = answer.applied.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((names, answer.refused.len()), (vec!["tls-cert"], 0));
    assert_ne!(answer.applied[0].before, answer.applied[0].after);
    try_row(&node, &other, None).expect("the new one is shown");
    try_row(&node, &ca, None).expect_err("the earlier one is not");
    // Connections that are open stay.
    earlier.write_all(&get(b"k", 1)).expect("sent");
    receive(&mut earlier, 1);
    stop(node);
}
