//! `rangedb history`: what the nodes did and what happened to them. A node keeps no history but its own, so the
//! command asks each of them, and sums their work up: the histograms of latencies are added, not the quantiles.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use rangedb_client::Client;
use rangedb_client::admin::{NodeEvent, NodeHistory, Period, Step};
use rangedb_engine::words::listed;
use rangedb_server::admin::json::of_state;
use rangedb_server::history::record::{HOUR_MS, MINUTE_MS, Work};
use serde::Serialize;

use super::connection_args::ConnectionArgs;
use super::output::{self, Printer};
use super::{CliError, Exit, connect};

/// A history that begins earlier is told by the hour.
const MINUTES_MAX: Duration = Duration::from_hours(24);
/// So many minutes or hours are asked for at once: their histograms fit into one reply, however wide they are.
const PART_MINUTES: u64 = 60;

/// A part of the past: how long ago it begins and ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: Duration,
    /// Without it, the part ends now.
    pub(super) to: Option<Duration>,
}

/// The histories of all nodes in one.
#[derive(Debug, Default, Serialize)]
struct ClusterHistory {
    /// The nodes whose histories it has.
    nodes: Vec<u64>,
    /// Those that have not told theirs.
    missing_nodes: Vec<MissingNode>,
    /// Why it is not known which nodes there are, so that it is the history of one node only.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes_unknown: Option<String>,
    minutes: Vec<Period>,
    hours: Vec<Period>,
    /// Oldest first.
    events: Vec<NodeEvent>,
    dropped: u64,
}

/// A node that has not told its history.
#[derive(Debug, Serialize)]
struct MissingNode {
    node: u64,
    address: String,
    reason: String,
}

/// The part of the past that all nodes are asked for.
#[derive(Clone, Copy)]
struct Past {
    from_ms: u64,
    to_ms: u64,
    step: Step,
}

impl Past {
    fn of(span: Span) -> Past {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let ago = |time: Duration| now.saturating_sub(time).as_millis() as u64;
        Past {
            from_ms: ago(span.from),
            // A node whose clock is ahead tells what it did just now, too.
            to_ms: span.to.map_or(u64::MAX, ago),
            step: match span.from > MINUTES_MAX {
                true => Step::Hour,
                false => Step::Minute,
            },
        }
    }

