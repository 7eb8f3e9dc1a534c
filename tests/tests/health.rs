//! What scripts and orchestrators learn of a node's health: `rangedb check`, `rangedb status` by its exit
//! code, `/readyz`, and the manners of HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;

use rangedb_tests::cluster::{SECRET, homes, start_all, status, wait_for, wait_until_replicated};
use rangedb_tests::http::exchange;
use rangedb_tests::process::{Home, Node, command};
use serde_json::Value;

#[test]
fn a_check_names_everything_that_it_looked_at() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let output = command("rangedb")
        .args(["check", "--format", "json", "--data-dir"])
        .arg(&home.folder)
        .args(["--listen", &home.listen, "--http", &home.http])
        .output()
        .expect("it runs");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = found["checks"].as_array().expect("a list");
    let state = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no {name} in {found}"));
        check["state"].as_str().expect("a state").to_owned()
    };
    for name in [
        "kernel",
        "io_uring",
        "memlock",
        "descriptors",
        "swap",
        "huge_pages",
        "governor",
        "clock",
        "cgroup_memory",
        "cgroup_cpu",
        "free_space",
        "free_inodes",
        "file_system",
        "durable_write",
        "container",
        "names",
    ] {
        state(name);
    }
    // A node runs here, so what it cannot do without is there, and its ports are its own.
    for name in ["kernel", "io_uring", "direct_io", "ports", "data_dir"] {
        assert_eq!(state(name), "ok", "{found}");
    }
    for check in checks {
        assert_eq!(check["state"] == "ok", check["fix"].is_null(), "{check}");
    }
    let fails = checks.iter().any(|check| check["state"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(fails)), "{found}");
    assert!(
        home.log().contains("the machine was checked"),
        "{}",
        home.log()
    );
    // Another folder's ports are foreign ones, and a start would refuse the folder.
    let other = command("rangedb")
        .args(["check", "--data-dir"])
        .arg(temp.path())
        .args(["--listen", &home.listen, "--http", &home.http])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&other.stdout).into_owned();
    assert_eq!(other.status.code(), Some(1), "{text}");
    for failed in ["fail  ports", "fail  data_dir"] {
        assert!(text.contains(failed), "{text}");
    }
}

#[test]
fn exit_codes_and_pages_tell_how_a_cluster_is() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let code = |flags: &[&str]| homes[0].cli(&[&["status"], flags].concat()).status.code();
    wait_for("a cluster that is whole", || {
        (code(&[]) == Some(0)).then_some(())
    });
    let ready = |home: &Home| home.page("/readyz");
    wait_for("nodes that are ready", || {
        homes.iter().all(|home| ready(home).0 == 200).then_some(())
    });

    nodes[2].take().expect("it runs").kill();
    wait_for("a degraded cluster", || {
        (code(&[]) == Some(1)).then_some(())
    });
    let degraded = status(&homes[0]);
    let reasons = degraded["reasons"].as_array().expect("reasons");
    assert!(!reasons.is_empty(), "{degraded}");
    let text = homes[0].cli(&["status"]).stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("which was asked"), "{text}");
    // Two of three are a majority.
    assert_eq!(ready(&homes[0]).0, 200);

    nodes[1].take().expect("it runs").kill();
    wait_for("a cluster without a majority", || {
        (code(&["--timeout", "2s"]) == Some(3)).then_some(())
    });
    wait_for("a node that is not ready", || {
        let (status, why) = ready(&homes[0]);
        (status == 503 && why.contains("no majority for range")).then_some(())
    });
    assert_eq!(homes[0].page("/livez").0, 200);

    nodes[1] = Some(homes[1].start());
    wait_for("a node that is ready again", || {
        (ready(&homes[0]).0 == 200).then_some(())
    });
}

#[test]
fn a_node_that_others_refuse_says_so_and_why() {
    let temp = tempfile::tempdir().expect("a folder");
    let mut homes = homes(temp.path());
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    nodes[2].take().expect("it runs").kill();
    let secret = homes[2].flags.iter_mut().find(|flag| *flag == SECRET);
    *secret.expect("a secret") = "another secret".to_owned();
    nodes[2] = Some(Node::spawn(
        &mut homes[2].start_command(),
        homes[2].log_file(),
    ));
    wait_for("refusals", || {
        let listens = TcpStream::connect(&homes[2].http).is_ok();
        (listens && homes[2].page("/readyz").1.contains("refused by node")).then_some(())
    });
    let output = homes[2].cli(&["status", "--timeout", "2s"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("which was asked: refused by node"), "{text}");
    assert!(text.contains("secret"), "{text}");
}

#[test]
fn http_refuses_foreign_sites_and_says_what_it_takes() {
    let temp = tempfile::tempdir().expect("a folder");
    let flags = [
        "--shards",
        "1",
        "--http-hosts",
        "db.example",
        "--http-origins",
        "https://c.example",
    ];
    let home = Home::new(temp.path(), &flags);
    let _node = home.start();
    let ask = |line: &str, headers: &str| {
        let head = format!("{line} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        exchange(&home, &head, b"")
    };
    let local = "Host: localhost\r\n";
    for (headers, status) in [
        (local, 200),
        ("Host: 127.0.0.1:7480\r\n", 200),
        ("Host: db.example:7480\r\n", 200),
        ("Host: evil.example\r\n", 421),
        ("", 400),
        ("Host: localhost\r\nOrigin: https://c.example\r\n", 200),
        ("Host: localhost\r\nOrigin: http://localhost\r\n", 200),
        ("Host: localhost\r\nOrigin: https://evil.example\r\n", 403),
    ] {
        for page in ["GET /metrics", "GET /readyz", "GET /api/v1/config"] {
            assert_eq!(ask(page, headers).status, status, "{page} {headers}");
        }
    }
    assert_eq!(ask("GET /livez", "Host: evil.example\r\n").status, 200);

    let head = ask("HEAD /metrics", local);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(head.header("content-length").is_some_and(|len| len != "0"));
    let refused = ask("POST /livez", local);
    assert_eq!(
        (refused.status, refused.header("allow")),
        (405, Some("GET, HEAD"))
    );
    assert_eq!(ask("POST /nothing", local).status, 404);
}

#[test]
fn an_idle_connection_is_closed_and_one_with_a_request_is_not() {
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "1"]);
    let _node = home.start();
    let connect = || TcpStream::connect(&home.http).expect("it listens");
    let (mut idle, mut partial, mut busy) = (connect(), connect(), connect());
    partial
        .write_all(b"GET /livez HTTP/1.1\r\n")
        .expect("it is sent");
    let head = "PUT /api/v1/kv/k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Length: 2\r\n\r\nv";
    busy.write_all(head.as_bytes()).expect("it is sent");
    let mut rest = String::new();
    idle.read_to_string(&mut rest).expect("it is closed");
    assert_eq!(rest, "");
    partial.read_to_string(&mut rest).expect("it is closed");
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
    // By now the request has been under way for longer than both.
    busy.write_all(b"w").expect("it is sent");
    rest.clear();
    busy.read_to_string(&mut rest).expect("an answer");
    assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
    assert_eq!(home.cli(&["get", "k"]).stdout, b"vw\n");
}
