//! Tests of how arguments become requests, and how answers become text. `tests/tests` has those that need a
//! node, with the real binary.

use std::io::{self, ErrorKind};
use std::time::Duration;

use clap::{Parser, Subcommand};
use rangedb_client::{Batch, ScanOptions};
use rangedb_server::admin::json;
use serde_json::{Map, Value};

use super::connection_args::ConnectionArgs;
use super::input;
use super::request::{CasCondition, ClusterQuery, Leave, Order, Request, Top, prepare};
use super::split::At;
use super::{CliCommand, Exit, Format, GlobalArgs, output};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// A command that asks no node.
    Local,
    #[command(flatten)]
    Client(Box<CliCommand>),
}

impl Cli {
    fn client(self) -> CliCommand {
        match self.command {
            Commands::Client(command) => *command,
            Commands::Local => panic!("it asks no node"),
        }
    }
}

fn request(words: &[&str]) -> Result<Request, Exit> {
    let line = std::iter::once("rangedb").chain(words.iter().copied());
    let cli = Cli::try_parse_from(line).map_err(|_| Exit::Usage)?;
    prepare(&cli.client()).map_err(|error| error.exit)
}

/// The batch of a write, and what its conditions are called.
fn written(words: &[&str]) -> (Batch, Vec<String>) {
    match request(words).expect("a write") {
        Request::Write(typed) => (typed.batch, typed.conditions),
        other => panic!("no write: {other:?}"),
    }
}

#[test]
fn documented_command_lines_are_understood() {
    let key = b"k".to_vec();
    assert_eq!(
        request(&["get", "k"]),
        Ok(Request::Get {
            keys: vec![key.clone()]
        })
    );
    assert_eq!(
        request(&["get", "k", "-1", "k", ""]),
        Ok(Request::Get {
            keys: [&b"k"[..], b"-1", b"k", b""].map(<[u8]>::to_vec).to_vec()
        })
    );
    let raw = Request::GetRaw { key: key.clone() };
    assert_eq!(request(&["get", "--raw", "k"]), Ok(raw));
    assert_eq!(
        request(&[
            "put",
            "--addr",
            "a:1, [::1]:7400",
            "--timeout",
            "500ms",
            "--",
            "k",
            "-v"
        ]),
        Ok(Request::Put {
            key: key.clone(),
            value: b"-v".to_vec()
        })
    );
    assert_eq!(
        request(&["put", "k", ""]),
        Ok(Request::Put {
            key: key.clone(),
            value: Vec::new()
        })
    );
    assert_eq!(
        request(&["cas", "k", "--if-absent", "v"]),
        Ok(Request::Cas {
            key: key.clone(),
            condition: CasCondition::Absent,
            value: Some(b"v".to_vec())
        })
    );
    assert_eq!(
        request(&["cas", "k", "--if-exists", "v"]),
        Ok(Request::Cas {
            key: key.clone(),
            condition: CasCondition::Exists,
            value: Some(b"v".to_vec())
        })
    );
    assert_eq!(
        request(&["cas", "k", "--if-version", "7", "--delete"]),
        Ok(Request::Cas {
            key: key.clone(),
            condition: CasCondition::Version(7),
            value: None
        })
    );
    assert_eq!(
        request(&["cas", "k", "--if-value", "6f", "6e", "--hex"]),
        Err(Exit::Usage),
        "the key is no hexadecimal number"
    );
    assert_eq!(
        request(&["incr", "k", "--by", "-3"]),
        Ok(Request::Incr { key, by: -3 })
    );
    assert_eq!(
        request(&["scan", "--start", "a", "--limit", "5"]),
        Ok(Request::Scan {
            options: ScanOptions::from("a"..).page_size(1000),
            limit: 5
        })
    );
    assert_eq!(
        request(&[
            "scan",
            "--prefix",
            "61ff",
            "--hex",
            "--reverse",
            "--keys-only"
        ]),
        Ok(Request::Scan {
            options: ScanOptions::from(&b"a\xff"[..]..b"b")
                .page_size(1000)
                .reverse()
                .keys_only(),
            limit: usize::MAX
        })
    );
    for (prefix, start) in [("ffff", &b"\xff\xff"[..]), ("", b"")] {
        assert_eq!(
            request(&["scan", "--prefix", prefix, "--hex"]),
            Ok(Request::Scan {
                options: ScanOptions::from(start..).page_size(1000),
                limit: usize::MAX
            })
        );
    }
    assert_eq!(
        request(&["status", "--format", "json"]),
        Ok(Request::Status)
    );
    let top = |once, seconds| {
        let interval = Duration::from_secs(seconds);
        Ok(Request::Top(Top { once, interval }))
    };
    assert_eq!(request(&["top"]), top(false, 1));
    assert_eq!(
        request(&["top", "--once", "--interval", "2s"]),
        top(true, 2)
    );
    assert_eq!(request(&["status", "--memory"]), Ok(Request::Memory));
    assert_eq!(
        request(&["range", "ls"]),
        Ok(Request::Query(ClusterQuery::Ranges))
    );
    assert_eq!(
        request(&["node", "ls"]),
        Ok(Request::Query(ClusterQuery::Nodes))
    );
}

