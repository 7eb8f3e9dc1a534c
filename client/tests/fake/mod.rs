//! Servers that speak the protocol and misbehave in a chosen way.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rangedb_client::{Client, ClientOptions};
use rangedb_protocol::admin::Command;
use rangedb_protocol::handshake::{HANDSHAKE_LEN, HandshakeReply, Verdict};
use rangedb_protocol::{
    ErrorCode, ErrorReply, Fate, FlatBufferBuilder, KeyResult, Reply, Request, RequestBody, Route,
    Row, Target, Values, frame,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a server does with a request other than one for the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Refuses it as overloaded.
    Overloaded,
    /// Refuses it because no majority is reachable.
    NoQuorum,
    /// Does not answer.
    Silent,
    /// Closes the connection.
    Closes,
    /// Closes the first connection that asks, and answers the others.
    ClosesOnce,
    /// Answers gets and multi-gets with the key, puts, and scans with [`ROWS`] rows.
    Honest,
    /// Has split its range at [`SPLIT_AT`] since it sent the directory, and leads the upper part only
    /// from the second request on that comes for it; otherwise honest.
    HasSplit,
    /// Sends [`RIGHT`] as its time and refuses later timestamps; its first answer is that of a node
    /// whose clock is far ahead.
    FindsTimesAhead,
}

/// Where the range of a peer that has split begins its second half.
pub const SPLIT_AT: &str = "m";

/// How many keys of a multi-get a peer reads; the others count as not read.
pub const KEYS_READ_MAX: usize = 200;

/// How many rows a peer has: `row 0` and so on.
pub const ROWS: usize = 8;

/// A time of the cluster, and one that is an hour ahead of it.
const RIGHT: u64 = 7_200_000 << 16;
const WRONG: u64 = RIGHT + (3_600_000 << 16);

/// What a peer does, and has done.
pub struct Life {
    manner: Manner,
    node: u64,
    /// The cluster that it claims to belong to.
    pub cluster: AtomicU64,
    /// Whether it neither reads nor sends any more.
    pub hangs: AtomicBool,
    /// Whether it closes every connection on which a request arrives.
    pub closes: AtomicBool,
    /// The node that it names as the leader of the only range; `None`: itself.
    pub leader: Mutex<Option<(u64, String)>>,
    /// Whether it leads the upper part of a split.
    leads_upper: AtomicBool,
    directories: AtomicUsize,
    requests: AtomicUsize,
}

/// A server.
pub struct Peer {
    pub address: String,
    pub life: Arc<Life>,
}

impl Peer {
    /// Node 1 of cluster 1.
    pub async fn start(manner: Manner) -> Peer {
        Peer::start_as(manner, 1, 1).await
    }

    pub async fn start_as(manner: Manner, cluster: u64, node: u64) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Peer::on(listener, manner, (cluster, node))
    }

    pub fn on(listener: TcpListener, manner: Manner, (cluster, node): (u64, u64)) -> Peer {
        let address = listener.local_addr().unwrap().to_string();
        let life = Arc::new(Life {
            manner,
            node,
            cluster: AtomicU64::new(cluster),
            hangs: AtomicBool::new(false),
            closes: AtomicBool::new(false),
            leader: Mutex::default(),
            leads_upper: AtomicBool::new(false),
            directories: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        });
        let lives = life.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, lives.clone()));
            }
        });
        Peer { address, life }
    }

    pub fn options(&self, timeout: Duration) -> ClientOptions {
        ClientOptions::new([&self.address]).timeout(timeout)
    }

    /// Requests for the directory.
    pub fn directories(&self) -> usize {
        self.life.directories.load(Ordering::SeqCst)
    }

    /// Other requests.
    pub fn requests(&self) -> usize {
        self.life.requests.load(Ordering::SeqCst)
    }
}

/// A peer, and a client that is connected to it.
pub async fn connected(manner: Manner, timeout: Duration) -> (Peer, Client) {
    let peer = Peer::start(manner).await;
    let client = Client::connect(peer.options(timeout)).await.unwrap();
    (peer, client)
}

