//! `rangedb node ls`, `range ls|transfer-leader|move-replica` and `config`: commands that show the
//! cluster or steer it. With `--format json` they print the JSON of the wire protocol's answers.

use std::fmt::Write as _;
use std::io::Write;

use rangedb_client::Client;
use rangedb_client::admin::{HealthReason, Node, Range, Replica, ReplicaState};
use rangedb_protocol::admin::{Done, History, Nodes, Ranges, Settings};
use rangedb_server::admin::json::of_state;

use super::output::Printer;
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
            let lines = settings.iter().map(|setting| {
                let value = word(setting.value.as_deref());
                format!("{}  {value}  {}\n", setting.name, setting.may_be)
            });
            let words = lines.collect();
            (of_state(Settings { settings })?, words)
        }
        Show::History => {
            let history = admin.config_history().await?;
            let lines = history.iter().map(|change| {
                let value = word(Some(&change.value));
                format!("{}  {value}  version {}\n", change.name, change.version)
            });
            let words = lines.collect::<String>();
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
    printer.print(out, of_state(Done { done: true })?, "done")
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
    let mut words =
        String::from("id  address  state  membership  shards  leaders  replicas  version\n");
    for node in nodes {
        // Writing to a string cannot fail.
        let _ = writeln!(
            words,
            "{}  {}  {}  {}  {}  {}  {}  {}",
            node.id,
            word(Some(&node.address)),
            node.liveness,
            node.membership,
            node.shards,
            node.leaders,
            node.replicas,
            word(Some(&node.version))
        );
    }
    words
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
    let mut words = String::from("id  epoch  leader  replicas  start  end  applied\n");
    for range in ranges {
        let leader = match (range.leader_node, range.leader_shard) {
            (Some(node), Some(shard)) => format!("{node}/{shard}"),
            _ => "-".to_owned(),
        };
        let replicas: Vec<String> = range.replicas.iter().map(place).collect();
        let (start, end) = if range.system {
            ("(system)".to_owned(), "(end)".to_owned())
        } else {
            let end = range.end.as_deref().unwrap_or_default();
            (border(&range.start, "(begin)"), border(end, "(end)"))
        };
        let state = match (range.unavailable, range.under_replicated) {
            (true, _) => "  UNAVAILABLE",
            (_, true) => "  under-replicated",
            _ => "",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            words,
            "{}  {}.{}  {leader}  {}  {start}  {end}  {}{state}",
            range.id,
            range.epoch.version,
            range.epoch.conf,
            replicas.join(","),
            range.applied
        );
    }
    words
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
        assert_eq!(lines[1], "1  1.2  -    (system)  (end)  0  UNAVAILABLE");
        let wanted = r"2  1.2  3/0  3/0,4/1?!missing  (begin)  \x00\xffa  7  under-replicated";
        assert_eq!(lines[2], wanted);
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
        assert_eq!(
            text.lines().nth(1),
            Some("0  -  unknown  unknown  0  0  0  -")
        );
    }
}
