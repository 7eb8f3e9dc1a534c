//! Writes samples in Prometheus' text format.

use std::fmt::Write;

use rangedb_engine::distribution::Distribution;

use super::{Buckets, Kind, Metric};

/// The room that the text of a page takes at first.
const PAGE_LEN: usize = 64 << 10;

/// A page that is being written.
pub(super) struct Exposition(String);

impl Exposition {
    /// An empty page.
    pub(super) fn new() -> Exposition {
        Exposition(String::with_capacity(PAGE_LEN))
    }

    /// The page.
    pub(super) fn text(self) -> String {
        self.0
    }

    /// Where the samples of a metric go. A metric without samples is not on the page.
    pub(super) fn samples<'a>(&'a mut self, metric: &'a Metric) -> Samples<'a> {
        Samples {
            page: &mut self.0,
            metric,
            shard: None,
            is_begun: false,
        }
    }
}

/// The samples of one metric.
pub(super) struct Samples<'a> {
    page: &'a mut String,
    metric: &'a Metric,
    /// The shard that the next samples are of.
    shard: Option<usize>,
    is_begun: bool,
}

impl Samples<'_> {
    /// The next samples are of this shard.
    pub(super) fn of_shard(&mut self, shard: usize) -> &mut Self {
        self.shard = Some(shard);
        self
    }

    /// Adds a sample with these values of the metric's labels.
    pub(super) fn value(&mut self, labels: &[&str], value: f64) {
        self.line("", labels, None, value);
    }

    /// Adds a histogram with these values of the metric's labels.
    pub(super) fn spread(&mut self, labels: &[&str], recorded: &Distribution) {
        let Kind::Histogram(Buckets { bounds, scale }) = self.metric.kind else {
            unreachable!("only a histogram has buckets");
        };
        let mut values = recorded.spread().iter_recorded().peekable();
        let mut count = 0;
        for bound in bounds {
            while let Some(value) =
                values.next_if(|v| v.value_iterated_to() as f64 * scale <= *bound)
            {
                count += value.count_at_value();
            }
            self.line("_bucket", labels, Some(&bound.to_string()), count as f64);
        }
        let all = recorded.count() as f64;
        self.line("_bucket", labels, Some("+Inf"), all);
        self.line("_sum", labels, None, recorded.sum() as f64 * scale);
        self.line("_count", labels, None, all);
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.is_begun, true) {
            let Metric {
                name, kind, help, ..
            } = self.metric;
            self.put(format_args!(
                "# HELP {name} {help}\n# TYPE {name} {}\n",
                kind.name()
            ));
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.page.write_fmt(text);
    }

    /// Adds a line: the metric's name with this end, its labels, and the bound of a bucket.
    fn line(&mut self, end: &str, labels: &[&str], bound: Option<&str>, value: f64) {
        self.begin();
        let names = self.metric.labels;
        debug_assert_eq!(names.len(), labels.len(), "{}", self.metric.name);
        self.put(format_args!("{}{end}", self.metric.name));
        let shard = self.shard.map(|shard| shard.to_string());
        let of_shard = shard.as_deref().map(|shard| ("shard", shard));
        let own = names
            .iter()
            .zip(labels)
            .map(|(name, value)| (*name, *value));
        let all = of_shard.into_iter().chain(own);
        let mut before = '{';
        for (name, value) in all.chain(bound.map(|bound| ("le", bound))) {
            self.put(format_args!("{before}{name}=\"{}\"", escaped(value)));
            before = ',';
        }
        let closing = if before == '{' { "" } else { "}" };
        self.put(format_args!("{closing} {value}\n"));
    }
}

/// A label's value as it stands between quotes.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\");
    value.replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::metrics::{Source, gauge_by};

    #[test]
    fn a_histogram_counts_up_to_each_bound_and_has_the_exact_sum() {
        let metric = Metric {
            name: "x_seconds",
            kind: Kind::Histogram(Buckets {
                bounds: &[0.000_01, 0.000_1, 1.0],
                scale: 1e-9,
            }),
            labels: &[],
            help: "Help.",
            source: Source::NodeBy(|_, _| {}),
        };
        let mut recorded = Distribution::new(60_000_000_000);
        for nanos in [9_000, 80_000, 80_001, 900_000_000, 9_000_000_000] {
            recorded.record(nanos);
        }
        let mut page = Exposition::new();
        page.samples(&metric).of_shard(0).spread(&[], &recorded);
        let page = page.text();
        for line in [
            "# HELP x_seconds Help.\n# TYPE x_seconds histogram\n",
            "x_seconds_bucket{shard=\"0\",le=\"0.00001\"} 1\n",
            "x_seconds_bucket{shard=\"0\",le=\"0.0001\"} 3\n",
            "x_seconds_bucket{shard=\"0\",le=\"1\"} 4\n",
            "x_seconds_bucket{shard=\"0\",le=\"+Inf\"} 5\n",
            "x_seconds_sum{shard=\"0\"} 9.900169001\n",
            "x_seconds_count{shard=\"0\"} 5\n",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
    }

    #[test]
    fn values_of_labels_are_escaped_and_a_metric_without_samples_is_left_out() {
        let metric = gauge_by("x", &["a"], "Help.", Source::NodeBy(|_, _| {}));
        let mut page = Exposition::new();
        page.samples(&metric);
        page.samples(&metric).value(&["\"<script>\n\\"], 1.0);
        let text = page.text();
        assert!(text.ends_with("x{a=\"\\\"<script>\\n\\\\\"} 1\n"), "{text}");
        assert_eq!(text.matches("# HELP").count(), 1);
    }
}
