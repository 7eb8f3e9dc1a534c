//! The API over HTTP and the command line's view of the cluster, on a real node.

use rangedb_client::{Client, ScanOptions, blocking};
use rangedb_tests::cluster::{status, wait_for};
use rangedb_tests::http::{exchange, request};
use rangedb_tests::process::Home;
use serde_json::{Value, json};

fn percent(key: &[u8]) -> String {
    key.iter().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn batches_are_written_over_http_whole_or_not_at_all() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let _node = home.start();
    let post = |body: &str| request(&home, "POST", "batch", body.as_bytes());
    let body = r#"{"conditions":[{"if":"absent","key":"a"},{"if":"absent","key_hex":"00ff"}],
        "mutations":[{"op":"put","key":"a","value":"1"},{"op":"put","key_hex":"00ff","value":""},
        {"op":"add","key":"c","delta":-4}]}"#;
    let written = post(body);
    assert_eq!(written.status, 200, "{}", written.head);
    assert_eq!(written.json()["numbers"], json!([-4]));
    let version = &written.json()["version"];
    assert_eq!(written.header("rangedb-version"), version.as_str());
    // A condition fails: the response names it, and nothing is written.
    let failed = post(body);
    let told = json!({ "written": false, "condition": 0, "current": version });
    assert_eq!((failed.status, failed.json()), (409, told));
    let second = post(
        r#"{"conditions":[{"if":"exists","key":"a"},{"if":"value","key":"gone","value":"1"}],
        "mutations":[{"op":"delete","key":"a"}]}"#,
    );
    let told = json!({ "written": false, "condition": 1, "current": null });
    assert_eq!((second.status, second.json()), (409, told));
    assert_eq!(request(&home, "GET", "kv/a", b"").body, b"1");
    assert_eq!(request(&home, "GET", "kv/c", b"").body, b"-4");
    // A version may be given as a text or as a number.
    let number = version.as_str().expect("a text");
    for (version, change) in [
        (number, r#"{"op":"put","key":"b","value":""}"#),
        (&version.to_string(), r#"{"op":"delete","key":"a"}"#),
    ] {
        let hold = format!(
            r#"{{"conditions":[{{"if":"version","key":"a","version":{version}}}],
            "mutations":[{change}]}}"#
        );
        assert_eq!(post(&hold).status, 200, "{hold}");
    }
    assert_eq!(request(&home, "GET", "kv/a", b"").status, 404);
    for bad in [
        "",
        "[]",
        r#"{"mutations":[]}"#,
        r#"{"mutations":[{"op":"put","key":"a"}]}"#,
        r#"{"mutations":[{"op":"put","key":"","value":"1"}]}"#,
        r#"{"mutations":[{"op":"put","key":"a","value":"1"},{"op":"put","key":"z","value":"1"}]}"#,
        r#"{"mutations":[{"op":"put","key":"d","value":"x"},{"op":"add","key":"d","delta":1}]}"#,
    ] {
        let refused = post(bad);
        assert_eq!(refused.status, 400, "{bad}");
        assert_eq!(refused.json()["fate"], "not_applied", "{bad}");
    }
    assert_eq!(request(&home, "GET", "kv/d", b"").status, 404);
    assert_eq!(request(&home, "GET", "batch", b"").status, 405);
}

#[test]
fn several_keys_are_read_over_http_and_by_the_client_each_with_its_own_result() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let _node = home.start();
    for key in ["a", "z"] {
        let value = format!("of {key}");
        let put = request(&home, "PUT", &format!("kv/{key}"), value.as_bytes());
        assert_eq!(put.status, 200, "{key}");
    }
    assert_eq!(request(&home, "PUT", "kv/%00", b"\xff").status, 200);
    let post = |body: &str| request(&home, "POST", "get", body.as_bytes());
    let read = post(
        r#"{"keys":[{"key":"z"},{"key":"gone"},{"key":"a"},{"key":""},{"key_hex":"00"},
        {"key":"z"}]}"#,
    );
    assert_eq!(read.status, 200, "{}", read.head);
    let json = read.json();
    let results = json["results"].as_array().expect("a list");
    assert_eq!(results.len(), 6);
    for (at, key) in [(0, "z"), (2, "a"), (5, "z")] {
        let wanted = json!({
            "key": key,
            "found": true,
            "value": format!("of {key}"),
            "version": results[at]["version"].as_str().expect("a version"),
        });
        assert_eq!(results[at], wanted);
    }
    assert_eq!(results[1], json!({ "key": "gone", "found": false }));
    assert_eq!(results[3]["error"], "invalid");
    assert_eq!(results[4]["value_hex"], "ff");
    for bad in ["", "[]", r#"{"keys":[]}"#, r#"{"keys":["a"]}"#] {
        assert_eq!(post(bad).status, 400, "{bad}");
    }
    assert_eq!(request(&home, "GET", "get", b"").status, 405);

    let keys: Vec<String> = (0..5000)
        .map(|n| format!("{}{n}", ["a", "z"][n % 2]))
        .collect();
    let client = blocking::Client::connect([&home.listen]).expect("a client");
    let long = vec![b'v'; 1 << 20];
    // Keys whose values do not fit into one reply are requested again.
    for key in keys.iter().take(12) {
        client.put(key, &long).expect("written");
    }
    let found = client.get_many(&keys);
    assert_eq!(found.len(), keys.len());
    for (at, found) in found.into_iter().enumerate() {
        let value = found.expect("read").map(|found| found.value.len());
        assert_eq!(value, (at < 12).then_some(1 << 20), "{}", keys[at]);
    }
}