async fn serve(mut stream: TcpStream, life: Arc<Life>) {
    let mut handshake = [0; HANDSHAKE_LEN];
    if stream.read_exact(&mut handshake).await.is_err() {
        return;
    }
    if life.hangs.load(Ordering::SeqCst) {
        return hang(stream).await;
    }
    stream.write_all(&accepted(&life).encode()).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let Some((id, kind, len)) = frame::decode(&bytes)
            .unwrap()
            .map(|f| (f.id, f.kind, f.len))
        else {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        if life.hangs.load(Ordering::SeqCst) {
            return hang(stream).await;
        }
        if life.closes.load(Ordering::SeqCst) {
            return;
        }
        let table = bytes[frame::HEADER_LEN..len].to_vec();
        let request = Request::decode(kind, &table).unwrap();
        let (body, token, target) = (request.body, request.token, request.target);
        let mut now = 1;
        let reply = if body == RequestBody::Directory {
            life.directories.fetch_add(1, Ordering::SeqCst);
            if life.manner == Manner::FindsTimesAhead {
                now = WRONG;
            }
            Reply::Routes(vec![whole_key_space(&life)])
        } else {
            let before = life.requests.fetch_add(1, Ordering::SeqCst);
            match (life.manner, body) {
                (Manner::HasSplit, _) if let Some(refusal) = split_refusal(&life, target) => {
                    refusal
                }
                (Manner::Overloaded, _) => refusal(ErrorCode::Overloaded),
                (Manner::NoQuorum, _) => refusal(ErrorCode::NoQuorum),
                (Manner::Closes, _) => return,
                (Manner::ClosesOnce, _) if before == 0 => return,
                (Manner::Silent, _) => {
                    bytes.drain(..len);
                    continue;
                }
                (Manner::FindsTimesAhead, body) if time_of(&body).max(token) > RIGHT => {
                    now = RIGHT;
                    let mut refusal = refusal(ErrorCode::ClockOutOfBounds);
                    if let Reply::Error(error) = &mut refusal {
                        error.retry_after_ms = 0;
                    }
                    refusal
                }
                (_, RequestBody::Admin { command }) => Reply::Admin {
                    json: match Command::parse(command).expect("a command") {
                        Command::Nodes {} => r#"{"nodes":[],"added":"later"}"#,
                        _ => r#"{"done":true}"#,
                    },
                },
                (_, RequestBody::Get { key }) => Reply::Value {
                    value: Some(key),
                    version: 1,
                },
                (_, RequestBody::MultiGet { keys }) => {
                    let read = keys.iter().take(KEYS_READ_MAX);
                    let result = |key: &&[u8]| KeyResult::Value {
                        version: 1,
                        len: key.len() as u32,
                    };
                    let not_read = keys.iter().skip(KEYS_READ_MAX);
                    let not_read = not_read.map(|_| KeyResult::NotRead);
                    let values = read.clone().copied().collect::<Vec<_>>().concat();
                    let reply = Reply::Values(Values {
                        results: read.map(result).chain(not_read).collect(),
                        values: &values,
                        errors: Vec::new(),
                    });
                    let mut out = Vec::new();
                    reply.encode(id, now, &mut FlatBufferBuilder::new(), &mut out);
                    stream.write_all(&out).await.unwrap();
                    bytes.drain(..len);
                    continue;
                }
                (_, scan @ RequestBody::Scan { .. }) => {
                    let (page, token) = page_of(&scan);
                    let rows = page.iter().map(|[key, value]| Row {
                        key: key.as_bytes(),
                        value: value.as_bytes(),
                        version: 1,
                    });
                    let reply = Reply::Rows {
                        at: 1,
                        rows: rows.collect(),
                        continuation: token.as_ref().map(|token| &token[..]),
                    };
                    let mut out = Vec::new();
                    reply.encode(id, now, &mut FlatBufferBuilder::new(), &mut out);
                    stream.write_all(&out).await.unwrap();
                    bytes.drain(..len);
                    continue;
                }
                _ => Reply::Written {
                    version: 7,
                    existed: false,
                    numbers: Default::default(),
                },
            }
        };
        let mut out = Vec::new();
        reply.encode(id, now, &mut FlatBufferBuilder::new(), &mut out);
        if stream.write_all(&out).await.is_err() {
            return;
        }
        bytes.drain(..len);
    }
}

