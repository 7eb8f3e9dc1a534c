//! The library beyond single calls: connecting, scans, reads of several keys, the blocking client,
//! errors.

mod fake;

use std::error::Error as _;
use std::io;
use std::time::Duration;

use fake::{KEYS_READ_MAX, Manner, Peer, ROWS};
use futures_util::{StreamExt, TryStreamExt};
use rangedb_client::{
    Batch, BatchOutcome, CasOutcome, Client, ClientOptions, Condition, Continuation, ErrorCode,
    Fate, Row, blocking,
};
use tokio::net::TcpListener;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

fn keys(rows: &[Row]) -> Vec<String> {
    let text = |row: &Row| String::from_utf8(row.key.to_vec()).unwrap();
    rows.iter().map(text).collect()
}

fn numbered(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    let name = |number| format!("row {number}");
    numbers.into_iter().map(name).collect()
}

#[tokio::test]
async fn connecting_waits_for_a_node_that_starts_later() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ClientOptions::from(listener.local_addr().unwrap().to_string()).timeout(LONG);
    let connecting = tokio::spawn(Client::connect(options));
    for _ in 0..3 {
        // New connections are refused from now on.
        drop(listener.accept().await.unwrap());
    }
    let peer = Peer::on(listener, Manner::Honest, (1, 1));
    let client = connecting.await.unwrap().unwrap();
    assert_eq!(client.put("k", "v").await, Ok(7));
    assert_eq!(peer.requests(), 1);
}

#[tokio::test]
async fn connecting_without_time_fails_at_once_and_tells_the_system_s_error() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let options = ClientOptions::new([address]).timeout(LONG);
    let connecting = Client::connect(options.connect_timeout(Duration::ZERO));
    let connecting = tokio::time::timeout(LONG / 2, connecting);
    let error = connecting.await.expect("at once").unwrap_err();
    assert_eq!(
        (error.code, error.fate),
        (ErrorCode::Unreachable, Fate::NotApplied)
    );
    assert!(error.is_retryable() && !error.may_have_been_applied());
    let source = error.source().and_then(|source| source.downcast_ref());
    let kind = source.map(io::Error::kind);
    assert_eq!(kind, Some(io::ErrorKind::ConnectionRefused));

    let error = Client::connect(Vec::<String>::new()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
}

#[tokio::test]
async fn a_lazy_client_connects_with_its_first_call() {
    let ours = Peer::start_as(Manner::Honest, 0xa, 1).await;
    let other = Peer::start_as(Manner::Honest, 0xb, 1).await;
    for has_key in [true, false] {
        for _ in 0..10 {
            let asked = ours.directories();
            let addresses = [&ours.address, &other.address];
            let client = Client::connect_lazy(addresses).unwrap();
            assert_eq!((client.cluster(), ours.directories()), (None, asked));
            match has_key {
                true => assert_eq!(client.put("k", "v").await, Ok(7)),
                false => assert_eq!(client.admin("{}").await.as_deref(), Ok("{}")),
            }
            assert_eq!(ours.directories(), asked + 1);
        }
    }
    assert_eq!((ours.requests(), other.requests()), (20, 0));
}

#[tokio::test]
async fn a_scan_is_a_stream_over_all_pages() {
    let (peer, client) = fake::connected(Manner::Honest, LONG).await;
    let rows: Vec<Row> = client.scan(..).try_collect().await.unwrap();
    assert_eq!(keys(&rows), numbered(0..ROWS));
    assert_eq!(peer.requests(), 3, "pages of three rows");
    assert_eq!(&*rows[2].value, b"value 2");

    let mut scan = client.scan("row 0"..).reverse().keys_only();
    let mut found = Vec::new();
    while let Some(row) = scan.next().await {
        found.push(row.unwrap());
    }
    assert_eq!(keys(&found), numbered((0..ROWS).rev()));
    assert!(found.iter().all(|row| row.value.is_empty()));
    assert!(scan.next().await.is_none());
    assert_eq!(client.scan_prefix("row").count().await, Ok(ROWS));
}

#[tokio::test]
async fn a_limit_ends_a_scan_and_asks_for_no_more_rows() {
    let (peer, client) = fake::connected(Manner::Honest, LONG).await;
    let found = client.scan(..).limit(5).collect().await.unwrap();
    assert_eq!((found.len(), peer.requests()), (5, 1));
    let found = client
        .scan(..)
        .limit(5)
        .page_size(2)
        .collect()
        .await
        .unwrap();
    assert_eq!(keys(&found), numbered(0..5));
    assert_eq!(peer.requests(), 4);
    assert!(client.scan(..).limit(0).next().await.is_none());
    assert_eq!(peer.requests(), 4);
}

