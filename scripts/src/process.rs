//! Child processes: some run to their end, others in the background until they are stopped. SIGINT
//! and SIGTERM stop them before this process ends; only a SIGKILL of this process leaves them
//! running.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{Outcome, root};

/// How long a child may take to end after SIGTERM; longer than a node takes for requests in flight.
const STOP_WITHIN: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The exit code that shells expect after SIGINT.
const EXIT_STOPPED: i32 = 130;

/// The ids of the children in the background.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static IS_STOPPING: AtomicBool = AtomicBool::new(false);

/// A command that runs in the workspace's folder.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command to its end and shows its output.
pub fn run(program: &str, arguments: &[&str]) -> Outcome {
    eprintln!("+ {program} {}", arguments.join(" "));
    let status = command(program, arguments)
        .status()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    succeeded(program, arguments, status)
}

/// Builds release binaries of packages of the workspace.
pub fn build_release(packages: &[&str]) -> Outcome {
    let packages = packages.iter().flat_map(|package| ["-p", package]);
    let build = ["build", "--release", "--locked"];
    let arguments: Vec<&str> = build.into_iter().chain(packages).collect();
    run("cargo", &arguments)
}

/// Builds the release binaries `rangedb` and `loadgen`. All commands build both of them, since their
/// dependencies have other features, and so are built again, when one is built alone.
pub fn build_programs() -> Outcome {
    build_release(&["rangedb-server", "rangedb-loadgen"])
}

/// Runs a command to its end and returns its standard output.
pub fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = command(program, arguments)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    succeeded(program, arguments, output.status)?;
    String::from_utf8(output.stdout).map_err(|_| format!("{program} wrote no UTF-8"))
}

fn succeeded(program: &str, arguments: &[&str], status: ExitStatus) -> Outcome {
    if status.success() {
        return Ok(());
    }
    Err(format!(
        "{program} {} failed: {status}",
        arguments.join(" ")
    ))
}

/// The path of a release binary.
pub fn release_binary(name: &str) -> Result<String, String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let path = target
        .unwrap_or_else(|| root().join("target"))
        .join("release")
        .join(name);
    path.into_os_string()
        .into_string()
        .map_err(|_| "the folder's name is no UTF-8".to_owned())
}

/// A child in the background; dropping it stops the child.
pub struct Background {
    child: Child,
    name: String,
}

impl Background {
    /// Starts the child.
    pub fn start(mut command: Command, name: &str) -> Result<Background, String> {
        let child = command
            .spawn()
            .map_err(|error| format!("cannot run {name}: {error}"))?;
        lock_running().push(child.id());
        Ok(Background {
            child,
            name: name.to_owned(),
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The handle of the child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends SIGTERM and waits for the child's end. An exit code other than 0 is an error.
    pub fn stop(&mut self) -> Outcome {
        if let Ok(None) = self.child.try_wait() {
            signal("TERM", self.child.id());
        }
        let status = self.wait_within(STOP_WITHIN)?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{} ended with {status}", self.name))
        }
    }

    fn wait_within(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        let begun = Instant::now();
        loop {
            let waited = self
                .child
                .try_wait()
                .map_err(|error| format!("{}: {error}", self.name))?;
            if let Some(status) = waited {
                let id = self.child.id();
                lock_running().retain(|&other| other != id);
                return Ok(status);
            }
            if begun.elapsed() > limit {
                return Err(format!("{} did not end within {limit:?}", self.name));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && self.stop().is_err()
        {
            // The child had its time. If it cannot be killed, nothing more can be done.
            let _ = self.child.kill();
            let _ = self.wait_within(STOP_WITHIN);
        }
    }
}

fn lock_running() -> std::sync::MutexGuard<'static, Vec<u32>> {
    RUNNING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn signal(name: &str, id: u32) {
    // It does not matter if the process has ended by itself meanwhile.
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &id.to_string()])
        .status();
}

/// From now on SIGINT and SIGTERM stop the children; then the main thread ends the process.
pub fn stop_children_on_signals() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot wait for signals: {error}"))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal as listen};
            let (Ok(mut interrupt), Ok(mut terminate)) = (
                listen(SignalKind::interrupt()),
                listen(SignalKind::terminate()),
            ) else {
                return;
            };
            std::future::poll_fn(|context| {
                let interrupted = interrupt.poll_recv(context).is_ready();
                let terminated = terminate.poll_recv(context).is_ready();
                if interrupted || terminated {
                    return std::task::Poll::Ready(());
                }
                std::task::Poll::Pending
            })
            .await;
        });
        IS_STOPPING.store(true, Ordering::Relaxed);
        lock_running().iter().for_each(|&id| signal("TERM", id));
        // The main thread sees its children end, cleans up and ends the process, in most cases
        // before this thread does.
        std::thread::sleep(STOP_WITHIN + STOP_WITHIN);
        std::process::exit(EXIT_STOPPED);
    });
    Ok(())
}

/// Whether a signal has told this process to end.
pub fn is_stopping() -> bool {
    IS_STOPPING.load(Ordering::Relaxed)
}
