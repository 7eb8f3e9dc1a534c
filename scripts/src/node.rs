//! A real node in the background: its ports, its start, and its end.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Outcome;
use crate::process::{Background, is_stopping, release_binary};

/// The default ports of a node.
const LISTEN_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;

/// A ready node.
pub struct Node {
    process: Background,
    /// The address of the database, `HOST:PORT`.
    pub listen: String,
    /// The address of the admin pages, `HOST:PORT`.
    pub http: String,
}

impl Node {
    /// Starts a node and waits until it is ready. `extra` holds further flags of `rangedb start`.
    /// The log is written beside the data folder.
    pub fn start(data_dir: &Path, extra: &[&str]) -> Result<Node, String> {
        Node::start_program(&release_binary("rangedb")?, data_dir, extra)
    }

    /// Starts a node of another build of the server, as [`start`](Self::start) does.
    pub fn start_program(program: &str, data_dir: &Path, extra: &[&str]) -> Result<Node, String> {
        let listen = format!("127.0.0.1:{}", free_port(LISTEN_PORT)?);
        let http = format!("127.0.0.1:{}", free_port(HTTP_PORT)?);
        let log_path = data_dir.with_extension("log");
        let log = File::create(&log_path)
            .map_err(|error| format!("cannot write {}: {error}", log_path.display()))?;
        let mut command = Command::new(program);
        command.arg("start").arg("--data-dir").arg(data_dir);
        command
            .args(["--listen", &listen, "--http", &http, "--log", "text"])
            .args(extra);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut process = Background::start(command, "rangedb")?;
        wait_until_ready(&mut process).map_err(|message| {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            format!("{message}\n{log}")
        })?;
        Ok(Node {
            process,
            listen,
            http,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until a signal ends the node. It is an error if the node ends by itself.
    pub fn wait(&mut self) -> Outcome {
        let status = self
            .process
            .child()
            .wait()
            .map_err(|error| error.to_string())?;
        if is_stopping() && status.success() {
            return Ok(());
        }
        Err(format!("the node ended with {status}"))
    }

    /// Stops the node and waits for its end.
    pub fn stop(&mut self) -> Outcome {
        self.process.stop()
    }
}

fn wait_until_ready(process: &mut Background) -> Outcome {
    let output = process
        .child()
        .stdout
        .take()
        .ok_or("the node's output is not connected")?;
    let mut lines = BufReader::new(output).lines();
    let is_ready = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.starts_with("ready"));
    if !is_ready {
        return Err("the node ended before it was ready".to_owned());
    }
    // The node must never wait for a reader of its output.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    Ok(())
}

/// Returns `usual` if that port is free, otherwise any free port.
pub fn free_port(usual: u16) -> Result<u16, String> {
    let listener = TcpListener::bind(("127.0.0.1", usual))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))
        .map_err(|error| format!("there is no free port: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    Ok(address.port())
}
