//! The programs on the client's page and in the documentation of its crate, run against real nodes.
//!
//! A program stands in a file of the folder `programs`, as it does on the page; only addresses and paths
//! are those of the test ([`NAMES`]). So the compiler sees it, its warnings included. A page whose programs
//! are not these files fails. The same holds of the examples in `client/src`, whose files are in the folder
//! `programs/docs`: `cargo test --doc` compiles them, but has no node on which they could run.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rangedb_certificates::{Ca, HOSTS};
use rangedb_client::{CasOutcome, Client, Condition, Error};
use rangedb_tests::cluster::{homes, start_all, wait_for, wait_until_replicated};
use rangedb_tests::load;
use rangedb_tests::process::Home;

use super::{blocks, root};

/// What a page says, and what stands for it here.
const NAMES: [(&str, &str); 11] = [
    ("\"10.0.0.1:7400\"", "node(1)"),
    ("\"10.0.0.2:7400\"", "node(2)"),
    ("\"10.0.0.3:7400\"", "node(3)"),
    ("\"127.0.0.1:7400\"", "node(1)"),
    ("\"db1:7400\"", "node(1)"),
    ("\"db2:7400\"", "node(2)"),
    ("\"db3:7400\"", "node(3)"),
    ("\"db1.example.com:7400\"", "tls_node()"),
    ("\"ca.pem\"", "file(\"ca.pem\")"),
    ("\"client.pem\"", "file(\"client.pem\")"),
    ("\"client.key\"", "file(\"client.key\")"),
];

/// The addresses of the nodes, of the one with TLS, and the certificates.
struct Place {
    nodes: Vec<String>,
    tls_node: String,
    /// The folder of the certificates.
    certificates: PathBuf,
}

static PLACE: OnceLock<Place> = OnceLock::new();

fn place() -> &'static Place {
    PLACE.get().expect("the nodes run")
}

fn node(number: usize) -> String {
    place().nodes[number - 1].clone()
}

fn tls_node() -> String {
    place().tls_node.clone()
}

fn file(name: &str) -> PathBuf {
    place().certificates.join(name)
}

/// Makes modules of the programs, each with what it needs of this one and how it is entered.
macro_rules! programs {
    ($programs:ident: $($name:ident uses [$($used:ident),*] in $file:literal, $entry:item)*) => {
        $(mod $name {
            #[allow(unused_imports, reason = "a list may be empty")]
            use super::{$($used),*};
            include!($file);
            $entry
        })*
        const $programs: &[&str] = &[$(include_str!($file)),*];
    };
}

programs! {
    PROGRAMS:

    example uses [node] in "programs/example.rs.in",
    pub fn run() -> Result<(), rangedb_client::Error> { main() }

    connects uses [node] in "programs/connect.rs.in",
    pub async fn run(cluster: &str) -> Result<Client, Box<dyn std::error::Error>> { connect(cluster).await }

    connects_tls uses [tls_node, file] in "programs/connect_tls.rs.in",
    pub async fn run() -> Result<Client, Error> { connect().await }

    blocks_its_thread uses [node] in "programs/count_visit.rs.in",
    pub fn run() -> Result<i64, rangedb_client::Error> { count_visit() }

    scans uses [] in "programs/last_events.rs.in",
    pub async fn run(client: &Client) -> Result<(), Error> { last_events(client).await }

    swaps uses [] in "programs/append.rs.in",
    pub async fn run(client: &Client, key: &str, line: &str) -> Result<u64, Error> {
        append(client, key, line).await
    }

    administers uses [] in "programs/empty_node.rs.in",
    pub async fn run(client: &Client, node: u64) -> Result<(), Error> { empty_node(client, node).await }

    counts uses [] in "programs/count.rs.in",
    pub async fn run(client: &Client) -> Result<(), Error> { count(client).await }
}

