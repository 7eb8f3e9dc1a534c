//! `rangedb status`: the health of the cluster and the state of one node.

use std::fmt::Write as _;
use std::io::Write;

use rangedb_client::{Client, NodeState};
use serde_json::{Map, Value, json};

use super::cluster;
use super::output::Printer;
use super::{Exit, Trouble};

/// Prints the health of the cluster and the state of the node. If the cluster's manager does not
/// answer, the cluster counts as unavailable, and the node's state is printed nevertheless.
pub(super) async fn status(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let node = client.status().await?;
    let of_cluster = cluster::ask(client, &json!({ "command": "status" })).await;
    let mut words = match &of_cluster {
        Ok(known) => format!(
            "cluster {}: {} ranges, {} under-replicated, {} unavailable\n{}{}",
            known["health"].as_str().unwrap_or_default(),
            known["ranges"],
            known["under_replicated"],
            known["unavailable"],
            cluster::troubles(known),
            cluster::nodes(known)
        ),
        Err(trouble) => format!("cluster unavailable: {}\n", trouble.message),
    };
    let _ = write!(
        words,
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
    printer.print(out, facts(&node, of_cluster), words.trim_end())
}

/// The state of the cluster and of the node as one JSON object.
fn facts(node: &NodeState, of_cluster: Result<Value, Trouble>) -> Value {
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
    let mut facts = match of_cluster {
        Ok(Value::Object(known)) => known,
        Ok(_) => Map::new(),
        Err(trouble) => {
            let unknown = json!({ "health": "unavailable", "cluster_error": trouble.message });
            unknown.as_object().cloned().unwrap_or_default()
        }
    };
    let of_node = [
        ("cluster", json!(node.cluster)),
        ("node", json!(node.node)),
        ("node_health", json!(node.health)),
        ("version", json!(node.release)),
        ("uptime_ms", json!(node.uptime_ms)),
        ("shards", shards.collect()),
    ];
    facts.extend(of_node.map(|(name, fact)| (name.to_owned(), fact)));
    Value::Object(facts)
}
