//! The client against servers that misbehave: each a TCP listener of the test that speaks the
//! protocol until it does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rangedb_client::{Client, ClientOptions, ErrorCode, Fate, Mutation};
use rangedb_protocol::preamble::{Answer, PREAMBLE_LEN, Verdict};
use rangedb_protocol::{ErrorReply, FlatBufferBuilder, Reply, Request, RequestBody, Route, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a peer does with a request that is none for the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Answers that it is overloaded.
    Overloaded,
    /// Answers that it reaches no majority.
    NoQuorum,
    /// Says nothing.
    Silent,
    /// Closes the connection.
    Closes,
    /// Closes the first connection that asks, and answers the others.
    ClosesOnce,
    /// Answers gets and puts.
    Honest,
}

struct Peer {
    address: String,
    /// Requests for the directory.
    directories: Arc<AtomicUsize>,
    /// Other requests.
    requests: Arc<AtomicUsize>,
}

impl Peer {
    async fn start(manner: Manner) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer {
            address: listener.local_addr().unwrap().to_string(),
            directories: Arc::default(),
            requests: Arc::default(),
        };
        let counts = (peer.directories.clone(), peer.requests.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, manner, counts.clone()));
            }
        });
        peer
    }

    fn options(&self, timeout: Duration) -> ClientOptions {
        ClientOptions {
            addresses: vec![self.address.clone()],
            timeout,
        }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut stream: TcpStream,
    manner: Manner,
    (directories, requests): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) {
    let mut preamble = [0; PREAMBLE_LEN];
    if stream.read_exact(&mut preamble).await.is_err() {
        return;
    }
    stream.write_all(&accepted().encode()).await.unwrap();
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
        let body = Request::decode(kind, &bytes[frame::HEADER_LEN..len])
            .unwrap()
            .body;
        let reply = if body == RequestBody::Directory {
            directories.fetch_add(1, Ordering::SeqCst);
            Reply::Routes(vec![whole_key_space()])
        } else {
            let before = requests.fetch_add(1, Ordering::SeqCst);
            match (manner, body) {
                (Manner::Overloaded, _) => refusal(ErrorCode::Overloaded),
                (Manner::NoQuorum, _) => refusal(ErrorCode::NoQuorum),
                (Manner::Closes, _) => return,
                (Manner::ClosesOnce, _) if before == 0 => return,
                (Manner::Silent, _) => {
                    bytes.drain(..len);
                    continue;
                }
                (_, RequestBody::Admin { .. }) => Reply::Admin { json: "{}" },
                (_, RequestBody::Get { .. }) => Reply::Value {
                    value: Some(b"v"),
                    version: 1,
                },
                _ => Reply::Written {
                    version: 7,
                    existed: false,
                },
            }
        };
        let mut out = Vec::new();
        reply.encode(id, 1, &mut FlatBufferBuilder::new(), &mut out);
        if stream.write_all(&out).await.is_err() {
            return;
        }
        bytes.drain(..len);
    }
}

fn accepted() -> Answer {
    Answer {
        verdict: Verdict::Accepted,
        version: 1,
        shard: 0,
        shards: 1,
        node: 1,
        cluster: 1,
    }
}

fn whole_key_space() -> Route {
    Route {
        range: 2,
        version: 1,
        conf: 1,
        start: Vec::new(),
        end: None,
        leader: Some((1, 0)),
        address: String::new(),
    }
}

fn refusal(code: ErrorCode) -> Reply<'static> {
    Reply::Error(Box::new(ErrorReply {
        code: Ok(code),
        fate: Fate::NotApplied,
        retry_after_ms: 3,
        message: "too much".to_owned(),
        route: None,
    }))
}

#[tokio::test]
async fn what_breaks_a_limit_is_refused_unsent() {
    let peer = Peer::start(Manner::Honest).await;
    let client = Client::connect(peer.options(Duration::from_secs(5)))
        .await
        .unwrap();
    let long = vec![0; 2 << 20];
    let mutation = |key: &[u8], value: &[u8]| Mutation {
        key: key.to_vec().into(),
        value: Some(value.to_vec().into()),
    };
    let many = vec![mutation(b"k", b"v"); 4097];
    let large = vec![mutation(b"k", &long[..1 << 20]); 5];
    let refusals = [
        client.put("k", &long).await.unwrap_err(),
        client.put(&long, "v").await.unwrap_err(),
        client.put("", "v").await.unwrap_err(),
        client.get("").await.unwrap_err(),
        client.write(Vec::new()).await.unwrap_err(),
        client.write(many).await.unwrap_err(),
        client.write(large).await.unwrap_err(),
    ];
    for refusal in refusals {
        assert_eq!(refusal.code, ErrorCode::Invalid, "{refusal}");
        assert_eq!(refusal.fate, Fate::NotApplied, "{refusal}");
    }
    assert_eq!(peer.requests(), 0);
    assert_eq!(client.put("k", &long[..1 << 20]).await, Ok(7));
}

#[tokio::test]
async fn a_silent_server_costs_the_deadline_and_no_more() {
    let peer = Peer::start(Manner::Silent).await;
    let client = Client::connect(peer.options(Duration::from_millis(300)))
        .await
        .unwrap();
    let begun = Instant::now();
    let (put, get) = tokio::join!(client.put("k", "v"), client.get("k"));
    assert_eq!(put.as_ref().unwrap_err().fate, Fate::Unknown, "{put:?}");
    assert_eq!(get.as_ref().unwrap_err().fate, Fate::NotApplied, "{get:?}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_write_in_doubt_is_tried_until_its_fate_is_known() {
    let peer = Peer::start(Manner::ClosesOnce).await;
    let client = Client::connect(peer.options(Duration::from_secs(5)))
        .await
        .unwrap();
    assert_eq!(client.put("k", "v").await, Ok(7));
    assert_eq!(peer.requests(), 2);

    let peer = Peer::start(Manner::Closes).await;
    let client = Client::connect(peer.options(Duration::from_millis(500)))
        .await
        .unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.fate, Fate::Unknown, "{error}");
    assert!(peer.requests() > 2, "{}", peer.requests());
}

