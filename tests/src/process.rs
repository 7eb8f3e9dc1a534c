//! The real binaries as child processes: a node that can be killed, the command line, `loadgen`.
//!
//! Nothing here looks inside a node: tests observe sockets, files, exit codes and printed text. A
//! handle kills its child when it is dropped, by the process id.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::net::netns;

/// A node that takes longer than this to start or stop hangs. One whose disk hangs ends by itself after half
/// of it.
const TIMEOUT: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The bytes at the end of a node's log that a failed test prints.
const LOG_SHOWN: u64 = 16 << 10;

/// The path of a binary of this workspace, built with the test's profile.
///
/// # Panics
/// The binary was not built; `scripts/test` builds it.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: cargo build -p rangedb-server -p rangedb-loadgen",
        path.display()
    );
    path
}

/// A command without the `RANGEDB_*` variables of the test's environment, except the log level.
pub fn command(name: &str) -> Command {
    command_in(None, name)
}

/// The same command in a network namespace. The child's process id is that of the binary.
pub fn command_in(space: Option<&str>, name: &str) -> Command {
    let mut command = match space {
        Some(space) => netns::inside(space, &binary(name)),
        None => Command::new(binary(name)),
    };
    without_settings(&mut command);
    command
}

/// Removes the settings of the person who runs the test from a command's environment, except the log
/// level, and gives it no input.
pub fn without_settings(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("RANGEDB_") && name != "RANGEDB_LOG_LEVEL" {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null());
}

/// The lowest port of tests; all are below those that the system chooses for connections.
const PORTS_FROM: u32 = 10_000;
/// Ports of one block; each process of tests uses one block.
const PORTS_OF_PROCESS: u32 = 100;
/// The number of blocks.
const BLOCKS: u32 = 220;

/// The first port of this process's block. It is listened on for as long as the process lives, so that no two
/// processes use the same block.
fn block() -> u32 {
    static BLOCK: OnceLock<(u32, TcpListener)> = OnceLock::new();
    let (first, _) = BLOCK.get_or_init(|| {
        let taken = (0..BLOCKS).find_map(|number| {
            let number = (std::process::id() + number) % BLOCKS;
            let first = PORTS_FROM + number * PORTS_OF_PROCESS;
            let listener = TcpListener::bind(("127.0.0.1", first as u16));
            Some((first, listener.ok()?))
        });
        taken.expect("a free block of ports")
    });
    *first
}

/// A loopback port that was free a moment ago, and that no other test process uses. Ports are
/// reused after all others of the block were given.
///
/// # Panics
/// No port of the block is free.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = block() + 1;
    let ports = PORTS_OF_PROCESS - 1;
    for _ in 0..ports {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed) % ports;
        let port = (first + given) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// The properties of a node that stay the same when it restarts.
#[derive(Clone, Debug)]
pub struct Home {
    /// The value of `--data-dir`.
    pub folder: PathBuf,
    /// The value of `--listen`.
    pub listen: String,
    /// The value of `--http`.
    pub http: String,
    /// Further flags of `rangedb start`.
    pub flags: Vec<String>,
    /// The network namespace of the node, if it is not the test's own. Then the test cannot reach
    /// the node's admin pages.
    pub space: Option<String>,
}

impl Home {
    /// A home in this folder, with free ports.
    pub fn new(folder: &Path, flags: &[&str]) -> Home {
        Home {
            folder: folder.join("data"),
            listen: format!("127.0.0.1:{}", free_port()),
            http: format!("127.0.0.1:{}", free_port()),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            space: None,
        }
    }

    /// The command `rangedb start` for this home.
    pub fn start_command(&self) -> Command {
        let mut command = command_in(self.space.as_deref(), "rangedb");
        command.arg("start").arg("--data-dir").arg(&self.folder);
        command.args(["--listen", &self.listen, "--http", &self.http]);
        command.args(&self.flags);
        command.env("RANGEDB_TEST_DISK", self.disk_fault_path());
        command
    }

    fn disk_fault_path(&self) -> PathBuf {
        self.folder.with_extension("disk")
    }

    /// Makes writes of the node's log and reads of its tables late, or fail; nothing mends the disk. The
    /// words are in `server/src/env/test_disk.rs`.
    ///
    /// # Panics
    /// The file for it cannot be written.
    pub fn set_disk_fault(&self, fault: &str) {
        let path = self.disk_fault_path();
        // A node must never read half of the word.
        let new = path.with_extension("new");
        std::fs::write(&new, fault).expect("the fault is written");
        std::fs::rename(new, path).expect("the fault is set");
    }

    /// The log of the home's nodes, for the message of a failed test.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    /// Starts a node and waits until it prints that it is ready.
    ///
    /// # Panics
    /// The node ends before that, or hangs.
    pub fn start(&self) -> Node {
        let started = self.try_start();
        started.unwrap_or_else(|_| panic!("the node ended before it was ready:\n{}", self.log()))
    }

    /// Starts a node that may refuse to.
    ///
    /// # Errors
    /// The node ended before it was ready; the error is what it logged.
    pub fn try_start(&self) -> Result<Node, String> {
        let before = self.log().len();
        let mut node = Node::spawn(&mut self.start_command(), self.log_file());
        if !node.becomes_ready() {
            node.wait();
            return Err(self.log().split_off(before));
        }
        Ok(node)
    }

