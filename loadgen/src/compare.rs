//! `loadgen compare A.json B.json`: two results beside each other, with a verdict. Pure but for reading the
//! files.
//!
//! The verdict is by the rate, the median and p99: further out a latency depends on a few operations. A
//! ratio within the tolerance is no difference.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

/// What is compared: the name, where it stands in a result, and whether more is better.
const FIGURES: [(&str, &str, bool); 8] = [
    ("ops/s", "/ops_per_second", true),
    ("mean, us", "/latency_us/all/mean", false),
    ("p50, us", "/latency_us/all/p50", false),
    ("p90, us", "/latency_us/all/p90", false),
    ("p99, us", "/latency_us/all/p99", false),
    ("p99.9, us", "/latency_us/all/p999", false),
    ("p99.99, us", "/latency_us/all/p9999", false),
    ("max, us", "/latency_us/all/max", false),
];
/// Those of them that the verdict is by.
const DECISIVE: [&str; 3] = ["ops/s", "p50, us", "p99, us"];
/// Settings under which a result was measured.
const SETTINGS: [&str; 13] = [
    "command",
    "workload",
    "distribution",
    "records",
    "connections",
    "depth",
    "batch",
    "threads",
    "key_size",
    "ordered",
    "value_size",
    "rate",
    "seed",
];

/// Whether the second result is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In one figure at least, and in none it is worse.
    Better,
    /// The other way round.
    Worse,
    /// Better in one figure and worse in another.
    Mixed,
    /// In none.
    Same,
}

/// Reads a result that `--format json` printed.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read(path: &Path) -> Result<Value, String> {
    let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read(path).map_err(|error| bad(&error))?;
    let result: Value = serde_json::from_slice(&text).map_err(|error| bad(&error))?;
    match result.pointer("/ops_per_second").and_then(Value::as_f64) {
        Some(_) => Ok(result),
        None => Err(bad(&"it is no result of loadgen --format json")),
    }
}

/// A table of both results, and the verdict on the second. `tolerance` is a share, such as 0.05.
pub fn compare(a: &Value, b: &Value, tolerance: f64) -> (String, Verdict) {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{words}");
    };
    for name in SETTINGS {
        let (of_a, of_b) = (&a[name], &b[name]);
        if of_a != of_b {
            line(format_args!("{name} differs: A {of_a}, B {of_b}"));
        }
    }
    line(format_args!("{:<12}{:>14}{:>14}{:>8}", "", "A", "B", "B/A"));
    let (mut better, mut worse) = (Vec::new(), Vec::new());
    for (name, place, more_is_better) in FIGURES {
        let [of_a, of_b] = [a, b].map(|result| result.pointer(place).and_then(Value::as_f64));
        let (Some(of_a), Some(of_b)) = (of_a, of_b) else {
            continue;
        };
        let ratio = of_b / of_a.max(1e-9);
        line(format_args!(
            "{name:<12}{of_a:>14.1}{of_b:>14.1}{ratio:>8.2}"
        ));
        let gain = if more_is_better {
            ratio
        } else {
            1.0 / ratio.max(1e-9)
        };
        let words = format!("{} {ratio:.2} times", name.trim_end_matches(", us"));
        if !DECISIVE.contains(&name) {
            continue;
        }
        if gain > 1.0 + tolerance {
            better.push(words);
        } else if gain < 1.0 / (1.0 + tolerance) {
            worse.push(words);
        }
    }
    let (verdict, word) = match (better.is_empty(), worse.is_empty()) {
        (true, true) => (Verdict::Same, "as good as A"),
        (false, true) => (Verdict::Better, "better than A"),
        (true, false) => (Verdict::Worse, "worse than A"),
        (false, false) => (Verdict::Mixed, "better and worse than A"),
    };
    better.append(&mut worse);
    let why = match better.as_slice() {
        [] => format!(
            "no decisive figure differs by more than {:.0} %",
            tolerance * 100.0
        ),
        all => all.join(", "),
    };
    line(format_args!("B is {word}: {why}"));
    (text, verdict)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(rate: f64, p50: f64, p99: f64) -> Value {
        let all = json!({ "p50": p50, "p99": p99, "p999": 7.0 });
        json!({ "ops_per_second": rate, "depth": 1, "latency_us": { "all": all } })
    }

    #[test]
    fn the_verdict_is_by_rate_median_and_p99() {
        let a = result(1000.0, 10.0, 20.0);
        for (b, wanted, says) in [
            (result(1040.0, 10.2, 19.9), Verdict::Same, "more than 5 %"),
            (
                result(1100.0, 10.0, 20.0),
                Verdict::Better,
                "ops/s 1.10 times",
            ),
            (result(1000.0, 10.0, 22.0), Verdict::Worse, "p99 1.10 times"),
            (result(900.0, 8.0, 20.0), Verdict::Mixed, "better and worse"),
        ] {
            let (text, verdict) = compare(&a, &b, 0.05);
            assert_eq!(verdict, wanted, "{text}");
            assert!(text.contains(says), "{text}");
            assert!(!text.contains("depth"), "{text}");
        }
        let mut other = a.clone();
        other["depth"] = json!(8);
        let (text, _) = compare(&a, &other, 0.05);
        assert!(text.starts_with("depth differs: A 1, B 8\n"), "{text}");
    }
}
