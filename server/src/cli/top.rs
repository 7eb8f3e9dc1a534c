//! `rangedb top`: a live view of the cluster in the terminal, and with `--once` one picture as plain text.
//!
//! Each picture has the answers of the cluster's manager and the metrics of all nodes, which are asked for at
//! the same time. Rates and latencies are those between two pictures. It draws with the escape sequences
//! that every terminal has, and restores the terminal when it ends.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::time::{Duration, Instant};

use rangedb_client::admin::{ClusterStatus, Health, Range};
use rangedb_client::{Client, Error};
use rangedb_engine::words::counted;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::request::Top;
use super::scrape::{Answered, Counters, Shards, scrape};
use super::{CliError, Exit, cluster, output};

/// The size of a terminal that does not tell its own.
const USUAL_SIZE: (usize, usize) = (80, 24);
/// Makes room for pictures beside what the terminal shows, and hides the cursor.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";
/// Takes both back.
const END: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// What was known at one moment.
struct Sample {
    at: Instant,
    status: ClusterStatus,
    ranges: Vec<Range>,
    /// The metrics of the nodes that answered, by the ids of the nodes.
    shards: BTreeMap<u64, Shards>,
}

impl Sample {
    async fn take(client: &Client) -> Result<Sample, Error> {
        let admin = client.admin();
        let status = admin.status().await?;
        let ranges = admin.ranges().await?;
        let at = Instant::now();
        let mut scrapes = JoinSet::new();
        for node in status.nodes.iter().filter(|node| !node.http.is_empty()) {
            let (id, http) = (node.id, node.http.clone());
            scrapes.spawn(async move { Some((id, scrape(&http).await.ok()?)) });
        }
        let shards = scrapes.join_all().await.into_iter().flatten().collect();
        Ok(Sample {
            at,
            status,
            ranges,
            shards,
        })
    }
}

/// Shows pictures until the reader has enough, or one.
pub(super) async fn top(client: &Client, top: Top, out: &mut impl Write) -> Result<Exit, CliError> {
    let before = Sample::take(client).await?;
    if top.once {
        tokio::time::sleep(top.interval).await;
        let now = Sample::take(client).await?;
        for line in picture(&before, &now) {
            writeln!(out, "{line}")?;
        }
        return Ok(Exit::Done);
    }
    if !io::stdout().is_terminal() {
        return Err(CliError::usage(
            "standard output is no terminal; use top --once",
        ));
    }
    let mut terminal = Terminal::begin(out)?;
    live(client, top.interval, before, &mut terminal).await?;
    Ok(Exit::Done)
}

async fn live<W: Write>(
    client: &Client,
    interval: Duration,
    mut before: Sample,
    terminal: &mut Terminal<'_, W>,
) -> Result<(), CliError> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    terminal.draw(&["one moment".to_owned()])?;
    // The first tick is at once.
    ticks.tick().await;
    loop {
        let next = async {
            ticks.tick().await;
            Sample::take(client).await
        };
        let sample = tokio::select! {
            sample = next => sample,
            () = terminal.end() => return Ok(()),
        };
        match sample {
            Ok(now) => {
                terminal.draw(&picture(&before, &now))?;
                before = now;
            }
            Err(error) => terminal.draw(&[output::word(error.to_string().as_bytes(), false)])?,
        }
    }
}

/// The terminal while it shows pictures; dropping it gives the terminal back.
struct Terminal<'o, W: Write> {
    out: &'o mut W,
    /// How the terminal treated what is typed; `None`: nothing can be typed.
    modes: Option<Termios>,
    typed: mpsc::Receiver<u8>,
    interrupt: Signal,
}

impl<'o, W: Write> Terminal<'o, W> {
    fn begin(out: &'o mut W) -> io::Result<Terminal<'o, W>> {
        // From here on Ctrl-C ends the view, and the terminal is given back.
        let interrupt = signal(SignalKind::interrupt())?;
        let modes = termios::tcgetattr(io::stdin()).ok();
        if let Some(modes) = &modes {
            // Each letter comes at once and is not shown. Ctrl-C stays a signal.
            let mut raw = modes.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        }
        let (sender, typed) = mpsc::channel(1);
        if modes.is_some() {
            // It waits for a letter until the process ends.
            std::thread::spawn(move || {
                for byte in io::stdin().lock().bytes().map_while(Result::ok) {
                    if sender.blocking_send(byte).is_err() {
                        break;
                    }
                }
            });
        }
        write!(out, "{BEGIN}")?;
        Ok(Terminal {
            out,
            modes,
            typed,
            interrupt,
        })
    }

    /// Shows as many of these lines as fit.
    fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let size = termios::tcgetwinsize(io::stdout());
        let (width, height) = match size {
            Ok(size) if size.ws_row > 0 => (usize::from(size.ws_col), usize::from(size.ws_row)),
            _ => USUAL_SIZE,
        };
        write!(self.out, "{HOME}")?;
        for (place, line) in lines.iter().take(height).enumerate() {
            let shown: String = line.chars().take(width).collect();
            let end = if place > 0 { "\r\n" } else { "" };
            write!(self.out, "{end}{shown}{CLEAR_LINE}")?;
        }
        write!(self.out, "{CLEAR_REST}")?;
        self.out.flush()
    }

