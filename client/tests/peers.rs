//! The client against servers that misbehave: each is a TCP listener of the test that follows the
//! protocol up to a point.

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fake::{Manner, Peer};
use rangedb_client::{Batch, Client, ErrorCode, Fate};
use tokio::net::TcpListener;

#[tokio::test]
async fn what_breaks_a_limit_is_refused_unsent() {
    let (peer, client) = fake::connected(Manner::Honest, Duration::from_secs(5)).await;
    let long = vec![0; 2 << 20];
    let repeated =
        |value: &[u8], times| (0..times).fold(Batch::new(), |batch, _| batch.put("k", value));
    let many = repeated(b"v", 4097);
    let large = repeated(&long[..1 << 20], 5);
    let refusals = [
        client.put("k", &long).await.unwrap_err(),
        client.put(&long, "v").await.unwrap_err(),
        client.put("", "v").await.unwrap_err(),
        client.get("").await.unwrap_err(),
        client.batch(&Batch::new()).await.unwrap_err(),
        client.batch(&many).await.unwrap_err(),
        client.batch(&large).await.unwrap_err(),
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
    let (_peer, client) = fake::connected(Manner::Silent, Duration::from_millis(300)).await;
    let begun = Instant::now();
    let (put, get) = tokio::join!(client.put("k", "v"), client.get("k"));
    assert_eq!(put.as_ref().unwrap_err().fate, Fate::Unknown, "{put:?}");
    assert_eq!(get.as_ref().unwrap_err().fate, Fate::NotApplied, "{get:?}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_write_in_doubt_is_tried_until_its_fate_is_known() {
    let (peer, client) = fake::connected(Manner::ClosesOnce, Duration::from_secs(5)).await;
    assert_eq!(client.put("k", "v").await, Ok(7));
    assert_eq!(peer.requests(), 2);

    let (peer, client) = fake::connected(Manner::Closes, Duration::from_millis(500)).await;
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.fate, Fate::Unknown, "{error}");
    assert!(peer.requests() > 2, "{}", peer.requests());
}

#[tokio::test]
async fn no_call_fails_because_its_range_is_split_and_the_directory_is_not_asked_again() {
    // Whatever comes first finds the split out.
    for first in 0..4 {
        let (peer, client) = fake::connected(Manner::HasSplit, Duration::from_secs(5)).await;
        for call in (0..4).cycle().skip(first).take(4) {
            match call {
                0 => assert_eq!(client.put("z", "v").await, Ok(7)),
                1 => assert_eq!(&*client.get("a").await.unwrap().unwrap().value, b"a"),
                2 => {
                    let found = client.get_many(["a", "z", "b"]).await;
                    let values = found.iter().map(|found| found.as_ref().unwrap().as_ref());
                    let values: Vec<&[u8]> = values.map(|found| &*found.unwrap().value).collect();
                    assert_eq!(values, [b"a", b"z", b"b"]);
                }
                _ => {
                    let rows = client.scan("z"..).page_size(3).collect().await.unwrap();
                    assert_eq!(rows.len(), fake::ROWS);
                }
            }
        }
        assert_eq!(peer.directories(), 1);
    }
}

#[tokio::test]
async fn the_last_refusal_is_what_the_caller_hears() {
    let (peer, client) = fake::connected(Manner::Overloaded, Duration::from_millis(200)).await;
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
    assert_eq!(error.fate, Fate::NotApplied);
    assert_eq!(error.retry_after, Some(Duration::from_millis(3)));
    assert!(peer.requests() > 1);
}

#[tokio::test]
async fn a_dead_address_does_not_use_up_the_time() {
    // It accepts connections and never answers the handshake.
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
        Client::connect(&addresses[..]).await.unwrap();
    }
    for peer in &peers {
        let asked = peer.directories();
        assert!((1..60).contains(&asked), "{asked}");
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_left_out_for_a_growing_time() {
    // It closes every connection that it accepts.
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
        assert_eq!(client.admin().nodes().await, Ok(Vec::new()));
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
    let (peer, client) = fake::connected(Manner::ClosesOnce, Duration::from_secs(5)).await;
    let error = client.admin().transfer_leader(7, None).await.unwrap_err();
    assert_eq!((error.fate, peer.requests()), (Fate::Unknown, 1), "{error}");
    assert_eq!(client.admin().nodes().await, Ok(Vec::new()));
}

#[tokio::test]
async fn many_callers_ask_for_the_directory_once() {
    let (peer, client) = fake::connected(Manner::ClosesOnce, Duration::from_secs(5)).await;
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("k").await })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().unwrap().is_some());
    }
    let asked = peer.directories();
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
    let (_peer, client) = fake::connected(Manner::Honest, Duration::MAX).await;
    assert_eq!(
        client.with_timeout(Duration::MAX).put("k", "v").await,
        Ok(7)
    );
}

#[tokio::test]
async fn one_node_whose_clock_is_wrong_does_not_keep_a_client_from_the_others() {
    let (peer, client) = fake::connected(Manner::FindsTimesAhead, Duration::from_secs(5)).await;
    assert_eq!(client.put("k", "v").await, Ok(7));
    assert_eq!(peer.requests(), 2, "it was refused once and then taken");
    assert_eq!(client.put("k", "v").await, Ok(7));
    assert!(client.get("k").await.is_ok());
    assert_eq!(peer.requests(), 4, "from then on at once");
}
