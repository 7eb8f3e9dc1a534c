//! `rangedb node ls`, `range ls|hot|show|merge|release|scatter|transfer-leader|move-replica` and `config`:
//! commands that show the cluster or steer it. With `--format json` they print the JSON of the wire protocol's
//! answers.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rangedb_client::Client;
use rangedb_client::admin::{
    Admin, BoundsState, HealthReason, HotRange, Node, Range, RangeRates, Replica, ReplicaState,
};
use rangedb_protocol::admin::{
    Done, History, HotRanges, Merged, Nodes, Ranges, Scattered, Started,
};
use rangedb_server::admin::json::of_state;

use super::output::{Printer, border, columns, latency, size};
use super::request::{ClusterQuery, Order};
use super::{CliError, Exit, history};

/// The time from one look at what an order does to the next.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Prints a part of the cluster's state.
pub(super) async fn show(
    client: &Client,
    query: &ClusterQuery,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let admin = client.admin();
    let (facts, words) = match query {
        ClusterQuery::Nodes => {
            let nodes = admin.nodes().await?;
            let words = nodes_table(&nodes);
            (of_state(Nodes { nodes })?, words)
        }
        ClusterQuery::Ranges => {
            let ranges = admin.ranges().await?;
            let words = ranges_table(&ranges);
            (of_state(Ranges { ranges })?, words)
        }
        ClusterQuery::HotRanges(top) => {
            let ranges = admin.hot_ranges(*top).await?;
            let words = hot_table(&ranges);
            (of_state(HotRanges { ranges })?, words)
        }
        ClusterQuery::Range(id) => {
            let ranges = admin.ranges().await?;
            let Some(range) = ranges.iter().find(|range| range.id == *id) else {
                let exit = Exit::Refused;
                let message =
                    format!("there is no range {id}; `rangedb range ls` shows those there are");
                return Err(CliError { exit, message });
            };
            (of_state(range)?, whole_range(range, now_ms()))
        }
        ClusterQuery::Setting(Some(name)) => super::config_and_reload::one(&admin, name).await?,
        ClusterQuery::Setting(None) => super::config_and_reload::all(&admin).await?,
        ClusterQuery::History => {
            let history = admin.config_history().await?;
            let rows = history.iter().map(|change| {
                let value = word(Some(&change.value)).to_owned();
                let version = format!("version {}", change.version);
                [change.name.clone(), value, version]
            });
            let words = columns(&rows.collect::<Vec<_>>());
            (of_state(History { history })?, words)
        }
    };
    printer.print(out, facts, words.trim_end())
}

/// Gives an order that changes the cluster. `wait` is how long its end is waited for, if that is wished.
pub(super) async fn order(
    client: &Client,
    (order, wait): (&Order, Option<Duration>),
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let admin = client.admin();
    let answer = match order {
        Order::Set { name, value } => {
            admin.config_set(name, value).await?;
            return printer.applied(out, of_state(Done { done: true })?, "done");
        }
        Order::Merge { range } => {
            admin.merge_range(*range).await?;
            let merged = Merged { range: *range };
            return printer.applied(out, of_state(merged)?, "done");
        }
        Order::Release { range } => {
            admin.release_range(*range).await?;
            return printer.applied(out, of_state(Done { done: true })?, "done");
        }
        Order::Scatter { start, end } => {
            let orders = admin.scatter_ranges(start, end.as_deref()).await?;
            let words = match orders {
                0 => "no orders: the ranges are spread evenly".to_owned(),
                orders => format!("{orders} orders; `rangedb balance --watch` shows them"),
            };
            return printer.applied(out, of_state(Scattered { orders })?, &words);
        }
        Order::TransferLeader { range, to } => {
            let leader = |ranges: &[Range]| {
                let mut ranges = ranges.iter();
                ranges.find(|found| found.id == *range)?.leader_node
            };
            let before = match wait {
                Some(_) => leader(&admin.ranges().await?),
                None => None,
            };
            admin.transfer_leader(*range, *to).await?;
            let is_done = |found: &Range| match to {
                Some(to) => found.leader_node == Some(*to),
                None => found.leader_node.is_some() && found.leader_node != before,
            };
            started(&admin, *range, wait, is_done).await?
        }
        Order::MoveReplica { range, from, to } => {
            admin.move_replica(*range, *from, to.0, to.1).await?;
            let is_done = |found: &Range| has_moved(found, *from, *to);
            started(&admin, *range, wait, is_done).await?
        }
    };
    let words = match answer.done {
        true => "done",
        false => "started; `rangedb range ls` shows its progress",
    };
    printer.applied(out, of_state(answer)?, words)
}