#[test]
fn the_cluster_is_steered_by_orders() {
    let order = |order| Ok(Request::Order(order, false));
    assert_eq!(
        request(&["range", "transfer-leader", "7"]),
        order(Order::TransferLeader { range: 7, to: None })
    );
    assert_eq!(
        request(&["range", "transfer-leader", "7", "--wait"]),
        Ok(Request::Order(
            Order::TransferLeader { range: 7, to: None },
            true
        ))
    );
    assert_eq!(
        request(&["range", "release", "7"]),
        order(Order::Release { range: 7 })
    );
    let scatter = |start: &[u8], end: Option<&[u8]>| {
        let (start, end) = (start.to_vec(), end.map(<[u8]>::to_vec));
        order(Order::Scatter { start, end })
    };
    assert_eq!(request(&["range", "scatter"]), scatter(b"", None));
    assert_eq!(
        request(&["range", "scatter", "--start", "61", "--end", "-b", "--hex"]).ok(),
        None
    );
    assert_eq!(
        request(&["range", "scatter", "--start", "a", "--end", "-b"]),
        scatter(b"a", Some(b"-b"))
    );
    assert_eq!(
        request(&["balance", "--watch"]),
        Ok(Request::Balance { watch: true })
    );
    assert_eq!(
        request(&["range", "show", "7"]),
        Ok(Request::Query(ClusterQuery::Range(7)))
    );
    let split = |keys: &[&[u8]], hold| {
        let keys = keys.iter().map(|key| key.to_vec()).collect();
        Ok(Request::Split(At::Range(7, keys), hold))
    };
    assert_eq!(
        request(&["range", "split", "7", "--at", "m", "--at", "-x"]),
        split(&[b"m", b"-x"], Duration::from_hours(1))
    );
    assert_eq!(
        request(&[
            "range", "split", "7", "--at", "00ff", "--hex", "--hold", "forever"
        ]),
        split(&[b"\0\xff"], Duration::MAX)
    );
    assert_eq!(
        request(&["range", "split", "7", "--into", "4", "--hold", "0"]),
        Ok(Request::Split(At::Parts(7, 4), Duration::ZERO))
    );
    assert_eq!(
        request(&["range", "hot"]),
        Ok(Request::Query(ClusterQuery::HotRanges(10)))
    );
    assert_eq!(
        request(&["range", "hot", "--top", "3"]),
        Ok(Request::Query(ClusterQuery::HotRanges(3)))
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("borders");
    std::fs::write(&file, "t\nm\n").expect("it can be written");
    assert_eq!(
        request(&[
            "range",
            "split",
            "--at-file",
            &file.to_string_lossy(),
            "--hold",
            "30m"
        ]),
        Ok(Request::Split(
            At::Keys(vec![b"m".to_vec(), b"t".to_vec()]),
            Duration::from_mins(30)
        ))
    );
    std::fs::write(&file, "t\n\n").expect("it can be written");
    assert_eq!(
        request(&["range", "split", "--at-file", &file.to_string_lossy()]),
        Err(Exit::Refused)
    );
    for hold in ["ever", "-1h", "100000000000h"] {
        let words = ["range", "split", "7", "--at", "m", "--hold", hold];
        assert_eq!(request(&words), Err(Exit::Refused), "{hold}");
    }
    assert_eq!(request(&["reload"]), Ok(Request::Reload));
    for (to, place) in [("3", (3, None)), ("3/2", (3, Some(2)))] {
        assert_eq!(
            request(&["range", "move-replica", "7", "--from", "1", "--to", to]),
            order(Order::MoveReplica {
                range: 7,
                from: 1,
                to: place
            })
        );
    }
    assert_eq!(
        request(&["config", "set", "dead-after", "1m"]),
        order(Order::Set {
            name: "dead-after".to_owned(),
            value: "1m".to_owned()
        })
    );
    // The cluster knows which values a setting may have.
    assert_eq!(
        request(&["config", "set", "moves-max", "-1", "--timeout", "7s"]),
        order(Order::Set {
            name: "moves-max".to_owned(),
            value: "-1".to_owned()
        })
    );
    let setting = |name: Option<&str>| {
        Ok(Request::Query(ClusterQuery::Setting(
            name.map(str::to_owned),
        )))
    };
    assert_eq!(request(&["config", "get"]), setting(None));
    assert_eq!(
        request(&["config", "get", "balance"]),
        setting(Some("balance"))
    );
    assert_eq!(
        request(&["history", "--from", "90m", "--node", "2"]),
        Ok(Request::History {
            from: std::time::Duration::from_secs(5400),
            to: None,
            node: Some(2)
        })
    );
    assert_eq!(
        request(&["config", "history", "--format", "json"]),
        Ok(Request::Query(ClusterQuery::History))
    );
}

#[test]
fn senseless_command_lines_are_usage_errors() {
    for words in [
        &["get"][..],
        &["put", "k"],
        &["put", "k", "v", "--stdin"],
        &["cas", "k", "v"],
        &["cas", "k", "--if-absent"],
        &["cas", "k", "--if-absent", "--if-version", "1", "v"],
        &["cas", "k", "--if-absent", "v", "--delete"],
        &["cas", "k", "--if-absent", "--if-exists", "v"],
        &["scan", "--limit", "0"],
        &["scan", "--prefix", "a", "--start", "a"],
        &["scan", "--prefix", "a", "--end", "b"],
        &["scan", "--prefix", "0", "--hex"],
        &["range", "transfer-leader"],
        &["range", "transfer-leader", "x"],
        &["range", "move-replica", "7", "--from", "1"],
        &["range", "move-replica", "7", "--from", "1", "--to", "a"],
        &["range", "split"],
        &["range", "split", "7"],
        &["range", "split", "--at", "m"],
        &["range", "split", "7", "--at", "m", "--at-file", "f"],
        &["range", "split", "7", "--at-file", "f"],
        &["range", "split", "--at-file", "/no/such/file"],
        &["range", "split", "7", "--at", "0", "--hex"],
        &["range", "split", "--into", "4"],
        &["range", "split", "7", "--into", "x"],
        &["range", "split", "7", "--into", "4", "--at", "m"],
        &["range", "split", "--into", "4", "--at-file", "f"],
        &["range", "hot", "--top", "-1"],
        &["range", "show"],
        &["range", "release", "x"],
        &["range", "scatter", "7"],
        &["range", "scatter", "--begin", "a"],
        &["balance", "on"],
        &["config", "set", "balance"],
        &["node"],
        &["write"],
        &["write", "put", "k"],
        &["write", "set", "k", "v"],
        &["get", "k", "--timeout", "0s"],
        &["get", "k", "--addr", "localhost"],
        &["get", "--raw", "a", "b"],
        &["scan", "--end", ""],
        &["top", "--interval", "0"],
        &["top", "--once", "--format", "json"],
        &["history", "--from", "1h", "--to", "2h"],
        &["history", "--from", "1h", "--to", "1h"],
        &["get", "0", "--hex"],
        &["get", "00", "0", "--hex"],
        &["put", "00", "+f", "--hex"],
        &["put", "k", "--file", "/no/such/file"],
    ] {
        assert_eq!(request(words), Err(Exit::Usage), "{words:?}");
    }
}

/// The flags of the connection as the command sees them.
fn connection(words: &[&str]) -> ConnectionArgs {
    let line = std::iter::once("rangedb").chain(words.iter().copied());
    let cli = Cli::try_parse_from(line).expect("a command line");
    cli.client().connection().clone()
}

#[test]
fn flags_of_all_commands_stand_before_or_after_the_command() {
    let flags = [
        "--addr",
        "a:1, b:2",
        "--timeout",
        "7s",
        "--format",
        "json",
        "--hex",
    ];
    for verb in [
        &["get", "00"][..],
        &["put", "00", "--", "-1"],
        &["node", "ls"],
    ] {
        let before = connection(&[&flags[..], verb].concat());
        let within = connection(&[&verb[..1], &flags, &verb[1..]].concat());
        for found in [before, within] {
            assert_eq!(found.addresses, ["a:1", "b:2"], "{verb:?}");
            assert_eq!(found.timeout, Duration::from_secs(7), "{verb:?}");
            assert!(found.format == Format::Json && found.hex, "{verb:?}");
        }
    }
    for slow in [&["split", "7", "--at", "m"][..], &["merge", "7"]] {
        let found = connection(&[&["range"], slow].concat());
        assert_eq!(found.timeout, Duration::from_mins(1), "{slow:?}");
    }
    // The later one counts.
    let found = connection(&["--timeout", "7s", "get", "k", "--timeout", "8s"]);
    assert_eq!(found.timeout, Duration::from_secs(8));
    let given = |words: &[&str]| {
        let line = std::iter::once("rangedb").chain(words.iter().copied());
        let cli = Cli::try_parse_from(line).expect("a command line");
        [false, true].map(|has_format| cli.global.meaningless(has_format, false))
    };
    let addr = Some("--addr");
    assert_eq!(given(&["--addr", "a:1", "local"]), [addr, addr]);
    assert_eq!(
        given(&["local", "--format", "json"]),
        [Some("--format"), None]
    );
    assert_eq!(given(&["local"]), [None, None]);
}

/// Standard output that nobody reads, or that is full.
struct Unwritable(ErrorKind);

impl io::Write for Unwritable {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_result_that_cannot_be_printed_tells_whether_something_was_written() {
    let printer = output::Printer {
        format: Format::Table,
        hex: false,
    };
    for (kind, of_read) in [
        (ErrorKind::StorageFull, Exit::Usage),
        (ErrorKind::BrokenPipe, Exit::PipeClosed),
    ] {
        let read = printer.print(&mut Unwritable(kind), Value::Null, "value");
        assert_eq!(read.expect_err("it cannot be printed").exit, of_read);
        let written = printer.version(&mut Unwritable(kind), 7);
        let error = written.expect_err("it cannot be printed");
        assert_eq!(error.exit, Exit::AppliedUnprinted);
        assert!(error.message.contains("was applied"), "{error:?}");
    }
}

#[test]
fn columns_are_as_wide_as_their_widest_cell() {
    let rows = [["id", "name", ""], ["10", "grün", "x"], ["7", "a", ""]];
    let text = output::columns(&rows.map(|row| row.map(str::to_owned)));
    assert_eq!(text, "id  name\n10  grün  x\n7   a\n");
}

#[test]
fn flags_after_free_words_stay_flags() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"\x00v\n").unwrap();
    let path = file.path().to_str().unwrap();
    let wanted = Request::Put {
        key: b"k".to_vec(),
        value: b"\x00v\n".to_vec(),
    };
    assert_eq!(request(&["put", "k", "--file", path]), Ok(wanted));
    let batch = Batch::new().put("k", "-1");
    assert_eq!(
        written(&["write", "put", "k", "-1", "--format", "json"]),
        (batch, vec![])
    );
}

