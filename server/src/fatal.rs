//! How a node ends that cannot go on: by a crash, where the fault is its own, or by a refusal, where a
//! person has to act. Nothing is cleaned up in either.

use crate::env::threads;
use crate::logging;

/// Logs a fatal error and aborts the process, so that other replicas take over.
pub fn die(what: &str, fatal: &dyn std::fmt::Display) -> ! {
    tracing::error!(what, error = %fatal, "fatal");
    logging::last_words(&format!("rangedb: fatal: {what}: {fatal}"));
    threads::abort()
}

/// Ends as a start that is refused does: a person has to act.
pub fn refuse(fatal: &dyn std::fmt::Display) -> ! {
    logging::last_words(&format!("rangedb: {fatal}"));
    std::process::exit(1)
}
