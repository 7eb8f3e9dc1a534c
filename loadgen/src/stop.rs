//! Ctrl-C and SIGTERM: the first one ends the measured time, so that what was measured so far is printed; the
//! second one ends the process, unless it follows at once: `timeout` signals both the process and its group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

/// The exit code of a run that a signal ended.
pub const EXIT_STOPPED: u8 = 130;
/// Signals that follow the first one within this time count as the same one, as for a node.
const REPEATED_SIGNAL_INTERVAL: Duration = Duration::from_millis(500);

/// Whether the run is to end. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// One that SIGINT and SIGTERM set from now on.
    ///
    /// # Errors
    /// The signals cannot be waited for.
    pub fn on_signals() -> Result<Stop, String> {
        let stop = Stop::default();
        let told = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start a runtime: {error}"))?;
        let listen = |kind| {
            let _inside = runtime.enter();
            signal(kind).map_err(|error| format!("cannot wait for signals: {error}"))
        };
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let mut first = None;
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if is_second(&mut first, Instant::now()) {
                        std::process::exit(i32::from(EXIT_STOPPED));
                    }
                    told.tell();
                }
            });
        });
        Ok(stop)
    }

    /// Ends the run.
    pub fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the run is to end.
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether a signal that comes now is the second one; `first` is when the first one came.
fn is_second(first: &mut Option<Instant>, now: Instant) -> bool {
    let first = *first.get_or_insert(now);
    now.duration_since(first) >= REPEATED_SIGNAL_INTERVAL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_sent_twice_ends_the_run_and_not_the_process() {
        let (mut first, begun) = (None, Instant::now());
        assert!(!is_second(&mut first, begun));
        assert!(!is_second(&mut first, begun + Duration::from_millis(5)));
        assert!(!is_second(&mut first, begun + Duration::from_millis(499)));
        assert!(is_second(&mut first, begun + Duration::from_millis(500)));
    }
}