#[tokio::test]
async fn pages_go_on_from_bytes() {
    let (_peer, client) = fake::connected(Manner::Honest, LONG).await;
    let page = client.scan(..).page_size(6).page().await.unwrap();
    assert_eq!(keys(&page.rows), numbered(0..6));
    let token = page.continuation.unwrap().as_bytes().to_vec();
    let next = client
        .scan_next(Continuation::from_bytes(token, 1))
        .await
        .unwrap();
    assert_eq!(keys(&next.rows), numbered(6..7));
    let last = client.scan_next(next.continuation.unwrap()).await.unwrap();
    assert_eq!(
        (keys(&last.rows), last.continuation),
        (numbered(7..8), None)
    );
}

#[tokio::test]
async fn an_error_ends_a_scan() {
    let (_peer, client) = fake::connected(Manner::Overloaded, Duration::from_millis(50)).await;
    let mut scan = client.scan(..);
    let error = StreamExt::next(&mut scan).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert!(error.is_retryable());
    assert!(scan.next().await.is_none());
}

#[tokio::test]
async fn many_reads_come_in_the_order_of_their_keys() {
    let (peer, client) = fake::connected(Manner::Honest, LONG).await;
    let wanted: Vec<String> = (0..600).map(|number| format!("key {number}")).collect();
    let asked = wanted.clone();
    let found = tokio::spawn(async move { client.get_many(&asked).await });
    let found: Vec<_> = (found.await.unwrap().into_iter())
        .map(|found| found.unwrap().unwrap().value)
        .collect();
    assert_eq!(found, wanted);
    // Keys that a reply did not hold were requested again.
    assert_eq!(peer.requests(), 600 / KEYS_READ_MAX);
}

#[tokio::test]
async fn each_of_many_keys_has_its_own_error() {
    let peer = Peer::start(Manner::Honest).await;
    let client = Client::connect(peer.options(LONG)).await.unwrap();
    assert!(client.get_many::<&str>([]).await.is_empty());
    assert_eq!(peer.requests(), 0);
    let long = "k".repeat(4097);
    let found = client.get_many(["a", "", &long, "a"]).await;
    let code = |at: usize| found[at].as_ref().map_err(|error| error.code);
    assert_eq!(code(1).unwrap_err(), ErrorCode::Invalid);
    assert_eq!(code(2).unwrap_err(), ErrorCode::Invalid);
    for twice in [0, 3] {
        assert_eq!(code(twice).unwrap().as_ref().unwrap().value, "a");
    }
    // One key more than a request may have is another request.
    let before = peer.requests();
    let keys: Vec<String> = (0..4097).map(|number| number.to_string()).collect();
    let found = client.get_many_within(&keys, 0).await;
    let read = found.iter().filter(|found| found.is_ok()).count();
    assert_eq!(peer.requests(), before + 2);
    assert_eq!(read, KEYS_READ_MAX + 1);

    let peer = Peer::start(Manner::Overloaded).await;
    let client = Client::connect(peer.options(Duration::from_millis(50)))
        .await
        .unwrap();
    for found in client.get_many(["a", "b"]).await {
        assert_eq!(found.unwrap_err().code, ErrorCode::Overloaded);
    }
}

#[test]
fn a_blocking_client_works_from_many_threads() {
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let peer = server.block_on(Peer::start(Manner::Honest));
    let client = blocking::Client::connect(peer.options(LONG)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(client.put("k", "v"), Ok(7));
                    let found = client.get("k").unwrap().unwrap();
                    assert_eq!(&*found.value, b"k");
                }
            });
        }
    });
    assert_eq!(peer.requests(), 8 * 40);
    let rows: Result<Vec<Row>, _> = client.scan(..).reverse().limit(4).collect();
    assert_eq!(keys(&rows.unwrap()), numbered((4..ROWS).rev()));
    assert_eq!(client.scan_prefix("row").count(), Ok(ROWS));
    let swapped = CasOutcome::Swapped { version: 7 };
    let condition = Condition::value("old");
    assert_eq!(client.compare_and_swap("k", condition, "new"), Ok(swapped));
    assert_eq!(
        client.compare_and_delete("k", Condition::Absent),
        Ok(swapped)
    );
    let batch = Batch::new().put("a", "b");
    assert!(matches!(
        client.batch(&batch),
        Ok(BatchOutcome::Written { version: 7, .. })
    ));
    // Without a runtime around it, it ends by itself.
    drop(client);
}
