//! Networks for real processes: what a test needs to cut, lose and delay what nodes say.
//!
//! [`netns`] makes network namespaces and cuts between them, [`relay`] delays what passes through
//! it, [`small_disk`] is no network but another thing of the machine that can run out.
//!
//! All of it needs rights and tools. Where one is missing, making the thing gives the reason, and
//! the test prints `skipped: REASON` ([`available`]) and passes; `.ci/run` fails on such a line.

pub mod netns;
pub mod relay;
pub mod small_disk;

use std::io::Write;
use std::process::{Command, Stdio};

/// What was made; `None` after printing why it cannot be made here.
pub fn available<T>(made: Result<T, String>) -> Option<T> {
    made.map_err(|reason| println!("skipped: {reason}")).ok()
}

/// Runs a tool of the system; the error says what was run and what it complained of.
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
