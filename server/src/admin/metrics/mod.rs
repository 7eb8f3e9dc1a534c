//! The page of metrics, in Prometheus' text format. Units are seconds and bytes.
//!
//! Each metric is an entry of a table: its name, kind, labels, help and where its values come from. The
//! page and `server/METRICS.md` are made from the same entries, so both list the same metrics. What
//! belongs to a shard is shown for each shard; a metric that would then have too many series is summed
//! over the node's shards. No label names a range, a user or a client: the number of series depends on
//! the shards and on the nodes of the cluster alone. Lives on the control thread.

mod clients;
mod cluster;
#[cfg(test)]
mod document;
mod exposition;
mod node;
mod raft;
mod storage;
#[cfg(test)]
mod tests;

use rangedb_engine::distribution::Distribution;
use rangedb_engine::shard::ClusterStatus;

use self::exposition::{Exposition, Samples};
use super::{Phase, Serving};
use crate::env::process::{DiskRoom, Process};
use crate::probe::ShardReport;

/// The bounds of a histogram's buckets.
#[derive(Clone, Copy)]
struct Buckets {
    /// The upper bounds, in the unit that the page shows.
    bounds: &'static [f64],
    /// How much one of the recorded unit is in the unit of the page.
    scale: f64,
}

/// The kind of a metric.
#[derive(Clone, Copy)]
enum Kind {
    /// A number that only rises while the process runs.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// How values are spread.
    Histogram(Buckets),
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// Where the values of a metric come from.
#[derive(Clone, Copy)]
enum Source {
    /// One value of the node; none if it is not known here.
    Node(fn(&Scrape<'_>) -> Option<f64>),
    /// Values of the node, by labels.
    NodeBy(fn(&Scrape<'_>, &mut Samples<'_>)),
    /// One value of each shard.
    Shard(fn(&ShardReport) -> f64),
    /// Values of each shard, by labels.
    ShardBy(fn(&ShardReport, &mut Samples<'_>)),
    /// A histogram of each shard.
    ShardSpread(fn(&ShardReport) -> Distribution),
}

/// A metric. Its unit is the end of its name.
struct Metric {
    name: &'static str,
    kind: Kind,
    /// Its labels; `shard` stands before them if it is a shard's.
    labels: &'static [&'static str],
    help: &'static str,
    source: Source,
}

/// A counter without labels of its own.
const fn counter(name: &'static str, help: &'static str, source: Source) -> Metric {
    counter_by(name, &[], help, source)
}

/// A counter with labels.
const fn counter_by(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    source: Source,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        labels,
        help,
        source,
    }
}

/// A gauge without labels of its own.
const fn gauge(name: &'static str, help: &'static str, source: Source) -> Metric {
    gauge_by(name, &[], help, source)
}

/// A gauge with labels.
const fn gauge_by(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    source: Source,
) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        labels,
        help,
        source,
    }
}

/// A histogram of each shard.
const fn histogram(
    name: &'static str,
    buckets: Buckets,
    help: &'static str,
    source: Source,
) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram(buckets),
        labels: &[],
        help,
        source,
    }
}

/// All metrics, by subject.
const GROUPS: [&[Metric]; 7] = [
    node::METRICS,
    node::SHARDS,
    cluster::METRICS,
    raft::METRICS,
    clients::METRICS,
    storage::LOG,
    storage::TABLES,
];

/// Everything that the page is made from.
pub struct Scrape<'a> {
    /// The node; `None` while it has no folder and no shards.
    node: Option<&'a Serving>,
    /// The state of its life.
    phase: Phase,
    /// The report of each shard; `None` for one that did not answer in time.
    reports: &'a [Option<ShardReport>],
    process: Option<Process>,
    disk: Option<DiskRoom>,
}

impl<'a> Scrape<'a> {
    /// Asks the kernel for the rest.
    pub fn new(
        node: Option<&'a Serving>,
        phase: Phase,
        reports: &'a [Option<ShardReport>],
    ) -> Scrape<'a> {
        Scrape {
            node,
            phase,
            reports,
            process: Process::now(),
            disk: node.and_then(|node| DiskRoom::of(&node.data_dir)),
        }
    }

    /// The reports of the shards that answered, with their numbers.
    fn shards(&self) -> impl Iterator<Item = (usize, &ShardReport)> {
        let numbered = self.reports.iter().enumerate();
        numbered.filter_map(|(shard, report)| Some((shard, report.as_ref()?)))
    }

    /// What the manager of the cluster knows, if a shard of this node hosts it.
    fn cluster(&self) -> Option<&ClusterStatus> {
        self.shards()
            .find_map(|(_, report)| report.status.cluster.as_ref())
    }

    /// The page.
    pub fn render(&self) -> String {
        let mut page = Exposition::new();
        for metric in GROUPS.into_iter().flatten() {
            self.add(metric, &mut page.samples(metric));
        }
        page.text()
    }

    fn add(&self, metric: &Metric, samples: &mut Samples<'_>) {
        match metric.source {
            Source::Node(value) => {
                if let Some(value) = value(self) {
                    samples.value(&[], value);
                }
            }
            Source::NodeBy(add) => add(self, samples),
            Source::Shard(value) => {
                for (shard, report) in self.shards() {
                    samples.of_shard(shard).value(&[], value(report));
                }
            }
            Source::ShardBy(add) => {
                for (shard, report) in self.shards() {
                    add(report, samples.of_shard(shard));
                }
            }
            Source::ShardSpread(spread) => {
                for (shard, report) in self.shards() {
                    samples.of_shard(shard).spread(&[], &spread(report));
                }
            }
        }
    }
}
