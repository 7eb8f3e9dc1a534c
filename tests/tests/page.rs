//! The page at `/`: its files and their headers, its stream of events, and how it looks and behaves in
//! headless Chromium, with a real node and with a made-up cluster of 10,000 ranges. And the page and the texts
//! beside it answer whatever the shards and the other clients of HTTP do.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rangedb_tests::cluster::{
    addresses, homes, ranges, start_all, status, variable, wait_for, wait_until_replicated,
};
use rangedb_tests::http::{Response, exchange, request};
use rangedb_tests::load::{client, run};
use rangedb_tests::process::{Background, Home, command, succeeded};
use serde_json::Value;

/// A viewer that hears nothing for this long has failed.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The pages of a node under all kinds of load answer within this time, also in a debug build on a busy machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Ranges of that node without `RANGEDB_SPLITS`.
const RANGES: u64 = 1000;
/// Clients of HTTP that open a connection and say nothing, and pages that are open.
const IDLE: usize = 64;
const VIEWERS: usize = 16;
/// Writes under way at the busy shard.
const WRITERS: usize = 32;
/// How long a shard stands still, and how long that is looked at.
const STUCK: &str = "stuck=40s";
const LOOKED_AT: Duration = Duration::from_secs(12);
/// How long a shard stands still whose node is asked by one client alone, and what does not need that shard answers
/// within this time.
const STUCK_ALONE: &str = "stuck=25s";
const OTHERS_WITHIN: Duration = Duration::from_secs(3);

/// A page's end of the stream.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    /// Opens the stream; the status is that of the response.
    fn open(home: &Home) -> (u16, Viewer) {
        let mut stream = TcpStream::connect(&home.http).expect("the node is there");
        let timeout = stream.set_read_timeout(Some(TIMEOUT));
        timeout.expect("a time limit");
        // In HTTP/1.0 there are no chunks: the body is the events as they are.
        let head = "GET /api/v1/stream HTTP/1.0\r\nHost: localhost\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("it is sent");
        let mut viewer = Viewer(BufReader::new(stream));
        let first = viewer.line();
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        while !viewer.line().is_empty() {}
        (status.expect("a status"), viewer)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        assert!(!line.is_empty(), "the stream has ended");
        line.trim_end().to_owned()
    }

    /// The next event of this name.
    fn event(&mut self, name: &str) -> Value {
        let head = format!("event: {name}");
        while self.line() != head {}
        let data = self.line();
        let data = data.strip_prefix("data: ").expect("the data of the event");
        let parsed = serde_json::from_str(data).expect("JSON");
        assert_eq!(self.line(), "", "an event ends with an empty line");
        parsed
    }
}

fn file(home: &Home, method: &str, path: &str) -> Response {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    exchange(home, &head, b"")
}

#[test]
fn the_files_of_the_page_have_their_types_and_a_strict_policy() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        (
            "/vendor/uPlot.iife.min.js",
            "text/javascript; charset=utf-8",
        ),
        ("/vendor/uPlot.min.css", "text/css; charset=utf-8"),
    ] {
        let found = file(&home, "GET", path);
        assert_eq!(
            (found.status, found.header("content-type")),
            (200, Some(kind)),
            "{path}"
        );
        assert!(!found.body.is_empty(), "{path}");
        let policy = found.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(
            !policy.contains("-inline") && !policy.contains("-eval"),
            "{policy}"
        );
        assert!(file(&home, "HEAD", path).body.is_empty(), "{path}");
        assert_eq!(file(&home, "POST", path).status, 405, "{path}");
    }
    for absent in [
        "/index.html",
        "/vendor/",
        "/page/mod.rs",
        "//",
        "/../page.js",
    ] {
        assert_eq!(file(&home, "GET", absent).status, 404, "{absent}");
    }
}

