//! Logs on standard error, as text or JSON, and the last words of a panic.

use std::io::Write;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::env::threads;

/// Starts logging for the whole process.
///
/// # Errors
/// The level is no filter, or logging was started before.
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    // openraft tells of each step at info, and warns of each heartbeat that a dead peer misses; what
    // operators want to know of that the links say once.
    let directives = format!("{level},openraft=error,openraft_rt=error");
    let filter = EnvFilter::try_new(&directives)
        .map_err(|e| format!("log-level {level:?}: {e}; use error, warn, info, debug or trace"))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => logs.with_ansi(false).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    started.map_err(|e| e.to_string())
}

/// Has a panic anywhere say where and why, once, and end the process.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let name = std::thread::current()
            .name()
            .unwrap_or("unnamed")
            .to_owned();
        let trace = std::backtrace::Backtrace::force_capture();
        // Standard error may be gone; there is nobody left to tell.
        let _ = writeln!(
            std::io::stderr(),
            "rangedb: thread {name} panicked: {panic}\n{trace}\nrangedb: aborting: nothing \
             continues on bad state"
        );
        threads::abort();
    }));
}
