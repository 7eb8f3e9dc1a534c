//! Faults of the machine around real processes.
//!
//! [`netns`] makes network namespaces and cuts the links between them, [`relay`] delays and damages
//! connections, and [`small_disk`] makes a disk that can be filled.
//!
//! All of this needs rights and tools. If one is missing, the constructor returns the reason, and
//! the test prints `skipped: REASON` ([`available`]) and passes; `.ci/run` fails if it finds such a
//! line.

pub mod netns;
pub mod relay;
pub mod small_disk;

use std::io::Write;
use std::process::{Command, Stdio};

/// Returns what was made, or prints why it cannot be made here and returns `None`.
pub fn available<T>(made: Result<T, String>) -> Option<T> {
    made.map_err(|reason| println!("skipped: {reason}")).ok()
}

/// Runs a tool of the system. The error names the command and its error text.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
    let words = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", words()))?;
    let sent = child
        .stdin
        .take()
        .map(|mut to| to.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| format!("{}: {error}", words()))?;
    if output.status.success() && matches!(sent, Some(Ok(()))) {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
    Err(format!("{}: {}: {complaint}", words(), output.status))
}
