//! `rangedb status`: the health of the cluster and the state of one node, or the node's memory.

use std::fmt::Write as _;
use std::io::Write;

use rangedb_client::admin::{ClusterStatus, MemoryUse, NodeState};
use rangedb_client::{Client, Error};
use rangedb_engine::words::counted;
use rangedb_server::admin::json::of_state;
use serde_json::{Value, json};

use super::cluster;
use super::output::Printer;
use super::{CliError, Exit};

/// Prints the health of the cluster and the state of the node; the exit code tells the health. If the
/// cluster's manager does not answer, the cluster counts as unavailable, and the node's state is printed
/// nevertheless.
pub(super) async fn status(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let admin = client.admin();
    let node = admin.node_state().await?;
    let of_cluster = admin.status().await;
    let mut words = match &of_cluster {
        Ok(known) => format!(
            "cluster {}: {}, {} under-replicated, {} unavailable\n{}{}",
            known.health,
            counted(known.ranges, "range"),
            known.under_replicated,
            known.unavailable,
            cluster::reasons(&known.reasons),
            cluster::nodes_table(&known.nodes)
        ),
        Err(error) => format!("cluster unavailable: {error}\n"),
    };
    let _ = writeln!(
        words,
        "node {}, which was asked: {}, of cluster {}, version {}, up {} s",
        node.node,
        node.health,
        node.cluster,
        node.release,
        node.uptime_ms / 1000
    );
    for shard in &node.shards {
        // Writing to a string cannot fail.
        let _ = writeln!(
            words,
            "shard {}: {}, {}, {} of {}, {} to replay, pressure {:.2}{}{}",
            shard.shard,
            counted(shard.ranges.len() as u64, "range"),
            counted(shard.connections.into(), "connection"),
            counted(shard.tables.into(), "table"),
            counted(shard.table_bytes, "byte"),
            counted(shard.replay_bytes, "log byte"),
            shard.pressure,
            if shard.disk_full { ", DISK FULL" } else { "" },
            if shard.stuck {
                ", COMPACTIONS FAIL"
            } else {
                ""
            }
        );
    }
    let facts = facts(&node, of_cluster)?;
    let exit = exit(&facts);
    printer.print(out, facts, words.trim_end())?;
    Ok(exit)
}

/// The exit code that tells the health of the cluster and of the node that was asked.
fn exit(facts: &Value) -> Exit {
    match (facts["health"].as_str(), facts["node_health"].as_str()) {
        (Some("ok"), Some("ok")) => Exit::Done,
        (Some("ok" | "degraded"), _) => Exit::DEGRADED,
        _ => Exit::UNAVAILABLE,
    }
}

/// Prints what each budget of memory of the node has in use.
pub(super) async fn memory(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let node = client.admin().node_state().await?;
    let words = memory_table(&node);
    printer.print(out, memory_facts(&node), words.trim_end())
}

/// One line for each budget of each shard, and the sum of the budgets.
fn memory_table(node: &NodeState) -> String {
    let line = |cells: [&str; 5]| {
        let [shard, name, used, bound, rate] = cells;
        format!("{shard:<6} {name:<12} {used:>11} {bound:>11} {rate:>9}\n")
    };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let mut words = line(["shard", "budget", "used", "bound", "hit rate"]);
    let (mut used, mut bound) = (0, 0);
    for shard in &node.shards {
        for memory in &shard.memory {
            let rate = memory.hit_rate();
            let rate = rate.map_or_else(String::new, |rate| format!("{:.1} %", rate * 100.0));
            words += &line([
                &shard.shard.to_string(),
                &memory.name,
                &mib(memory.used),
                &mib(memory.bound),
                &rate,
            ]);
            used += memory.used;
            bound += memory.bound;
        }
    }
    words + &line(["all", "", &mib(used), &mib(bound), ""])
}

fn memory_facts(node: &NodeState) -> Value {
    let budget = |memory: &MemoryUse| {
        json!({
            "budget": memory.name,
            "used": memory.used,
            "bound": memory.bound,
            "hits": memory.hits,
            "misses": memory.misses,
            "hit_rate": memory.hit_rate(),
        })
    };
    let shards = node.shards.iter().map(|shard| {
        let memory = shard.memory.iter().map(budget);
        json!({ "shard": shard.shard, "memory": memory.collect::<Vec<Value>>() })
    });
    json!({ "node": node.node, "shards": shards.collect::<Vec<Value>>() })
}

/// The state of the cluster and of the node as one JSON object.
fn facts(node: &NodeState, of_cluster: Result<ClusterStatus, Error>) -> Result<Value, CliError> {
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
            "stuck": shard.stuck,
            "log_writes": shard.log_writes,
            "log_bytes": shard.log_bytes,
        })
    });
    let mut facts = match of_cluster {
        Ok(known) => of_state(known)?,
        Err(error) => json!({ "health": "unavailable", "cluster_error": error.to_string() }),
    };
    let of_node = [
        ("cluster", json!(node.cluster)),
        ("node", json!(node.node)),
        ("node_health", json!(node.health)),
        ("version", json!(node.release)),
        ("uptime_ms", json!(node.uptime_ms)),
        ("shards", shards.collect()),
    ];
    for (name, fact) in of_node {
        facts[name] = fact;
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use rangedb_client::admin::ShardState;

    use super::*;

    fn node() -> NodeState {
        let memory = |name: &str, [used, bound]: [u64; 2], [hits, misses]: [u64; 2]| {
            let mut memory = MemoryUse::default();
            memory.name = name.to_owned();
            (memory.used, memory.bound) = (used, bound);
            (memory.hits, memory.misses) = (hits, misses);
            memory
        };
        let mut shard = ShardState::default();
        shard.memory = vec![
            memory("block_cache", [3 << 19, 8 << 20], [3, 1]),
            memory("replies", [0, 2 << 20], [0, 0]),
        ];
        let mut node = NodeState::default();
        node.shards = vec![shard];
        node
    }

    #[test]
    fn each_budget_has_a_line_and_their_sum_has_the_last() {
        let table = memory_table(&node());
        let lines: Vec<Vec<&str>> = (table.lines())
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1..],
            [
                vec!["0", "block_cache", "1.5", "MiB", "8.0", "MiB", "75.0", "%"],
                vec!["0", "replies", "0.0", "MiB", "2.0", "MiB"],
                vec!["all", "1.5", "MiB", "10.0", "MiB"],
            ]
        );
    }

    #[test]
    fn the_exit_code_tells_the_worst_of_cluster_and_node() {
        let exit_of = |of_cluster: &str, of_node: &str| {
            exit(&json!({ "health": of_cluster, "node_health": of_node }))
        };
        assert_eq!(exit_of("ok", "ok"), Exit::Done);
        assert_eq!(exit_of("ok", "the disk is full") as u8, 1);
        assert_eq!(exit_of("degraded", "ok") as u8, 1);
        assert_eq!(exit_of("unavailable", "ok") as u8, 3);
    }

    #[test]
    fn a_budget_in_which_nothing_is_looked_for_has_no_hit_rate() {
        let facts = memory_facts(&node());
        let memory = &facts["shards"][0]["memory"];
        assert_eq!(memory[0]["hit_rate"], json!(0.75));
        assert_eq!(memory[1]["hit_rate"], Value::Null);
        assert_eq!(memory[1]["bound"], json!(2 << 20));
    }
}