programs! {
    EXAMPLES:

    doc_of_crate uses [node] in "programs/docs/lib.rs.in",
    pub async fn run() -> Result<(), rangedb_client::Error> { example().await }

    doc_of_admin uses [] in "programs/docs/admin.rs.in",
    pub async fn run(client: Client) -> Result<(), Error> { example(client).await }

    doc_of_blocking uses [node] in "programs/docs/blocking.rs.in",
    pub fn run() -> Result<(), rangedb_client::Error> { main() }

    doc_of_connect uses [node] in "programs/docs/client.rs.in",
    pub async fn run() -> Result<(), Error> { example().await }

    doc_of_get_many uses [] in "programs/docs/get_many.rs.in",
    pub async fn run(client: Client) -> Result<(), Error> { example(client).await }

    doc_of_swap uses [] in "programs/docs/operations.rs.in",
    pub async fn run(client: Client) -> Result<(), Error> { example(client).await }

    doc_of_scan uses [] in "programs/docs/scan.rs.in",
    pub async fn run(client: rangedb_client::Client) -> Result<(), rangedb_client::Error> {
        example(client).await
    }
}

/// The files of the client with examples that need a node, in the order of [`EXAMPLES`].
const DOCUMENTED: [&str; 7] = [
    "lib.rs",
    "admin.rs",
    "blocking.rs",
    "client.rs",
    "get_many.rs",
    "operations.rs",
    "scan.rs",
];

/// Checks that the examples in the client's source are those that are run here, in every file that has
/// one.
pub fn are_those_of_the_documentation() {
    let folder = root().join("client/src");
    let (mut found, mut shown) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        let Ok(source) = std::fs::read_to_string(&path) else {
            continue;
        };
        let lines = source.lines().map(str::trim_start);
        let docs = lines.filter_map(|line| line.strip_prefix("///").or(line.strip_prefix("//!")));
        // Lines that readers do not see begin with `# `.
        let docs = docs.map(|line| line.strip_prefix(' ').unwrap_or(line));
        let docs = docs.map(|line| line.strip_prefix("# ").unwrap_or(line));
        let mut text: Option<String> = None;
        for line in docs {
            match &mut text {
                None if line == "```no_run" => text = Some(String::new()),
                None => {}
                Some(_) if line == "```" => {
                    let name = path.file_name().unwrap_or_default();
                    found.push(name.to_string_lossy().into_owned());
                    shown.extend(text.take().map(|text| localized(&text)));
                }
                Some(text) => text.extend([line, "\n"]),
            }
        }
    }
    let mut documented = DOCUMENTED;
    documented.sort_unstable();
    found.sort_unstable();
    assert_eq!(
        found, documented,
        "client/src: each example needs a file here"
    );
    for (file, program) in DOCUMENTED.iter().zip(EXAMPLES) {
        assert!(
            shown.iter().any(|text| text == program),
            "client/src/{file}: change tests/tests/readmes/programs/docs, too"
        );
    }
}

