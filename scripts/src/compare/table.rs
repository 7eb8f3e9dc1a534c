//! The table that `compare redis` and `compare build` print.

use super::{Figures, Spread};

/// The heading line.
pub(super) fn heading() {
    line("work", ["", "ops/s", "p50 us", "p99 us", "server us/op"]);
}

fn line(work: &str, [server, rate, p50, p99, cpu]: [&str; 5]) {
    println!("{work:<27}{server:<9}{rate:>26}{p50:>10}{p99:>10}{cpu:>26}");
}

/// Prints the figures of one server over all rounds.
pub(super) fn figures<Round>(
    work: &str,
    server: &str,
    rounds: &[Round],
    figures: impl Fn(&Round) -> Option<Figures>,
) {
    let spread = |figure: fn(Figures) -> f64| {
        let rounds = rounds.iter();
        Spread::of(rounds.filter_map(&figures).map(figure))
    };
    let (rate, cpu) = (spread(|f| f.rate).text(0), spread(|f| f.cpu_us).text(2));
    let p50 = format!("{:.0}", spread(|f| f.p50_us).median);
    let p99 = format!("{:.0}", spread(|f| f.p99_us).median);
    line(work, [server, &rate, &p50, &p99, &cpu]);
}

/// Prints what the figures are as multiples of others in the same round.
pub(super) fn ratio<Round>(
    other: &str,
    rounds: &[Round],
    figures: impl Fn(&Round) -> Option<Figures>,
    others: impl Fn(&Round) -> Option<Figures>,
) {
    let spread = |figure: fn(Figures) -> f64| {
        let rounds = rounds.iter();
        Spread::of(rounds.filter_map(|round| {
            let (this, other) = (figures(round)?, others(round)?);
            Some(figure(this) / figure(other))
        }))
    };
    let (rate, cpu) = (spread(|f| f.rate).text(2), spread(|f| f.cpu_us).text(2));
    line(&format!("  / {other}"), ["ratio", &rate, "", "", &cpu]);
}