#[test]
fn keys_of_any_bytes_are_put_read_and_deleted_over_http() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let _node = home.start();
    let longest = vec![0xfe; 4096];
    let all: Vec<u8> = (0..=255).collect();
    let keys = [
        &b"a"[..],
        b"zz",
        b"\0",
        b"a/b//",
        b"?x=1",
        b"..",
        b"\xff\xfe",
        &all,
        &longest,
    ];
    for key in keys {
        let path = format!("kv/{}", percent(key));
        assert_eq!(request(&home, "GET", &path, b"").status, 404);
        let value = [key, b"\r\n\0"].concat();
        let put = request(&home, "PUT", &path, &value);
        assert_eq!(put.status, 200, "{key:?}: {}", put.head);
        let got = request(&home, "GET", &path, b"");
        assert_eq!((got.status, &got.body), (200, &value), "{key:?}");
        let version = &put.json()["version"];
        assert_eq!(got.header("rangedb-version"), version.as_str());
        let head = request(&home, "HEAD", &path, b"");
        let len = value.len().to_string();
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), Some(len.as_str()));
        let deleted = request(&home, "DELETE", &path, b"");
        assert_eq!(
            (deleted.status, &deleted.json()["existed"]),
            (200, &json!(true))
        );
        assert_eq!(request(&home, "GET", &path, b"").status, 404);
        let again = request(&home, "DELETE", &path, b"");
        assert_eq!(
            (again.status, &again.json()["existed"]),
            (200, &json!(false))
        );
    }
    // Both interfaces show the same keys, also one with an empty value.
    assert_eq!(request(&home, "PUT", "kv/empty", b"").status, 200);
    let got = home.cli(&["get", "empty"]);
    assert_eq!((got.status.code(), &got.stdout[..]), (Some(0), &b"\n"[..]));
    let slash = request(&home, "PUT", "kv/dir/file", b"1");
    assert_eq!(slash.status, 200);
    assert_eq!(home.cli(&["get", "dir/file"]).stdout, b"1\n");
}