/// Where a scan begins whose first page has no rows.
pub const DELETED: &str = "deleted";

/// One page of the rows, of the size that was asked for or of three rows, and its continuation: the
/// number of the next row, the direction, and whether values are left out.
fn page_of(scan: &RequestBody<'_>) -> (Vec<[String; 2]>, Option<[u8; 3]>) {
    let RequestBody::Scan {
        start,
        rows_max,
        continuation,
        reverse,
        keys_only,
        ..
    } = scan
    else {
        panic!("{scan:?} is no scan");
    };
    let (first, reverse, keys_only) = match continuation {
        Some([first, reverse, keys_only]) => (usize::from(*first), *reverse == 1, *keys_only == 1),
        _ => (0, *reverse, *keys_only),
    };
    let row = |number: usize| {
        let number = if reverse { ROWS - 1 - number } else { number };
        let value = if keys_only {
            String::new()
        } else {
            format!("value {number}")
        };
        [format!("row {number}"), value]
    };
    let len = match *rows_max {
        _ if *start == Some(DELETED.as_bytes()) => 0,
        0 => 3,
        rows => rows as usize,
    };
    let end = ROWS.min(first + len);
    let token = [end as u8, reverse.into(), keys_only.into()];
    let page = (first..end).map(row).collect();
    (page, (end < ROWS).then_some(token))
}

/// Keeps the connection open and lets the kernel receive, as a stopped process does.
async fn hang(mut stream: TcpStream) {
    let mut taken = [0; 4096];
    while stream.read(&mut taken).await.is_ok_and(|len| len > 0) {}
}

/// The `first_tried` of a write.
fn time_of(body: &RequestBody<'_>) -> u64 {
    match body {
        RequestBody::Batch { session, .. } => session.first_tried,
        _ => 0,
    }
}

fn accepted(life: &Life) -> HandshakeReply {
    HandshakeReply {
        verdict: Verdict::Accepted,
        version: 1,
        shard: 0,
        shards: 1,
        node: life.node,
        cluster: u128::from(life.cluster.load(Ordering::SeqCst)),
    }
}

fn whole_key_space(life: &Life) -> Route {
    let elsewhere = life.leader.lock().unwrap().clone();
    let (node, address) = elsewhere.unwrap_or((life.node, String::new()));
    Route {
        range: 2,
        version: 1,
        conf: 1,
        start: Vec::new(),
        end: None,
        leader: Some((node, 0)),
        address,
    }
}

/// The refusal of a request that names the range as it was before the split, or the part that has no
/// leader yet.
fn split_refusal(life: &Life, target: Option<Target>) -> Option<Reply<'static>> {
    let lower = Route {
        version: 2,
        end: Some(SPLIT_AT.into()),
        ..whole_key_space(life)
    };
    let upper = Route {
        range: 3,
        version: 2,
        start: SPLIT_AT.into(),
        ..whole_key_space(life)
    };
    let target = target?;
    let (code, routes) = match (target.range, target.version) {
        (2, 1) => (ErrorCode::Moved, vec![upper, lower]),
        (3, _) if !life.leads_upper.swap(true, Ordering::SeqCst) => {
            let unled = Route {
                leader: None,
                ..upper
            };
            (ErrorCode::NotLeader, vec![unled])
        }
        _ => return None,
    };
    let mut refusal = refusal(code);
    if let Reply::Error(error) = &mut refusal {
        error.routes = routes;
    }
    Some(refusal)
}

fn refusal(code: ErrorCode) -> Reply<'static> {
    Reply::Error(Box::new(ErrorReply {
        code: Ok(code),
        fate: Fate::NotApplied,
        retry_after_ms: 3,
        message: "too much".to_owned(),
        routes: Vec::new(),
    }))
}
