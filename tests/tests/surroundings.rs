//! A node keeps running whatever happens to its surroundings: its standard streams, its limit on open
//! files, and signals that it ignores.

use std::fs::File;
use std::io::{Write, pipe};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rangedb_protocol::{ErrorCode, Reply, RequestBody, frame};
use rangedb_tests::cluster::{
    Caller, conclude, homes, wait_for, wait_until_alike, wait_until_replicated,
};
use rangedb_tests::process::{Home, Node, raise_open_files};
use rangedb_tests::raw::{RawClient, request_with};

/// What a pipe holds that nobody reads.
const PIPE_LEN: usize = 64 << 10;

/// The end of a pipe whose reader has gone.
fn deserted() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full_device() -> Stdio {
    let file = File::options().write(true).open("/dev/full");
    file.expect("every Linux has one").into()
}

/// Runs a node, writes one row and reads it back.
fn assert_serves(home: &Home) {
    home.put("k", "v");
    assert_eq!(home.cli(&["get", "k"]).stdout, b"v\n");
}

/// A node that gets the signal to stop ends with code 0.
fn assert_stops(node: Node) {
    let told = Instant::now();
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(8),
        "{:?}",
        told.elapsed()
    );
}

#[test]
fn lines_that_nobody_takes_are_lost_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "1"]);
    let lost = || home.metric("rangedb_log_lines_lost_total");
    for (stdout, stderr) in [
        (full_device(), full_device()),
        (deserted(), deserted()),
        (deserted(), full_device()),
    ] {
        let node = home.start_with(&[], stdout, stderr);
        assert_serves(&home);
        // The line of standard output, and at least that of the log which says the same.
        wait_for("two lost lines", || (lost() >= 2.0).then_some(()));
        assert_stops(node);
    }
    // With all streams closed, and with none of them lost the count is zero.
    let closed = ["sh", "-c", "exec \"$0\" \"$@\" <&- >&- 2>&-"];
    let node = home.start_with(&closed, Stdio::null(), Stdio::null());
    assert_serves(&home);
    assert_stops(node);
    let node = home.start_with(&[], Stdio::null(), Stdio::null());
    assert_eq!(lost(), 0.0);
    assert_stops(node);
}

#[test]
fn a_reader_that_stops_reading_stops_no_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "2", "--log-level", "trace"]);
    let (_out, mut stdout) = pipe().expect("a pipe");
    let (_err, mut stderr) = pipe().expect("a pipe");
    for full in [&mut stdout, &mut stderr] {
        full.write_all(&vec![b'x'; PIPE_LEN])
            .expect("there is room");
    }
    let node = home.start_with(&[], stdout.into(), stderr.into());
    for _ in 0..20 {
        assert_serves(&home);
    }
    assert_stops(node);
}

#[test]
fn a_cluster_outlives_the_readers_of_its_logs_and_a_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let homes = homes(folder.path());
    let mut nodes: Vec<Node> = std::thread::scope(|scope| {
        let start = |home| scope.spawn(move || Home::start_with(home, &[], deserted(), deserted()));
        let starts: Vec<_> = homes.iter().map(start).collect();
        let nodes = starts.into_iter();
        nodes
            .map(|start| start.join().expect("it starts"))
            .collect()
    });
    wait_until_replicated(&homes);
    let caller = Caller::new(&homes);
    caller.first_writes();
    nodes.pop().expect("there are three").kill();
    for _ in 0..20 {
        caller.first_writes();
        assert!(nodes.iter_mut().all(Node::is_running));
    }
    nodes.push(homes[2].start_with(&[], deserted(), deserted()));
    wait_until_alike(&homes);
    assert!(nodes.iter_mut().all(Node::is_running));
}

/// Connections to each of three nodes that say nothing.
const SILENT: usize = 1_334;

/// Clients whose clocks are far ahead ask each node until the check ends. Gives how often they were
/// refused, and that nothing else became of their requests.
fn ask_with_wrong_clocks(homes: &[Home], check: &mut Child) -> u64 {
    let connect = |home: &Home| RawClient::connect(&home.listen).expect("an honest greeting");
    let mut liars: Vec<RawClient> = homes.iter().map(connect).collect();
    let mut refused = 0;
    while matches!(check.try_wait(), Ok(None)) {
        for liar in &mut liars {
            refused += 1;
            let body = RequestBody::Get { key: b"check-1" };
            let asked = request_with(refused, body, u64::MAX - refused);
            liar.stream.write_all(&asked).expect("it is sent");
            let (_, bytes) = liar.receive().expect("a reply");
            let found = frame::decode(&bytes).expect("a frame");
            let found = found.expect("a whole one");
            let (reply, _) = Reply::decode(found.kind, found.body).expect("a reply");
            let Reply::Error(error) = reply else {
                panic!("{reply:?}");
            };
            assert_eq!(error.code, Ok(ErrorCode::ClockOutOfBounds));
        }
    }
    refused
}

#[test]
fn silent_clients_dead_log_readers_a_full_log_disk_and_wrong_clocks_at_once_stop_nobody() {
    raise_open_files(3 * SILENT + 500);
    let folder = tempfile::tempdir().expect("a folder");
    let homes = homes(folder.path());
    let mut nodes: Vec<Node> = std::thread::scope(|scope| {
        let start = |home: &'_ Home, log: fn() -> Stdio| {
            let home = home.clone();
            scope.spawn(move || home.start_with(&[], log(), log()))
        };
        let [first, second, third] = &homes[..] else {
            panic!("{} homes", homes.len());
        };
        let starts = [
            start(first, deserted),
            start(second, full_device),
            start(third, Stdio::null),
        ];
        starts.map(|start| start.join().expect("it starts")).into()
    });
    wait_until_replicated(&homes);
    let caller = Caller::new(&homes);
    caller.first_writes();
    let connect = |home: &Home| TcpStream::connect(&home.listen).ok();
    let silent = homes.iter().flat_map(|home| (0..SILENT).map(move |_| home));
    let silent: Vec<TcpStream> = silent.filter_map(connect).collect();
    let mut check = caller.check(10, 6, 1);
    let refused = ask_with_wrong_clocks(&homes, &mut check);
    conclude(check);
    println!("{} silent, {refused} lies refused", silent.len());
    assert!(refused > 0 && silent.len() > SILENT);
    assert!(nodes.iter_mut().all(Node::is_running));
    drop(silent);
    wait_until_alike(&homes);
    nodes.into_iter().for_each(assert_stops);
}

#[test]
fn signals_that_mean_nothing_end_no_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "1"]);
    let node = home.start();
    for name in ["HUP", "USR1", "USR2", "PIPE", "XFSZ", "HUP"] {
        node.signal(name);
    }
    assert_serves(&home);
    assert_stops(node);
}

#[test]
fn two_signals_at_once_are_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "1"]);
    let node = home.start();
    assert_serves(&home);
    // Both are pending when it goes on.
    node.signal("STOP");
    node.signal("TERM");
    node.signal("INT");
    node.signal("CONT");
    assert_eq!(node.wait().code(), Some(0), "{}", home.log());
    let node = home.start();
    assert_eq!(home.cli(&["get", "k"]).stdout, b"v\n");
    drop(node);
}