    /// Waits for q or a signal.
    async fn end(&mut self) {
        let quit = async {
            loop {
                match self.typed.recv().await {
                    Some(b'q' | b'Q') => return,
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = quit => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl<W: Write> Drop for Terminal<'_, W> {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to give back.
        let _ = write!(self.out, "{END}").and_then(|()| self.out.flush());
        if let Some(modes) = &self.modes {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }
}

/// The lines of a picture, of what was done between two samples.
fn picture(before: &Sample, now: &Sample) -> Vec<String> {
    let seconds = (now.at - before.at).as_secs_f64().max(1e-3);
    let none = Shards::new();
    let mut all = Answered::default();
    let heading = [
        "node", "address", "state", "ops/s", "p50", "p99", "busy", "memory", "ranges", "leads",
        "clients",
    ];
    let mut nodes = vec![heading.map(str::to_owned)];
    let mut shards = nodes.clone();
    shards[0][0] = "shard".to_owned();
    for node in &now.status.nodes {
        let [earlier, later] =
            [before, now].map(|sample| sample.shards.get(&node.id).unwrap_or(&none));
        let rows: Vec<Load> = (later.iter())
            .map(|(shard, counters)| Load::between(earlier.get(shard), counters))
            .collect();
        let sum = Load::sum(&rows);
        all.add(&sum.answered);
        let address = output::word(node.address.as_bytes(), false);
        let known = now.shards.contains_key(&node.id);
        let place = [node.id.to_string(), address, node.liveness.to_string()];
        nodes.push(sum.row(place, seconds, known));
        for (shard, load) in later.keys().zip(&rows) {
            let place = [format!("{}/{shard}", node.id), "".to_owned(), "".to_owned()];
            shards.push(load.row(place, seconds, true));
        }
    }
    let mut lines = Vec::new();
    let mut add = |text: String| lines.extend(text.lines().map(str::to_owned));
    add(headline(&now.status, &all, seconds));
    add(cluster::reasons(&now.status.reasons));
    add(output::columns(&nodes));
    add("\n".to_owned());
    // The columns of a shard are those of a node without its address and state.
    let shards: Vec<[String; 9]> = shards
        .into_iter()
        .map(|[shard, _, _, rest @ ..]| {
            let mut cells = std::iter::once(shard).chain(rest);
            std::array::from_fn(|_| cells.next().unwrap_or_default())
        })
        .collect();
    add(output::columns(&shards));
    add("\n".to_owned());
    add(output::columns(&ranges(&now.ranges)));
    lines
}

/// The first lines: the health of the cluster, and all that it does.
fn headline(status: &ClusterStatus, all: &Answered, seconds: f64) -> String {
    let health = match status.health {
        Health::Ok => "ok".to_owned(),
        other => other.to_string().to_uppercase(),
    };
    format!(
        "cluster {health}: {}, {} under-replicated, {} unavailable\n{} ops/s  p50 {}  p99 {}\n\n",
        counted(status.ranges, "range"),
        status.under_replicated,
        status.unavailable,
        rate(all.count() / seconds),
        output::latency(all.quantile(0.5)),
        output::latency(all.quantile(0.99)),
    )
}

/// What a shard did between two samples, and what it had at the end.
#[derive(Default)]
struct Load {
    answered: Answered,
    busy_seconds: f64,
    shards: f64,
    end: Counters,
}

impl Load {
    fn between(before: Option<&Counters>, now: &Counters) -> Load {
        let none = Counters::default();
        // What a shard did before the first sample of it does not count.
        let before = before.unwrap_or(now);
        let answered = now.answered.since(&before.answered);
        Load {
            answered,
            busy_seconds: (now.busy_seconds - before.busy_seconds).max(0.0),
            shards: 1.0,
            end: Counters {
                answered: none.answered,
                ..now.clone()
            },
        }
    }

    fn sum(loads: &[Load]) -> Load {
        let mut sum = Load::default();
        for load in loads {
            sum.answered.add(&load.answered);
            sum.busy_seconds += load.busy_seconds;
            sum.shards += load.shards;
            sum.end.memory_bytes += load.end.memory_bytes;
            sum.end.connections += load.end.connections;
            sum.end.ranges += load.end.ranges;
            sum.end.leads += load.end.leads;
        }
        sum
    }

    fn row(&self, [id, address, state]: [String; 3], seconds: f64, known: bool) -> [String; 11] {
        let busy = 100.0 * self.busy_seconds / seconds / self.shards.max(1.0);
        let cells = [
            rate(self.answered.count() / seconds),
            output::latency(self.answered.quantile(0.5)),
            output::latency(self.answered.quantile(0.99)),
            format!("{busy:.0} %"),
            format!("{:.0} MiB", self.end.memory_bytes / f64::from(1 << 20)),
            format!("{:.0}", self.end.ranges),
            format!("{:.0}", self.end.leads),
            format!("{:.0}", self.end.connections),
        ];
        let cells = cells.map(|cell| if known { cell } else { "-".to_owned() });
        let mut row = [id, address, state].into_iter().chain(cells);
        std::array::from_fn(|_| row.next().unwrap_or_default())
    }
}

/// The ranges, those that are not whole first.
fn ranges(ranges: &[Range]) -> Vec<[String; 6]> {
    let heading = ["range", "leader", "replicas", "start", "end", ""];
    let mut sorted: Vec<&Range> = ranges.iter().collect();
    sorted.sort_by_key(|range| (!range.unavailable, !range.under_replicated, range.id));
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(sorted.into_iter().map(|range| {
        let (start, end) = cluster::borders(range);
        [
            range.id.to_string(),
            cluster::leader(range),
            cluster::replicas(range),
            start,
            end,
            cluster::trouble(range).to_owned(),
        ]
    }));
    rows
}

/// A number of operations a second.
fn rate(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.1} k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use rangedb_client::admin::Node;

    use super::*;

    fn sample(at: Instant, busy_seconds: f64) -> Sample {
        let node = |id: u64| {
            let mut node = Node::default();
            (node.id, node.address) = (id, format!("a:{id}"));
            node
        };
        let mut status = ClusterStatus::default();
        (status.health, status.ranges) = (Health::Ok, 2);
        status.nodes = vec![node(1), node(2)];
        let range = |id: u64, unavailable: bool| {
            let mut range = Range::default();
            (range.id, range.unavailable) = (id, unavailable);
            range
        };
        let counters = Counters {
            busy_seconds,
            memory_bytes: f64::from(64 << 20),
            ranges: 2.0,
            ..Counters::default()
        };
        Sample {
            at,
            status,
            ranges: vec![range(1, false), range(2, true)],
            // The second node does not answer.
            shards: BTreeMap::from([(1, Shards::from([(0, counters)]))]),
        }
    }

    #[test]
    fn a_picture_shows_nodes_shards_and_ranges() {
        let at = Instant::now();
        let later = sample(at + Duration::from_secs(2), 1.5);
        let lines = picture(&sample(at, 1.0), &later);
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = lines.iter().map(words).collect();
        assert!(lines[0].starts_with("cluster ok: 2 ranges"), "{lines:?}");
        for wanted in [
            "1 a:1 unknown 0 - - 25 % 64 MiB 2 0 0",
            "2 a:2 unknown - - - - - - - -",
            "1/0 0 - - 25 % 64 MiB 2 0 0",
        ] {
            assert!(
                lines.iter().any(|line| line == wanted),
                "{wanted}: {lines:?}"
            );
        }
        // The range that is not served comes first.
        let of = |text: &str| lines.iter().position(|line| line.starts_with(text));
        assert!(of("2 - -") < of("1 - -"), "{lines:?}");
    }

    #[test]
    fn numbers_have_units_that_people_read() {
        let rates = [
            (0.4, "0"),
            (9_999.0, "9999"),
            (12_340.0, "12.3 k"),
            (2.5e6, "2.50 M"),
        ];
        for (number, text) in rates {
            assert_eq!(rate(number), text);
        }
        for (seconds, text) in [(2.0, "2.00 s"), (0.0015, "1.5 ms"), (0.000_25, "250 us")] {
            assert_eq!(output::latency(Some(seconds)), text);
        }
    }
}
