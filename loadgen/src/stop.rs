//! Ctrl-C and SIGTERM: the first one ends the measured time, so that what was measured so far is printed; the
//! second one ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// The exit code of a run that a signal ended.
pub const EXIT_STOPPED: u8 = 130;

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
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if told.is_told() {
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
