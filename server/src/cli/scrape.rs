//! The metrics of a node, read over HTTP from its `/metrics`, as far as `rangedb top` shows them. What a
//! node of another release does not have counts as 0.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A node that takes longer than this is shown without its metrics.
const SCRAPE_WITHIN: Duration = Duration::from_secs(1);
/// The longest page of metrics that is read.
const PAGE_LEN_MAX: u64 = 8 << 20;

/// Requests that were answered, by the upper bound of their latency in seconds: how many took at most so
/// long.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answered(BTreeMap<Bound, f64>);

/// An upper bound of a bucket; positive, so that the order of its bits is that of the numbers.
type Bound = u64;

/// What is known of one shard, or of all shards of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) answered: Answered,
    pub(super) busy_seconds: f64,
    pub(super) memory_bytes: f64,
    pub(super) connections: f64,
    pub(super) ranges: f64,
    pub(super) leads: f64,
}

/// The counters of a node's shards, by their numbers.
pub(super) type Shards = BTreeMap<u16, Counters>;

impl Answered {
    /// How many requests there were.
    pub(super) fn count(&self) -> f64 {
        self.0.values().copied().fold(0.0, f64::max)
    }

    /// Adds another shard's requests.
    pub(super) fn add(&mut self, other: &Answered) {
        for (bound, count) in &other.0 {
            *self.0.entry(*bound).or_default() += count;
        }
    }

    /// The requests since an earlier time. After a restart of the node all of them count.
    pub(super) fn since(&self, before: &Answered) -> Answered {
        if before.count() > self.count() {
            return self.clone();
        }
        let since = self.0.iter().map(|(bound, count)| {
            let earlier = before.0.get(bound).copied().unwrap_or_default();
            (*bound, (count - earlier).max(0.0))
        });
        Answered(since.collect())
    }

    /// The latency in seconds that this share of the requests did not exceed, within its bucket in
    /// proportion. `None`: there were no requests.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = self.count() * share;
        if wanted <= 0.0 {
            return None;
        }
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            let bound = f64::from_bits(*bound);
            if *count >= wanted {
                // The last bucket has no upper bound.
                let width = if bound.is_finite() {
                    bound - lower
                } else {
                    0.0
                };
                return Some(lower + width * (wanted - below) / (count - below).max(1e-9));
            }
            (lower, below) = (bound, *count);
        }
        Some(lower)
    }
}

/// Reads the metrics of the node with this address for HTTP.
pub(super) async fn scrape(address: &str) -> Result<Shards> {
    let page = tokio::time::timeout(SCRAPE_WITHIN, page(address));
    Ok(parse(&page.await.map_err(Error::from)??))
}

async fn page(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream
        .take(PAGE_LEN_MAX)
        .read_to_string(&mut answer)
        .await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(Error::from(ErrorKind::InvalidData)),
    }
}

/// The counters in a page of metrics.
fn parse(page: &str) -> Shards {
    let mut shards = Shards::new();
    for line in page.lines() {
        let Some((name, labels, value)) = sample(line) else {
            continue;
        };
        let Some(shard) = label(labels, "shard").and_then(|shard| shard.parse().ok()) else {
            continue;
        };
        let counters = shards.entry(shard).or_default();
        match name {
            "rangedb_request_duration_seconds_bucket" => {
                if let Some(bound) = label(labels, "le").and_then(bound) {
                    *counters.answered.0.entry(bound).or_default() += value;
                }
            }
            "rangedb_shard_busy_seconds_total" => counters.busy_seconds += value,
            "rangedb_memory_used_bytes" => counters.memory_bytes += value,
            "rangedb_connections" => counters.connections += value,
            "rangedb_replicas" => counters.ranges += value,
            "rangedb_ranges_led" => counters.leads += value,
            _ => {}
        }
    }
    shards
}

fn bound(text: &str) -> Option<Bound> {
    let bound: f64 = text.trim_start_matches('+').parse().ok()?;
    (bound > 0.0).then(|| bound.to_bits())
}

/// The name, the labels and the value of a line.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{')?;
    Some((name, labels.strip_suffix('}')?, value.parse().ok()?))
}

/// The value of a label. None that is asked for here holds a comma or a quotation mark.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|label| {
        let (found, value) = label.split_once('=')?;
        (found == name).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE rangedb_request_duration_seconds histogram
rangedb_request_duration_seconds_bucket{shard="0",op="get",le="0.001"} 50
rangedb_request_duration_seconds_bucket{shard="0",op="get",le="0.01"} 90
rangedb_request_duration_seconds_bucket{shard="0",op="get",le="+Inf"} 90
rangedb_request_duration_seconds_bucket{shard="0",op="put",le="0.001"} 0
rangedb_request_duration_seconds_bucket{shard="0",op="put",le="0.01"} 10
rangedb_request_duration_seconds_bucket{shard="0",op="put",le="+Inf"} 10
rangedb_shard_busy_seconds_total{shard="1"} 2.5
rangedb_memory_used_bytes{shard="1",budget="row_cache"} 100
rangedb_memory_used_bytes{shard="1",budget="replies"} 28
rangedb_connections{shard="1"} 3
rangedb_log_lines_lost_total 7
"#;

    #[test]
    fn a_page_gives_the_counters_of_each_shard() {
        let shards = parse(PAGE);
        assert_eq!(shards.keys().copied().collect::<Vec<u16>>(), [0, 1]);
        let (first, second) = (&shards[&0], &shards[&1]);
        assert_eq!(first.answered.count(), 100.0);
        let [busy, memory] = [second.busy_seconds, second.memory_bytes];
        assert_eq!((busy, memory, second.connections), (2.5, 128.0, 3.0));
        assert_eq!(parse("no metrics\n{ }\n"), Shards::new());
    }

    #[test]
    fn quantiles_are_of_the_requests_since_the_last_picture() {
        let answered = parse(PAGE)[&0].answered.clone();
        let near = |found: Option<f64>, wanted: f64| {
            let found = found.expect("there were requests");
            assert!((found - wanted).abs() < 1e-9, "{found}");
        };
        near(answered.quantile(0.5), 0.001);
        near(answered.quantile(0.75), 0.0055);
        near(answered.quantile(1.0), 0.01);
        assert_eq!(answered.since(&answered).quantile(0.5), None);
        // The node was restarted meanwhile.
        let mut more = answered.clone();
        more.add(&answered);
        assert_eq!(more.count(), 200.0);
        assert_eq!(answered.since(&more), answered);
        assert_eq!(more.since(&answered), answered);
    }
}
