//! The real client, the command line and the load generator against real nodes over TLS.

use std::path::Path;
use std::time::Duration;

use rangedb_certificates::{Ca, HOSTS, Signed};
use rangedb_client::{Client, ClientOptions, Error, ErrorCode, TlsOptions};
use rangedb_tests::cluster::{homes_of, start_all, wait_for};
use rangedb_tests::http::request;
use rangedb_tests::load::run;
use rangedb_tests::process::{Home, command};

/// A home of a node with this certificate, two shards, and these flags.
fn home(folder: &Path, signed: &Signed, more: &[&str]) -> Home {
    let tls = ["--tls-cert", &signed.certificate, "--tls-key", &signed.key];
    let shards = ["--shards", "2", "--split-at", "m"];
    let memory = ["--memory", "512MiB"];
    Home::new(folder, &[&tls[..], &shards, &memory, more].concat())
}

/// Connects to a node by this host, and writes and reads a row.
fn try_row(home: &Home, host: &str, tls: Option<TlsOptions>) -> Result<(), Error> {
    let (_, port) = home.listen.rsplit_once(':').expect("a port");
    let options = ClientOptions::from(format!("{host}:{port}"))
        .connect_timeout(Duration::ZERO)
        .tls(tls);
    run(async {
        let client = Client::connect(options).await?;
        client.put("row", "value").await?;
        let found = client.get("row").await?.expect("it was written");
        assert_eq!(found.value, "value");
        Ok(())
    })
}

fn refusal(home: &Home, host: &str, tls: Option<TlsOptions>) -> String {
    let error = try_row(home, host, tls).expect_err("the connection is refused");
    assert_eq!(error.code, ErrorCode::Unreachable, "{error}");
    error.message
}

fn trusting(ca: &Ca) -> Option<TlsOptions> {
    Some(TlsOptions::ca_file(ca.file()))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + len) as u8).collect()
}

#[test]
fn rows_of_all_shards_and_sizes_go_through() {
    let (ca, folder) = (Ca::new("ca"), tempfile::tempdir().expect("a folder"));
    let home = home(folder.path(), &ca.sign("node", HOSTS), &[]);
    let _node = home.start();
    let options = || ClientOptions::from(home.listen.as_str()).tls(trusting(&ca));
    run(async {
        let client = Client::connect(options()).await.expect("connected");
        let lens = [0, 1, 16_383, 16_384, 16_385, 65_536, 300_000, 1 << 20];
        let mut rows = Vec::new();
        for key in ["a", "z"] {
            for len in lens {
                let row = (format!("{key}{len:07}"), bytes(len));
                client.put(&row.0, row.1.as_slice()).await.expect("written");
                rows.push(row);
            }
        }
        let gets = rows.iter().map(|(key, _)| client.get(key));
        let found = futures_util::future::join_all(gets).await;
        for (found, (key, value)) in found.into_iter().zip(&rows) {
            let found = found.expect("read").expect("it is there");
            assert!(found.value == *value, "{key}");
        }
        let (mut scanned, mut page) = (Vec::new(), client.scan(..).page().await.expect("a page"));
        loop {
            let pairs = page.rows.iter();
            scanned.extend(pairs.map(|row| (row.key.to_vec(), row.value.to_vec())));
            let Some(continuation) = page.continuation.take() else {
                break;
            };
            page = client.scan_next(continuation).await.expect("a page");
        }
        let wanted = rows
            .into_iter()
            .map(|(key, value)| (key.into_bytes(), value));
        assert!(scanned == wanted.collect::<Vec<_>>());
        // Many at once, which share records.
        let puts = (0..500).map(|i| client.put(format!("many{i:03}"), "v"));
        for put in futures_util::future::join_all(puts).await {
            put.expect("written");
        }
        // One connection serves both shards' keys if the node forwards.
        let forwarded = Client::connect(options().forwarded(true)).await;
        let forwarded = forwarded.expect("connected");
        for key in ["a-forwarded", "z-forwarded"] {
            forwarded.put(key, "v").await.expect("written");
            assert!(client.get(key).await.expect("read").is_some());
        }
    });
}

