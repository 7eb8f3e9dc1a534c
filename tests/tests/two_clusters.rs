//! The real command line between two clusters, and with addresses at which nobody answers.

use std::net::TcpListener;

use rangedb_tests::process::{Home, Node, cli, succeeded};

/// A cluster of one node, and its id.
struct Alone {
    home: Home,
    id: String,
    _node: Node,
    _folder: tempfile::TempDir,
}

impl Alone {
    fn start() -> Alone {
        let folder = tempfile::tempdir().expect("a folder");
        let home = Home::new(folder.path(), &["--shards", "1"]);
        let node = home.start();
        let status = cli(&home.listen, &["status", "--format", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let id = status["cluster"].as_str().expect("the cluster's id");
        Alone {
            id: id.to_owned(),
            home,
            _node: node,
            _folder: folder,
        }
    }

    fn keys(&self) -> usize {
        let scanned = cli(&self.home.listen, &["scan", "--format", "json"]);
        let scanned: serde_json::Value = serde_json::from_slice(&scanned.stdout).expect("JSON");
        scanned["rows"].as_array().expect("rows").len()
    }
}

#[test]
fn a_list_of_addresses_means_one_cluster() {
    let (ours, other) = (Alone::start(), Alone::start());
    assert_ne!(ours.id, other.id);
    let both = format!("{},{}", ours.home.listen, other.home.listen);
    for number in 0..10 {
        let key = format!("key{number}");
        succeeded(&cli(&both, &["put", &key, "v"]));
    }
    for number in 0..10 {
        let got = cli(&both, &["get", &format!("key{number}")]);
        assert_eq!(got.stdout, b"v\n", "{got:?}");
    }
    assert_eq!((ours.keys(), other.keys()), (10, 0));

    // The one that is named is used, wherever it stands in the list.
    for number in 0..5 {
        let put = cli(
            &both,
            &["put", &number.to_string(), "v", "--cluster", &other.id],
        );
        assert!(put.status.success(), "{put:?}");
    }
    assert_eq!((ours.keys(), other.keys()), (10, 5));

    // Without a node of it nothing is done, and the error names address and cluster.
    let refused = cli(
        &ours.home.listen,
        &["put", "k", "v", "--cluster", &other.id],
    );
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{complaint}");
    for named in [&ours.home.listen, &ours.id, &other.id] {
        assert!(complaint.contains(named), "{complaint}");
    }
    assert_eq!(ours.keys(), 10);
    let refused = cli(&ours.home.listen, &["get", "k", "--cluster", "7"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn a_silent_address_does_not_use_up_a_short_time() {
    let node = Alone::start();
    // It takes connections and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = listener.local_addr().expect("bound").to_string();
    succeeded(&cli(&node.home.listen, &["put", "k", "v"]));
    for number in 0..20 {
        let list = match number % 2 {
            0 => format!("{silent},{}", node.home.listen),
            _ => format!("{},{silent}", node.home.listen),
        };
        for command in [&["get", "k"][..], &["node", "ls"], &["status", "--memory"]] {
            let told = cli(&list, &[command, &["--timeout", "500ms"]].concat());
            assert!(told.status.success(), "{number} {command:?}: {told:?}");
        }
    }
}
