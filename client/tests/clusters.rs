//! A client stays with its cluster, and an address that says nothing does not use up its time.

mod fake;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::{Manner, Peer};
use rangedb_client::{Client, ClientOptions, ClusterId, Error, ErrorCode, Fate};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

/// A time that is short, but long enough for a machine that is busy with other tests.
const SHORT: Duration = Duration::from_millis(500);
const ROUNDS: usize = 100;
/// Rounds that run at the same time.
const TOGETHER: usize = 5;

fn options(addresses: &[&str]) -> ClientOptions {
    ClientOptions::from(addresses).timeout(SHORT)
}

/// Addresses at which nothing answers.
struct Silent {
    addresses: Vec<String>,
    _sockets: Vec<Socket>,
    _listener: TcpListener,
}

impl Silent {
    /// One address accepts connections and sends nothing; the other has no room for a connection.
    async fn new() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        full.bind(&any.into()).unwrap();
        full.listen(1).unwrap();
        let address = full.local_addr().unwrap();
        let mut sockets = vec![full];
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // The connection is being opened, or never will be: both fill the queue.
            let _ = socket.connect(&address);
            sockets.push(socket);
        }
        Silent {
            addresses: vec![
                listener.local_addr().unwrap().to_string(),
                address.as_socket().unwrap().to_string(),
            ],
            _sockets: sockets,
            _listener: listener,
        }
    }
}

/// Runs rounds, a few at a time; all must succeed.
async fn all_succeed<F>(round: impl Fn(usize) -> F)
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let mut failures = Vec::new();
    for first in (0..ROUNDS).step_by(TOGETHER) {
        let rounds: Vec<_> = (first..first + TOGETHER)
            .map(|number| tokio::spawn(round(number)))
            .collect();
        for round in rounds {
            failures.extend(round.await.unwrap().err());
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {ROUNDS}: {failures:?}",
        failures.len()
    );
}

#[tokio::test]
async fn a_list_of_two_clusters_means_the_first() {
    let ours = Peer::start_as(Manner::Honest, 0xa, 1).await;
    let other = Peer::start_as(Manner::Honest, 0xb, 1).await;
    for _ in 0..20 {
        let client = Client::connect(options(&[&ours.address, &other.address]));
        let client = client.await.unwrap();
        assert_eq!(client.cluster(), Some(ClusterId(0xa)));
        assert_eq!(client.put("k", "v").await, Ok(7));
        assert!(client.get("k").await.unwrap().is_some());
        assert_eq!(client.admin("{}").await.as_deref(), Ok("{}"));
    }
    assert_eq!((ours.requests(), other.requests()), (60, 0));
}

#[tokio::test]
async fn a_client_that_names_its_cluster_uses_no_other() {
    let ours = Peer::start_as(Manner::Honest, 0xa, 1).await;
    let other = Peer::start_as(Manner::Honest, 0xb, 1).await;
    for _ in 0..20 {
        let options = options(&[&other.address, &ours.address]).cluster(ClusterId(0xa));
        let client = Client::connect(options).await.unwrap();
        assert_eq!(client.put("k", "v").await, Ok(7));
        assert_eq!(client.admin("{}").await.as_deref(), Ok("{}"));
    }
    assert_eq!((ours.requests(), other.requests()), (40, 0));

    let options = options(&[&other.address]).cluster(ClusterId(0xa));
    let error = Client::connect(options).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert_eq!(error.fate, Fate::NotApplied);
    for named in [&other.address, &ClusterId(0xb).to_string()] {
        assert!(error.message.contains(named), "{error}");
    }
}