#[test]
fn a_client_trusts_only_the_certificate_that_it_should() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let folder = tempfile::tempdir().expect("a folder");
    let signed = ca.sign("node", &["localhost"]);
    let first = home(folder.path(), &signed, &[]);
    let node = first.start();
    try_row(&first, "localhost", trusting(&ca)).expect("it is trusted");
    let why = refusal(&first, "localhost", trusting(&other));
    assert!(why.contains("not signed by the CA"), "{why}");
    let why = refusal(&first, "127.0.0.1", trusting(&ca));
    let names = why.contains("does not name 127.0.0.1") && why.contains("localhost");
    assert!(names, "{why}");
    let named = trusting(&ca).map(|tls| tls.server_name("localhost"));
    try_row(&first, "127.0.0.1", named).expect("the name is given");
    let pinned = |signed: &Signed| {
        let pem = std::fs::read(&signed.certificate).expect("read");
        Some(TlsOptions::pinned_pem(pem))
    };
    try_row(&first, "127.0.0.1", pinned(&signed)).expect("it is this one");
    let why = refusal(&first, "127.0.0.1", pinned(&other.sign("other", HOSTS)));
    assert!(why.contains("another certificate"), "{why}");
    let why = refusal(&first, "localhost", None);
    assert!(why.contains("takes only encrypted connections"), "{why}");
    drop(node);

    let late = home(folder.path(), &ca.sign_until("late", HOSTS, 2001), &[]);
    let node = late.start();
    let why = refusal(&late, "localhost", trusting(&ca));
    assert!(why.contains("has expired"), "{why}");
    drop(node);
    let plain = home(folder.path(), &signed, &["--tls", "off"]);
    let _node = plain.start();
    let why = refusal(&plain, "localhost", trusting(&ca));
    assert!(why.contains("speaks no TLS"), "{why}");
    try_row(&plain, "localhost", None).expect("it is served");
}

#[test]
fn a_node_with_a_ca_wants_certificates_of_its_clients() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let folder = tempfile::tempdir().expect("a folder");
    let clients = other.file();
    let home = home(
        folder.path(),
        &ca.sign("node", HOSTS),
        &["--tls-ca", &clients],
    );
    let _node = home.start();
    let with = |signed: &Signed| {
        let tls = TlsOptions::ca_file(ca.file());
        Some(tls.certificate_files(&signed.certificate, &signed.key))
    };
    let why = refusal(&home, "localhost", trusting(&ca));
    assert!(why.contains("wants a certificate"), "{why}");
    let client = other.sign("client", &[]);
    try_row(&home, "localhost", with(&client)).expect("it is signed");
    let why = refusal(&home, "localhost", with(&ca.sign("stranger", &[])));
    assert!(why.contains("not signed by the node's --tls-ca"), "{why}");
    let late = other.sign_until("late", &[], 2001);
    let why = refusal(&home, "localhost", with(&late));
    assert!(why.contains("it has expired"), "{why}");

    // The command line and the load generator have the same as flags and variables.
    let ca_file = ca.file();
    let flags = [
        "--tls-ca",
        &ca_file,
        "--tls-cert",
        &client.certificate,
        "--tls-key",
        &client.key,
    ];
    let got = home.cli(&[&["get", "row"], &flags[..]].concat());
    assert!(got.status.success(), "{got:?}");
    let got = home.cli(&[&flags[..], &["get", "row"]].concat());
    assert!(got.status.success(), "before the command: {got:?}");
    let version = command("rangedb")
        .args(["--tls-name", "x", "version"])
        .output();
    let version = version.expect("it runs");
    let complaint = String::from_utf8_lossy(&version.stderr);
    assert!(
        complaint.contains("--tls-name means nothing"),
        "{version:?}"
    );
    let got = home.cli(&["get", "row", "--tls-cert", &client.certificate]);
    assert_eq!(got.status.code(), Some(2), "{got:?}");
    let ran = command("loadgen")
        .args(["load", "--records", "500", "--connections", "2"])
        .env("RANGEDB_ADDR", &home.listen)
        .env("RANGEDB_CLIENT_TLS_CA", &ca_file)
        .env("RANGEDB_CLIENT_TLS_CERT", &client.certificate)
        .env("RANGEDB_CLIENT_TLS_KEY", &client.key)
        .output()
        .expect("it runs");
    assert!(ran.status.success(), "{ran:?}");
    // So the API over HTTP reaches its own node.
    assert_eq!(request(&home, "PUT", "kv/by-http", b"v").status, 200);
    assert_eq!(request(&home, "GET", "kv/by-http", b"").body, b"v");
}