#[test]
fn the_stream_tells_each_second_what_the_node_did() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let _node = home.start();
    let (status, mut viewer) = Viewer::open(&home);
    assert_eq!(status, 200);
    // The first event has nothing to compare with.
    viewer.event("second");
    for key in ["apple", "pear"] {
        home.put(key, "x");
        assert!(home.cli(&["get", key]).status.success());
    }
    let (mut gets, mut reads, mut writes) = (0, 0, 0);
    let sum = |second: &Value, of: fn(&Value) -> u64| -> u64 {
        let shards = second["shards"].as_array().expect("shards");
        shards.iter().map(of).sum()
    };
    while gets < 2 || reads < 2 || writes < 2 {
        let second = viewer.event("second");
        assert_eq!(second["node"], 1, "{second}");
        assert_eq!(second["ready"], true, "{second}");
        gets += sum(&second, |shard| {
            let ops = shard["ops"].as_array().expect("operations");
            let gets = ops.iter().filter(|op| op[0] == "get");
            let buckets = gets.filter_map(|op| op[1].as_array());
            let counts = buckets.flat_map(|pairs| pairs.chunks(2).map(|pair| pair[1].as_u64()));
            counts.map(|count| count.expect("a count")).sum()
        });
        let load = |shard: &Value, at: usize| -> u64 {
            let load = shard["load"].as_array().expect("loads");
            load.iter()
                .map(|range| range[at].as_u64().expect("a count"))
                .sum()
        };
        let shards = second["shards"].as_array().expect("shards");
        reads += shards.iter().map(|shard| load(shard, 1)).sum::<u64>();
        writes += shards.iter().map(|shard| load(shard, 2)).sum::<u64>();
    }
    assert_eq!((gets, reads), (2, 2));
    // A manager that has just begun has not heard of all ranges yet.
    let view = loop {
        let view = viewer.event("view");
        if view["ranges"].as_array().map(Vec::len) == Some(3) {
            break view;
        }
    };
    assert_eq!(view["status"]["nodes"][0]["id"], 1, "{view}");
    assert_eq!(view["ranges"][2][2], "m", "{view}");
    assert_eq!(view["ranges"][2][8].as_array().map(Vec::len), Some(5));
    // Who comes later gets the last view at once.
    let (_, mut later) = Viewer::open(&home);
    assert_eq!(later.line(), "retry: 2000");
    assert_eq!(later.event("view")["status"], view["status"]);
    let head = file(&home, "HEAD", "/api/v1/stream");
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(file(&home, "POST", "/api/v1/stream").status, 405);
}

#[test]
fn many_may_look_and_one_too_many_is_refused() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let mut open = Vec::new();
    let refused = loop {
        let (status, viewer) = Viewer::open(&home);
        if status != 200 {
            break status;
        }
        open.push(viewer);
        assert!(open.len() < 100, "there is no limit");
    };
    assert_eq!(refused, 503);
    assert!(open.len() >= 16, "{}", open.len());
    for viewer in &mut open {
        viewer.event("second");
    }
    // The rest of HTTP answers, too.
    assert_eq!(file(&home, "GET", "/livez").status, 200);
    assert_eq!(file(&home, "GET", "/metrics").status, 200);
}

/// Splits the ranges of the node at keys that begin with `a` and with `z`.
fn split(home: &Home, folder: &Path) -> u64 {
    wait_for("a manager that knows all ranges", || {
        (ranges(home)?.len() == 3).then_some(())
    });
    let count = variable("RANGEDB_SPLITS").unwrap_or(RANGES);
    let keys = (0..count).map(|key| format!("{}{key:05}\n", if key % 2 == 0 { "a" } else { "z" }));
    let file = folder.join("keys");
    std::fs::write(&file, keys.collect::<String>()).expect("it is written");
    let file = file.to_str().expect("a name");
    let words = [
        "range",
        "split",
        "--at-file",
        file,
        "--hold",
        "forever",
        "--timeout",
        "200s",
    ];
    succeeded(&home.cli(&words));
    count
}