/// A program with the names of the test.
fn localized(text: &str) -> String {
    NAMES
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Checks that the page's programs are those that are run here.
pub fn are_those_of(page: &str) {
    let (blocks, _) = blocks(page);
    let programs = blocks
        .iter()
        .filter(|block| block.language.starts_with("rust"));
    let shown: Vec<String> = programs.map(|block| localized(&block.text)).collect();
    assert_eq!(
        shown, PROGRAMS,
        "{page}: change tests/tests/readmes/programs, too"
    );
}

async fn text(client: &Client, key: &str) -> String {
    let found = client
        .get(key)
        .await
        .expect("it is read")
        .expect("it is there");
    String::from_utf8(found.value.to_vec()).expect("a text")
}

async fn run_with(client: &Client) {
    assert_eq!(text(client, "greeting").await, "hi");
    assert_eq!(text(client, "greeting/lock").await, "me");
    assert_eq!(text(client, "greeting/count").await, "1");
    let cluster = client.cluster().expect("it is connected").to_string();
    let connected = connects::run(&cluster).await.expect("it connects");
    assert_eq!(text(&connected, "greeting").await, "hi");
    let other = connects::run(&"f".repeat(32)).await.map(drop);
    other.expect_err("the nodes belong to another cluster");

    let connected = connects_tls::run().await.expect("it connects");
    connected
        .put("greeting", "over TLS")
        .await
        .expect("it is written");

    for number in 0..12 {
        client
            .put(format!("event/{number:02}"), "")
            .await
            .expect("it is written");
    }
    scans::run(client).await.expect("it scans");

    let first = swaps::run(client, "lines", "a").await.expect("it appends");
    let second = swaps::run(client, "lines", "b").await.expect("it appends");
    assert!(second > first);
    assert_eq!(text(client, "lines").await, "ab");
    let swap = client
        .compare_and_swap("lines", Condition::Exists, "c")
        .await;
    assert!(matches!(swap, Ok(CasOutcome::Swapped { .. })));
    let swap = client
        .compare_and_delete("no lines", Condition::Exists)
        .await;
    assert_eq!(swap, Ok(CasOutcome::Failed { current: None }));

    counts::run(client).await.expect("it counts");
    assert_eq!(text(client, "orders").await, "1");
}

async fn run_examples_with(client: &Client) {
    let done = |result: Result<(), Error>| result.expect("it runs to its end");
    done(doc_of_crate::run().await);
    assert_eq!(text(client, "greeting").await, "hello");
    assert_eq!(text(client, "visits").await, "3");
    client.put("greeting", "bye").await.expect("it is written");
    done(doc_of_connect::run().await);
    assert_eq!(text(client, "greeting").await, "hello");
    done(doc_of_get_many::run(client.clone()).await);
    client.put("lock", "free").await.expect("it is written");
    done(doc_of_swap::run(client.clone()).await);
    assert_eq!(text(client, "lock").await, "mine");
    done(doc_of_scan::run(client.clone()).await);
}

#[test]
fn the_programs_of_the_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let homes = homes(folder.path());
    let _nodes = start_all(&homes);
    wait_until_replicated(&homes);
    let certificates = Ca::new("ca");
    let own = certificates.sign("node", HOSTS);
    certificates.sign("client", &["client"]);
    let ca = certificates.file();
    let flags = [
        "--shards",
        "1",
        "--tls-cert",
        &own.certificate,
        "--tls-key",
        &own.key,
    ];
    let tls_home = Home::new(folder.path(), &[&flags[..], &["--tls-ca", &ca]].concat());
    let _tls_node = tls_home.start();
    let set = PLACE.set(Place {
        nodes: homes.iter().map(|home| home.listen.clone()).collect(),
        tls_node: tls_home.listen.clone(),
        certificates: Path::new(&ca).parent().expect("a folder").to_owned(),
    });
    assert!(set.is_ok(), "it is set once");

    example::run().expect("it runs to its end");
    assert_eq!(blocks_its_thread::run(), Ok(1));
    assert_eq!(blocks_its_thread::run(), Ok(2));
    load::run(async {
        let client = Client::connect(node(1)).await.expect("it connects");
        run_with(&client).await;
        run_examples_with(&client).await;
    });
    doc_of_blocking::run().expect("it runs to its end");
    // A range takes no order while another one goes on.
    let leads = |led: &Vec<rangedb_client::admin::Range>| {
        led.iter().any(|range| range.leader_node == Some(1))
    };
    wait_for("a node 1 that leads nothing", || {
        load::run(async {
            let client = Client::connect(node(1)).await.ok()?;
            administers::run(&client, 1).await.ok()?;
            let ranges = client.admin().ranges().await.ok()?;
            (!leads(&ranges)).then_some(())
        })
    });
    wait_for("the example of orders, which others may delay", || {
        load::run(async {
            let client = Client::connect(node(2)).await.ok()?;
            doc_of_admin::run(client).await.ok()
        })
    });
}
