//! The real binary as its users see it: kills, clean stops, refused starts, admin pages.
//!
//! With `RANGEDB_SOAK_SECONDS` the kills go on for that long, and at least fifty times.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rangedb_protocol::RequestBody;
use rangedb_tests::cluster::wait_for;
use rangedb_tests::process::{Background, Home, Node, cli, command, free_port};
use rangedb_tests::raw::{RawClient, request};

/// Runs a command that must end with this code; returns its output.
fn expect(home: &Home, code: i32, arguments: &[&str]) -> String {
    let output = home.cli(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        output.status.code(),
        Some(code),
        "rangedb {}: {}{}",
        arguments.join(" "),
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[test]
fn the_command_line_tells_by_its_exit_code() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let node = home.start();
    expect(&home, 0, &["put", "a", "1"]);
    assert_eq!(expect(&home, 0, &["get", "a"]), "1\n");
    expect(&home, 1, &["get", "nothing"]);
    expect(&home, 1, &["cas", "a", "2", "--if-absent"]);
    expect(&home, 0, &["cas", "a", "2", "--if-value", "1"]);
    assert_eq!(expect(&home, 0, &["incr", "a", "--by", "40"]), "42\n");
    expect(&home, 0, &["put", "text", "no number"]);
    expect(&home, 3, &["incr", "text"]);
    expect(&home, 0, &["put", "zz", ""]);
    assert_eq!(expect(&home, 0, &["get", "zz"]), "\n");
    // Of one range, and of two.
    expect(&home, 0, &["write", "put", "b", "1", "delete", "a"]);
    expect(&home, 3, &["write", "put", "b", "2", "put", "z", "2"]);
    assert_eq!(expect(&home, 0, &["get", "b"]), "1\n");
    // Several keys, of both ranges.
    let printed = expect(&home, 0, &["get", "zz", "b", "zz"]);
    assert_eq!(printed, "zz\t\nb\t1\nzz\t\n");
    assert_eq!(expect(&home, 1, &["get", "gone", "b"]), "b\t1\n");
    assert_eq!(expect(&home, 3, &["get", "gone", "", "b"]), "b\t1\n");
    let printed = expect(&home, 3, &["get", "b", "gone", "", "--format", "json"]);
    let results = serde_json::from_str::<serde_json::Value>(&printed).expect("JSON");
    let results = results["results"].as_array().expect("a list");
    assert_eq!(
        (&results[0]["key"], &results[0]["value"]),
        (&"b".into(), &"1".into())
    );
    assert!(results[0]["version"].is_string(), "{printed}");
    assert_eq!(
        results[1],
        serde_json::json!({ "key": "gone", "found": false })
    );
    assert_eq!(results[2]["error"], "invalid");
    // Conditions on several keys.
    let json = ["--format", "json"];
    let held = ["write", "--if-absent", "lock", "--if-value", "b", "1"];
    let changes = ["put", "lock", "me", "add", "c", "5", "add", "c", "-2"];
    let line = [&held[..], &changes[..], &json[..]].concat();
    let written = expect(&home, 0, &line);
    assert!(written.contains("\"numbers\":[5,3]"), "{written}");
    let failed = expect(&home, 1, &line);
    assert!(failed.contains("\"condition\":0"), "{failed}");
    expect(
        &home,
        1,
        &[
            "write",
            "--if-exists",
            "b",
            "--if-version",
            "b",
            "7",
            "put",
            "b",
            "9",
        ],
    );
    expect(&home, 3, &["write", "--if-absent", "z", "put", "b", "9"]);
    expect(&home, 3, &["write", "put", "d", "x", "add", "d", "1"]);
    expect(&home, 1, &["get", "d"]);
    expect(&home, 2, &["write", "--if-absent", "b"]);
    assert_eq!(expect(&home, 0, &["get", "b"]), "1\n");
    expect(&home, 0, &["write", "delete", "lock", "delete", "c"]);
    let rows = expect(&home, 0, &["scan", "--format", "json"]);
    assert!(rows.contains("\"b\"") && rows.contains("\"zz\""), "{rows}");
    expect(&home, 0, &["get", "--hex", "62"]);
    expect(&home, 2, &["get"]);
    expect(&home, 2, &["get", "--hex", "6"]);
    expect(&home, 2, &["put", "k"]);
    let long = "k".repeat(4097);
    expect(&home, 3, &["put", &long, "v"]);
    expect(&home, 3, &["put", "", "v"]);
    wait_for("a cluster that is whole", || {
        let status = home.cli(&["status", "--format", "json"]);
        serde_json::from_slice::<serde_json::Value>(&status.stdout).expect("JSON");
        (status.status.code() == Some(0)).then_some(())
    });
    let ranges = expect(&home, 0, &["range", "ls", "--format", "json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&ranges).is_ok());

    // The first address is dead: the second is tried. Then none is alive.
    let dead = format!("127.0.0.1:{}", free_port());
    let both = format!("{dead},{}", home.listen);
    assert!(cli(&both, &["get", "b"]).status.success());
    node.signal("STOP");
    let frozen = home.cli(&["put", "b", "3", "--timeout", "700ms"]);
    node.signal("CONT");
    // Nothing answered the connection's first bytes, so nothing was sent.
    assert_eq!(frozen.status.code(), Some(5));
    node.kill();
    let gone = home.cli(&["get", "b", "--timeout", "700ms"]);
    assert_eq!(gone.status.code(), Some(5));
}

#[test]
fn the_pages_tell_how_the_node_is() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2"]);
    let node = home.start();
    assert_eq!(home.page("/livez").0, 200);
    assert_eq!(home.page("/readyz").0, 200);
    assert_eq!(home.page("/nothing").0, 404);
    expect(&home, 0, &["put", "a", "1"]);
    assert!(home.metric("rangedb_wal_writes_total") > 0.0);
    assert!(home.metric("rangedb_request_duration_seconds_count") >= 1.0);
    assert_eq!(home.metric("rangedb_shard_up"), 2.0);
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn what_cannot_work_is_refused_with_a_reason() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let refused = |home: &Home, code: i32, words: &[&str]| {
        let (found, complaint) = home.refused();
        assert_eq!(found, code, "{complaint}");
        for word in words {
            assert!(complaint.contains(word), "`{word}` is not in: {complaint}");
        }
    };
    let with = |flags: &[&str]| {
        let mut other = Home::new(temp.path(), flags);
        other.folder.clone_from(&home.folder);
        other
    };
    let node = home.start();
    refused(
        &with(&["--shards", "2"]),
        1,
        &["in use", &node.id().to_string()],
    );
    let mut same_port = Home::new(&temp.path().join("other"), &["--shards", "1"]);
    same_port.listen.clone_from(&home.listen);
    refused(&same_port, 1, &[&home.listen, "--listen"]);
    let mut same_http = Home::new(&temp.path().join("another"), &["--shards", "1"]);
    same_http.http.clone_from(&home.http);
    refused(&same_http, 1, &[&home.http, "--http"]);
    node.signal("INT");
    assert_eq!(node.wait().code(), Some(0));

    refused(
        &with(&["--shards", "2", "--split-at", "q"]),
        1,
        &["--split-at", "made with"],
    );
    refused(&with(&["--shards", "none"]), 2, &["shards", "none"]);
    refused(&with(&["--memory", "1MB"]), 2, &["memory"]);
    refused(&with(&["--memory", "1MiB"]), 2, &["memory"]);
    refused(&with(&["--no-such-flag"]), 2, &["--no-such-flag"]);
    let file = temp.path().join("settings.toml");
    std::fs::write(&file, "shard = 3\n").expect("a file");
    let path = file.display().to_string();
    refused(&with(&["--config", &path]), 2, &["shard", "shards"]);
    // A variable that names no setting is only warned of.
    let output = with(&["--print-config"])
        .start_command()
        .env("RANGEDB_SHARD", "2")
        .env("RANGEDB_TIMEOUT", "2s")
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(0));
    let mut start = home.start_command();
    let mut warned = Node::spawn(start.env("RANGEDB_SHARD", "2"), home.log_file());
    assert!(warned.becomes_ready(), "{}", home.log());
    assert!(home.log().contains("did you mean RANGEDB_SHARDS?"));
    drop(warned);

    // A folder of a later version, and one of another program.
    let identity = home.folder.join("node.json");
    let text = std::fs::read_to_string(&identity).expect("it is there");
    std::fs::write(&identity, text.replace("\"format\": 3", "\"format\": 99"))
        .expect("it is written");
    refused(&home, 1, &["format 99"]);
    std::fs::write(&identity, text).expect("it is written");
    let mut foreign = Home::new(temp.path(), &[]);
    foreign.folder = temp.path().join("foreign");
    std::fs::create_dir(&foreign.folder).expect("a folder");
    std::fs::write(foreign.folder.join("letters"), "x").expect("a file");
    refused(&foreign, 1, &["letters"]);
    // After all of this it still starts, and has the shards that it was made with.
    home.start();
    with(&["--cpus", "0", "--memory", "128MiB"]).start();
    let (_, complaint) = with(&["--cpus", "0", "--memory", "64MiB"]).refused();
    assert!(
        complaint.contains("2 shards need at least 128 MiB"),
        "{complaint}"
    );
}

/// A log segment that was written to: the largest part that is not zero.
fn busiest_segment(home: &Home) -> std::path::PathBuf {
    let folder = home.folder.join("shard-0").join("wal");
    let files = std::fs::read_dir(folder).expect("a log");
    let used = |path: &std::path::Path| {
        let bytes = std::fs::read(path).expect("a file");
        bytes.iter().filter(|&&byte| byte != 0).count()
    };
    files
        .map(|file| file.expect("an entry").path())
        .max_by_key(|path| used(path))
        .expect("a segment")
}

/// Flips one bit of the first write after this part of a file's used bytes.
fn flip_bit(path: &std::path::Path, part: f64) {
    let mut bytes = std::fs::read(path).expect("a file");
    let used = bytes.iter().rposition(|&byte| byte != 0).expect("bytes") + 1;
    let at = (used as f64 * part) as usize;
    let at = (at..used).find(|&at| bytes[at] != 0).expect("a byte");
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("it is written");
}

#[test]
fn a_damaged_log_is_named_and_not_served() {
    for clean in [false, true] {
        let temp = tempfile::tempdir().expect("a folder");
        let home = Home::new(temp.path(), &["--shards", "1"]);
        let node = home.start();
        for at in 0..20 {
            expect(&home, 0, &["put", "key", &format!("{at}")]);
        }
        if clean {
            node.signal("TERM");
            assert_eq!(node.wait().code(), Some(0));
        } else {
            node.kill();
        }
        let segment = busiest_segment(&home);
        flip_bit(&segment, 0.5);
        let (code, complaint) = home.refused();
        let name = segment.file_name().expect("a name").to_string_lossy();
        assert_eq!(code, 1, "clean: {clean}: {complaint}");
        assert!(complaint.contains(&*name), "{name} is not in: {complaint}");
    }
}

/// Waits until a node has answered this many requests since its start.
fn wait_for_requests(home: &Home, count: f64) {
    wait_for("requests", || {
        let answered = home.metric("rangedb_request_duration_seconds_count");
        (answered >= count).then_some(())
    });
}

#[test]
fn output_that_cannot_be_written_has_exit_codes_of_its_own() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let run = |words: &[&str], out: Stdio| {
        let mut rangedb = command("rangedb");
        rangedb.args(words).args(["--addr", &home.listen]);
        let output = rangedb.stdout(out).output().expect("it runs");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), complaint)
    };
    let full = || File::options().write(true).open("/dev/full");
    let full = || Stdio::from(full().expect("a device that is full"));
    let unread = || Stdio::from(std::io::pipe().expect("a pipe").1);
    for (number, out) in [(1, full()), (2, unread())] {
        let (code, complaint) = run(&["incr", "n"], out);
        assert_eq!(code, Some(6), "{complaint}");
        assert!(complaint.contains("was applied"), "{complaint}");
        assert_eq!(expect(&home, 0, &["get", "n"]), format!("{number}\n"));
    }
    assert_eq!(run(&["get", "n"], full()).0, Some(2));
    for words in [&["scan"][..], &["node", "ls"], &["status"]] {
        let silent = (Some(141), String::new());
        assert_eq!(run(words, unread()), silent, "{words:?}");
    }
}