/// A key of a range that is led by the shard where the system range is not.
fn key_elsewhere(home: &Home) -> (String, String) {
    let shown = request(home, "GET", "ranges", b"").json();
    let ranges = shown["ranges"].as_array().expect("ranges");
    let system = ranges
        .iter()
        .find(|range| range["system"] == true)
        .expect("it is there");
    let mut keys = [None, None];
    for range in ranges.iter().filter(|range| range["system"] == false) {
        let start = range["start"].as_str().expect("hexadecimal digits");
        let bytes = start.as_bytes().chunks(2);
        let text = bytes.map(|digits| {
            let digits = std::str::from_utf8(digits).expect("digits");
            char::from(u8::from_str_radix(digits, 16).expect("digits"))
        });
        let at = usize::from(range["leader_shard"] != system["leader_shard"]);
        keys[at] = Some(text.collect::<String>() + "0");
    }
    let [here, elsewhere] = keys;
    (
        here.expect("a range there"),
        elsewhere.expect("a range elsewhere"),
    )
}

/// The number of the shard that leads the system range, and of the one which the node asks for what has no key.
/// The node has two shards.
fn system_and_asked(home: &Home) -> (u64, u64) {
    let shown = request(home, "GET", "ranges", b"").json();
    let ranges = shown["ranges"].as_array().expect("ranges").iter();
    let mut system = ranges.filter(|range| range["system"] == true);
    let system = system
        .next()
        .and_then(|range| range["leader_shard"].as_u64());
    let sent = || {
        [0, 1].map(|shard| {
            let label = format!("shard=\"{shard}\"");
            home.metric_with("rangedb_client_sent_bytes_total", &label)
        })
    };
    let before = sent();
    for _ in 0..5 {
        request(home, "GET", "nodes", b"");
    }
    let after = sent();
    let is_second = after[1] - before[1] > after[0] - before[0];
    (system.expect("a leader"), u64::from(is_second))
}

/// What a page answered at worst.
#[derive(Default)]
struct Asked {
    times: u32,
    slowest: Duration,
}

impl Asked {
    fn ask(&mut self, home: &Home, path: &str) -> Response {
        let begun = Instant::now();
        let found = file(home, "GET", path);
        assert_eq!(
            found.status,
            200,
            "{path}: {}",
            String::from_utf8_lossy(&found.body)
        );
        self.times += 1;
        self.slowest = self.slowest.max(begun.elapsed());
        found
    }
}

/// Asks for a path again and again.
fn ask_on(home: &Home, path: &str, pause: Duration, ends: &AtomicBool) -> Asked {
    let mut asked = Asked::default();
    while !ends.load(Ordering::Relaxed) {
        asked.ask(home, path);
        std::thread::sleep(pause);
    }
    asked
}

