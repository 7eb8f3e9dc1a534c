//! `rangedb history`: what a node did and what happened to it. With `--node` the command asks that node
//! itself, since a node keeps no history but its own.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rangedb_client::Client;
use rangedb_client::admin::{NodeHistory, Step};
use rangedb_server::admin::json::of_state;

use super::connection_args::ConnectionArgs;
use super::output::{self, Printer};
use super::{CliError, Exit, connect};

/// A history that begins earlier is told by the hour.
const MINUTES_MAX: Duration = Duration::from_hours(24);

/// A part of the past: how long ago it begins and ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: Duration,
    /// Without it, the part ends now.
    pub(super) to: Option<Duration>,
}

/// Prints the history of a node.
pub(super) async fn history(
    client: &Client,
    (node, span): (Option<u64>, Span),
    connection: &ConnectionArgs,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let ago = |time: Duration| now.saturating_sub(time).as_millis() as u64;
    let times = (Some(ago(span.from)), span.to.map(ago));
    let step = if span.from > MINUTES_MAX {
        Step::Hour
    } else {
        Step::Minute
    };
    let told = match node {
        None => client.admin().history(None, times, step).await?,
        Some(id) => {
            let nodes = client.admin().nodes().await?;
            let found = nodes.iter().find(|node| node.id == id);
            let address = found
                .map(|node| node.address.clone())
                .ok_or_else(|| CliError {
                    exit: Exit::NotFound,
                    message: format!("there is no node {id}; rangedb node ls lists the nodes"),
                })?;
            let own = connect(&[address], connection).await?;
            own.admin().history(Some(id), times, step).await?
        }
    };
    let words = table(&told, step, node.is_some());
    printer.print(out, of_state(told)?, words.trim_end())
}

/// The history as lines for people. A node that was not named is the one that happened to be asked.
fn table(told: &NodeHistory, step: Step, is_named: bool) -> String {
    let asked = match is_named {
        true => "",
        false => ", which was asked (--node N shows another node)",
    };
    let mut words = format!(
        "node {}{asked}; times are UTC, latencies in microseconds\n",
        told.node
    );
    let line = |cells: [&str; 6]| {
        let [time, ops, errors, p50, p99, p999] = cells;
        format!("{time:<16} {ops:>12} {errors:>10} {p50:>10} {p99:>10} {p999:>10}\n")
    };
    words += &line(["time", "requests", "refused", "p50", "p99", "p99.9"]);
    for period in told.minutes.iter().chain(&told.hours) {
        words += &line([
            &time(period.t)[..16],
            &period.ops.to_string(),
            &period.errors.to_string(),
            &period.p50_us.to_string(),
            &period.p99_us.to_string(),
            &period.p999_us.to_string(),
        ]);
    }
    if told.minutes.is_empty() && told.hours.is_empty() {
        words += match step {
            Step::Minute => "no minute ended in that time\n",
            Step::Hour => "no hour ended in that time\n",
        };
    }
    words += "\nevents\n";
    for event in &told.events {
        let text = output::word(event.text.as_bytes(), false);
        // Writing to a string cannot fail.
        let _ = writeln!(words, "{}  {}  {text}", time(event.t), event.kind);
    }
    if told.events.is_empty() {
        words += "none\n";
    }
    if told.dropped > 0 {
        let _ = writeln!(words, "{} rows were not kept since the start", told.dropped);
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
        let words = table(&told, Step::Minute, true);
        assert!(words.contains("1970-01-01 00:00            3"), "{words}");
        assert!(words.contains("crash  a\\x0ab"), "{words}");
        assert!(words.starts_with("node 2; "), "{words}");
        let words = table(&NodeHistory::default(), Step::Minute, false);
        assert!(
            words.starts_with("node 0, which was asked (--node N"),
            "{words}"
        );
        assert!(words.contains("no minute ended in that time"), "{words}");
    }
}