    /// Parts of it whose answers are short enough for one reply each. The last one has the end.
    fn parts(self) -> impl Iterator<Item = (u64, u64)> {
        let len = match self.step {
            Step::Minute => PART_MINUTES * MINUTE_MS,
            Step::Hour => PART_MINUTES * HOUR_MS,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let last = self.to_ms.min(now.unwrap_or_default().as_millis() as u64);
        let starts = (self.from_ms..=last.max(self.from_ms)).step_by(len as usize);
        starts.map(move |from| match from + len > last {
            true => (from, self.to_ms),
            false => (from, from + len - 1),
        })
    }
}

/// Prints the history of one node, or of all.
pub(super) async fn history(
    client: &Client,
    (node, span): (Option<u64>, Span),
    connection: &ConnectionArgs,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let past = Past::of(span);
    let Some(id) = node else {
        let told = of_all(client, past, connection).await?;
        for MissingNode {
            node,
            address,
            reason,
        } in &told.missing_nodes
        {
            eprintln!("node {node} at {address} has not told its history: {reason}");
        }
        if let Some(reason) = &told.nodes_unknown {
            eprintln!(
                "the other nodes are missing, since the list of nodes cannot be read: {reason}"
            );
        }
        let head = match told.nodes.as_slice() {
            [one] => format!("node {one}"),
            several => format!("nodes {}", listed(several)),
        };
        let words = table(&head, (&told.minutes, &told.hours), &told.events, past.step);
        let words = words + &dropped(told.dropped);
        return printer.print(out, of_state(told)?, words.trim_end());
    };
    let nodes = client.admin().nodes().await?;
    let found = nodes.iter().find(|node| node.id == id);
    let address = found
        .map(|node| node.address.clone())
        .ok_or_else(|| CliError {
            exit: Exit::NotFound,
            message: format!("there is no node {id}; rangedb node ls lists the nodes"),
        })?;
    let own = connect(&[address], connection).await?;
    let times = (Some(past.from_ms), Some(past.to_ms));
    let told = own.admin().history(Some(id), times, past.step).await?;
    let head = format!("node {id}");
    let words = table(&head, (&told.minutes, &told.hours), &told.events, past.step);
    let words = words + &dropped(told.dropped);
    printer.print(out, of_state(told)?, words.trim_end())
}

/// The histories of all nodes.
async fn of_all(
    client: &Client,
    past: Past,
    connection: &ConnectionArgs,
) -> Result<ClusterHistory, CliError> {
    let mut all = ClusterHistory::default();
    let nodes = match client.admin().nodes().await {
        Ok(nodes) => nodes,
        // Without a majority nobody knows the nodes. The one that answers tells what it has kept itself.
        Err(why) => {
            let times = (Some(past.from_ms), Some(past.to_ms));
            let told = client.admin().history(None, times, past.step).await?;
            all.nodes_unknown = Some(why.to_string());
            all.nodes.push(told.node);
            (all.minutes, all.hours) = (told.minutes, told.hours);
            (all.events, all.dropped) = (told.events, told.dropped);
            return Ok(all);
        }
    };
    let asked = nodes.iter().map(async |node| {
        let told = of_node(client, (node.id, &node.address), past, connection).await;
        (node, told)
    });
    let mut works: BTreeMap<u64, Work> = BTreeMap::new();
    for (node, told) in join_all(asked).await {
        match told {
            Ok((periods, told)) => {
                all.nodes.push(node.id);
                all.dropped += told.dropped;
                all.events.extend(told.events);
                for period in periods {
                    works.entry(period.t).or_default().add(&period.into());
                }
            }
            Err(why) => all.missing_nodes.push(MissingNode {
                node: node.id,
                address: node.address.clone(),
                reason: why.message,
            }),
        }
    }
    if all.nodes.is_empty() {
        let why = all.missing_nodes.into_iter().map(|node| node.reason).next();
        return Err(CliError {
            exit: Exit::Unreachable,
            message: format!("no node tells its history: {}", why.unwrap_or_default()),
        });
    }
    let periods: Vec<Period> = works.iter().map(|(t, work)| work.period(*t)).collect();
    match past.step {
        Step::Minute => all.minutes = periods,
        Step::Hour => all.hours = periods,
    }
    all.events.sort_by_key(|event| event.t);
    Ok(all)
}

/// The history of one node, its work apart, with histograms.
async fn of_node(
    client: &Client,
    (id, address): (u64, &str),
    past: Past,
    connection: &ConnectionArgs,
) -> Result<(Vec<Period>, NodeHistory), CliError> {
    // Where the node's address does not lead to it from here, the connection that there is may.
    let own = match connect(&[address.to_owned()], connection).await {
        Ok(own) => own,
        Err(why) => {
            let times = (u64::MAX, u64::MAX);
            let admin = client.admin();
            let is_it = admin.history_with_histograms(id, times, past.step);
            match is_it.await {
                Ok(_) => client.clone(),
                Err(_) => return Err(why),
            }
        }
    };
    let (mut periods, mut all) = (Vec::new(), NodeHistory::default());
    for part in past.parts() {
        let told = own
            .admin()
            .history_with_histograms(id, part, past.step)
            .await?;
        periods.extend(told.minutes.into_iter().chain(told.hours));
        all.events.extend(told.events);
        all.dropped = told.dropped;
    }
    Ok((periods, all))
}

fn dropped(rows: u64) -> String {
    match rows {
        0 => String::new(),
        rows => format!("{rows} rows were not kept since the start\n"),
    }
}

/// The work and the events of some nodes as lines for people.
fn table(
    nodes: &str,
    (minutes, hours): (&[Period], &[Period]),
    events: &[NodeEvent],
    step: Step,
) -> String {
    let mut words = format!("{nodes}; times are UTC, latencies in microseconds\n");
    let line = |cells: [&str; 6]| {
        let [time, ops, errors, p50, p99, p999] = cells;
        format!("{time:<16} {ops:>12} {errors:>10} {p50:>10} {p99:>10} {p999:>10}\n")
    };
    words += &line(["time", "requests", "refused", "p50", "p99", "p99.9"]);
    for period in minutes.iter().chain(hours) {
        words += &line([
            &time(period.t)[..16],
            &period.ops.to_string(),
            &period.errors.to_string(),
            &period.p50_us.to_string(),
            &period.p99_us.to_string(),
            &period.p999_us.to_string(),
        ]);
    }
    if minutes.is_empty() && hours.is_empty() {
        words += match step {
            Step::Minute => "no minute ended in that time\n",
            Step::Hour => "no hour ended in that time\n",
        };
    }
    words += "\nevents\n";
    for event in events {
        let text = output::word(event.text.as_bytes(), false);
        let (at, node) = (time(event.t), event.node);
        // Writing to a string cannot fail.
        let _ = writeln!(words, "{at}  node {node}  {}  {text}", event.kind);
    }
    if events.is_empty() {
        words += "none\n";
    }
    words
}

/// A time as a date and a time of day in UTC.
pub(super) fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of the year 0, so that a leap day ends a year (Hinnant, "Low-Level
    // Date Algorithms", 2013).
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + next;
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}",
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_709_251_200, "2024-03-01 00:00:00"),
            (1_798_761_599, "2026-12-31 23:59:59"),
        ] {
            assert_eq!(time(seconds * 1000), date);
        }
    }

    #[test]
    fn a_table_shows_no_control_characters() {
        let json = r#"{"node":2,"minutes":[{"t":0,"ops":3,"errors":0,"p50_us":1,"p99_us":2,"p999_us":3}],
            "hours":[],"events":[{"t":0,"node":2,"kind":"crash","text":"a\nb"}],"dropped":0}"#;
        let told: NodeHistory = serde_json::from_str(json).expect("it is read");
        let words = table("node 2", (&told.minutes, &[]), &told.events, Step::Minute);
        assert!(words.contains("1970-01-01 00:00            3"), "{words}");
        assert!(words.contains("node 2  crash  a\\x0ab"), "{words}");
        assert!(words.starts_with("node 2; "), "{words}");
        let words = table("nodes 1, 2", (&[], &[]), &[], Step::Minute);
        assert!(words.starts_with("nodes 1, 2; "), "{words}");
        assert!(words.contains("no minute ended in that time"), "{words}");
    }

    #[test]
    fn the_past_is_asked_for_in_parts_without_a_gap() {
        let hours = Duration::from_hours(1);
        for (from, to) in [
            (hours * 24, None),
            (hours * 24 * 90, None),
            (hours * 3, Some(hours)),
            (Duration::from_secs(1), None),
        ] {
            let past = Past::of(Span { from, to });
            let parts: Vec<(u64, u64)> = past.parts().collect();
            assert_eq!(parts[0].0, past.from_ms);
            assert_eq!(parts[parts.len() - 1].1, past.to_ms);
            assert!(parts.is_sorted_by(|a, b| a.1 + 1 == b.0), "{parts:?}");
            assert!((1..=37).contains(&parts.len()), "{parts:?}");
        }
    }
}
