//! The report about a failing seed: its violations, the commit, and a small set of its faults that
//! suffices.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use super::executor;
use super::faults::Faults;
use super::run::{self, Report};

/// How long shrinking may take.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a seed with these faults. A panic counts as a failure.
///
/// # Errors
/// No task could run any more, the run took too many steps, or something panicked.
pub fn run_caught(seed: u64, faults: &Faults) -> Result<Report, String> {
    caught(|| run::run_with(seed, faults))
}

/// Runs anything and turns a panic into an error.
///
/// # Errors
/// The run's error, or the panic's message.
pub fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let ran = catch_unwind(AssertUnwindSafe(run));
    ran.unwrap_or_else(|panic| {
        executor::abandon();
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Why a run failed, if it did.
pub fn failure(ended: &Result<Report, String>) -> Option<String> {
    match ended {
        Ok(report) if report.violations.is_empty() => None,
        Ok(report) => Some(report.violations.join("\n")),
        Err(stuck) => Some(stuck.clone()),
    }
}

/// The numbers of a set of faults that still makes the seed fail. Delta debugging: leaves out parts
/// of the list, smaller and smaller ones (Zeller and Hildebrandt, 2002).
fn shrink(seed: u64, faults: &Faults, from: Vec<usize>) -> Vec<usize> {
    let begun = Instant::now();
    let mut kept = from;
    let mut part = kept.len().div_ceil(2);
    while part > 0 && begun.elapsed() < SHRINK_TIMEOUT {
        let mut at = 0;
        while at < kept.len() && begun.elapsed() < SHRINK_TIMEOUT {
            let mut fewer = kept.clone();
            fewer.drain(at..(at + part).min(kept.len()));
            if failure(&run_caught(seed, &faults.only(&fewer))).is_some() {
                kept = fewer;
            } else {
                at += part;
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    kept
}

fn commit() -> String {
    let asked = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let said = asked.ok().filter(|said| said.status.success());
    said.map_or_else(
        || "unknown".to_owned(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
}

/// Runs a seed with all its faults, or only with those of these numbers.
///
/// # Errors
/// The report about the failure.
pub fn run_or_explain(seed: u64, numbers: Option<&[usize]>) -> Result<Report, String> {
    let faults = run::faults_of(seed);
    let all: Vec<usize> = match numbers {
        Some(numbers) => numbers.to_vec(),
        None => (0..faults.steps.len()).collect(),
    };
    let ended = run_caught(seed, &faults.only(&all));
    if failure(&ended).is_none() {
        return ended;
    }
    let kept = shrink(seed, &faults, all);
    let fewest = faults.only(&kept);
    let what = failure(&run_caught(seed, &fewest)).unwrap_or_default();
    let list: Vec<String> = kept.iter().map(usize::to_string).collect();
    let mut text = format!("seed {seed} fails at commit {}:\n{what}\n", commit());
    text += &format!(
        "{} of its {} faults are enough:\n",
        kept.len(),
        faults.steps.len()
    );
    for (number, step) in kept.iter().zip(&fewest.steps) {
        text += &format!("{number}: after {:?} {:?}\n", step.after, step.fault);
    }
    let list = list.join(",");
    text += &format!("replay: RANGEDB_SEEDS=1 RANGEDB_SEED={seed} RANGEDB_FAULTS={list}");
    Err(text)
}