#[test]
fn writes_are_given_as_words_or_json_lines() {
    let wanted = Batch::new().put("a", "put").delete("delete").add("n", -3);
    let words = [
        "write", "put", "a", "put", "delete", "delete", "add", "n", "-3",
    ];
    assert_eq!(written(&words), (wanted.clone(), vec![]));
    let lines = r#"{"op":"put","key":"a","value":"put"}

        {"op":"delete","key":"delete"}
        {"op":"add","key":"n","delta":-3}
        {"op":"put","key_hex":"00ff","value":""}"#;
    let wanted = wanted.put([0, 255], "");
    assert_eq!(input::json_batch(lines, false).unwrap().batch, wanted);
    for bad in [
        r#"{"op":"put","key":"a"}"#,
        r#"{"op":"delete","key":"a","value":"b"}"#,
        r#"{"op":"put","value":"b"}"#,
        r#"{"op":"put","key":"a","key_hex":"00","value":""}"#,
        r#"{"op":"put","key":"a","value":"b","more":1}"#,
        r#"{"op":"add","key":"a"}"#,
        r#"{"op":"add","key":"a","delta":9223372036854775808}"#,
        r#"{"key":"a","value":"b"}"#,
        "put a b",
    ] {
        assert!(input::json_batch(bad, false).is_err(), "{bad}");
    }
}

