//! `rangedb history`: what the nodes did and what happened to them, of all nodes or of one.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use rangedb_client::Client;
use rangedb_client::admin::{Node, NodeEvent, NodeHistory, Period, Step};
use rangedb_engine::words::listed;
use rangedb_server::admin::cluster_history::{ClusterHistory, MissingNode, Past};
use rangedb_server::admin::json::of_state;

use super::connection_args::ConnectionArgs;
use super::output::{self, Printer};
use super::{CliError, Exit, connect};

/// A part of the past: how long ago it begins and ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: Duration,
    /// Without it, the part ends now.
    pub(super) to: Option<Duration>,
}

/// Prints the history of one node, or of all.
pub(super) async fn history(
    client: &Client,
    (node, span): (Option<u64>, Span),
    connection: &ConnectionArgs,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let past = Past::ago(span.from, span.to);
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
    let nodes = match client.admin().nodes().await {
        Ok(nodes) => nodes,
        // Without a majority nobody knows the nodes. The one that answers tells what it has kept itself.
        Err(why) => {
            let times = (Some(past.from_ms), Some(past.to_ms));
            let told = client.admin().history(None, times, past.step).await?;
            return Ok(ClusterHistory::of_one(told, why.to_string()));
        }
    };
    let all = ClusterHistory::of_all(&nodes, past.step, |node| async move {
        let told = of_node(client, node, past, connection).await;
        told.map_err(|why| why.message)
    });
    all.await.told().map_err(|message| CliError {
        exit: Exit::Unreachable,
        message,
    })
}

/// The history of one node, with histograms.
async fn of_node(
    client: &Client,
    node: &Node,
    past: Past,
    connection: &ConnectionArgs,
) -> Result<NodeHistory, CliError> {
    // Where the node's address does not lead to it from here, the connection that there is may.
    let own = match connect(std::slice::from_ref(&node.address), connection).await {
        Ok(own) => own,
        Err(why) => {
            let times = (u64::MAX, u64::MAX);
            let admin = client.admin();
            let is_it = admin.history_with_histograms(node.id, times, past.step);
            match is_it.await {
                Ok(_) => client.clone(),
                Err(_) => return Err(why),
            }
        }
    };
    Ok(past.ask(&own.admin(), node.id).await?)
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
}
