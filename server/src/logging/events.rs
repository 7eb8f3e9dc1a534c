//! The names of events: the values of the field `event` of log lines. Scripts, the history and the page
//! rely on them, so a name stays what it is. A test holds this table, the sources and the README
//! together.

/// The name of an event, and what it says.
pub const EVENTS: [(&str, &str); 41] = [
    (
        "block_unreadable",
        "a block of a table cannot be read or is damaged: the replicas with rows there are given up",
    ),
    ("clock_jumped", "the wall clock was set, ahead or back"),
    (
        "compaction_failed",
        "a compaction has failed, and is tried again after a pause",
    ),
    ("disk_free", "a disk that was full has room again"),
    ("disk_full", "a disk is full, and writes are refused"),
    ("drain_ended", "what was in flight at the stop has ended"),
    ("drain_started", "the node was told to stop"),
    (
        "history_damaged",
        "the history was damaged, was put aside, and begins anew",
    ),
    (
        "history_paused",
        "the history cannot be written, and pauses",
    ),
    ("history_resumed", "the history is written again"),
    ("leader_elected", "a replica here leads its range"),
    ("leader_lost", "a replica here leads its range no more"),
    (
        "leaving_stuck",
        "nothing leaves a node that drains or is decommissioned",
    ),
    ("lines_lost", "log lines could not be written"),
    (
        "link_broken",
        "a connection to another node broke or cannot be made",
    ),
    ("link_works", "a connection to another node works again"),
    ("manager_elected", "a shard here manages the cluster"),
    (
        "membership_changed",
        "a node drains, is decommissioned, is active again or was removed",
    ),
    (
        "node_back",
        "a node that was silent, dead or out of reach is back",
    ),
    ("node_dead", "a node was silent for too long"),
    (
        "node_failed",
        "the node ends because of an error, which the message tells",
    ),
    ("node_joined", "a new node is part of the cluster"),
    ("node_refused", "one node refuses another"),
    ("node_silent", "a node does not report"),
    ("node_started", "the node is ready"),
    (
        "node_starting",
        "release, folder, settings and machine of a node that starts",
    ),
    ("node_stopped", "the node has stopped as it was told"),
    (
        "node_unreachable",
        "a node reports, but others do not reach it",
    ),
    ("range_merged", "a range has taken over its right neighbour"),
    (
        "range_overloaded",
        "a range is offered more writes than its shard takes",
    ),
    (
        "range_split",
        "the manager had a range split, for a reason and at a key",
    ),
    (
        "reload_refused",
        "the settings were read again and are not valid",
    ),
    ("reloaded", "the settings were read again"),
    (
        "resources_back",
        "the log or the tables have what they lacked",
    ),
    (
        "resources_lacking",
        "the log or the tables lack file descriptors, memory or threads",
    ),
    (
        "setting_changed",
        "a setting of the node or the cluster has a new value",
    ),
    (
        "shard_emptied",
        "a shard that the node gives up holds nothing any more",
    ),
    (
        "slow_disk",
        "a shard hands leaderships over, because its disk is slow or hangs, or its tables take no more writes",
    ),
    (
        "slow_request",
        "a request took as long as `slow-request` says, or longer",
    ),
    (
        "split_blocked",
        "a range that is too large or too hot was not split; at most once an hour for each reason",
    ),
    ("stall", "a task held its shard's thread for 5 ms or longer"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Collects the names in the sources of a folder.
    fn collect(folder: &Path, names: &mut BTreeSet<String>) {
        // Put together here, so that this file has none.
        let field = format!("event = {}", '"');
        for entry in fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                collect(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("it is text");
                let found = text.split(&field).skip(1);
                names.extend(found.filter_map(|rest| Some(rest.split('"').next()?.to_owned())));
            }
        }
    }

    #[test]
    fn the_table_has_the_events_of_the_sources_and_the_readme_has_the_table() {
        let server = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut names = BTreeSet::new();
        for folder in ["src", "../engine/src", "../client/src"] {
            collect(&server.join(folder), &mut names);
        }
        // `last_words` writes the line of this one by itself.
        names.insert("node_failed".to_owned());
        let table: Vec<String> = EVENTS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(Vec::from_iter(names), table);
        let readme = fs::read_to_string(server.join("README.md")).expect("it is there");
        for (name, meaning) in EVENTS {
            let line = format!("| `{name}` | {meaning} |");
            assert!(readme.contains(&line), "server/README.md lacks {line}");
        }
    }
}
