//! `rangedb node ls`, `range ls|transfer-leader|move-replica` and `config`: commands that show the
//! cluster or steer it. With `--format json` they print the JSON of the wire protocol's answers.

use std::io::Write;

use rangedb_client::Client;
use rangedb_client::admin::{HealthReason, Node, Range, Replica, ReplicaState};
use rangedb_protocol::admin::{Done, History, Nodes, Ranges, Settings};
use rangedb_server::admin::json::of_state;

use super::output::{Printer, columns};
use super::request::{Order, Show};
use super::{Exit, Trouble};

/// Prints a part of the cluster's state.
pub(super) async fn show(
    client: &Client,
    show: &Show,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let admin = client.admin();
    let (facts, words) = match show {
        Show::Nodes => {
            let nodes = admin.nodes().await?;
            let words = nodes_table(&nodes);
            (of_state(Nodes { nodes })?, words)
        }
        Show::Ranges => {
            let ranges = admin.ranges().await?;
            let words = ranges_table(&ranges);
            (of_state(Ranges { ranges })?, words)
        }
        Show::Setting(Some(name)) => {
            let setting = admin.config_get(name).await?;
            let words = word(setting.value.as_deref()).to_owned();
            (of_state(setting)?, words)
        }
        Show::Setting(None) => {
            let settings = admin.config().await?;
            let rows = settings.iter().map(|setting| {
                let value = word(setting.value.as_deref()).to_owned();
                [setting.name.clone(), value, setting.may_be.clone()]
            });
            let words = columns(&rows.collect::<Vec<_>>());
            (of_state(Settings { settings })?, words)
        }
        Show::History => {
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

/// Gives an order that changes the cluster.
pub(super) async fn order(
    client: &Client,
    order: &Order,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let admin = client.admin();
    match order {
        Order::TransferLeader { range, to } => admin.transfer_leader(*range, *to).await?,
        Order::MoveReplica { range, from, to } => {
            admin.move_replica(*range, *from, to.0, to.1).await?;
        }
        Order::Set { name, value } => admin.config_set(name, value).await?,
    }
    printer.applied(out, of_state(Done { done: true })?, "done")
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
        "id", "address", "state", "shards", "leaders", "replicas", "version",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(nodes.iter().map(|node| {
        [
            node.id.to_string(),
            word(Some(&node.address)).to_owned(),
            node.liveness.to_string(),
            node.shards.to_string(),
            node.leaders.to_string(),
            node.replicas.to_string(),
            word(Some(&node.version)).to_owned(),
        ]
    }));
    columns(&rows)
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
        "id", "epoch", "leader", "replicas", "start", "end", "applied", "",
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
            trouble(range).to_owned(),
        ]
    }));
    columns(&rows)
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

/// What keeps a range from being whole; empty if nothing does.
pub(super) fn trouble(range: &Range) -> &'static str {
    match (range.unavailable, range.under_replicated) {
        (true, _) => "UNAVAILABLE",
        (_, true) => "under-replicated",
        _ => "",
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

/// Formats a border of a range: bytes other than printable ASCII as `\xNN`.
fn border(key: &[u8], open: &str) -> String {
    if key.is_empty() {
        return open.to_owned();
    }
    key.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_tell_what_is_known_and_what_is_not() {
        let answer = json!({ "ranges": [
            { "id": 1, "system": true, "start": "", "end": null, "term": 1,
              "epoch": { "version": 1, "conf": 2 }, "leader_node": null, "leader_shard": null,
              "replicas": [], "applied": 0, "unavailable": true, "under_replicated": true },
            { "id": 2, "system": false, "start": "", "end": "00ff61", "term": 1,
              "epoch": { "version": 1, "conf": 2 }, "leader_node": 3, "leader_shard": 0,
              "replicas": [
                  { "replica": 5, "node": 3, "shard": 0, "voter": true, "state": "ok" },
                  { "replica": 6, "node": 4, "shard": 1, "voter": false, "state": "missing" },
              ],
              "applied": 7, "unavailable": false, "under_replicated": true },
        ]});
        let answer: Ranges = serde_json::from_value(answer).unwrap();
        let text = ranges_table(&answer.ranges);
        let lines: Vec<&str> = text.lines().collect();
        let wanted = [
            r"id  epoch  leader  replicas          start     end        applied",
            r"1   1.2    -       -                 (system)  (end)      0        UNAVAILABLE",
            r"2   1.2    3/0     3/0,4/1?!missing  (begin)   \x00\xffa  7        under-replicated",
        ];
        assert_eq!(lines, wanted);
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
        let wanted = "0   -        unknown  0       0        0         -";
        assert_eq!(text.lines().nth(1), Some(wanted));
    }
}