#[test]
fn flags_stand_before_the_command_or_in_the_environment() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let value = b"\xff\0 no newline";
    let file = temp.path().join("value");
    std::fs::write(&file, value).expect("it is written");
    expect(
        &home,
        0,
        &["put", "k", "--file", &file.display().to_string()],
    );
    let raw = home.cli(&["get", "--raw", "k"]);
    assert_eq!((raw.status.code(), &raw.stdout[..]), (Some(0), &value[..]));
    let output = |words: &[&str], variables: &[(&str, &str)]| {
        let mut rangedb = command("rangedb");
        let output = rangedb.args(words).envs(variables.iter().copied()).output();
        let output = output.expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = output(
        &["--format", "json", "--addr", &home.listen, "get", "k"],
        &[],
    );
    assert_eq!(code, Some(0));
    assert!(text.contains("\"value_hex\":\"ff00"), "{text}");
    let blank = format!("127.0.0.1:1, {}", home.listen);
    let set = [("RANGEDB_ADDR", &*blank), ("RANGEDB_FORMAT", "json")];
    assert_eq!(output(&["get", "k"], &set), (Some(0), text));
    assert_eq!(
        output(&["get", "k"], &[("RANGEDB_TIMEOUT", "abc")]).0,
        Some(2)
    );
    let mut misspelt = command("rangedb");
    misspelt.args(["get", "k", "--addr", &home.listen]);
    let misspelt = misspelt.env("RANGEDB_TIMOUT", "1s").output();
    let misspelt = misspelt.expect("it runs");
    assert_eq!(misspelt.status.code(), Some(0));
    let warning = String::from_utf8_lossy(&misspelt.stderr);
    assert!(
        warning.contains("did you mean RANGEDB_TIMEOUT?"),
        "{warning}"
    );
    assert_eq!(output(&["--addr", "a:1", "version"], &[]).0, Some(2));
    let (code, picture) = output(
        &[
            "top",
            "--once",
            "--interval",
            "200ms",
            "--addr",
            &home.listen,
        ],
        &[],
    );
    assert_eq!(code, Some(0), "{picture}");
    for word in ["cluster ", "ops/s", &home.listen, "1/0", "MiB"] {
        assert!(picture.contains(word), "`{word}` is not in: {picture}");
    }
}