/// Waits for the end of an order that has begun, if that is wished.
async fn started(
    admin: &Admin,
    range: u64,
    wait: Option<Duration>,
    is_done: impl Fn(&Range) -> bool,
) -> Result<Started, CliError> {
    let (started, done) = (true, wait.is_some());
    let Some(timeout) = wait else {
        return Ok(Started { started, done });
    };
    let until = Instant::now() + timeout;
    loop {
        // The manager may be another node's meanwhile: what is not known now is known soon.
        let ranges = admin.ranges().await.unwrap_or_default();
        if ranges
            .iter()
            .any(|found| found.id == range && is_done(found))
        {
            return Ok(Started { started, done });
        }
        if Instant::now() >= until {
            let message = format!(
                "it has started, but has not ended within {timeout:?}: `rangedb range ls` shows its \
                 progress, and --timeout waits longer"
            );
            let exit = Exit::FateUnknown;
            return Err(CliError { exit, message });
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether the replica of a range on node `from` is at its new place.
fn has_moved(range: &Range, from: u64, (to, shard): (u64, Option<u16>)) -> bool {
    let is_there =
        |replica: &Replica| replica.node == to && shard.is_none_or(|shard| shard == replica.shard);
    let of_from = range.replicas.iter().filter(|replica| replica.node == from);
    range.replicas.iter().any(is_there) && of_from.count() == usize::from(from == to)
}

/// A text as one word of a table; `-` if there is none.
fn word(text: Option<&str>) -> &str {
    match text {
        None | Some("") => "-",
        Some(text) => text,
    }
}

/// Formats the nodes as lines with a heading.
pub(super) fn nodes_table(nodes: &[Node]) -> String {
    let heading = [
        "id",
        "address",
        "state",
        "membership",
        "shards",
        "leaders",
        "replicas",
        "size",
        "cpu",
        "p50",
        "p99",
        "disk free",
        "clock",
        "version",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(nodes.iter().map(|node| {
        [
            node.id.to_string(),
            word(Some(&node.address)).to_owned(),
            match node.slow_disk {
                true => format!("{}, slow disk", node.liveness),
                false => node.liveness.to_string(),
            },
            node.membership.to_string(),
            node.shards.to_string(),
            node.leaders.to_string(),
            node.replicas.to_string(),
            size(node.bytes),
            format!("{:.1}%", f64::from(node.cpu) / 10.0),
            latency(node.stats.p50_us.map(|micros| micros as f64 * 1e-6)),
            latency(node.stats.p99_us.map(|micros| micros as f64 * 1e-6)),
            node.stats.disk_free.map_or_else(|| "-".to_owned(), size),
            clock(node),
            word(Some(&node.version)).to_owned(),
        ]
    }));
    columns(&rows)
}

/// How well a node's clock is kept.
fn clock(node: &Node) -> String {
    match (node.stats.clock_kept, node.stats.clock_error_us) {
        (Some(true), Some(micros)) => format!("within {:.1} ms", micros as f64 * 1e-3),
        (Some(false), _) => "no time service".to_owned(),
        _ => "-".to_owned(),
    }
}

/// Formats what keeps the cluster from being whole as lines.
pub(super) fn reasons(reasons: &[HealthReason]) -> String {
    let line = |reason: &HealthReason| {
        let why = &reason.reason;
        match (reason.range, reason.nodes.first()) {
            (Some(range), _) => format!("range {range} is {}: {why}\n", reason.health),
            (None, Some(node)) => format!("node {node}: {why}\n"),
            (None, None) => format!("{why}\n"),
        }
    };
    reasons.iter().map(line).collect()
}

fn ranges_table(ranges: &[Range]) -> String {
    let heading = [
        "id", "epoch", "leader", "replicas", "start", "end", "applied", "size", "ops/s", "",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(ranges.iter().map(|range| {
        let (start, end) = borders(range);
        [
            range.id.to_string(),
            format!("{}.{}", range.epoch.version, range.epoch.conf),
            leader(range),
            replicas(range),
            start,
            end,
            range.applied.to_string(),
            size(range.stats.bytes),
            operations(range).to_string(),
            trouble(range).to_owned(),
        ]
    }));
    columns(&rows)
}

/// Formats the hottest ranges as lines with a heading, one for each key.
fn hot_table(ranges: &[HotRange]) -> String {
    let mut rows = vec![["id", "cpu", "key", "share"].map(str::to_owned)];
    for range in ranges {
        let id = range.id.to_string();
        let cpu = cpu(range.cpu_millis_per_second);
        if range.keys.is_empty() {
            rows.push([id, cpu, "-".to_owned(), "-".to_owned()]);
            continue;
        }
        rows.extend(range.keys.iter().map(|hot| {
            let share = format!("{:.1}%", hot.share * 100.0);
            [id.clone(), cpu.clone(), border(&hot.key, "-"), share]
        }));
    }
    columns(&rows)
}

/// The rates of a range over 5 min, in a line.
fn over_5m(rates: &RangeRates) -> String {
    format!(
        "{} reads/s of {}/s, {} writes/s of {}/s, cpu {}",
        rates.reads_per_second,
        size(rates.read_bytes_per_second),
        rates.writes_per_second,
        size(rates.written_bytes_per_second),
        cpu(rates.cpu_millis_per_second)
    )
}

/// Everything that is known of a range, in lines.
fn whole_range(range: &Range, now_ms: u64) -> String {
    let (start, end) = borders(range);
    let trouble = match trouble(range) {
        "" => "none",
        trouble => trouble,
    };
    let row = |name: &str, value: String| [name.to_owned(), value];
    let mut rows = vec![
        row("id", range.id.to_string()),
        row("state", range.state.to_string()),
        row("trouble", trouble.to_owned()),
        row("start", start),
        row("end", end),
        row("version", range.epoch.version.to_string()),
        row("conf", range.epoch.conf.to_string()),
        row("leader", leader(range)),
        row("term", range.term.to_string()),
        row("applied", range.applied.to_string()),
        row("size", size(range.stats.bytes)),
        row("live", size(range.stats.live_bytes)),
        row("reads", format!("{}/s", range.stats.reads_per_second)),
        row(
            "read",
            format!("{}/s", size(range.stats.read_bytes_per_second)),
        ),
        row("writes", format!("{}/s", range.stats.writes_per_second)),
        row(
            "written",
            format!("{}/s", size(range.stats.written_bytes_per_second)),
        ),
        row("waiting", range.stats.waiting.to_string()),
        row("cpu", cpu(range.stats.cpu_millis_per_second)),
        row("over_5m", over_5m(&range.stats.over_5m)),
        row("born", born(range.borders.born_ms)),
        row("held", held(range.borders.held_until_ms, now_ms)),
    ];
    if let Some(blocked) = &range.borders.split_blocked {
        let seconds = now_ms.saturating_sub(blocked.since_ms) / 1000;
        let key = blocked.key.as_deref().map(|key| border(key, ""));
        let key = key.map_or_else(String::new, |key| format!(", key {key}"));
        let words = format!("{} for {seconds} s{key}", blocked.reason);
        rows.push(row("split_blocked", words));
    }
    rows.extend(range.replicas.iter().map(|replica| {
        let votes = if replica.voter { "voter" } else { "learner" };
        let lag = match replica.lag {
            Some(lag) => format!("lacks {lag} entries"),
            None => "lag not known".to_owned(),
        };
        let parts = match replica.parts {
            Some(1) => "1 part".to_owned(),
            Some(parts) => format!("{parts} parts"),
            None => "parts not known".to_owned(),
        };
        let Replica { node, shard, .. } = replica;
        let words = format!(
            "{} at {node}/{shard}, {votes}, {}, {lag}, {parts}",
            replica.replica, replica.state
        );
        row("replica", words)
    }));
    columns(&rows)
}

/// CPU time in milliseconds a second, as a part of a core.
fn cpu(millis_per_second: u32) -> String {
    format!("{:.1}%", f64::from(millis_per_second) / 10.0)
}

/// When a range was born, in UTC.
fn born(born_ms: u64) -> String {
    match born_ms {
        0 => "not known".to_owned(),
        born_ms => format!("{} UTC", history::time(born_ms)),
    }
}

/// Until when a range is held against merging.
fn held(until_ms: u64, now_ms: u64) -> String {
    match until_ms.saturating_sub(now_ms) {
        _ if until_ms == u64::MAX => "for ever".to_owned(),
        0 => "no".to_owned(),
        left_ms => format!("for {} s more", left_ms.div_ceil(1000)),
    }
}

/// The wall clock, in milliseconds since 1970.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// How many keys and pages a range reads a second, and how many writes it takes.
fn operations(range: &Range) -> u64 {
    let stats = &range.stats;
    u64::from(stats.reads_per_second) + u64::from(stats.writes_per_second)
}

/// The place of a range's leader; `-` if none is known.
pub(super) fn leader(range: &Range) -> String {
    match (range.leader_node, range.leader_shard) {
        (Some(node), Some(shard)) => format!("{node}/{shard}"),
        _ => "-".to_owned(),
    }
}

/// The places of a range's replicas.
pub(super) fn replicas(range: &Range) -> String {
    let places: Vec<String> = range.replicas.iter().map(place).collect();
    word(Some(&places.join(","))).to_owned()
}

/// The first key of a range, and the key at which it ends.
pub(super) fn borders(range: &Range) -> (String, String) {
    if range.system {
        return ("(system)".to_owned(), "(end)".to_owned());
    }
    let end = range.end.as_deref().unwrap_or_default();
    (border(&range.start, "(begin)"), border(end, "(end)"))
}

/// What keeps a range from being whole, or what is being done with it; empty if nothing is.
pub(super) fn trouble(range: &Range) -> &'static str {
    match (range.unavailable, range.under_replicated) {
        (true, _) => "UNAVAILABLE",
        (_, true) => "under-replicated",
        _ => match range.state {
            BoundsState::Splitting => "splitting",
            BoundsState::Freezing => "freezing",
            BoundsState::Frozen => "frozen",
            BoundsState::Merging => "merging",
            _ => "",
        },
    }
}

/// Formats where a replica is, whether it does not vote yet, and what is wrong with it.
fn place(replica: &Replica) -> String {
    let learns = if replica.voter { "" } else { "?" };
    let state = match replica.state {
        ReplicaState::Ok => String::new(),
        state => format!("!{state}"),
    };
    format!("{}/{}{learns}{state}", replica.node, replica.shard)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_move_has_ended_when_the_old_place_is_left() {
        let range = |places: &[(u64, u16)]| {
            let mut range = Range::default();
            let replica = |&(node, shard): &(u64, u16)| {
                let mut replica = Replica::default();
                (replica.node, replica.shard) = (node, shard);
                replica
            };
            range.replicas = places.iter().map(replica).collect();
            range
        };
        let moved = |places: &[(u64, u16)], to| has_moved(&range(places), 1, to);
        assert!(!moved(&[(1, 0), (2, 0)], (4, None)));
        assert!(!moved(&[(1, 0), (2, 0), (4, 1)], (4, None)));
        assert!(moved(&[(2, 0), (4, 1)], (4, None)));
        assert!(!moved(&[(2, 0), (4, 1)], (4, Some(0))));
        // Between two shards of a node.
        assert!(!moved(&[(1, 0), (1, 1)], (1, Some(1))));
        assert!(moved(&[(1, 1)], (1, Some(1))));
    }

    #[test]
    fn tables_tell_what_is_known_and_what_is_not() {
        let answer = json!({ "ranges": [
            { "id": 1, "system": true, "start": "", "end": null, "term": 1,
              "epoch": { "version": 1, "conf": 2 }, "leader_node": null, "leader_shard": null,
              "replicas": [], "applied": 0, "unavailable": true, "under_replicated": true },
            { "id": 2, "system": false, "start": "", "end": "00ff61", "term": 1,
              "epoch": { "version": 1, "conf": 2 }, "leader_node": 3, "leader_shard": 0,
              "replicas": [
                  { "replica": 5, "node": 3, "shard": 0, "voter": true, "parts": 2, "state": "ok" },
                  { "replica": 6, "node": 4, "shard": 1, "voter": false, "state": "missing" },
              ],
              "applied": 7, "born_ms": 5_000, "bytes": 1_572_864, "live_bytes": 1_000_000, "reads_per_second": 40,
              "writes_per_second": 2, "cpu_millis_per_second": 3, "read_bytes_per_second": 2_048,
              "written_bytes_per_second": 512, "waiting": 4,
              "over_5m": { "reads_per_second": 20, "writes_per_second": 1, "read_bytes_per_second": 1_024,
                           "written_bytes_per_second": 256, "cpu_millis_per_second": 2 },
              "unavailable": false, "under_replicated": true },
        ]});
        let answer: Ranges = serde_json::from_value(answer).unwrap();
        let text = ranges_table(&answer.ranges);
        let lines: Vec<&str> = text.lines().collect();
        let wanted = [
            r"id  epoch  leader  replicas          start     end        applied  size    ops/s",
            r"1   1.2    -       -                 (system)  (end)      0        0B      0      UNAVAILABLE",
            r"2   1.2    3/0     3/0,4/1?!missing  (begin)   \x00\xffa  7        1.5MiB  42     under-replicated",
        ];
        assert_eq!(lines, wanted);
        let wanted = [
            r"id       2",
            r"state    unknown",
            r"trouble  under-replicated",
            r"start    (begin)",
            r"end      \x00\xffa",
            r"version  1",
            r"conf     2",
            r"leader   3/0",
            r"term     1",
            r"applied  7",
            r"size     1.5MiB",
            r"live     976.6KiB",
            r"reads    40/s",
            r"read     2.0KiB/s",
            r"writes   2/s",
            r"written  512B/s",
            r"waiting  4",
            r"cpu      0.3%",
            r"over_5m  20 reads/s of 1.0KiB/s, 1 writes/s of 256B/s, cpu 0.2%",
            r"born     1970-01-01 00:00:05 UTC",
            r"held     no",
            r"replica  5 at 3/0, voter, ok, lag not known, 2 parts",
            r"replica  6 at 4/1, learner, missing, lag not known, parts not known",
        ];
        let text = whole_range(&answer.ranges[1], 7);
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
        let mut range = answer.ranges[1].clone();
        let mut blocked = rangedb_client::admin::SplitBlocked::default();
        blocked.reason = rangedb_client::admin::BlockReason::SingleKey;
        (blocked.since_ms, blocked.key) = (1_000, Some(b"k\0".to_vec()));
        range.borders.split_blocked = Some(blocked);
        let text = whole_range(&range, 6_000);
        let shown = text.lines().find(|line| line.starts_with("split_blocked"));
        assert_eq!(shown, Some(r"split_blocked  single_key for 5 s, key k\x00"));
        let hot = json!({ "ranges": [
            { "id": 7, "cpu_millis_per_second": 421,
              "keys": [{ "key": "6d00", "share": 0.625 }, { "key": "6e", "share": 0.01 }] },
            { "id": 2, "cpu_millis_per_second": 0, "keys": [] },
        ]});
        let hot: HotRanges = serde_json::from_value(hot).unwrap();
        let text = hot_table(&hot.ranges);
        let wanted = [
            r"id  cpu    key    share",
            r"7   42.1%  m\x00  62.5%",
            r"7   42.1%  n      1.0%",
            r"2   0.0%   -      -",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
        assert_eq!(held(7_001, 6_000), "for 2 s more");
        assert_eq!(held(6_000, 6_000), "no");
        assert_eq!(held(u64::MAX, 6_000), "for ever");
        let reason = |range, why: &str| {
            let mut reason = HealthReason::default();
            reason.health = rangedb_client::admin::Health::Degraded;
            reason.range = range;
            reason.nodes = vec![4];
            reason.reason = why.to_owned();
            reason
        };
        let all = [
            reason(Some(2), "its replicas on node 4: missing"),
            reason(None, "the node is dead"),
        ];
        let wanted =
            "range 2 is degraded: its replicas on node 4: missing\nnode 4: the node is dead\n";
        assert_eq!(reasons(&all), wanted);
        let text = nodes_table(&[Node::default()]);
        let wanted = "0   -        unknown  unknown     0       0        0         0B    0.0%  -    -    -          -      -";
        assert_eq!(text.lines().nth(1), Some(wanted));
        let mut node = Node::default();
        (node.stats.p50_us, node.stats.p99_us) = (Some(90), Some(1_500));
        node.stats.disk_free = Some(3 << 29);
        assert_eq!(clock(&node), "-");
        (node.stats.clock_kept, node.stats.clock_error_us) = (Some(true), Some(1_800));
        let text = nodes_table(std::slice::from_ref(&node));
        assert!(
            text.contains("90 us  1.5 ms  1.5GiB     within 1.8 ms  -"),
            "{text}"
        );
        node.stats.clock_kept = Some(false);
        assert_eq!(clock(&node), "no time service");
    }
}
