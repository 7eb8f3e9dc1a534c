//! `rangedb status` and `rangedb range ls`.

use std::fmt::Write as _;
use std::io::Write;

use rangedb_client::{Client, RangeState};
use serde_json::{Value, json};

use super::commands::Printer;
use super::{Exit, Trouble};

/// Prints the state of the node.
pub(super) async fn status(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let node = client.status().await?;
    let mut words = format!(
        "health {}\nnode {} of cluster {}, version {}, up {} s\n",
        node.health,
        node.node,
        node.cluster,
        node.release,
        node.uptime_ms / 1000
    );
    for shard in &node.shards {
        // Writing to a string cannot fail.
        let _ = writeln!(
            words,
            "shard {}: {} ranges, {} connections, {} tables of {} bytes, {} log bytes to replay, \
             pressure {:.2}{}",
            shard.shard,
            shard.ranges.len(),
            shard.connections,
            shard.tables,
            shard.table_bytes,
            shard.replay_bytes,
            shard.pressure,
            if shard.disk_full { ", DISK FULL" } else { "" }
        );
    }
    let led = |range: &RangeState| range.route.leader.is_some();
    let ranges = node.shards.iter().flat_map(|shard| &shard.ranges);
    let shards = node.shards.iter().map(|shard| {
        json!({
            "shard": shard.shard,
            "ranges": shard.ranges.len(),
            "connections": shard.connections,
            "tables": shard.tables,
            "table_bytes": shard.table_bytes,
            "replay_bytes": shard.replay_bytes,
            "pressure": shard.pressure,
            "disk_full": shard.disk_full,
            "log_writes": shard.log_writes,
            "log_bytes": shard.log_bytes,
        })
    });
    let value = json!({
        "health": node.health,
        "node": node.node,
        "cluster": node.cluster,
        "version": node.release,
        "uptime_ms": node.uptime_ms,
        "unavailable": ranges.filter(|range| !led(range)).count(),
        "shards": shards.collect::<Vec<Value>>(),
    });
    printer.print(out, value, words.trim_end())
}

/// Lists the ranges.
pub(super) async fn ranges(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let mut ranges = client.ranges().await?;
    ranges.sort_by(|a, b| (a.system, &a.route.start).cmp(&(b.system, &b.route.start)));
    let mut words = String::from("id  epoch  leader  start  end  applied  waiting\n");
    for range in &ranges {
        let route = &range.route;
        let leader = route
            .leader
            .map_or("-".to_owned(), |(node, shard)| format!("{node}/{shard}"));
        let end = route.end.as_deref().map_or("(end)".to_owned(), show);
        let start = if range.system {
            "(system)".to_owned()
        } else {
            show(&route.start)
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            words,
            "{}  {}.{}  {leader}  {start}  {end}  {}  {}",
            route.range, route.version, route.conf, range.applied, range.waiting
        );
    }
    let values = ranges.iter().map(|range| {
        let route = &range.route;
        json!({
            "id": route.range,
            "epoch": { "version": route.version, "conf": route.conf },
            "system": range.system,
            "start": hex(&route.start),
            "end": route.end.as_deref().map(hex),
            "leader_node": route.leader.map(|(node, _)| node),
            "leader_shard": route.leader.map(|(_, shard)| shard),
            "replicas": [range.replica],
            "term": range.term,
            "applied": range.applied,
            "durable": range.durable,
            "waiting": range.waiting,
        })
    });
    let value = json!({ "ranges": values.collect::<Vec<Value>>() });
    printer.print(out, value, words.trim_end())
}

/// A key for people: other bytes than printable ASCII as `\xNN`.
fn show(key: &[u8]) -> String {
    if key.is_empty() {
        return "(begin)".to_owned();
    }
    key.escape_ascii().to_string()
}

/// A key for programs; borders may be any bytes.
fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
