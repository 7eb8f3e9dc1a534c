//! Logs on standard error, as text or JSON, and the last message of a process.
//!
//! The node goes on, whatever happens to standard output and standard error: a line that cannot be
//! written is lost and counted ([`lines_lost`]). A thread of its own writes the lines, since a pipe
//! that nobody reads, or a disk that hangs, blocks the writer, and a shard must not wait for that.
//! The queue of that thread is bounded; lines that do not fit are lost, too. Nothing else in the
//! server prints: `println!` and `eprintln!` panic when they cannot write.
//!
//! Each line is one line, whatever the names in it are: control characters are escaped.
//!
//! Lines about what happens to the node or the cluster have a field `event` with a name that does not
//! change; [`events`] lists the names.

pub mod events;

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::json;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use crate::config::LogFormat;
use crate::env::threads;
use crate::history::{self, History};

/// The longest queue of lines, in bytes.
const WAITING_LEN_MAX: usize = 4 << 20;
/// Bytes that a queued line counts for besides its text.
const LINE_COST: usize = 64;
/// How long the end of the process waits for the queued lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a line is retried on a non-blocking descriptor that takes nothing, and how often.
const RETRY_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The queue of the writing thread.
static LOG: OnceLock<Lines> = OnceLock::new();
/// Replaces the filter of lines.
static FILTER: OnceLock<SetFilter> = OnceLock::new();
/// Whether lines are JSON.
static JSON: AtomicBool = AtomicBool::new(false);
/// The number of lines that were lost.
static LOST: AtomicU64 = AtomicU64::new(0);

/// A filter's handle, whose own type names the format of lines.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The queue of lines for standard error.
struct Lines {
    queue: mpsc::Sender<Vec<u8>>,
    /// The size of the queued lines, in bytes.
    waiting: AtomicUsize,
    queued: AtomicU64,
    done: AtomicU64,
}

/// Starts logging for the whole process. The history gets the lines that are events.
///
/// # Errors
/// The level is no valid filter, the thread cannot be started, or logging was started before.
pub fn start(format: LogFormat, level: &str, history: &History) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    start_writer().map_err(|e| format!("cannot start the thread that writes logs: {e}"))?;
    FILTER.get_or_init(|| Box::new(move |filter| handle.reload(filter)));
    set_format(format);
    let lines = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(|| Line)
        .with_ansi(false)
        .event_format(EitherFormat::new());
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(history::layer::layer(history.clone()))
        .try_init()
        .map_err(|e| e.to_string())
}

/// Changes the level of log lines. Only a level that [`start`] would take is set.
pub fn set_level(level: &str) {
    let set = FILTER.get().ok_or_else(|| "there are no logs".to_owned());
    let is_set = set.and_then(|set| set(filter(level)?).map_err(|e| e.to_string()));
    if let Err(error) = is_set {
        tracing::error!(level, error, "the level of log lines was not changed");
    }
}

/// Changes the format of log lines.
pub fn set_format(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

/// The two formats of lines, of which [`set_format`] chooses one.
struct EitherFormat {
    text: Format<Full, SystemTime>,
    json: Format<Json, SystemTime>,
}

impl EitherFormat {
    fn new() -> EitherFormat {
        let json = tracing_subscriber::fmt::format().json();
        EitherFormat {
            text: tracing_subscriber::fmt::format(),
            json: json.flatten_event(true),
        }
    }
}

impl<S, N> FormatEvent<S, N> for EitherFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match JSON.load(Ordering::Relaxed) {
            true => self.json.format_event(context, writer, event),
            false => self.text.format_event(context, writer, event),
        }
    }
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    // openraft logs each step at info, and a warning for each heartbeat that a dead peer misses.
    // The links between nodes log what operators need to know of that, once.
    EnvFilter::try_new(format!("{level},openraft=error,openraft_rt=error"))
        .map_err(|e| format!("log-level {level:?}: {e}; use error, warn, info, debug or trace"))
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

/// The number of lines, of logs and of standard output, that were lost since the start.
pub fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Prints a line on standard output. A new thread writes it, as it may have to wait for a reader.
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

