//! The watchdog: a thread that pokes a shard whose executor stands still.
//!
//! glommio 0.9.0 can park its thread although tasks are runnable, if the thread lost its processor
//! at the wrong moment; nothing inside the executor then wakes it, not even its own timers. A
//! signal does: the wait ends with EINTR, and the executor looks again. So each shard keeps a
//! [`Beat`]: a task that says when it will be back, soon while the shard is busy, later while it is
//! idle. When that time has passed by [`LATE`] and the beat has not come, the shard is late by
//! its own word, and gets a signal with an empty handler. A signal too many does no harm.
//!
//! The watchdog needs no lock: it reads two words of each beat.

#![expect(unsafe_code, reason = "signals are sent to threads by system calls")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Instant};

use super::{BootInstant, GlommioRuntime, threads};

/// A beat that is so late gets its shard a signal.
pub const LATE: Duration = Duration::from_millis(5);
/// How often a busy shard's beat comes.
const BUSY_EVERY: Duration = Duration::from_millis(5);
/// How often an idle shard's beat comes.
const IDLE_EVERY: Duration = Duration::from_millis(50);
/// A shard is busy if its tasks ran for more than this part of the time since the last beat.
const BUSY_PART: u32 = 20;
/// SIGURG: its default is to be ignored, and nothing here uses urgent data.
const SIGNAL: libc::c_int = libc::SIGURG;

/// One shard's sign of life.
#[derive(Debug, Default)]
pub struct Beat {
    /// The kernel's id of the shard's thread; 0 before it runs.
    thread: AtomicI32,
    /// When the next beat is due, in microseconds since boot; 0: the shard is not watched.
    due: AtomicU64,
    /// Signals sent.
    signals: AtomicU64,
    /// The longest that a beat was late, in microseconds.
    longest: AtomicU64,
}

impl Beat {
    /// Signals that the shard's executor was sent.
    pub fn signals(&self) -> u64 {
        self.signals.load(Ordering::Relaxed)
    }

    /// The longest time for which the executor stood still beyond its word.
    pub fn longest_stall(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }

    /// Watches the thread that calls this. It is about to run the shard's executor, which may stand
    /// still before its first task has run.
    pub fn watch(&self) {
        self.thread.store(threads::thread_id(), Ordering::SeqCst);
        self.expect(BootInstant::now() + BUSY_EVERY);
    }

    fn expect(&self, due: BootInstant) {
        let due = due.since_boot().as_micros() as u64;
        self.due.store(due, Ordering::SeqCst);
    }

    /// The shard's side: runs on its executor until it ends.
    pub async fn run(self: Arc<Beat>) {
        let mut ran = glommio::executor().executor_stats().total_runtime();
        let mut every = BUSY_EVERY;
        loop {
            let due = BootInstant::now() + every;
            self.expect(due);
            GlommioRuntime::sleep_until(due).await;
            let late = (BootInstant::now() - due).as_micros() as u64;
            self.longest.fetch_max(late, Ordering::Relaxed);
            let now = glommio::executor().executor_stats().total_runtime();
            let busy = now.saturating_sub(ran) * BUSY_PART > every;
            every = if busy { BUSY_EVERY } else { IDLE_EVERY };
            ran = now;
        }
    }

    /// The shard has ended; there is nothing to watch.
    pub fn end(&self) {
        self.due.store(0, Ordering::SeqCst);
    }

    fn is_late(&self, now: BootInstant) -> bool {
        let due = self.due.load(Ordering::SeqCst);
        due != 0 && now.since_boot().as_micros() as u64 > due + LATE.as_micros() as u64
    }

    /// How long it is until the next beat; nothing if it should have come, or the shard is not watched.
    fn is_due_in(&self, now: BootInstant) -> Duration {
        let due = self.due.load(Ordering::SeqCst);
        Duration::from_micros(due.saturating_sub(now.since_boot().as_micros() as u64))
    }
}

/// The watching thread; ends when this is dropped.
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches these shards from a thread of its own.
    ///
    /// # Errors
    /// The handler cannot be set or the thread cannot be made.
    pub fn start(beats: Vec<Arc<Beat>>) -> io::Result<Watchdog> {
        set_handler()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let now = BootInstant::now();
                    beats
                        .iter()
                        .filter(|beat| beat.is_late(now))
                        .for_each(|beat| poke(beat));
                    // While all shards are idle there is little to look at.
                    let ahead = beats.iter().map(|beat| beat.is_due_in(now)).min();
                    std::thread::sleep(ahead.unwrap_or_default() + LATE);
                }
            })?;
        Ok(Watchdog {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

extern "C" fn do_nothing(_: libc::c_int) {}

fn set_handler() -> io::Result<()> {
    // SAFETY: the action is all zeros, which is valid, but for a handler that does nothing.
    // Without SA_RESTART, so that a wait ends.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as *const () as libc::sighandler_t;
        libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn poke(beat: &Beat) {
    beat.signals.fetch_add(1, Ordering::Relaxed);
    let thread = beat.thread.load(Ordering::SeqCst);
    // SAFETY: no memory is involved; a thread of this process that is gone is not found.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL) };
}
