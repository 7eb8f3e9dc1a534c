//! Prints results, as a table for people or as JSON for tools. Latencies are in microseconds.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::check::Verdict;
use crate::driver::Measured;
use crate::probe::{QUANTILES, Summary};
use crate::series::SecondSummary;

/// The output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON object on one line.
    Json,
}

/// Converts nanoseconds to microseconds with one decimal.
fn micros(nanos: u64) -> f64 {
    (nanos as f64 / 100.0).round() / 10.0
}

fn latency_json(latencies: &Summary) -> Value {
    let mut object = Map::new();
    object.insert("count".into(), json!(latencies.count));
    for ((name, _), nanos) in QUANTILES.iter().zip(latencies.quantiles) {
        object.insert((*name).into(), json!(micros(nanos)));
    }
    object.insert("max".into(), json!(micros(latencies.max)));
    object.insert("mean".into(), json!(micros(latencies.mean as u64)));
    Value::Object(object)
}

/// A second of a run, for people.
pub fn progress_line(second: &SecondSummary) -> String {
    let end = second.begin + second.length;
    let [p50, _, p99, ..] = second.latencies.quantiles.map(micros);
    let phase = if second.is_warmup { "  (warm-up)" } else { "" };
    format!(
        "{:>7.1} s  {:>10.0} ops/s  p50 {p50:>9.1}  p99 {p99:>9.1}  max {:>9.1} us  {} errors{phase}",
        end.as_secs_f64(),
        second.rate(),
        micros(second.latencies.max),
        second.errors,
    )
}

/// A second of a run: when it ended, since the start, and what was done in it.
fn second_json(second: &SecondSummary) -> Value {
    let end = second.begin + second.length;
    let thousandths = |time: f64| (time * 1e3).round() / 1e3;
    json!({
        "t": thousandths(end.as_secs_f64()),
        "seconds": thousandths(second.length.as_secs_f64()),
        "warmup": second.is_warmup,
        "operations": second.operations,
        "errors": second.errors,
        "latency_us": latency_json(&second.latencies),
    })
}

/// The result of a run. `conditions` are the settings under which it was measured, by name.
pub fn run_json(measured: &Measured, conditions: Map<String, Value>) -> Value {
    let probe = &measured.probe;
    let mut latency = Map::new();
    latency.insert(
        "all".into(),
        latency_json(&Summary::from(&probe.all_latencies())),
    );
    for (kind, latencies) in probe.latencies() {
        latency.insert(kind.name().into(), latency_json(&latencies.into()));
    }
    let mut object = conditions;
    object.insert("seconds".into(), json!(measured.seconds));
    object.insert("operations".into(), json!(probe.operations));
    object.insert("ops_per_second".into(), json!(ops_per_second(measured)));
    object.insert("errors".into(), json!(probe.errors));
    object.insert("not_found".into(), json!(probe.not_found));
    object.insert("missing".into(), json!(probe.missing));
    object.insert("conflicts".into(), json!(probe.conflicts));
    object.insert("not_started".into(), json!(probe.not_started));
    object.insert("latency_us".into(), Value::Object(latency));
    object.insert("stopped".into(), json!(measured.is_stopped));
    let series: Vec<Value> = measured.series.iter().map(second_json).collect();
    object.insert("series".into(), json!(series));
    Value::Object(object)
}

fn ops_per_second(measured: &Measured) -> f64 {
    let seconds = measured.seconds.max(1e-9);
    (measured.probe.operations as f64 / seconds * 10.0).round() / 10.0
}

/// The result of a run, for people.
pub fn run_table(measured: &Measured, conditions: &Map<String, Value>) -> String {
    let probe = &measured.probe;
    let mut text = String::new();
    let shown = conditions.iter().filter(|(_, value)| !value.is_null());
    let conditions: Vec<String> = shown
        .map(|(name, value)| format!("{name} {}", plain(value)))
        .collect();
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    line(format_args!("{}", conditions.join(", ")));
    let rate = ops_per_second(measured);
    line(format_args!(
        "{rate:.0} ops/s ({} in {:.1} s)",
        probe.operations, measured.seconds
    ));
    line(format_args!(
        "{:<18}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "latency, us", "count", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"
    ));
    let all = probe.all_latencies();
    let rows = probe
        .latencies()
        .map(|(kind, latencies)| (kind.name(), latencies));
    for (name, latencies) in std::iter::once(("all", &all)).chain(rows) {
        let latencies = Summary::from(latencies);
        let [p50, p90, p99, p999, p9999] = latencies.quantiles.map(micros);
        line(format_args!(
            "{name:<18}{:>12}{:>11.1}{p50:>11.1}{p90:>11.1}{p99:>11.1}{p999:>11.1}{p9999:>11.1}{:>11.1}",
            latencies.count,
            micros(latencies.mean as u64),
            micros(latencies.max)
        ));
    }
    for (words, count) in [
        ("reads found nothing", probe.not_found),
        ("read-modify-writes met another writer", probe.conflicts),
        ("operations were due but not begun", probe.not_started),
    ] {
        if count > 0 {
            line(format_args!("{count} {words}"));
        }
    }
    for (code, count) in &probe.errors {
        line(format_args!("error {code}: {count}"));
    }
    text
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// The result of a check. `facts` are the settings and counters around it, by name.
pub fn check_json(verdict: &Verdict<u32>, facts: Map<String, Value>) -> Value {
    let mut object = facts;
    object.insert("operations".into(), json!(verdict.operations));
    object.insert("unknown".into(), json!(verdict.unknown));
    object.insert("violations".into(), json!(verdict.violations.len()));
    object.insert("undecided".into(), json!(verdict.undecided.len()));
    if let Some((key, history)) = verdict.smallest() {
        object.insert("failing_key".into(), json!(key));
        object.insert("failing_history".into(), json!(history.to_string()));
    }
    Value::Object(object)
}

/// The result of a check, for people.
pub fn check_table(verdict: &Verdict<u32>, facts: &Map<String, Value>) -> String {
    let words: Vec<String> = facts
        .iter()
        .map(|(name, value)| format!("{name} {}", plain(value)))
        .collect();
    let mut text = format!(
        "{}\n{} operations checked, {} of unknown fate, {} keys violate linearizability\n",
        words.join(", "),
        verdict.operations,
        verdict.unknown,
        verdict.violations.len(),
    );
    if !verdict.undecided.is_empty() {
        text += &format!(
            "{} keys could not be decided: too many writes at once\n",
            verdict.undecided.len()
        );
    }
    if let Some((key, history)) = verdict.smallest() {
        text += &format!("smallest failing history, of key {key}:\n{history}\n");
    }
    text
}
