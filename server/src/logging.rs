//! Logs on standard error, as text or JSON, and the last words of a process.
//!
//! Whatever becomes of standard output and error, the node goes on: a line that cannot be written is
//! lost and counted ([`lines_lost`]). Lines are written by a thread of their own, because a pipe that
//! nobody reads, or a disk that hangs, blocks whoever writes to it, and a shard must not wait for
//! that. The lines that wait for this thread are bounded; further ones are lost, too. Nothing else in
//! the server prints: `println!` and `eprintln!` panic when they cannot write.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::env::threads;

/// Bytes of lines that wait to be written.
const WAITING_LEN_MAX: usize = 4 << 20;
/// What a line that waits costs besides its bytes.
const LINE_COST: usize = 64;
/// How long the end of the process waits for lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long and how often a line is tried on a descriptor that does not block and takes nothing.
const RETRY_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// The way to the thread that writes.
static LOG: OnceLock<Lines> = OnceLock::new();
/// Lines that could not be written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines on their way to standard error.
struct Lines {
    queue: mpsc::Sender<Vec<u8>>,
    /// What the lines that wait cost.
    waiting: AtomicUsize,
    queued: AtomicU64,
    done: AtomicU64,
}

/// Starts logging for the whole process.
///
/// # Errors
/// The level is no filter, there can be no thread, or logging was started before.
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    // openraft tells of each step at info, and warns of each heartbeat that a dead peer misses; what
    // operators want to know of that the links say once.
    let directives = format!("{level},openraft=error,openraft_rt=error");
    let filter = EnvFilter::try_new(&directives)
        .map_err(|e| format!("log-level {level:?}: {e}; use error, warn, info, debug or trace"))?;
    start_writer().map_err(|e| format!("cannot start the thread that writes logs: {e}"))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(|| Line);
    let started = match format {
        LogFormat::Text => logs.with_ansi(false).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    started.map_err(|e| e.to_string())
}

fn start_writer() -> io::Result<()> {
    let (queue, lines) = mpsc::channel();
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&lines))?;
    LOG.get_or_init(|| Lines {
        queue,
        waiting: AtomicUsize::new(0),
        queued: AtomicU64::new(0),
        done: AtomicU64::new(0),
    });
    Ok(())
}

/// Log lines, and lines of standard output, that could not be written so far.
pub fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Prints a line on standard output. A thread of its own waits for somebody to read it.
pub fn announce(line: String) {
    let print = move || {
        let mut out = io::stdout();
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    };
    let thread = std::thread::Builder::new().name("announce".to_owned());
    if thread.spawn(print).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes a message as it is to standard error, after all log lines, and waits a moment for them.
/// For what is said right before the process ends.
pub fn last_words(words: &str) {
    let Some(log) = LOG.get() else {
        // Standard error may be gone; there is nobody left to tell.
        let _ = writeln!(io::stderr(), "{words}");
        return;
    };
    log.push(format!("{words}\n").into_bytes());
    flush();
}

/// Waits until the lines so far are written, but not for long.
pub fn flush() {
    let Some(log) = LOG.get() else { return };
    let queued = log.queued.load(Ordering::SeqCst);
    let begun = Instant::now();
    while log.done.load(Ordering::SeqCst) < queued && begun.elapsed() < FLUSH_TIMEOUT {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has a panic anywhere say where and why, once, and end the process.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let name = std::thread::current()
            .name()
            .unwrap_or("unnamed")
            .to_owned();
        let trace = std::backtrace::Backtrace::force_capture();
        last_words(&format!(
            "rangedb: thread {name} panicked: {panic}\n{trace}\nrangedb: aborting: nothing \
             continues on bad state"
        ));
        threads::abort();
    }));
}

impl Lines {
    fn push(&self, line: Vec<u8>) {
        self.waiting
            .fetch_add(line.len() + LINE_COST, Ordering::Relaxed);
        self.queued.fetch_add(1, Ordering::SeqCst);
        // The thread that writes never ends.
        let _ = self.queue.send(line);
    }
}

/// Where a log line goes: `tracing-subscriber` writes each with one call.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LOG.get() {
            Some(log) if log.waiting.load(Ordering::Relaxed) < WAITING_LEN_MAX => {
                log.push(line.to_owned());
            }
            _ => {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes.
fn write_lines(lines: &mpsc::Receiver<Vec<u8>>) {
    let mut out = Output::new(io::stderr());
    let mut told = 0;
    while let Ok(line) = lines.recv() {
        let written = out.write(&line).is_ok();
        if !written {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        let Some(log) = LOG.get() else { continue };
        let cost = line.len() + LINE_COST;
        let left = log.waiting.fetch_sub(cost, Ordering::Relaxed) - cost;
        log.done.fetch_add(1, Ordering::SeqCst);
        let lost = lines_lost();
        // Once it works again and has caught up, it says what is missing.
        if written && left == 0 && std::mem::replace(&mut told, lost) != lost {
            tracing::warn!(lines = lost, "log lines were lost, so many since the start");
        }
    }
}

/// A descriptor that may refuse a line, or take a part of one.
struct Output<W> {
    to: W,
    /// It took a part: the next line begins with the end of that one.
    torn: bool,
}

impl<W: Write> Output<W> {
    fn new(to: W) -> Output<W> {
        Output { to, torn: false }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let begun = Instant::now();
        if self.torn {
            self.write_all(b"\n", begun)?;
        }
        self.torn = true;
        self.write_all(line, begun)?;
        self.torn = false;
        Ok(())
    }

    fn write_all(&mut self, mut bytes: &[u8], begun: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.to.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if begun.elapsed() < RETRY_TIMEOUT => {
                        std::thread::sleep(RETRY_EVERY);
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then none until there is room again.
    struct Full {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = bytes.len().min(self.room);
            if len == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= len;
            self.taken.extend_from_slice(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_after_a_torn_one_is_whole() {
        let mut out = Output::new(Full {
            taken: Vec::new(),
            room: 9,
        });
        out.write(b"first\n").expect("there is room");
        out.write(b"second\n").expect_err("there is none");
        out.write(b"third\n").expect_err("there is none");
        out.to.room = 100;
        out.write(b"fourth\n").expect("there is room");
        out.write(b"fifth\n").expect("there is room");
        assert_eq!(out.to.taken, b"first\nsec\nfourth\nfifth\n");
    }
}