#[test]
fn a_write_takes_conditions_on_several_keys() {
    let mut words = vec!["write", "--if-absent", "a", "--if-version", "b", "7"];
    words.extend([
        "--if-value",
        "c",
        "-1",
        "--if-exists",
        "d",
        "--if-absent",
        "e",
    ]);
    words.extend(["put", "a", "1", "--format", "json"]);
    let batch = Batch::new()
        .if_absent("a")
        .if_version("b", 7)
        .if_value("c", "-1")
        .if_exists("d")
        .if_absent("e")
        .put("a", "1");
    let names = [
        "--if-absent a",
        "--if-version b 7",
        "--if-value c",
        "--if-exists d",
        "--if-absent e",
    ];
    let names = names.map(str::to_owned).to_vec();
    assert_eq!(written(&words), (batch, names));
    let lines = r#"{"if":"absent","key":"a"}
        {"if":"version","key":"b","version":7}
        {"op":"delete","key":"a"}"#;
    let typed = input::json_batch(lines, false).unwrap();
    let wanted = Batch::new().if_absent("a").if_version("b", 7).delete("a");
    assert_eq!(typed.batch, wanted);
    let names = ["the condition of line 1", "the condition of line 2"];
    assert_eq!(typed.conditions, names);
    for bad in [
        &["write", "--if-version", "b", "x", "put", "a", "1"][..],
        &["write", "--if-absent", "a"],
        &["write", "--if-absent", "a", "--stdin"],
        &["write", "add", "n", "x"],
        &["write", "add", "n"],
    ] {
        assert_eq!(request(bad), Err(Exit::Usage), "{bad:?}");
    }
}

