//! What a connection allocates for a get or a put, when it has served such requests before.
//!
//! A connection's task does all the work of a get: it receives the frame, calls the handler, the
//! gateway and the shard, which read the row cache or the tables, and sends the reply. Of a put it does
//! the part up to the proposer's queue. The test polls that task itself and counts what each poll
//! allocates. Other tasks and threads do not count.

use std::future::poll_fn;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use glommio::{LocalExecutorBuilder, Placement};
use rangedb_protocol::{Reply, RequestBody};

use crate::context::{ClientLimits, Context};
use crate::env::reactor::{self, TcpStream};
use crate::handler;
use crate::net::connection;
use crate::net::tls::Stream;
use crate::test_node::{TestClient, TestNode, open_alone};

const ROWS: usize = 256;
const VALUE: [u8; 128] = [b'v'; 128];
/// Requests that are sent together.
const DEPTH: usize = 32;
/// Rounds of which each reads or writes all rows. The first of them make caches and buffers full.
const ROUNDS: usize = 8;
const ROUNDS_BEFORE: usize = 3;

fn key(row: usize) -> Vec<u8> {
    format!("{row:016}").into_bytes()
}

/// Writes all rows and stops the node, which brings them to tables.
fn load(folder: &Path) {
    let node = TestNode::start_in(folder, &[], ClientLimits::default());
    let mut client = node.connect(0, false);
    for row in 0..ROWS {
        let written = client.put(&key(row), &VALUE);
        assert!(matches!(written.reply(), Reply::Written { .. }));
    }
    node.stop(Duration::from_secs(10));
}

/// What is done with all rows.
#[derive(Clone, Copy)]
enum Ask {
    Get,
    Put,
}

/// Gets or puts all rows, `DEPTH` at a time.
fn ask_all(client: &mut TestClient, ask: Ask) {
    let mut bytes = Vec::new();
    for first in (0..ROWS).step_by(DEPTH) {
        bytes.clear();
        for row in first..first + DEPTH {
            let key = key(row);
            let session = client.session();
            let body = match ask {
                Ask::Get => RequestBody::Get { key: &key },
                Ask::Put => RequestBody::put(&key, &VALUE, session),
            };
            client.encode(body, &mut bytes);
        }
        client.send(&bytes);
        for _ in 0..DEPTH {
            let received = client.receive().expect("a reply");
            match (ask, received.reply()) {
                (Ask::Get, Reply::Value { value, .. }) => assert_eq!(value, Some(&VALUE[..])),
                (Ask::Put, Reply::Written { .. }) => {}
                (_, other) => panic!("another reply: {other:?}"),
            }
        }
    }
}

/// The hits of the row cache so far.
fn row_cache_hits(context: &Context) -> u64 {
    let memory = context.gateway.shard().status().memory;
    let row_cache = memory.iter().find(|memory| memory.name == "row_cache");
    row_cache.expect("a row cache").hits
}

/// Serves one connection on the shard's thread. `allocations` is what its polls have allocated so
/// far. Gives the hits of the row cache.
async fn serve_one(
    folder: &Path,
    row_cache_bytes: usize,
    socket: std::net::TcpStream,
    allocations: &AtomicU64,
) -> u64 {
    let context = open_alone(folder, row_cache_bytes).await;
    let stream = TcpStream::attach(socket.into()).expect("attached");
    let mut serving = pin!(connection::serve(
        context.clone(),
        Stream::Plain(stream),
        false,
        handler::handle,
    ));
    poll_fn(|cx| {
        let mut polled = Poll::Pending;
        let counted = allocation_counter::measure(|| polled = serving.as_mut().poll(cx));
        allocations.fetch_add(counted.count_total, Ordering::SeqCst);
        polled
    })
    .await;
    let hits = row_cache_hits(&context);
    let closed = context.gateway.shard().clone().close().await;
    closed.expect("the shard closes");
    hits
}

/// The fewest allocations of a round after the first ones, and the hits of the row cache in all rounds.
/// A round in which the lease must be renewed first may allocate more.
fn measure(row_cache_bytes: usize, ask: Ask) -> (u64, u64) {
    let folder = tempfile::tempdir().expect("a folder");
    load(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut client = TestClient::new(address);
    let (socket, _) = listener.accept().expect("a connection");
    let allocations = Arc::new(AtomicU64::new(0));
    let counted = allocations.clone();
    let path = folder.path().to_owned();
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(reactor::PREEMPT_TIMER)
        .spawn(move || async move {
            reactor::drive(serve_one(&path, row_cache_bytes, socket, &counted)).await
        })
        .expect("an executor");
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        // A poll is counted when it ends, at the latest before the first reply of the next poll. So
        // one poll may be counted for the next round.
        let before = allocations.load(Ordering::SeqCst);
        ask_all(&mut client, ask);
        rounds.push(allocations.load(Ordering::SeqCst) - before);
    }
    drop(client);
    let hits = executor.join().expect("it ends").expect("it is driven");
    let fewest = rounds[ROUNDS_BEFORE..].iter().min();
    (*fewest.expect("rounds"), hits)
}

#[test]
fn a_get_that_the_row_cache_answers_allocates_nothing() {
    let (allocations, hits) = measure(1 << 20, Ask::Get);
    assert!(hits >= ((ROUNDS - 1) * ROWS) as u64, "{hits} hits");
    assert_eq!(allocations, 0);
}

#[test]
fn a_get_that_the_tables_answer_allocates_nothing() {
    let (allocations, hits) = measure(0, Ask::Get);
    assert_eq!((allocations, hits), (0, 0));
}

/// The buffer for its key and value, the count of those who share that buffer, and what answers the put.
/// What the requests that are sent together need besides is less than one for each put.
#[test]
fn a_put_allocates_three_times_before_it_is_queued() {
    let (allocations, _) = measure(0, Ask::Put);
    assert_eq!(allocations / ROWS as u64, 3, "{allocations}");
}
