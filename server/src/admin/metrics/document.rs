//! `server/METRICS.md`: the table of all metrics, for operators.

use std::fmt::Write;

use super::{GROUPS, Kind, Metric, Source};

/// What stands before the tables.
const INTRODUCTION: &str = "\
# Metrics

Each node shows these metrics at `/metrics` of its `--http` address, in the text format of Prometheus.
Units are seconds and bytes. Counters rise while the process runs and begin anew with it. A histogram
NAME has the series `NAME_bucket` with the label `le`, `NAME_sum` and `NAME_count`; the sum is exact.

No label names a range, a user or a client, so the number of series does not grow with them: a node has
fewer than 200 for each shard, and fewer than 2,000 besides. `server/monitoring` holds dashboards and
alerts that use them; [OPERATING.md](OPERATING.md) says what to do at each alert.

This page is made from the code, by the tests of the metrics with `RANGEDB_GOLDEN=update`.
";

/// What the groups of metrics are about.
const TITLES: [&str; GROUPS.len()] = [
    "The node and its process",
    "Shards",
    "The cluster",
    "Ranges and Raft",
    "Clients and their requests",
    "The log",
    "Memory, tables and caches",
];

/// The page.
pub(super) fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (title, metrics) in TITLES.iter().zip(GROUPS) {
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "\n## {title}\n\n| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n"
        );
        for metric in metrics {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} | {} |",
                metric.name,
                metric.kind.name(),
                metric.unit(),
                metric.label_names(),
                metric.help
            );
        }
    }
    page
}

impl Metric {
    /// The unit that the name says.
    pub(super) fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        match name.rsplit('_').next() {
            Some("seconds") => "seconds",
            Some("bytes") => "bytes",
            Some("ratio") => "ratio",
            _ => "",
        }
    }

    /// Whether it is shown for each shard.
    pub(super) fn is_of_shard(&self) -> bool {
        matches!(
            self.source,
            Source::Shard(_) | Source::ShardBy(_) | Source::ShardSpread(_)
        )
    }

    fn label_names(&self) -> String {
        let shard = self.is_of_shard().then_some("shard");
        let bound = matches!(self.kind, Kind::Histogram(_)).then_some("le");
        let names = shard.iter().chain(self.labels).chain(&bound);
        let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
        names.join(", ")
    }
}