#[test]
fn a_demo_runs_until_a_signal_and_leaves_nothing() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut demo = command("rangedb");
    demo.args(["demo", "--nodes", "3"])
        .env("TMPDIR", temp.path());
    let mut child = demo.stdout(Stdio::piped()).spawn().expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut lines = lines.map_while(Result::ok);
    let addresses = lines.find_map(|line| {
        let addresses = line.strip_prefix("export RANGEDB_ADDR=");
        addresses.map(str::to_owned)
    });
    let addresses = addresses.expect("the demo tells its addresses");
    assert_eq!(addresses.split(',').count(), 3);
    assert!(
        cli(&addresses, &["put", "greeting", "hello"])
            .status
            .success()
    );
    let kept = std::fs::read_dir(temp.path()).expect("a folder").count();
    assert_eq!(kept, 1, "the folder of the demo");
    // The demo goes on without a node that is killed.
    let id = child.id();
    let nodes = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let nodes = nodes.expect("it runs");
    let first = nodes.split_whitespace().next().expect("a node");
    let killed = std::process::Command::new("kill")
        .args(["-KILL", first])
        .status();
    assert!(killed.is_ok_and(|status| status.success()));
    let told = lines.find(|line| line.contains("ended: signal: 9"));
    let told = told.expect("the demo tells of the end");
    assert!(told.contains("2 nodes still at work"), "{told}");
    let written = cli(
        &addresses,
        &["put", "greeting", "hello again", "--timeout", "20s"],
    );
    assert!(written.status.success(), "{written:?}");
    let sent = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    let kept = std::fs::read_dir(temp.path()).expect("a folder").count();
    assert_eq!(kept, 0, "nothing is left");
    assert!(!cli(&addresses, &["get", "greeting"]).status.success());
}

