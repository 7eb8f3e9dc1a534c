//! The real binaries as child processes: a node that can be killed, the command line, `loadgen`.
//!
//! Nothing here looks inside a node: what a test learns, it learns by sockets, files, exit codes
//! and what is printed. A child is killed when its handle is dropped, by its process id.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::net::netns;

/// A node that needs longer to start or stop than this hangs.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(2);

/// A binary of this workspace, built with the profile of the test.
///
/// # Panics
/// It was not built: `scripts/test` does.
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

/// A command without the settings of whoever runs the test, but for how much nodes log.
pub fn command(name: &str) -> Command {
    command_in(None, name)
}

/// The same in a network namespace. The child's process id is the binary's own.
pub fn command_in(space: Option<&str>, name: &str) -> Command {
    let mut command = match space {
        Some(space) => netns::inside(space, &binary(name)),
        None => Command::new(binary(name)),
    };
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("RANGEDB_") && name != "RANGEDB_LOG_LEVEL" {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Ports of tests are below those that the system gives to connections,
const PORTS_FROM: u32 = 10_000;
/// in blocks of so many, one for each process of tests,
const PORTS_OF_PROCESS: u32 = 100;
/// as long as there are blocks.
const BLOCKS: u32 = 220;

/// A port of the loopback that nobody held a moment ago, and that no test in another process is given. One
/// that was given long ago and is free is given again.
///
/// # Panics
/// There is none.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = PORTS_FROM + std::process::id() % BLOCKS * PORTS_OF_PROCESS;
    for _ in 0..PORTS_OF_PROCESS {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed) % PORTS_OF_PROCESS;
        let port = (first + given) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// Where a node lives: what stays the same over its restarts.
#[derive(Clone, Debug)]
pub struct Home {
    /// `--data-dir`.
    pub folder: PathBuf,
    /// `--listen`.
    pub listen: String,
    /// `--http`.
    pub http: String,
    /// Further flags of `rangedb start`.
    pub flags: Vec<String>,
    /// The network namespace that it lives in, if it is not the test's own. The admin pages of a
    /// node in another cannot be asked from here.
    pub space: Option<String>,
}

impl Home {
    /// A home in this folder, on free ports.
    pub fn new(folder: &Path, flags: &[&str]) -> Home {
        Home {
            folder: folder.join("data"),
            listen: format!("127.0.0.1:{}", free_port()),
            http: format!("127.0.0.1:{}", free_port()),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            space: None,
        }
    }

    /// `rangedb start` for this home.
    pub fn start_command(&self) -> Command {
        let mut command = command_in(self.space.as_deref(), "rangedb");
        command.arg("start").arg("--data-dir").arg(&self.folder);
        command.args(["--listen", &self.listen, "--http", &self.http]);
        command.args(&self.flags);
        command
    }

    /// What the nodes of this home have logged, for the message of a failed test.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    /// Starts a node, and waits until it says that it is ready.
    ///
    /// # Panics
    /// It ends before that, or hangs.
    pub fn start(&self) -> Node {
        let started = self.try_start();
        started.unwrap_or_else(|_| panic!("the node ended before it was ready:\n{}", self.log()))
    }

    /// The same with a node that may refuse.
    ///
    /// # Errors
    /// What it complained of when it ended before it was ready.
    pub fn try_start(&self) -> Result<Node, String> {
        let before = self.log().len();
        let log = self.log_file();
        let begun = Instant::now();
        let mut child = self
            .start_command()
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the node starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let ready = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.starts_with("ready "));
        let node = Node {
            child,
            started_in: begun.elapsed(),
        };
        if !ready {
            node.wait();
            return Err(self.log().split_off(before));
        }
        // The node must never wait for somebody to read what it prints.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(node)
    }

    /// Starts a node with these streams, maybe through another program, and waits until its admin
    /// pages say that it is ready.
    ///
    /// # Panics
    /// It ends before that, or hangs.
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
        };
        while TcpStream::connect(&self.http).is_err() || self.page("/readyz").0 != 200 {
            assert!(node.is_running(), "the node ended before it was ready");
            assert!(begun.elapsed() < PATIENCE, "the node does not get ready");
            std::thread::sleep(POLL_EVERY);
        }
        node.started_in = begun.elapsed();
        node
    }

    /// A file that the log of this home's nodes goes to.
    ///
    /// # Panics
    /// It cannot be opened.
    pub fn log_file(&self) -> File {
        let mut options = File::options();
        let options = options.create(true).append(true);
        options.open(self.log_path()).expect("a log")
    }

    /// Starts a node that must refuse; gives its exit code and what it complains of.
    pub fn refused(&self) -> (i32, String) {
        let output = self.start_command().output().expect("the node starts");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), complaint)
    }

    /// Runs a command of the command line against this node.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        cli_in(self.space.as_deref(), &self.listen, arguments)
    }

    /// Asks the admin pages; gives the status code and the body.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.http).expect("the admin pages are there");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
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
        let (_, text) = self.page("/metrics");
        text.lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// Runs a command of the command line.
pub fn cli(address: &str, arguments: &[&str]) -> Output {
    cli_in(None, address, arguments)
}

/// The same in a network namespace.
pub fn cli_in(space: Option<&str>, address: &str, arguments: &[&str]) -> Output {
    command_in(space, "rangedb")
        .args(arguments)
        .args(["--addr", address])
        .output()
        .expect("the command runs")
}

/// A running node; killed when dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    /// From the start of the process to its being ready.
    pub started_in: Duration,
}

impl Node {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as a loss of power of the process would: SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Sends it a signal, by the name that `kill` knows.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.id().to_string()])
            .status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub fn wait(mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_running() {
            // It may end at this moment by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A process beside the nodes, a load for example; killed when dropped, also by a test that fails.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts it; what it prints is lost.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(command: &mut Command) -> Background {
        let silent = command.stdout(Stdio::null()).stderr(Stdio::null());
        Background(silent.spawn().expect("it starts"))
    }

    /// Whether it still runs.
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

/// Waits for a child's end.
///
/// # Panics
/// It does not end.
pub fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            // It must not outlive the test that fails.
            let _ = child.kill();
            let _ = child.wait();
            panic!("the process does not end");
        }
        std::thread::sleep(POLL_EVERY);
    }
}