/// Opens silent connections, and new ones for those that the node has closed.
fn be_idle(home: &Home, ends: &AtomicBool) -> u64 {
    let connect = || {
        let stream = TcpStream::connect(&home.http).expect("it listens");
        stream.set_nonblocking(true).expect("it is valid");
        stream
    };
    let mut idle: Vec<TcpStream> = (0..IDLE).map(|_| connect()).collect();
    let mut opened = IDLE as u64;
    while !ends.load(Ordering::Relaxed) {
        for stream in &mut idle {
            let is_open = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
            if !stream.peek(&mut [0]).is_err_and(|error| is_open(&error)) {
                (*stream, opened) = (connect(), opened + 1);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    opened
}

/// Writes a key once, and when the shard stands still all the time.
fn write_to(
    home: &Home,
    key: &str,
    is_stuck: mpsc::Receiver<()>,
    (ends, puts): (&AtomicBool, &AtomicU64),
) {
    run(async {
        let client = client(std::slice::from_ref(home)).await;
        let put = async || {
            client
                .put(key, vec![b'v'; 100])
                .await
                .expect("it is written");
            puts.fetch_add(1, Ordering::Relaxed);
        };
        put().await;
        is_stuck.recv().expect("a shard stands still");
        while !ends.load(Ordering::Relaxed) {
            join_all((0..WRITERS).map(|_| put())).await;
        }
    });
}

#[test]
fn silent_connections_keep_no_scraper_out() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let connect = |_| TcpStream::connect(&home.http).expect("it listens");
    // A request that is under way is not cut off for the others.
    let mut busy = connect(0);
    let head = "PUT /api/v1/kv/k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Length: 2\r\n\r\nv";
    busy.write_all(head.as_bytes()).expect("it is sent");
    for _ in 0..5 {
        let silent: Vec<TcpStream> = (0..2 * IDLE).map(connect).collect();
        for path in ["/metrics", "/", "/livez", "/readyz", "/api/v1/nodes"] {
            assert_eq!(file(&home, "GET", path).status, 200, "{path}");
        }
        drop(silent);
    }
    busy.write_all(b"w").expect("it is sent");
    let mut answer = String::new();
    BufReader::new(busy)
        .read_line(&mut answer)
        .expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn the_pages_answer_whatever_shards_and_clients_do() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let mut node = home.start();
    let count = split(&home, temp.path());
    let (here, elsewhere) = key_elsewhere(&home);
    let (ends, puts) = (AtomicBool::new(false), AtomicU64::new(0));
    let (stuck, is_stuck) = mpsc::channel();
    let asked = std::thread::scope(|scope| {
        scope.spawn(|| write_to(&home, &here, is_stuck, (&ends, &puts)));
        // The shard that writes next stands still.
        wait_for("a client", || {
            (puts.load(Ordering::Relaxed) > 0).then_some(())
        });
        home.set_disk_fault(STUCK);
        let put = [
            "put",
            &elsewhere,
            "x",
            "--timeout",
            "60s",
            "--addr",
            &home.listen,
        ];
        let _put = Background::start(command("rangedb").args(put));
        wait_for("a shard that does not answer", || {
            home.page("/readyz")
                .1
                .contains("does not answer")
                .then_some(())
        });
        stuck.send(()).expect("it waits");
        let viewers: Vec<_> = (0..VIEWERS)
            .map(|_| {
                scope.spawn(|| {
                    let (status, mut viewer) = Viewer::open(&home);
                    assert_eq!(status, 200);
                    let mut seconds = 0;
                    while !ends.load(Ordering::Relaxed) {
                        viewer.event("second");
                        seconds += 1;
                    }
                    seconds
                })
            })
            .collect();
        let idle = scope.spawn(|| be_idle(&home, &ends));
        let read = format!("/api/v1/kv/{here}");
        let asked = [
            "/",
            "/page.js",
            "/metrics",
            "/livez",
            "/api/v1/nodes",
            "/api/v1/ranges",
            "/api/v1/history",
            &read,
        ];
        let asked = asked.map(|path| {
            let (home, ends, asked) = (&home, &ends, path.to_owned());
            let asking = scope.spawn(move || ask_on(home, &asked, Duration::from_secs(1), ends));
            (path.to_owned(), asking)
        });
        std::thread::sleep(LOOKED_AT);
        ends.store(true, Ordering::Relaxed);
        let asked = asked.map(|(path, asking)| (path, asking.join().expect("it is answered")));
        let opened = idle.join().expect("it ends");
        let seconds = viewers
            .into_iter()
            .map(|viewer| viewer.join().expect("it sees"));
        println!(
            "{count} splits; {opened} silent connections; viewers saw {:?} seconds of {LOOKED_AT:?}",
            seconds.min()
        );
        assert!(opened > IDLE as u64, "some had to make room");
        asked
    });
    let puts = puts.into_inner();
    assert!(puts > 1000, "the other shard was busy: {puts}");
    let (_, text) = home.page("/readyz");
    assert!(
        text.contains("does not answer"),
        "for all that time: {text}"
    );
    for (path, asked) in asked {
        println!("{path}: {} times, at most {:?}", asked.times, asked.slowest);
        assert!(
            asked.times >= 3 && asked.slowest < ANSWERED_WITHIN,
            "{path}"
        );
    }
    let metrics = file(&home, "GET", "/metrics");
    let lines = String::from_utf8_lossy(&metrics.body).into_owned();
    let lines = lines.lines().filter(|line| !line.starts_with('#')).count();
    assert!(
        lines < 2000,
        "{lines} series, whatever the number of ranges"
    );
    assert!(node.is_running(), "{}", home.log());
}

#[test]
fn a_stuck_shard_holds_up_no_answer_of_the_other_one() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    // The node's own client must have a connection to the shard that is to stand still. The kernel chooses.
    let (mut node, stuck) = loop {
        let node = home.start();
        wait_for("a manager that knows all ranges", || {
            (ranges(&home)?.len() == 3).then_some(())
        });
        let (system, asked) = system_and_asked(&home);
        if system != asked {
            break (node, asked);
        }
        node.kill();
    };
    let (here, elsewhere) = key_elsewhere(&home);
    home.put(&here, "v");
    home.set_disk_fault(STUCK_ALONE);
    let put = [
        "put",
        &elsewhere,
        "x",
        "--timeout",
        "60s",
        "--addr",
        &home.listen,
    ];
    let _put = Background::start(command("rangedb").args(put));
    wait_for("a shard that does not answer", || {
        let (_, why) = home.page("/readyz");
        why.contains("does not answer").then_some(())
    });
    let api = [
        "nodes",
        "ranges",
        "ranges/hot",
        "status",
        "config",
        "config/history",
        "node-config",
        "balance",
        "history",
        "history/all",
        "nodes/1/leaving",
    ];
    let api = api.map(|path| format!("/api/v1/{path}"));
    let keys = [
        format!("/api/v1/kv/{here}"),
        format!("/api/v1/scan?start={here}&end={here}~"),
    ];
    let pages = ["/", "/page.js", "/metrics", "/livez"].map(str::to_owned);
    for path in pages.into_iter().chain(api).chain(keys) {
        let mut asked = Asked::default();
        asked.ask(&home, &path);
        println!("{path}: {:?}", asked.slowest);
        assert!(asked.slowest < OTHERS_WITHIN, "{path}: {:?}", asked.slowest);
    }
    let begun = Instant::now();
    let set = request(&home, "PUT", "config/dead-after", b"7m");
    assert_eq!(set.status, 200, "{}", set.json());
    assert!(begun.elapsed() < OTHERS_WITHIN, "{:?}", begun.elapsed());
    let unread = request(&home, "GET", &format!("kv/{elsewhere}"), b"");
    assert_eq!(unread.status, 503, "{:?}", unread.json());
    let why = unread.json()["message"].to_string();
    let named = format!("shard {stuck} of this node does not answer");
    assert!(why.contains(&named), "{why}");
    let (_, why) = home.page("/readyz");
    assert!(why.contains("does not answer"), "for all that time: {why}");
    assert!(node.is_running(), "{}", home.log());
}

/// Looks at a page in Chromium, or prints why there is none. Screenshots are in the folder.
fn look(how: &str, what: &str, folder: &Path) -> Option<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/page.py");
    let output = Command::new("python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(script)
        .args([how, what])
        .arg(folder)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: python3: {error}");
            return None;
        }
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    if let Some(reason) = found["skipped"].as_str() {
        println!("skipped: {reason}");
        return None;
    }
    assert_eq!(
        found["errors"],
        serde_json::json!([]),
        "the console is empty"
    );
    for name in ["light", "dark", "phone"] {
        let shot = std::fs::metadata(folder.join(format!("{name}.png")));
        assert!(shot.expect("a screenshot").len() > 10_000, "{name}");
    }
    // Nothing makes the page wider than the window.
    let widths = serde_json::json!({ "light": 1360, "dark": 1360, "phone": 390 });
    assert_eq!(found["widths"], widths);
    println!(
        "{how}: first paint {} ms, script {} ms an update, at most {} ms",
        found["first_paint_ms"], found["last_ms"], found["worst_ms"]
    );
    Some(found)
}

