//! `rangedb balance`: the latest decisions of the cluster's manager, and with `--watch` also those that it
//! makes from then on.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use rangedb_client::Client;
use rangedb_client::admin::Decision;
use rangedb_protocol::admin::Balance;
use rangedb_server::admin::json::of_state;
use tokio::signal::unix::{SignalKind, signal};

use super::connection_args::Format;
use super::history::time;
use super::output::{self, Printer, columns};
use super::{CliError, Exit};

/// How often the manager is asked for new decisions.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Prints the last decisions; with `watch` also those that come, until a signal.
pub(super) async fn perform(
    client: &Client,
    watch: bool,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    if !watch {
        let decisions = client.admin().decisions().await?;
        let words = table(&decisions);
        return printer.print(out, of_state(Balance { decisions })?, words.trim_end());
    }
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupted.recv() => Ok(Exit::Done),
        _ = terminated.recv() => Ok(Exit::Done),
        Err(error) = follow(client, printer.format, out) => Err(error),
    }
}

/// Prints each decision in a line when it comes, and again when its outcome is another one.
async fn follow(
    client: &Client,
    format: Format,
    out: &mut impl Write,
) -> Result<std::convert::Infallible, CliError> {
    let mut printed: BTreeMap<u64, String> = BTreeMap::new();
    loop {
        let decisions = client.admin().decisions().await?;
        for decision in &decisions {
            if printed.get(&decision.id) == Some(&decision.outcome) {
                continue;
            }
            match format {
                Format::Table => writeln!(out, "{}", cells(decision).join("  "))?,
                Format::Json => writeln!(out, "{}", of_state(decision)?)?,
            }
        }
        out.flush()?;
        let known = decisions.into_iter();
        printed = known.map(|known| (known.id, known.outcome)).collect();
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Decisions as lines with a heading.
fn table(decisions: &[Decision]) -> String {
    let heading = [
        "time (UTC)",
        "range",
        "decision",
        "from",
        "to",
        "outcome",
        "reason",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(decisions.iter().map(cells));
    columns(&rows)
}

fn cells(decision: &Decision) -> [String; 7] {
    let place = |at: &Option<String>| at.clone().unwrap_or_else(|| "-".to_owned());
    // Reasons come from other nodes.
    let text = |text: &str| output::word(text.as_bytes(), false);
    let reason = match decision.expected.as_str() {
        "" => text(&decision.reason),
        expected => format!("{}; then {}", text(&decision.reason), text(expected)),
    };
    [
        time(decision.at_ms),
        decision.range.to_string(),
        text(&decision.kind),
        place(&decision.from),
        place(&decision.to),
        text(&decision.outcome),
        reason,
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_tells_what_was_decided_why_and_what_became_of_it() {
        let answer = json!({ "decisions": [
            { "id": 1, "at_ms": 1000, "range": 7, "kind": "move_leader", "reason": "node 1 leads 4 ranges",
              "from": "1/0", "to": "2/1", "expected": "node 1 will lead 3", "outcome": "done" },
            { "id": 2, "at_ms": 61000, "range": 12, "kind": "split", "reason": "it is too large",
              "from": null, "to": null, "expected": "", "outcome": "failed: no key\ncuts it" },
        ]});
        let answer: Balance = serde_json::from_value(answer).unwrap();
        let text = table(&answer.decisions);
        let lines: Vec<&str> = text.lines().collect();
        let wanted = [
            r"time (UTC)           range  decision     from  to   outcome                    reason",
            r"1970-01-01 00:00:01  7      move_leader  1/0   2/1  done                       node 1 leads 4 ranges; then node 1 will lead 3",
            r"1970-01-01 00:01:01  12     split        -     -    failed: no key\x0acuts it  it is too large",
        ];
        assert_eq!(lines, wanted);
    }
}
