//! `rangedb demo`: a cluster to try things with. Its nodes are processes of this binary in process groups of
//! their own, so that Ctrl-C reaches this process alone. It then stops the nodes and removes their folder.
//! After SIGKILL of this process they go on running.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use rangedb_client::admin::{Health, Node};
use rangedb_client::{Client, ClientOptions};
use rangedb_engine::words::counted;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{self, SignalKind};

use super::{CliError, Exit, output};

/// The usual ports of nodes; where they are taken, others are used.
const LISTEN_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;
/// Memory of a node.
const MEMORY: &str = "256MiB";
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The number of nodes.
    #[arg(long, default_value_t = 3, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
}

/// Runs the cluster until a signal comes, or no node is left.
pub(super) fn run(args: &DemoArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // A signal that comes while the cluster starts must remove the folder, too.
        let mut told = Told::listen()?;
        let mut demo = Demo::start(args.nodes)?;
        let exit = tokio::select! {
            () = told.signal() => Ok(Exit::Done),
            ended = demo.serve(out) => ended,
        };
        if exit.is_ok() {
            demo.stop().await;
        }
        exit
    })
}

/// The signals that end the demo.
struct Told([unix::Signal; 3]);

impl Told {
    fn listen() -> io::Result<Told> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let [interrupt, terminate, hangup] = kinds.map(unix::signal);
        Ok(Told([interrupt?, terminate?, hangup?]))
    }

    async fn signal(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The nodes and their folder. Dropping it kills what still runs and removes the folder.
struct Demo {
    nodes: Vec<Child>,
    /// The places of those that have ended.
    ended: BTreeSet<usize>,
    addresses: Vec<String>,
    folder: PathBuf,
}

impl Demo {
    fn start(count: u16) -> io::Result<Demo> {
        let name = format!("rangedb-demo-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&folder)?;
        let mut demo = Demo {
            nodes: Vec::new(),
            ended: BTreeSet::new(),
            addresses: Vec::new(),
            folder,
        };
        let ports = free_ports(count)?;
        let address = |port: &u16| format!("127.0.0.1:{port}");
        demo.addresses = ports.iter().map(|(listen, _)| address(listen)).collect();
        let secret = format!("{:032x}", rand::random::<u128>());
        for (number, (listen, http)) in (1..).zip(&ports) {
            let mut command = start_command(&demo.folder, number)?;
            command.args(["--listen", &address(listen), "--http", &address(http)]);
            command.env("RANGEDB_CLUSTER_SECRET", &secret);
            if count > 1 {
                let (join, expect) = (demo.addresses.join(","), count.to_string());
                command.args(["--join", &join, "--bootstrap-expect", &expect]);
            }
            demo.nodes.push(command.spawn()?);
        }
        Ok(demo)
    }

    /// Waits until the cluster is whole, tells where it is and which nodes end, and returns when none is left:
    /// people kill nodes of a demo to see what the others do.
    async fn serve(&mut self, out: &mut impl Write) -> Result<Exit, CliError> {
        let begun = Instant::now();
        let mut nodes = self.whole().await;
        while nodes.is_none() {
            if let Some((place, status)) = self.look_for_ended()? {
                let message = format!(
                    "node {} ended before the cluster was whole: {status}",
                    place + 1
                );
                return Err(self.failure(message));
            }
            if begun.elapsed() > READY_WITHIN {
                return Err(self.failure("the nodes do not form a cluster".to_owned()));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            nodes = self.whole().await;
        }
        out.write_all(self.summary(&nodes.unwrap_or_default()).as_bytes())?;
        out.flush()?;
        loop {
            if let Some((place, status)) = self.look_for_ended()? {
                let number = place + 1;
                let left = self.nodes.len() - self.ended.len();
                if left == 0 {
                    let message = format!("node {number} ended: {status}; no node is left");
                    return Err(self.failure(message));
                }
                let log = log_path(&self.folder, number);
                writeln!(
                    out,
                    "the node at {} ended: {status}; {} still at work; what it logged is in {}",
                    self.addresses[place],
                    counted(left as u64, "node"),
                    log.display()
                )?;
                out.flush()?;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The nodes, once all of them are there and every range has its replicas.
    async fn whole(&self) -> Option<Vec<Node>> {
        let options = ClientOptions::new(&self.addresses)
            .timeout(Duration::from_secs(1))
            .connect_timeout(Duration::ZERO);
        let client = Client::connect(options).await.ok()?;
        let status = client.admin().status().await.ok()?;
        let is_whole = status.health == Health::Ok && status.nodes.len() == self.nodes.len();
        is_whole.then_some(status.nodes)
    }

    fn summary(&self, nodes: &[Node]) -> String {
        let heading = ["node", "address", "page"].map(str::to_owned);
        let rows = nodes.iter().map(|node| {
            let page = format!("http://{}/", node.http);
            [node.id.to_string(), node.address.clone(), page]
        });
        let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
        format!(
            "the cluster is ready; its data lies in {}\n\n{}\n\
             export RANGEDB_ADDR={}\n\
             rangedb put greeting hello\n\
             rangedb get greeting\n\
             rangedb top\n\n\
             A node that is killed leaves the others at work. Ctrl-C stops the nodes and removes their data.\n",
            self.folder.display(),
            output::columns(&rows),
            self.addresses.join(","),
        )
    }

    /// A node that has ended since the last look.
    fn look_for_ended(&mut self) -> io::Result<Option<(usize, ExitStatus)>> {
        for (place, node) in self.nodes.iter_mut().enumerate() {
            if !self.ended.contains(&place)
                && let Some(status) = node.try_wait()?
            {
                self.ended.insert(place);
                return Ok(Some((place, status)));
            }
        }
        Ok(None)
    }

    /// The error, with what the nodes logged, since the folder goes away.
    fn failure(&self, mut message: String) -> CliError {
        for number in 1..=self.nodes.len() {
            let log = std::fs::read_to_string(log_path(&self.folder, number)).unwrap_or_default();
            message += &format!("\nlog of node {number}:\n{log}");
        }
        CliError {
            exit: Exit::NODE_ENDED,
            message,
        }
    }

    /// Stops all nodes at the same time.
    async fn stop(&mut self) {
        let alive = self.nodes.iter().enumerate();
        for (_, node) in alive.filter(|(place, _)| !self.ended.contains(place)) {
            let pid = i32::try_from(node.id()).ok().and_then(Pid::from_raw);
            // One that has ended by itself needs no signal.
            let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let begun = Instant::now();
        let runs = |node: &mut Child| matches!(node.try_wait(), Ok(None));
        while self.nodes.iter_mut().any(runs) && begun.elapsed() < STOP_WITHIN {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // After an orderly stop it has ended.
            let _ = node.kill();
            let _ = node.wait();
        }
        // A folder for temporary files is emptied by the system in the end.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The command that starts a node, without its addresses.
fn start_command(folder: &Path, number: usize) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RANGEDB_") {
            command.env_remove(name);
        }
    }
    command.arg("start").arg("--data-dir");
    command.arg(folder.join(format!("node-{number}")));
    command.args(["--shards", "1", "--memory", MEMORY]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log_path(folder, number))?)
        .process_group(0);
    Ok(command)
}

fn log_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("node-{number}.log"))
}

/// Two free ports for each node, the usual ones if possible.
fn free_ports(count: u16) -> io::Result<Vec<(u16, u16)>> {
    // All are held until the last one is found, so that no port is given twice.
    let mut held = Vec::new();
    let mut free = |usual: u16| -> io::Result<u16> {
        let listener = TcpListener::bind(("127.0.0.1", usual))
            .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
        let port = listener.local_addr()?.port();
        held.push(listener);
        Ok(port)
    };
    (0..count)
        .map(|place| Ok((free(LISTEN_PORT + place)?, free(HTTP_PORT + place)?)))
        .collect()
}