#[test]
fn the_pages_of_a_cluster_reach_rows_of_other_nodes() {
    let (ca, folder) = (Ca::new("ca"), tempfile::tempdir().expect("a folder"));
    let mut homes = homes_of(folder.path(), "1");
    let mut signed = Vec::new();
    for (number, home) in homes.iter_mut().enumerate() {
        let node = ca.sign(&format!("node{number}"), HOSTS);
        let flags = ["--tls-cert", &node.certificate, "--tls-key", &node.key];
        home.flags.extend(flags.map(str::to_owned));
        signed.push(node);
    }
    let mut nodes = start_all(&homes);
    for home in &homes {
        for key in ["a", "h", "n", "u"] {
            let path = format!("kv/{key}");
            assert_eq!(request(home, "PUT", &path, b"v").status, 200, "{path}");
        }
        let status = request(home, "GET", "status", b"");
        assert_eq!(status.status, 200, "{}", status.head);
    }
    // The addresses that the client learns are named by the certificates, too.
    let options = ClientOptions::from(homes[0].listen.as_str()).tls(trusting(&ca));
    run(async {
        let client = Client::connect(options).await.expect("connected");
        for key in ["a", "h", "n", "u"] {
            let found = client.get(key).await.expect("read");
            assert_eq!(found.expect("it was written").value, "v");
        }
    });
    // A node asks others for their histories only where it can trust their certificates.
    let past = |home: &Home| request(home, "GET", "history/all", b"").json();
    let own = past(&homes[0]);
    assert_eq!(own["nodes"].as_array().map(Vec::len), Some(1), "{own}");
    for missing in own["missing_nodes"].as_array().expect("nodes") {
        let why = missing["reason"].as_str().expect("a reason");
        assert!(why.contains("certificate"), "{why}");
    }
    nodes[0].take().expect("it runs").kill();
    homes[0].flags.extend(["--tls-ca".to_owned(), ca.file()]);
    let _node = homes[0].start();
    wait_for("the histories of all nodes", || {
        let all = past(&homes[0]);
        (all["nodes"].as_array()?.len() == homes.len()).then_some(())
    });
}

#[test]
fn bad_files_are_refused_at_the_start_and_at_a_reload() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let folder = tempfile::tempdir().expect("a folder");
    let mut signed = ca.sign("node", HOSTS);
    signed.certificate = "/nowhere/node.pem".to_owned();
    let (code, complaint) = home(folder.path(), &signed, &[]).refused();
    assert_eq!(code, 2, "{complaint}");
    let names = complaint.contains("tls-cert") && complaint.contains("/nowhere/node.pem");
    assert!(names, "{complaint}");

    let signed = ca.sign("node", HOSTS);
    let home = home(folder.path(), &signed, &[]);
    let _node = home.start();
    let reload = |ca: &Ca| {
        let file = ca.file();
        let done = home.cli(&["reload", "--format", "json", "--tls-ca", &file]);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        (done.status.code(), text)
    };
    std::fs::write(&signed.certificate, "no PEM").expect("written");
    let (code, answer) = reload(&ca);
    assert_eq!(code, Some(3), "{answer}");
    assert!(answer.contains("no certificate"), "{answer}");
    try_row(&home, "localhost", trusting(&ca)).expect("nothing has changed");
    assert_eq!(request(&home, "PUT", "kv/k", b"1").status, 200);

    let new = other.sign("new", HOSTS);
    std::fs::copy(&new.certificate, &signed.certificate).expect("copied");
    std::fs::copy(&new.key, &signed.key).expect("copied");
    let (code, answer) = reload(&ca);
    assert_eq!(code, Some(0), "{answer}");
    assert!(answer.contains("tls-cert"), "{answer}");
    try_row(&home, "localhost", trusting(&other)).expect("the new one is shown");
    let why = refusal(&home, "localhost", trusting(&ca));
    assert!(why.contains("not signed by the CA"), "{why}");
    assert_eq!(request(&home, "PUT", "kv/k", b"2").status, 200);
}

#[test]
fn options_that_cannot_work_are_refused_before_a_connection() {
    let ca = Ca::new("ca");
    let (signed, stranger) = (ca.sign("client", &[]), ca.sign("stranger", &[]));
    let why = |tls: TlsOptions| {
        let made = Client::connect_lazy(ClientOptions::default().tls(tls));
        let error = made.expect_err("it is refused");
        assert_eq!(error.code, ErrorCode::Invalid);
        error.message
    };
    let missing = why(TlsOptions::ca_file("/nowhere/ca.pem"));
    assert!(missing.contains("/nowhere/ca.pem"), "{missing}");
    let empty = why(TlsOptions::ca_pem("nothing"));
    assert!(empty.contains("no PEM block of a certificate"), "{empty}");
    let tls = || TlsOptions::ca_file(ca.file());
    let no_key = why(tls().certificate_files(&signed.certificate, &signed.certificate));
    assert!(no_key.contains("private key"), "{no_key}");
    let other_key = why(tls().certificate_files(&signed.certificate, &stranger.key));
    assert!(other_key.contains("not the key"), "{other_key}");
    let name = why(tls().server_name("no host"));
    assert!(name.contains("no host"), "{name}");
}