#[test]
fn what_breaks_a_limit_or_a_rule_is_refused_with_a_reason() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let value = vec![b'v'; 1 << 20];
    assert_eq!(request(&home, "PUT", "kv/big", &value).status, 200);
    assert_eq!(request(&home, "GET", "kv/big", b"").body, value);
    let longer = [&value[..], b"v"].concat();
    let refused = request(&home, "PUT", "kv/big", &longer);
    assert_eq!(
        (refused.status, &refused.json()["fate"]),
        (413, &json!("not_applied"))
    );
    // The announced body is too long, and none of it arrives.
    let head = "PUT /api/v1/kv/big HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Length: 99999999999\r\n\r\n";
    assert_eq!(exchange(&home, head, b"").status, 413);
    assert_eq!(request(&home, "GET", "kv/big", b"").body, value);

    let long_key = format!("kv/{}", percent(&vec![b'k'; 4097]));
    for (method, path, body, status) in [
        ("GET", long_key.as_str(), &b""[..], 400),
        ("PUT", "kv/", b"v", 400),
        ("GET", "kv/%zz", b"", 400),
        ("PUT", "kv/a?b", b"v", 400),
        ("POST", "kv/a", b"v", 405),
        ("PATCH", "kv/a", b"v", 405),
        ("PUT", "nodes", b"", 405),
        ("DELETE", "config/balance", b"", 405),
        ("GET", "ranges/1/transfer-leader", b"", 405),
        ("GET", "nothing", b"", 404),
        ("GET", "config/colour", b"", 404),
        ("POST", "ranges/x/move-replica", b"{}", 400),
        ("POST", "ranges/1/move-replica", b"{garbage", 400),
        ("POST", "ranges/1/move-replica", b"[]", 400),
        ("POST", "ranges/1/move-replica", b"{\"from\":1}", 400),
        ("POST", "ranges/1/move-replica", b"\xff\xff", 400),
        ("GET", "ranges/1/split", b"", 405),
        ("POST", "ranges/1/split", b"", 400),
        ("POST", "ranges/1/split", b"{\"at\":\"m\"}", 400),
        ("POST", "ranges/1/split", b"{\"at_hex\":[\"m\"]}", 400),
        ("POST", "ranges/1/release", b"{\"more\":1}", 400),
        ("POST", "ranges/scatter", b"{\"end_hex\":\"m\"}", 400),
        ("GET", "ranges/scatter", b"", 405),
        ("POST", "balance", b"", 405),
        ("POST", "ranges/1/transfer-leader", b"{\"to\":\"x\"}", 400),
        ("POST", "ranges/1/transfer-leader", b"{\"more\":1}", 400),
        ("PUT", "config/balance", b"\xff", 400),
        ("PUT", "config/balance", &value[..20_000], 413),
    ] {
        let answer = request(&home, method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.head);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let told = answer.json();
        assert!(
            told["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        assert_eq!(told["fate"], "not_applied", "{method} {path}");
        assert_eq!(answer.header("allow").is_some(), status == 405);
    }
    assert_eq!(request(&home, "GET", "kv/a", b"").status, 404);
}

#[test]
fn orders_that_are_wrong_or_name_what_is_not_there_are_told_apart() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2"]);
    let _node = home.start();
    wait_for_ranges(&home, 2);
    let ranges = shown(&home, &["range", "ls"]);
    let mut users = ranges["ranges"].as_array().expect("a list").iter();
    let range = users.find(|range| range["system"] == false);
    let range = range.expect("a range of users");
    let shard = &range["replicas"][0]["shard"];
    let transfer = format!("ranges/{}/transfer-leader", range["id"]);
    let move_replica = format!("ranges/{}/move-replica", range["id"]);
    let split = format!("ranges/{}/split", range["id"]);
    let (long, at_m) = ("k".repeat(5000), r#"{"at":["m"]}"#.to_owned());
    let to_shard = |from: u64, node: u64, shard: &Value| {
        json!({ "from": from, "to_node": node, "to_shard": shard }).to_string()
    };
    let to = |node: u64| json!({ "to": node }).to_string();
    for (method, path, body, error) in [
        ("POST", transfer.as_str(), to(1), "conflict"),
        ("POST", &transfer, String::new(), "conflict"),
        ("POST", &transfer, to(77), "not_found"),
        ("POST", "ranges/99/transfer-leader", to(1), "not_found"),
        ("POST", &move_replica, to_shard(1, 1, &json!(2)), "invalid"),
        ("POST", &move_replica, to_shard(1, 1, shard), "conflict"),
        (
            "POST",
            &move_replica,
            to_shard(1, 77, &json!(0)),
            "not_found",
        ),
        (
            "POST",
            &move_replica,
            to_shard(77, 1, &json!(0)),
            "not_found",
        ),
        ("POST", &split, r#"{"at":[""]}"#.to_owned(), "invalid"),
        ("POST", &split, r#"{"at":[]}"#.to_owned(), "invalid"),
        ("POST", &split, r#"{"at":["m","m"]}"#.to_owned(), "invalid"),
        (
            "POST",
            &split,
            json!({ "at": [long] }).to_string(),
            "invalid",
        ),
        ("POST", "ranges/1/split", at_m.clone(), "invalid"),
        ("POST", "ranges/99/split", at_m, "not_found"),
        ("POST", "ranges/1/release", String::new(), "invalid"),
        ("POST", "ranges/99/release", String::new(), "not_found"),
        (
            "PUT",
            "config/replication-factor",
            "2".to_owned(),
            "invalid",
        ),
        ("PUT", "config/dead-after", "5d".to_owned(), "invalid"),
        ("PUT", "config/colour", "red".to_owned(), "not_found"),
        ("GET", "config/colour", String::new(), "not_found"),
    ] {
        let answer = request(&home, method, path, body.as_bytes());
        let told = answer.json();
        assert_eq!(told["error"], error, "{method} {path} {body}: {told}");
        assert_eq!(
            told["fate"], "not_applied",
            "{method} {path} {body}: {told}"
        );
        let status = match error {
            "invalid" => 400,
            "conflict" => 409,
            _ => 404,
        };
        assert_eq!(answer.status, status, "{method} {path} {body}");
        assert_eq!(answer.header("retry-after"), None);
    }
    let unknown = home.cli(&["range", "transfer-leader", "99"]);
    let complaint = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(unknown.status.code(), Some(3), "{complaint}");
    assert!(
        complaint.contains("range 99; `rangedb range ls`"),
        "{complaint}"
    );
    for (name, value) in [("moves-max", "-1"), ("dead-after", "-1h")] {
        let refused = home.cli(&["config", "set", name, value]);
        let complaint = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{complaint}");
        assert!(
            complaint.contains(value) && complaint.contains(name),
            "{complaint}"
        );
    }
    let still = shown(&home, &["range", "ls"]);
    assert_eq!(
        still["ranges"][1]["replicas"],
        ranges["ranges"][1]["replicas"]
    );
}

/// The JSON that a command prints, which must succeed.
fn shown(home: &Home, arguments: &[&str]) -> Value {
    let output = home.cli(&[arguments, &["--format", "json"]].concat());
    assert_eq!(
        output.status.code(),
        Some(0),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Waits until the cluster's manager knows this many ranges, each with a leader.
fn wait_for_ranges(home: &Home, count: usize) {
    wait_for("ranges that are led", || {
        let status = status(home);
        let are_led = status["health"] == "ok" && status["nodes"][0]["leaders"] == count;
        are_led.then_some(())
    });
}

#[test]
fn a_cluster_of_one_is_shown_by_both_faces() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1", "--split-at", "g,t"]);
    let _node = home.start();
    wait_for_ranges(&home, 4);
    let nodes = shown(&home, &["node", "ls"]);
    assert_eq!(request(&home, "GET", "nodes", b"").json(), nodes);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&nodes["nodes"][0]["id"], &nodes["nodes"][0]["state"]),
        (&json!(1), &json!("alive"))
    );

    let ranges = shown(&home, &["range", "ls"]);
    let over_http = request(&home, "GET", "ranges", b"").json();
    let borders = |ranges: &Value| -> Vec<Value> {
        let ranges = ranges["ranges"].as_array().expect("a list").iter();
        let of_users = ranges.filter(|range| range["system"] == false);
        of_users
            .map(|range| json!([range["start"], range["end"], range["leader_node"]]))
            .collect()
    };
    let wanted = [
        json!(["", "67", 1]),
        json!(["67", "74", 1]),
        json!(["74", null, 1]),
    ];
    assert_eq!(borders(&ranges), wanted);
    assert_eq!(borders(&over_http), wanted);
    let replica = &ranges["ranges"][0]["replicas"][0];
    assert_eq!(
        (
            &replica["node"],
            &replica["shard"],
            &replica["voter"],
            &replica["lag"]
        ),
        (&json!(1), &json!(0), &json!(true), &json!(0))
    );

    let status = shown(&home, &["status"]);
    let over_http = request(&home, "GET", "status", b"").json();
    for status in [&status, &over_http] {
        assert_eq!(status["health"], "ok", "{status}");
        assert_eq!(
            (&status["under_replicated"], &status["unavailable"]),
            (&json!(0), &json!(0))
        );
        assert_eq!(status["nodes"][0]["leaders"], 4);
    }
    assert_eq!(
        (&status["node"], &status["node_health"]),
        (&json!(1), &json!("ok"))
    );
    assert_eq!(status["shards"].as_array().map(Vec::len), Some(1));
}

/// The keys in a JSON page of a scan.
fn keys_of(page: &Value) -> Vec<&str> {
    let rows = page["rows"].as_array().expect("rows");
    rows.iter().filter_map(|row| row["key"].as_str()).collect()
}

/// The keys of a scan over HTTP in pages of one row.
fn scanned_over_http(home: &Home, query: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = format!("scan?limit=1&{query}");
    loop {
        let answer = request(home, "GET", &path, b"");
        let page = answer.json();
        assert_eq!(answer.status, 200, "{path}: {page}");
        let some = keys_of(&page);
        assert!(some.len() <= 1, "{page}");
        keys.extend(some.into_iter().map(str::to_owned));
        let Some(continuation) = page["continuation"].as_str() else {
            return keys;
        };
        path = format!("scan?limit=1&continuation={continuation}");
    }
}

/// The keys of a scan by the client library in pages of one row.
async fn scanned_by_client(client: &Client, options: ScanOptions) -> Vec<String> {
    let (keys_only, mut keys) = (options.keys_only, Vec::new());
    let mut page = client
        .scan(options)
        .page_size(1)
        .page()
        .await
        .expect("a page");
    loop {
        assert!(page.rows.len() <= 1);
        for row in page.rows {
            assert_eq!(row.value.is_empty(), keys_only);
            keys.push(String::from_utf8(row.key.to_vec()).expect("text"));
        }
        let Some(continuation) = page.continuation else {
            return keys;
        };
        page = client.scan_next(continuation).await.expect("a page");
    }
}

#[test]
fn scans_go_both_ways_over_ranges_on_all_faces() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "g,m,t"]);
    let _node = home.start();
    let all = ["a", "b1", "b2", "b\u{7f}", "g", "l", "m", "s", "t", "u"];
    for key in all {
        let path = format!("kv/{}", percent(key.as_bytes()));
        assert_eq!(request(&home, "PUT", &path, b"v").status, 200);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let connect = Client::connect([&home.listen]);
    let client = runtime.block_on(connect).expect("a client");
    for (flags, query, options, wanted) in [
        (&[][..], "", ScanOptions::default(), &all[..]),
        (
            &["--start", "b2", "--end", "t"],
            "start=b2&end=t",
            ScanOptions::from("b2".."t"),
            &all[2..8],
        ),
        (
            &["--prefix", "b"],
            "prefix=b",
            ScanOptions::prefix("b"),
            &all[1..4],
        ),
        (&["--prefix", ""], "prefix=", ScanOptions::prefix(""), &all),
        (
            &["--prefix", "ff", "--hex"],
            "prefix=%ff",
            ScanOptions::prefix(b"\xff"),
            &[],
        ),
    ] {
        for (reverse, keys_only) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut wanted = wanted.to_vec();
            let (mut flags, mut query) = ([&["scan"][..], flags].concat(), query.to_owned());
            if reverse {
                wanted.reverse();
                flags.push("--reverse");
                query += "&reverse=true";
            }
            if keys_only {
                flags.push("--keys-only");
                query += "&keys_only=true";
            }
            let printed = shown(&home, &flags);
            assert_eq!(keys_of(&printed), wanted, "{flags:?}");
            let rows = printed["rows"].as_array().expect("rows");
            for row in rows {
                assert_eq!(row.get("value").is_none(), keys_only, "{row}");
                assert!(row["version"].is_string(), "{row}");
            }
            assert_eq!(scanned_over_http(&home, &query), wanted, "{query}");
            let mut options = options.clone();
            options.reverse = reverse;
            options.keys_only = keys_only;
            let found = runtime.block_on(scanned_by_client(&client, options));
            assert_eq!(found, wanted, "{flags:?} by the client");
        }
    }
    let table = |flags: &[&str]| {
        let output = home.cli(&[&["scan"][..], flags].concat());
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(table(&["--reverse", "--limit", "3"]), "u\tv\nt\tv\ns\tv\n");
    assert_eq!(table(&["--prefix", "b", "--keys-only"]), "b1\nb2\nb\\x7f\n");
    let both = home.cli(&["scan", "--prefix", "b", "--end", "c"]);
    assert_eq!(both.status.code(), Some(2));
    let complaint = String::from_utf8_lossy(&both.stderr).into_owned();
    assert!(
        complaint.contains("--prefix") && complaint.contains("--end"),
        "{complaint}"
    );
    for (query, word) in [
        ("prefix=b&end=c", "prefix"),
        ("limit=0", "limit"),
        ("from=a", "from"),
        ("continuation=00ff", "continuation"),
    ] {
        let refused = request(&home, "GET", &format!("scan?{query}"), b"");
        let message = refused.json()["message"].to_string();
        assert!(refused.status == 400 && message.contains(word), "{message}");
    }
    assert_eq!(request(&home, "POST", "scan", b"").status, 405);
}

#[test]
fn settings_are_shown_by_both_faces() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let config = shown(&home, &["config", "get"]);
    let of_cluster = request(&home, "GET", "config", b"").json();
    assert_eq!(of_cluster["settings"], config["settings"]);
    let listen = shown(&home, &["config", "get", "listen"]);
    assert_eq!(listen["in_force"], home.listen.as_str());
    let of_node = config["node_settings"].as_array().expect("a list");
    assert!(of_node.contains(&listen), "{config}");
    let balance = shown(&home, &["config", "get", "balance"]);
    assert_eq!(request(&home, "GET", "config/balance", b"").json(), balance);
    assert_eq!(balance["value"], Value::Null);
    assert_eq!(balance["in_force"], "on");
    assert_eq!(balance["source"], "default");
    assert_eq!(
        home.cli(&["config", "get", "colour"]).status.code(),
        Some(3)
    );
}

#[test]
fn ranges_are_shown_as_a_table() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    wait_for_ranges(&home, 2);
    let table = home.cli(&["range", "ls"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains("1/0") && table.contains("(system)"),
        "{table}"
    );
}