    /// Starts a node with these streams, perhaps through another program, and waits until its admin
    /// pages say that it is ready.
    ///
    /// # Panics
    /// The node ends before that, or hangs.
    pub fn start_with(&self, through: &[&str], stdout: Stdio, stderr: Stdio) -> Node {
        let start = self.start_command();
        let mut words = through.iter().map(OsStr::new).chain([start.get_program()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).args(start.get_args());
        for (variable, value) in start.get_envs() {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        let begun = Instant::now();
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().expect("the node starts");
        let mut node = Node {
            child,
            started_in: Duration::ZERO,
            log: None,
        };
        while TcpStream::connect(&self.http).is_err() || self.page("/readyz").0 != 200 {
            assert!(node.is_running(), "the node ended before it was ready");
            assert!(begun.elapsed() < TIMEOUT, "the node does not get ready");
            std::thread::sleep(POLL_INTERVAL);
        }
        node.started_in = begun.elapsed();
        node
    }

    /// Opens the log file of this home's nodes.
    ///
    /// # Panics
    /// The file cannot be opened.
    pub fn log_file(&self) -> File {
        let mut options = File::options();
        let options = options.create(true).append(true).read(true);
        options.open(self.log_path()).expect("a log")
    }

    /// Starts a node that must refuse to, and returns its exit code and its error text.
    pub fn refused(&self) -> (i32, String) {
        let output = self.start_command().output().expect("the node starts");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), complaint)
    }

    /// Runs a command of `rangedb` against this node.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        cli_in(self.space.as_deref(), &self.listen, arguments)
    }

    /// Writes a key with the command line.
    ///
    /// # Panics
    /// The write fails.
    pub fn put(&self, key: &str, value: &str) {
        succeeded(&self.cli(&["put", key, value]));
    }

    /// Sets a setting of the cluster.
    ///
    /// # Panics
    /// The order fails.
    pub fn set(&self, name: &str, value: &str) {
        succeeded(&self.cli(&["config", "set", name, value]));
    }

    /// Requests an admin page; returns the status code and the body.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.http).expect("the admin pages are there");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .expect("the request is sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("a text");
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }

    /// The sum of a metric over its labels; 0 if there is none.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "")
    }

    /// The sum of a metric's values whose labels contain this text.
    pub fn metric_with(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.page("/metrics");
        text.lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// Runs a command of `rangedb`.
pub fn cli(address: &str, arguments: &[&str]) -> Output {
    cli_in(None, address, arguments)
}

/// Runs a command of `rangedb` in a network namespace.
pub fn cli_in(space: Option<&str>, address: &str, arguments: &[&str]) -> Output {
    command_in(space, "rangedb")
        .args(arguments)
        .args(["--addr", address])
        .output()
        .expect("the command runs")
}

/// What a command has printed.
///
/// # Panics
/// The command has failed.
pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A running node; it is killed when this is dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    /// The time from the start of the process until it was ready.
    pub started_in: Duration,
    log: Option<File>,
}

impl Node {
    /// Starts a node by this command; its log goes to the file.
    ///
    /// # Panics
    /// The command cannot be started.
    pub fn spawn(command: &mut Command, log: File) -> Node {
        let read = log.try_clone().expect("a file");
        let piped = command.stdout(Stdio::piped()).stderr(log);
        Node {
            log: Some(read),
            started_in: Duration::ZERO,
            child: piped.spawn().expect("the node starts"),
        }
    }

    /// Prints the end of the node's log. A failed test removes the log with its folder.
    fn print_log(&self) {
        let Some(log) = &self.log else {
            return;
        };
        let len = log.metadata().map_or(0, |metadata| metadata.len());
        let from = len.saturating_sub(LOG_SHOWN);
        let mut end = vec![0; (len - from) as usize];
        if log.read_exact_at(&mut end, from).is_ok() {
            let (id, end) = (self.id(), String::from_utf8_lossy(&end));
            eprintln!("the end of the log of node process {id}:\n{end}");
        }
    }

    /// Waits until a node that was just spawned says that it is ready; false if it ends before that.
    ///
    /// # Panics
    /// It was waited for before.
    pub fn becomes_ready(&mut self) -> bool {
        let begun = Instant::now();
        let output = self.child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let ready = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.starts_with("ready "));
        self.started_in = begun.elapsed();
        // The node must never wait for a reader of its output.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        ready
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the node with SIGKILL, so that it cannot clean up.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Sends a signal with the name that `kill` uses. After `STOP` no thread of the node runs any
    /// more.
    ///
    /// # Panics
    /// The node does not stop in time.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.id().to_string()])
            .status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name}");
        let begun = Instant::now();
        while name == "STOP" && !self.is_stopped() {
            assert!(begun.elapsed() < TIMEOUT, "the node does not stop");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether each thread is stopped by a signal (state `T` in `proc_pid_stat(5)`).
    fn is_stopped(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.id())) else {
            return false;
        };
        threads.flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The name before the state may hold anything, a parenthesis among it.
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            state.starts_with('T')
        })
    }

    /// Waits until the node has ended.
    ///
    /// # Panics
    /// The node does not end in time.
    pub fn wait(mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// Whether the node still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_running() {
            // It may end by itself at this moment.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            self.print_log();
        }
    }
}

/// A process beside the nodes, such as a load. It is killed when this is dropped, also after a
/// failed test.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts the process; its output is discarded.
    ///
    /// # Panics
    /// The process does not start.
    pub fn start(command: &mut Command) -> Background {
        let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
        Background(silent.spawn().expect("it starts"))
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets this process have so many files open. Where that is not allowed, the limit stays as it is.
pub fn raise_open_files(limit: usize) {
    let limit = format!("--nofile={limit}:");
    let process = std::process::id().to_string();
    let mut raise = Command::new("prlimit");
    let _ = raise.args(["--pid", &process, &limit]).status();
}

/// Waits until a child has ended.
///
/// # Panics
/// The child does not end in time; it is killed.
pub fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if begun.elapsed() > TIMEOUT {
            // The child must not outlive the failing test.
            let _ = child.kill();
            let _ = child.wait();
            panic!("the process does not end");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