/// Says why the process ends, whatever the level of logs is: by a log line after all queued ones, for
/// which it waits up to a second, or before logs are started by a plain line. The next start finds the
/// words in its history.
pub fn last_words(words: &str) {
    history::last_words::keep(words);
    let Some(log) = LOG.get() else {
        // If standard error is closed, there is no other place for the message.
        let _ = writeln!(io::stderr(), "rangedb: {words}");
        return;
    };
    log.push(one_line(format!("{}\n", last_line(words)).as_bytes()));
    flush();
}

/// The log line of a message that no filter may keep back.
fn last_line(words: &str) -> String {
    let mut at = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut at));
    match JSON.load(Ordering::Relaxed) {
        true => json!({
            "timestamp": at,
            "level": "ERROR",
            "event": "node_failed",
            "message": words,
            "target": "rangedb",
        })
        .to_string(),
        false => format!("{at} ERROR rangedb: {words} event=\"node_failed\""),
    }
}

/// Waits until the lines queued so far are written, for at most a second.
pub fn flush() {
    let Some(log) = LOG.get() else { return };
    let queued = log.queued.load(Ordering::SeqCst);
    let begun = Instant::now();
    while log.done.load(Ordering::SeqCst) < queued && begun.elapsed() < FLUSH_TIMEOUT {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes a panic in any thread log its place and reason once, and abort the process. Only the history
/// may panic: its thread stands still then, as a release build cannot unwind, and another goes on.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        if history::take_over(&panic.to_string()) {
            loop {
                std::thread::park();
            }
        }
        let name = std::thread::current()
            .name()
            .unwrap_or("unnamed")
            .to_owned();
        let trace = std::backtrace::Backtrace::force_capture();
        last_words(&format!(
            "the node aborts, since nothing continues on bad state: thread {name} panicked: \
             {panic}\n{trace}"
        ));
        threads::abort();
    }));
}

impl Lines {
    fn push(&self, line: Vec<u8>) {
        self.waiting
            .fetch_add(line.len() + LINE_COST, Ordering::Relaxed);
        self.queued.fetch_add(1, Ordering::SeqCst);
        // The receiver never goes away: the writing thread runs until the process ends.
        let _ = self.queue.send(line);
    }
}

/// The target of one log line: `tracing-subscriber` writes each line with one call.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LOG.get() {
            Some(log) if log.waiting.load(Ordering::Relaxed) < WAITING_LEN_MAX => {
                log.push(one_line(line));
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

/// A line with control characters escaped, but for the one that ends it.
fn one_line(line: &[u8]) -> Vec<u8> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    if !text.iter().any(u8::is_ascii_control) {
        return line.to_owned();
    }
    let mut escaped = Vec::with_capacity(line.len() + 16);
    for byte in text {
        match byte.is_ascii_control() {
            true => escaped.extend(byte.escape_ascii()),
            false => escaped.push(*byte),
        }
    }
    escaped.push(b'\n');
    escaped
}

/// Runs the writing thread.
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
        // Once lines can be written again and the queue is empty, the log says how many are
        // missing.
        if written && left == 0 && std::mem::replace(&mut told, lost) != lost {
            tracing::warn!(
                event = "lines_lost",
                lines = lost,
                "log lines were lost; the number counts from the start"
            );
        }
    }
}

/// A descriptor that may refuse a line, or take only a part of it.
struct Output<W> {
    to: W,
    /// Whether the last line was cut short, so that a newline must be written first.
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
                        std::thread::sleep(RETRY_INTERVAL);
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

    /// A descriptor that takes `room` bytes, then none until there is room again.
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
    fn a_line_is_one_line_whatever_is_in_it() {
        assert_eq!(one_line(b"a \\ b\n"), b"a \\ b\n");
        assert_eq!(
            one_line("ä\n\r\t\x1b[0mb\n".as_bytes()),
            "ä\\n\\r\\t\\x1b[0mb\n".as_bytes()
        );
        assert_eq!(one_line(b"a\n\n"), b"a\\n\n");
        assert_eq!(one_line(b"\xff\0"), b"\xff\\x00\n");
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
