//! Connections take only their share of a node's file descriptors and memory.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use rangedb_protocol::handshake::Verdict;
use rangedb_protocol::limits::FRAME_LEN_MAX;
use rangedb_tests::cluster::wait_for;
use rangedb_tests::process::{Background, Home, command, raise_open_files};
use rangedb_tests::raw::RawClient;

/// Connections that a test opens at most, with those of the node in another process.
const CONNECTIONS_MAX: usize = 4_500;

/// A node's memory in MiB.
fn memory_mib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("a number")
        >> 10
}

fn refused_with(limit: u32, home: &Home) -> String {
    let limit = format!("--nofile={limit}:{limit}");
    let start = home.start_command();
    let output = Command::new("prlimit")
        .arg(limit)
        .arg(start.get_program())
        .args(start.get_args())
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn too_few_files_are_refused_with_the_number_that_is_needed() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "2"]);
    let complaint = refused_with(50, &home);
    let needed = complaint.split("ulimit -n ").nth(1).expect("advice");
    let needed: u32 = needed
        .split('`')
        .next()
        .and_then(|needed| needed.parse().ok())
        .unwrap_or_else(|| panic!("{complaint}"));
    assert!(
        complaint.contains(&format!("LimitNOFILE={needed}")),
        "{complaint}"
    );
    refused_with(needed - 1, &home);
    // This number is enough.
    let limit = format!("--nofile={needed}:{needed}");
    let node = home.start_with(&["prlimit", &limit], Stdio::null(), home.log_file().into());
    home.put("k", "v");
    drop(node);
}

#[test]
fn connections_do_not_take_the_files_of_tables() {
    raise_open_files(CONNECTIONS_MAX + 500);
    for limit in [120, 256, 1024, 4096] {
        let folder = tempfile::tempdir().expect("a folder");
        let home = Home::new(folder.path(), &["--shards", "1", "--memory", "64MiB"]);
        let nofile = format!("--nofile={limit}:{limit}");
        let mut node =
            home.start_with(&["prlimit", &nofile], Stdio::null(), home.log_file().into());
        let mut load = Background::start(
            command("loadgen")
                .args(["run", "--workload", "write", "--rate", "2000"])
                .args(["--records", "20000", "--value-size", "1000"])
                .args(["--connections", "1", "--duration", "600"])
                .args(["--addr", &home.listen]),
        );
        let flushes = || home.metric("rangedb_flushes_total");
        // The first one comes with the start. Clients that are connected by then stay connected.
        wait_for("a flush", || (flushes() >= 2.0).then_some(()));
        // Some send nothing at all; the others are clients.
        let silent: Vec<_> = (0..limit / 2)
            .filter_map(|_| TcpStream::connect(&home.listen).ok())
            .collect();
        let (mut clients, mut refused) = (Vec::new(), 0);
        for _ in 0..limit.min(CONNECTIONS_MAX / 2) {
            let client = RawClient::connect(&home.listen).expect("an answer");
            match client.answer.verdict {
                Verdict::Accepted => clients.push(client),
                Verdict::TooManyConnections => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        println!(
            "of {limit} files: {} clients, {refused} refused",
            clients.len()
        );
        assert!(refused > 0 && !clients.is_empty());
        let before = flushes();
        wait_for("more flushes", || {
            assert!(load.is_running() && node.is_running(), "{}", home.log());
            (flushes() >= before + 3.0).then_some(())
        });
        assert!(home.metric("rangedb_connections_refused_total") >= f64::from(refused));
        assert_eq!(home.page("/livez").0, 200);
        // Permits that are given up can be taken.
        drop((clients, silent));
        wait_for("a permit", || {
            let put = home.cli(&["put", "k", "v"]);
            put.status.success().then_some(())
        });
        assert!(node.is_running(), "{}", home.log());
    }
}

#[test]
fn frames_in_the_making_take_their_share_of_memory_and_give_it_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "2", "--memory", "512MiB"]);
    let node = home.start();
    let before = memory_mib(node.id());
    // Seven of eight MiB of a frame each.
    let mut frame = (FRAME_LEN_MAX as u32).to_le_bytes().to_vec();
    frame.resize(7 << 20, 7);
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = RawClient::connect(&home.listen).expect("an answer");
        client.stream.write_all(&frame).expect("it is taken");
        clients.push(client);
    }
    let most = memory_mib(node.id());
    home.put("k", "v");
    let unfinished = || home.metric_with("rangedb_memory_used_bytes", "budget=\"requests\"");
    let held = unfinished();
    assert!(held > 0.0 && held < f64::from(64 << 20), "{held}");
    drop(clients);
    wait_for("the end of all frames", || {
        (unfinished() == 0.0).then_some(())
    });
    // The allocator gives memory back to the kernel a little later.
    let after = wait_for("the memory of the frames", || {
        Some(memory_mib(node.id())).filter(|after| *after < before + 60)
    });
    println!("memory: {before} MiB, {most} with 700 MiB of frames on their way, {after} after");
    assert!(
        most < before + 150,
        "{before} MiB before, {most} MiB with frames"
    );
}

#[test]
fn idle_connections_to_the_admin_pages_keep_no_probe_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "1"]);
    let _node = home.start();
    let idle: Vec<_> = (0..200)
        .filter_map(|_| TcpStream::connect(&home.http).ok())
        .collect();
    for _ in 0..20 {
        assert_eq!(home.page("/livez").0, 200);
        assert_eq!(home.page("/readyz").0, 200);
    }
    drop(idle);
}
