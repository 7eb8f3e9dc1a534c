//! A real-time thread steals the node's core at random: no shard may hang, and the longest stall is
//! reported. Ten seconds, or as long as `RANGEDB_SOAK_SECONDS` says, and then at least a minute.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_tests::process::{Home, command};

const STRESS: Duration = Duration::from_secs(10);
const SOAK_STRESS: Duration = Duration::from_mins(1);
/// The core that is stolen.
const CORE: &str = "0";
/// A call that takes longer than this hung: the thief leaves more than half of the core.
const HANG_MILLIS: u64 = 2_000;

/// Makes this thread a real-time one on the core.
fn become_thief() -> Result<(), String> {
    let link = std::fs::read_link("/proc/thread-self").map_err(|e| e.to_string())?;
    let id = link
        .file_name()
        .expect("a thread's id")
        .to_string_lossy()
        .into_owned();
    for (program, arguments) in [
        ("taskset", ["-p", "-c", CORE, &id]),
        ("chrt", ["-f", "-p", "50", &id]),
    ] {
        let done = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match done {
            Ok(status) if status.success() => {}
            Ok(_) => return Err(format!("{program} is not allowed here")),
            Err(error) => return Err(format!("{program}: {error}")),
        }
    }
    Ok(())
}

/// Takes the core for a random time, again and again.
fn steal(until: Instant, random: &mut StdRng) -> u32 {
    let mut times = 0;
    while Instant::now() < until {
        let taken = Instant::now();
        let length = Duration::from_micros(match random.random_range(0..10) {
            0 => random.random_range(5_000..40_000),
            _ => random.random_range(20..2_000),
        });
        while taken.elapsed() < length {
            std::hint::spin_loop();
        }
        times += 1;
        std::thread::sleep(Duration::from_micros(random.random_range(50..6_000)));
    }
    times
}

#[test]
fn no_shard_hangs_while_its_core_is_stolen() {
    let soak: Option<u64> = std::env::var("RANGEDB_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let stress = soak.map_or(STRESS, |soak| Duration::from_secs(soak).max(SOAK_STRESS));
    let seed = std::env::var("RANGEDB_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(
        temp.path(),
        &["--shards", "2", "--cpus", CORE, "--split-at", "user5"],
    );
    let node = home.start();
    let seconds = stress.as_secs().to_string();
    // Writes and reads, few at a time: the shards sleep between them, which is where they could miss
    // what comes.
    let mut load = command("loadgen")
        .args([
            "run",
            "--addr",
            &home.listen,
            "--workload",
            "a",
            "--records",
            "1000",
            "--allow-missing",
        ])
        .args([
            "--connections",
            "4",
            "--warmup",
            "0",
            "--duration",
            &seconds,
        ])
        .args(["--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    let until = Instant::now() + stress;
    let thief = std::thread::spawn(move || {
        become_thief()?;
        Ok(steal(until, &mut StdRng::seed_from_u64(seed.unwrap_or(1))))
    });
    let stolen: Result<u32, String> = thief.join().expect("it ends");
    let times = match stolen {
        Ok(times) => times,
        Err(reason) => {
            println!("skipped: {reason}");
            load.kill().expect("it runs");
            load.wait().expect("it ends");
            return;
        }
    };
    let output = load.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let longest = home.metric("rangedb_shard_stall_longest_seconds");
    println!(
        "stolen {times} times in {stress:?}: {:.0} operations/s, slowest {} us, longest stalls \
         together {longest:.3} s",
        result["ops_per_second"].as_f64().unwrap_or(0.0),
        result["latency_us"]["all"]["max"],
    );
    assert_eq!(result["errors"], serde_json::json!({}), "{text}");
    assert!(longest > 0.0, "stalls are reported");
    let slowest = result["latency_us"]["all"]["max"]
        .as_f64()
        .expect("a number");
    assert!(slowest < (HANG_MILLIS * 1000) as f64, "a call hung: {text}");
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0), "{}", home.log());
}

/// Takes the files of a folder out of the page cache.
fn forget_pages(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            forget_pages(&path);
            continue;
        }
        let mut file = std::ffi::OsString::from("if=");
        file.push(&path);
        let arguments = ["iflag=nocache", "count=0", "status=none"];
        let done = Command::new("dd").arg(file).args(arguments).status();
        assert!(done.expect("dd runs").success(), "{}", path.display());
    }
}

#[test]
fn gets_whose_blocks_only_the_disk_has_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::new(folder.path(), &["--shards", "1", "--memory", "64MiB"]);
    let loadgen = |work: &[&str]| {
        let records = ["--records", "40000", "--value-size", "1000"];
        let output = command("loadgen")
            .args(work)
            .args(records)
            .args(["--addr", &home.listen, "--connections", "8"])
            .output()
            .expect("loadgen runs");
        assert!(output.status.success(), "{output:?}");
    };
    let node = home.start();
    loadgen(&["load", "--depth", "16"]);
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
    forget_pages(folder.path());
    let node = home.start();
    loadgen(&["run", "--workload", "c", "--depth", "4", "--duration", "3"]);
    let waited = home.metric("rangedb_cold_reads_total");
    println!("{waited} reads waited for the disk");
    assert!(waited > 0.0);
    assert_eq!(home.metric("rangedb_cold_blocks_waiting"), 0.0);
    drop(node);
}