#[test]
fn a_load_that_is_interrupted_tells_what_it_measured() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let log = temp.path().join("latencies.hlog");
    let load = command("loadgen")
        .args([
            "run",
            "--workload",
            "write",
            "--records",
            "1k",
            "--format",
            "json",
        ])
        .args(["--addr", &home.listen, "--duration", "10m", "--warmup", "0"])
        .args(["--hlog".as_ref(), log.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_for_requests(&home, 100.0);
    let sent = std::process::Command::new("kill")
        .args(["-INT", &load.id().to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
    let output = load.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(result["stopped"], true);
    assert!(result["operations"].as_u64() > Some(0), "{result}");
    assert!(
        result["latency_us"]["all"]["p9999"].as_f64() > Some(0.0),
        "{result}"
    );
    assert!(
        result["series"][0]["operations"].as_u64() > Some(0),
        "{result}"
    );
    let log = std::fs::read_to_string(log).expect("it is written");
    assert!(log.contains("HISTF"), "{log}");
}

#[test]
fn a_load_that_finds_nothing_fails_at_its_end() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let run = |more: &[&str]| {
        let mut loadgen = command("loadgen");
        loadgen.args([
            "run",
            "--workload",
            "c",
            "--operations",
            "1k",
            "--warmup",
            "0",
        ]);
        loadgen.args(["--addr", &home.listen]).args(more);
        let output = loadgen.output().expect("it runs");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), complaint)
    };
    let (code, complaint) = run(&[]);
    assert_eq!(code, Some(1), "{complaint}");
    assert!(complaint.contains("loadgen load"), "{complaint}");
    assert_eq!(run(&["--allow-missing"]).0, Some(0));
}