#[tokio::test]
async fn an_address_that_another_cluster_has_taken_over_is_not_used() {
    let ours = Peer::start_as(Manner::Honest, 0xa, 1).await;
    let other = Peer::start_as(Manner::Honest, 0xb, 2).await;
    let client = Client::connect(options(&[&ours.address, &other.address]));
    let client = client.await.unwrap();
    assert_eq!(client.put("k", "v").await, Ok(7));
    // The connections end while requests are on their way, and the next find another node.
    ours.life.cluster.store(0xc, Ordering::SeqCst);
    ours.life.closes.store(true, Ordering::SeqCst);
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.fate, Fate::Unknown, "{error}");
    let named = [(&ours.address, 0xc), (&other.address, 0xb)].map(|(address, cluster)| {
        let cluster = ClusterId(cluster);
        format!("{address}: this is a node of another cluster, {cluster}")
    });
    let mut said = String::new();
    // The last try of a call may have been cut short by its deadline.
    for _ in 0..10 {
        let error = client.get("k").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unreachable, "{error}");
        said = error.message;
        if named.iter().all(|named| said.contains(named)) {
            break;
        }
    }
    assert!(named.iter().all(|named| said.contains(named)), "{said}");
    assert_eq!((ours.requests(), other.requests()), (1, 0));
    // The node comes back.
    ours.life.closes.store(false, Ordering::SeqCst);
    ours.life.cluster.store(0xa, Ordering::SeqCst);
    assert!(client.get("k").await.unwrap().is_some());
}

#[tokio::test]
async fn a_route_to_another_cluster_is_not_followed() {
    let ours = Peer::start_as(Manner::Honest, 0xa, 1).await;
    let other = Peer::start_as(Manner::Honest, 0xb, 2).await;
    *ours.life.leader.lock().unwrap() = Some((2, other.address.clone()));
    let client = Client::connect(options(&[&ours.address])).await.unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(
        (error.code, error.fate),
        (ErrorCode::Unreachable, Fate::NotApplied),
        "{error}"
    );
    assert!(error.message.contains(&other.address), "{error}");
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn silent_addresses_do_not_use_up_a_short_time() {
    let silent = Silent::new().await;
    let honest = Peer::start(Manner::Honest).await;
    for number_of_silent in [1, 2] {
        let silent: Vec<String> = silent.addresses[..number_of_silent].to_vec();
        let honest = honest.address.clone();
        all_succeed(|number| {
            let mut addresses = silent.clone();
            if number % 2 == 1 {
                addresses.reverse();
            }
            addresses.insert(number % (number_of_silent + 1), honest.clone());
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let options = options(&addresses);
            async move {
                let client = Client::connect(options).await?;
                client.put("k", "v").await?;
                client.get("k").await?;
                client.admin("{}").await?;
                client.admin_order("{}").await?;
                Ok(())
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_leader_that_turns_silent_does_not_use_up_a_short_time() {
    let silent = Silent::new().await;
    // What the client believes at first: a node that hangs when it is asked, one that takes no
    // connection, one that does not answer the first bytes.
    for place in 0..3 {
        let addresses = silent.addresses.clone();
        all_succeed(move |_| {
            let addresses = addresses.clone();
            async move {
                let hangs = Peer::start_as(Manner::Honest, 1, 1).await;
                let leads = Peer::start_as(Manner::Honest, 1, 2).await;
                let led_at = match place {
                    0 => hangs.address.clone(),
                    other => addresses[other - 1].clone(),
                };
                for peer in [&hangs, &leads] {
                    *peer.life.leader.lock().unwrap() = Some((9, led_at.clone()));
                }
                let client = Client::connect(options(&[&hangs.address, &leads.address])).await?;
                if place == 0 {
                    client.get("k").await?;
                }
                hangs.life.hangs.store(true, Ordering::SeqCst);
                *leads.life.leader.lock().unwrap() = None;
                client.put("k", "v").await?;
                client.get("k").await?;
                assert_eq!(leads.requests(), 2);
                Ok(())
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_slow_reply_is_waited_for_if_nobody_else_leads() {
    // The other node answers only requests for the directory, so the client does not give up the try.
    let slow = Peer::start_as(Manner::Silent, 1, 1).await;
    let other = Peer::start_as(Manner::Honest, 1, 2).await;
    *other.life.leader.lock().unwrap() = Some((1, slow.address.clone()));
    let client = Client::connect(options(&[&slow.address, &other.address]));
    let client = client.await.unwrap();
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.fate, Fate::Unknown, "{error}");
    assert_eq!((slow.requests(), other.requests()), (1, 0));
}