#[tokio::test]
async fn the_last_refusal_is_what_the_caller_hears() {
    let peer = Peer::start(Manner::Overloaded).await;
    let client = Client::connect(peer.options(Duration::from_millis(200)))
        .await
        .unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
    assert_eq!(error.fate, Fate::NotApplied);
    assert_eq!(error.retry_after, Some(Duration::from_millis(3)));
    assert!(peer.requests() > 1);
}

#[tokio::test]
async fn a_dead_address_does_not_use_up_the_time() {
    // It takes connections and never answers the first bytes.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::start(Manner::Honest).await;
    for _ in 0..4 {
        let mut options = peer.options(Duration::from_secs(5));
        options
            .addresses
            .insert(0, dead.local_addr().unwrap().to_string());
        let client = Client::connect(options).await.unwrap();
        assert_eq!(client.put("k", "v").await, Ok(7));
    }
}

#[tokio::test]
async fn first_contacts_are_spread_over_the_nodes() {
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(Peer::start(Manner::Honest).await);
    }
    let addresses: Vec<String> = peers.iter().map(|peer| peer.address.clone()).collect();
    for _ in 0..60 {
        let options = ClientOptions {
            addresses: addresses.clone(),
            timeout: Duration::from_secs(5),
        };
        Client::connect(options).await.unwrap();
    }
    for peer in &peers {
        let asked = peer.directories.load(Ordering::SeqCst);
        assert!((1..60).contains(&asked), "{asked}");
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_left_out_for_a_growing_time() {
    // It closes what it takes.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = dead.local_addr().unwrap().to_string();
    let tried = Arc::new(AtomicUsize::new(0));
    let count = tried.clone();
    tokio::spawn(async move {
        while dead.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let peer = Peer::start(Manner::Honest).await;
    let mut options = peer.options(Duration::from_secs(5));
    options.addresses.push(address);
    let client = Client::connect(options).await.unwrap();
    let until = Instant::now() + Duration::from_secs(1);
    let mut calls = 0;
    while Instant::now() < until {
        let begun = Instant::now();
        assert_eq!(client.admin("{}").await.as_deref(), Ok("{}"));
        assert!(begun.elapsed() < Duration::from_millis(500));
        calls += 1;
    }
    // At once, and after 50, 150, 350 and 750 ms.
    let tried = tried.load(Ordering::SeqCst);
    assert!(calls > 50 && (1..=6).contains(&tried), "{tried} of {calls}");
}

#[tokio::test]
async fn a_lost_majority_is_told_at_the_deadline() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = dead.local_addr().unwrap().to_string();
    drop(dead);
    let peer = Peer::start(Manner::NoQuorum).await;
    let mut options = peer.options(Duration::from_millis(600));
    options.addresses.push(nobody);
    let client = Client::connect(options).await.unwrap();
    let begun = Instant::now();
    let (put, get) = tokio::join!(client.put("k", "v"), client.get("k"));
    let took = begun.elapsed();
    for error in [put.unwrap_err(), get.unwrap_err()] {
        assert_eq!(error.code, ErrorCode::NoQuorum, "{error}");
        assert_eq!(error.fate, Fate::NotApplied, "{error}");
    }
    assert!((400..700).contains(&took.as_millis()), "{took:?}");
    assert!(peer.requests() > 4, "{}", peer.requests());
}

#[tokio::test]
async fn an_order_is_not_given_twice() {
    let peer = Peer::start(Manner::ClosesOnce).await;
    let client = Client::connect(peer.options(Duration::from_secs(5)))
        .await
        .unwrap();
    let error = client.admin_order("{}").await.unwrap_err();
    assert_eq!((error.fate, peer.requests()), (Fate::Unknown, 1), "{error}");
    assert_eq!(client.admin("{}").await.as_deref(), Ok("{}"));
}

#[tokio::test]
async fn many_callers_ask_for_the_directory_once() {
    let peer = Peer::start(Manner::ClosesOnce).await;
    let client = Client::connect(peer.options(Duration::from_secs(5)))
        .await
        .unwrap();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("k").await })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().unwrap().is_some());
    }
    let asked = peer.directories.load(Ordering::SeqCst);
    assert!(asked <= 4, "{asked}");
}

#[test]
fn a_client_outlives_the_runtime_that_connected_it() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let peer = server.block_on(Peer::start(Manner::Honest));
    let first = runtime();
    let client = first
        .block_on(Client::connect(peer.options(Duration::from_secs(5))))
        .unwrap();
    assert_eq!(first.block_on(client.put("k", "v")), Ok(7));
    drop(first);
    let begun = Instant::now();
    assert_eq!(runtime().block_on(client.put("k", "v")), Ok(7));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_time_without_end_is_a_long_one() {
    let peer = Peer::start(Manner::Honest).await;
    let client = Client::connect(peer.options(Duration::MAX)).await.unwrap();
    assert_eq!(
        client.with_timeout(Duration::MAX).put("k", "v").await,
        Ok(7)
    );
}