#[test]
fn a_node_that_is_told_to_stop_under_load_ends_in_order() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let node = home.start();
    let _load = Background::start(
        command("loadgen")
            .args(["run", "--workload", "write", "--records", "1000"])
            .args(["--addr", &home.listen, "--duration", "30", "--warmup", "0"]),
    );
    wait_for_requests(&home, 100.0);
    let told = Instant::now();
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0), "{}", home.log());
    println!("stopped under load in {:?}", told.elapsed());
}

#[test]
fn a_second_signal_ends_the_node_at_once() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let node = home.start();
    let megabyte = temp.path().join("megabyte");
    std::fs::write(&megabyte, vec![b'v'; 1 << 20]).expect("it is written");
    let file = megabyte.to_str().expect("a name");
    expect(&home, 0, &["put", "big", "--file", file]);
    // The client reads no replies, so the node waits for it until its time limit.
    let mut client = RawClient::connect(&home.listen).expect("it listens");
    for id in 0..100 {
        let get = request(id, RequestBody::Get { key: b"big" });
        client.stream.write_all(&get).expect("it is sent");
    }
    client.receive().expect("the first reply");
    // Until the network holds what it can.
    std::thread::sleep(Duration::from_secs(1));
    node.signal("TERM");
    // Later than a second signal that means the same as the first.
    std::thread::sleep(Duration::from_secs(1));
    node.signal("INT");
    let code = node.wait().code();
    assert!(code == Some(130), "{code:?}:\n{}", home.log());
    home.start();
}

#[test]
fn histories_are_linearizable_over_kills() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "check-4"]);
    let mut node = home.start();
    let check = command("loadgen")
        .args(["check", "--addr", &home.listen, "--duration", "8"])
        .args(["--clients", "8", "--keys", "8", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("loadgen starts");
    for _ in 0..3 {
        wait_for_requests(&home, 500.0);
        node.kill();
        node = home.start();
    }
    let output = check.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}{complaint}");
    let result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(result["violations"], 0, "{text}");
    assert!(result["operations"].as_u64() > Some(1000), "{text}");
    println!("{}", text.trim());
}