#[test]
fn a_browser_shows_a_cluster_of_three_nodes_without_an_error() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let _nodes = start_all(&homes);
    wait_until_replicated(&homes);
    homes[0].put("k", "v");
    let odd = "<script>window.hacked=1</script>\"'&\n<img src=x onerror=hacked=1>";
    let at = serde_json::json!({ "at": [odd], "hold_ms": 3_600_000 }).to_string();
    let split = request(&homes[0], "POST", "ranges/2/split", at.as_bytes());
    assert_eq!(split.status, 200, "{}", split.json());
    wait_until_replicated(&homes);
    // Every node tells the others how it is.
    let all = addresses(&homes);
    let load = [
        "run",
        "--addr",
        &all,
        "--workload",
        "write",
        "--rate",
        "50",
        "--duration",
        "120",
    ];
    let _load = Background::start(command("loadgen").args(load));
    wait_for("what all nodes have measured", || {
        let shown = request(&homes[0], "GET", "nodes", b"").json();
        let nodes = shown["nodes"].as_array().cloned()?;
        let is_told = |node: &Value| {
            let room = node["disk_free"].as_u64()?..node["disk_total"].as_u64()?;
            Some(node["clock_kept"].is_boolean() && 0 < room.start && !room.is_empty())
        };
        let are_told = nodes.iter().all(|node| is_told(node) == Some(true));
        let mut times = nodes
            .iter()
            .filter_map(|node| Some((node["p50_us"].as_u64()?, node["p99_us"].as_u64()?)));
        (nodes.len() == homes.len() && are_told && times.any(|(p50, p99)| 0 < p50 && p50 <= p99))
            .then_some(())
    });
    let table = homes[0].cli(&["node", "ls"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(" us ") || table.contains(" ms "), "{table}");
    let url = format!("http://{}/", homes[0].http);
    let Some(found) = look("look", &url, temp.path()) else {
        return;
    };
    let text = found["text"].as_str().expect("text");
    for word in [
        "this one",
        "● alive",
        "The cluster is whole",
        "● live",
        "row cache",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    for home in &homes {
        assert!(text.contains(&home.listen), "{} in {text}", home.listen);
    }
    let clocks = text.matches("no time service").count() + text.matches("● within ").count();
    assert!(
        clocks >= homes.len(),
        "the clock of each node is shown: {text}"
    );
    assert_eq!(
        (&found["hacked"], &found["foreign_elements"]),
        (&Value::Null, &serde_json::json!(0))
    );
    let history = found["history"].as_str().expect("text");
    assert!(history.contains(" minutes of all 3 nodes; "), "{history}");
    assert_eq!(found["missing"], serde_json::json!([]));
    for home in &homes {
        let node = status(home)["node"].to_string();
        let events = found["events_of"].as_array().expect("events");
        assert!(
            events.iter().any(|of| of.as_str() == Some(&node)),
            "an event of node {node}: {text}"
        );
    }
    assert!(
        text.contains("<script>window.hacked=1</script>"),
        "the key is text: {text}"
    );
}

#[test]
fn a_browser_shows_ten_thousand_ranges_and_foreign_text_as_text() {
    let temp = tempfile::tempdir().expect("a folder");
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/admin/page");
    let files = files.to_str().expect("a path");
    let Some(found) = look("made-up", files, temp.path()) else {
        return;
    };
    assert_eq!(
        found["hacked"],
        Value::Null,
        "no foreign text became a script"
    );
    assert_eq!(
        found["foreign_elements"], 0,
        "no foreign text became an element"
    );
    let text = found["text"].as_str().expect("text");
    let nasty = "<script>window.hacked=1</script>\"'&";
    assert!(text.matches(nasty).count() >= 4, "it is shown: {text}");
    assert!(text.contains("10,001 in the cluster"), "{text}");
    assert!(text.contains("✕ dead"), "{text}");
    assert!(
        text.contains("288 KiB"),
        "the size of the last range of the first page is shown: {text}"
    );
    assert_eq!(found["filtered"], "10,001 in the cluster, 5,000 shown");
    assert_eq!(found["page_before"], "page 1 of 250");
    assert_eq!(found["page_after"], "page 2 of 250");
    let history = found["history"].as_str().expect("text");
    assert!(
        history.starts_with("1,440 minutes of 3 of 6 nodes; "),
        "{history}"
    );
    let missing = found["missing"].as_array().expect("nodes");
    assert_eq!(missing.len(), 3, "{missing:?}");
    let first = format!("▲ node 4 at 10.0.0.4:7400 has not told its history: no answer {nasty}");
    let words = missing[0].as_str().expect("text");
    assert!(words.starts_with(&first), "{words}");
    assert_eq!(found["missing_is_live"], "polite", "it is read out");
    let read = found["read"].as_str().expect("text");
    assert!(
        read.contains("ranges, "),
        "the arrow keys read out the map: {read}"
    );
}
