//! `rangedb node ls`, `range ls|transfer-leader|move-replica` and `config`: commands that send an
//! admin command of the wire protocol. With `--format json` they print its answer unchanged.

use std::fmt::Write as _;
use std::io::Write;

use rangedb_client::Client;
use serde_json::{Value, json};

use super::output::Printer;
use super::request::Show;
use super::{Exit, Trouble};

/// Sends an admin command that changes nothing.
pub(super) async fn ask(client: &Client, command: &Value) -> Result<Value, Trouble> {
    parsed(&client.admin(&command.to_string()).await?)
}

fn parsed(answer: &str) -> Result<Value, Trouble> {
    serde_json::from_str(answer).map_err(|error| Trouble {
        exit: Exit::Refused,
        message: format!("the node's answer is not JSON: {error}"),
    })
}

/// Prints a part of the cluster's state.
pub(super) async fn show(
    client: &Client,
    show: &Show,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let command = match show {
        Show::Nodes => json!({ "command": "nodes" }),
        Show::Ranges => json!({ "command": "ranges" }),
        Show::Setting(name) => json!({ "command": "config_get", "name": name }),
        Show::History => json!({ "command": "config_history" }),
    };
    let answer = ask(client, &command).await?;
    let words = match show {
        Show::Nodes => nodes(&answer),
        Show::Ranges => ranges(&answer),
        Show::Setting(Some(_)) => word(&answer["value"]),
        Show::Setting(None) => settings(&answer["settings"]),
        Show::History => settings(&answer["history"]),
    };
    printer.print(out, answer, words.trim_end())
}

/// Sends an admin command that changes something.
pub(super) async fn order(
    client: &Client,
    command: &str,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, Trouble> {
    let answer = parsed(&client.admin_order(command).await?)?;
    printer.print(out, answer, "done")
}

fn rows(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// Formats a field; `-` if it is unknown.
fn word(fact: &Value) -> String {
    match fact {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Formats the nodes as lines with a heading.
pub(super) fn nodes(answer: &Value) -> String {
    let mut words = String::from("id  address  state  shards  leaders  replicas  version\n");
    for node in rows(&answer["nodes"]) {
        let fact = |name: &str| word(&node[name]);
        // Writing to a string cannot fail.
        let _ = writeln!(
            words,
            "{}  {}  {}  {}  {}  {}  {}",
            fact("id"),
            fact("address"),
            fact("state"),
            fact("shards"),
            fact("leaders"),
            fact("replicas"),
            fact("version")
        );
    }
    words
}

/// Formats what keeps the cluster from being whole as lines.
pub(super) fn reasons(answer: &Value) -> String {
    let mut words = String::new();
    for reason in rows(&answer["reasons"]) {
        let why = word(&reason["reason"]);
        // Writing to a string cannot fail.
        let _ = match &reason["range"] {
            Value::Null => writeln!(words, "node {}: {why}", reason["nodes"][0]),
            range => writeln!(words, "range {range} is {}: {why}", word(&reason["health"])),
        };
    }
    words
}

fn ranges(answer: &Value) -> String {
    let mut words = String::from("id  epoch  leader  replicas  start  end  applied\n");
    for range in rows(&answer["ranges"]) {
        let fact = |name: &str| word(&range[name]);
        let leader = match &range["leader_node"] {
            Value::Null => "-".to_owned(),
            node => format!("{node}/{}", range["leader_shard"]),
        };
        let replicas = rows(&range["replicas"]).iter().map(|replica| {
            let learns = if replica["voter"] == true { "" } else { "?" };
            let state = match replica["state"].as_str() {
                None | Some("ok") => String::new(),
                Some(state) => format!("!{state}"),
            };
            format!("{}/{}{learns}{state}", replica["node"], replica["shard"])
        });
        let replicas: Vec<String> = replicas.collect();
        let (start, end) = if range["system"] == true {
            ("(system)".to_owned(), "(end)".to_owned())
        } else {
            (
                border(&range["start"], "(begin)"),
                border(&range["end"], "(end)"),
            )
        };
        let state = match (
            range["unavailable"] == true,
            range["under_replicated"] == true,
        ) {
            (true, _) => "  UNAVAILABLE",
            (_, true) => "  under-replicated",
            _ => "",
        };
        let _ = writeln!(
            words,
            "{}  {}.{}  {leader}  {}  {start}  {end}  {}{state}",
            fact("id"),
            range["epoch"]["version"],
            range["epoch"]["conf"],
            replicas.join(","),
            fact("applied")
        );
    }
    words
}

/// Formats a border of a range: bytes other than printable ASCII as `\xNN`.
fn border(hex: &Value, open: &str) -> String {
    let digits = hex.as_str().unwrap_or_default();
    let bytes = super::input::bytes(digits, true).unwrap_or_default();
    if bytes.is_empty() {
        return open.to_owned();
    }
    bytes.escape_ascii().to_string()
}

fn settings(list: &Value) -> String {
    let mut words = String::new();
    for setting in rows(list) {
        let _ = write!(
            words,
            "{}  {}",
            word(&setting["name"]),
            word(&setting["value"])
        );
        match &setting["may_be"] {
            Value::String(may_be) => {
                let _ = write!(words, "  {may_be}");
            }
            _ => {
                let _ = write!(words, "  version {}", setting["version"]);
            }
        }
        words.push('\n');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_tell_what_is_known_and_what_is_not() {
        let answer = json!({ "ranges": [
            { "id": 1, "system": true, "start": "", "end": null,
              "epoch": { "version": 1, "conf": 2 }, "leader_node": null, "leader_shard": null,
              "replicas": [], "applied": 0, "unavailable": true, "under_replicated": true },
            { "id": 2, "system": false, "start": "", "end": "00ff61",
              "epoch": { "version": 1, "conf": 2 }, "leader_node": 3, "leader_shard": 0,
              "replicas": [
                  { "node": 3, "shard": 0, "voter": true },
                  { "node": 4, "shard": 1, "voter": false, "state": "missing" },
              ],
              "applied": 7, "unavailable": false, "under_replicated": true },
        ]});
        let text = ranges(&answer);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "1  1.2  -    (system)  (end)  0  UNAVAILABLE");
        let wanted = r"2  1.2  3/0  3/0,4/1?!missing  (begin)  \x00\xffa  7  under-replicated";
        assert_eq!(lines[2], wanted);
        let answer = json!({ "reasons": [
            { "health": "degraded", "range": 2, "nodes": [4], "reason": "its replicas on node 4: missing" },
            { "health": "degraded", "range": null, "nodes": [4], "reason": "the node is dead" },
        ]});
        let wanted =
            "range 2 is degraded: its replicas on node 4: missing\nnode 4: the node is dead\n";
        assert_eq!(reasons(&answer), wanted);
        let text = nodes(&json!({ "nodes": [{ "id": 1, "address": "", "state": "dead" }] }));
        assert_eq!(text.lines().nth(1), Some("1  -  dead  -  -  -  -"));
    }
}
