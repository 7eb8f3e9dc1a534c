//! `rangedb check`: whether the machine, the settings and the data folder are fit for a node.
//!
//! Most checks only read what the kernel says, under a [`Root`] that tests make up: [`look`] makes
//! these, and a node logs them at its start ([`log_at_start`]). What shows only when it is tried —
//! io_uring, direct I/O, durable writes, ports, names — [`all`] tries, too; this takes some
//! seconds. A node that lacks something it cannot do without says so by itself when it starts; the
//! checks are for everything that it would merely suffer from.
//!
//! Nothing here changes the machine or leaves a file behind. All of it runs on the calling thread.

mod clock;
mod container;
mod cpu;
mod disk;
mod durable_write;
mod kernel;
mod limits;
mod memory;
mod network;
#[cfg(test)]
mod tests;

pub use disk::data_dir;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::Config;
use crate::descriptors::Needs;
use crate::env::root::Root;

/// How long durable writes are measured.
pub const WRITES_TIME: Duration = Duration::from_secs(5);

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// All is well.
    Ok,
    /// A node runs, but worse than it could, or with a risk.
    Warn,
    /// A node does not start, or must not be used.
    Fail,
}

impl State {
    /// The state as a word.
    pub fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The name, which never changes.
    pub name: &'static str,
    /// What the check came to.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What a node needs.
    pub wanted: String,
    /// What helps, if something is wrong.
    pub fix: Option<String>,
}

impl Check {
    /// A check that found all well so far.
    fn new(name: &'static str, found: impl Into<String>, wanted: impl Into<String>) -> Check {
        Check {
            name,
            state: State::Ok,
            found: found.into(),
            wanted: wanted.into(),
            fix: None,
        }
    }

    fn raise(mut self, to: State, is_wrong: bool, fix: impl Into<String>) -> Check {
        if is_wrong && self.state < to {
            self.state = to;
            self.fix = Some(fix.into());
        }
        self
    }

    /// The check warns if this is wrong, unless something worse is.
    fn warn_if(self, is_wrong: bool, fix: impl Into<String>) -> Check {
        self.raise(State::Warn, is_wrong, fix)
    }

    /// The check fails if this is wrong.
    fn fail_if(self, is_wrong: bool, fix: impl Into<String>) -> Check {
        self.raise(State::Fail, is_wrong, fix)
    }
}

/// Makes the checks that only read what the kernel says. They take milliseconds.
pub fn look(root: &Root, config: &Config) -> Vec<Check> {
    let shards = usize::from(config.shards);
    let needs = Needs {
        shards,
        tables: 0,
        has_peers: !config.cluster_secret.is_empty(),
    };
    let folder = existing(&config.data_dir);
    vec![
        kernel::release(root),
        limits::descriptors(root, needs),
        limits::locked_memory(root, shards),
        memory::swap(root),
        memory::huge_pages(root),
        memory::cgroup(root, config.memory),
        cpu::governor(root),
        cpu::cgroup(root, shards),
        limits::cgroup_threads(root, shards),
        disk::cgroup(root),
        clock::source(root),
        clock::discipline(crate::env::discipline::of_clock()),
        disk::file_system(root, &folder),
        disk::free_space(&folder),
        disk::free_inodes(&folder),
        container::kind(root, &folder),
    ]
}

/// Makes all checks of the machine and the settings. Durable writes are measured for as long as
/// `writes_time`. [`data_dir`] checks what lies in the data folder.
pub fn all(root: &Root, config: &Config, writes_time: Duration) -> Vec<Check> {
    let folder = existing(&config.data_dir);
    let mut checks = look(root, config);
    checks.insert(
        1,
        kernel::io_uring(root, crate::env::kernel::check_io_uring()),
    );
    checks.extend([
        disk::direct_io(&folder),
        durable_write::check(&folder, writes_time),
        network::ports(root, config),
        network::names(config),
    ]);
    checks
}

/// Logs what is not well, and how many checks there were.
pub fn log_at_start(config: &Config) {
    let checks = look(&Root::of_machine(), config);
    for check in checks.iter().filter(|check| check.state != State::Ok) {
        tracing::warn!(
            name = check.name,
            state = check.state.name(),
            found = check.found,
            wanted = check.wanted,
            fix = check.fix.as_deref().unwrap_or_default(),
            "the machine could be better"
        );
    }
    let [ok, warn, fail] = count(&checks);
    tracing::info!(
        ok,
        warn,
        fail,
        "the machine was checked; `rangedb check` measures its disk, too"
    );
}

/// The folder itself, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut above = absolute.ancestors();
    let found = above.find(|folder| folder.is_dir());
    let found = found.unwrap_or(Path::new("/"));
    found.canonicalize().unwrap_or_else(|_| found.to_owned())
}

/// How many checks are ok, warn and fail.
fn count(checks: &[Check]) -> [usize; 3] {
    let of = |state| checks.iter().filter(|check| check.state == state).count();
    [of(State::Ok), of(State::Warn), of(State::Fail)]
}

/// The worst state of all checks.
pub fn worst(checks: &[Check]) -> State {
    let states = checks.iter().map(|check| check.state);
    states.max().unwrap_or(State::Ok)
}

/// The checks as one JSON object.
pub fn to_json(checks: &[Check]) -> Value {
    let check = |check: &Check| {
        json!({
            "name": check.name,
            "state": check.state.name(),
            "found": check.found,
            "wanted": check.wanted,
            "fix": check.fix,
        })
    };
    let list: Vec<Value> = checks.iter().map(check).collect();
    json!({ "state": worst(checks).name(), "checks": list })
}

/// The checks as lines for people: what is wrong also says what is wanted and what helps.
pub fn to_text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<4}  {:<14}  {}",
            check.state.name(),
            check.name,
            check.found
        );
        if let Some(fix) = &check.fix {
            let _ = writeln!(text, "      wanted: {}", check.wanted);
            let _ = writeln!(text, "      fix: {fix}");
        }
    }
    let [ok, warn, fail] = count(checks);
    let _ = writeln!(text, "{ok} ok, {warn} warn, {fail} fail");
    text
}

/// A number of bytes for people.
fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} bytes"),
        1024..0x10_0000 => format!("{} KiB", count >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", count >> 20),
        _ => format!("{:.1} GiB", count as f64 / f64::from(1 << 30)),
    }
}