#[test]
fn binary_survives_json_and_keeps_to_its_line_in_tables() {
    let mut object = Map::new();
    json::set_bytes(&mut object, "key", "grün".as_bytes(), false);
    json::set_bytes(&mut object, "value", &[0xff, 0x00], false);
    assert_eq!(
        Value::Object(object).to_string(),
        r#"{"key":"grün","value_hex":"ff00"}"#
    );
    assert_eq!(output::word(b"a\tb\\\n\xffz", false), r"a\x09b\\\x0a\xffz");
    assert_eq!(output::word(b"az", true), "617a");
}

#[test]
fn a_node_that_leaves_is_waited_for_longer_than_other_commands_take() {
    for (words, leave) in [
        (
            &["drain", "3", "--wait"][..],
            Leave::Drain {
                node: 3,
                wait: true,
            },
        ),
        (&["undrain", "3"], Leave::Undrain { node: 3 }),
        (
            &["decommission", "3"],
            Leave::Decommission {
                nodes: vec![3],
                wait: false,
            },
        ),
        (
            &["decommission", "5", "3", "5", "--wait"],
            Leave::Decommission {
                nodes: vec![3, 5],
                wait: true,
            },
        ),
        (
            &["decommission", "3", "--dry-run"],
            Leave::DryRun { nodes: vec![3] },
        ),
        (&["remove", "3"], Leave::Remove { node: 3 }),
    ] {
        let words = [&["node"], words].concat();
        assert_eq!(request(&words), Ok(Request::Leave(leave)), "{words:?}");
    }
    let both = ["node", "decommission", "3", "--wait", "--dry-run"];
    assert_eq!(request(&both), Err(Exit::Usage));
    assert_eq!(request(&["node", "decommission"]), Err(Exit::Usage));
    let timeout = |words: &[&str]| {
        let line = std::iter::once(&"rangedb").chain(words);
        let cli = Cli::try_parse_from(line).expect("a command");
        cli.client().connection().timeout.as_secs()
    };
    assert_eq!(timeout(&["node", "drain", "3"]), 300);
    assert_eq!(timeout(&["node", "drain", "3", "--timeout", "7s"]), 7);
    assert_eq!(timeout(&["node", "undrain", "3"]), 5);
}
