//! How a node that cannot continue ends: it aborts if the fault is its own, and exits as a refused start
//! does if a person has to act. It cleans nothing up in either case.

use crate::env::threads;
use crate::logging;

/// Logs a fatal error and aborts the process, so that other replicas take over.
pub fn die(what: &str, fatal: &dyn std::fmt::Display) -> ! {
    logging::last_words(&format!("fatal: {what}: {fatal}"));
    threads::abort()
}

/// Exits as a refused start does, because a person has to act.
pub fn refuse(fatal: &dyn std::fmt::Display) -> ! {
    logging::last_words(&fatal.to_string());
    std::process::exit(1)
}
