//! The event `view`: the nodes and ranges of the cluster, as its manager knows them. Ranges are rows
//! without names, since there may be ten thousand.

use rangedb_protocol::admin::{BoundsState, ClusterStatus, Range, RangeStats, ReplicaState};
use serde::Serialize;

use crate::admin::Node;

/// At most this many reasons why the cluster is not whole are sent.
const REASONS_MAX: usize = 100;
/// A key is shown up to this many bytes.
const KEY_SHOWN_MAX: usize = 64;

/// The cluster, or why it is not known.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum View {
    Known {
        status: Box<ClusterStatus>,
        /// The number of reasons; those in the status are the first ones.
        reasons: usize,
        /// The ranges in the order of their keys, those of the system first.
        ranges: Vec<Row>,
    },
    Unknown {
        error: String,
    },
}

/// A range: its id, the bits of [`flags`], its first key, its leader's node and shard, its term, the index
/// of the last applied entry, its replicas, its size and its load.
type Row = (
    u64,
    u8,
    String,
    Option<u64>,
    Option<u16>,
    u64,
    u64,
    Vec<Place>,
    Load,
);

/// The bytes of all versions and of the newest ones, and over the last 10 s reads, writes and milliseconds
/// of CPU time a second.
type Load = (u64, u64, u32, u32, u32);

/// A replica: its node and shard.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Place {
    /// It votes, lacks nothing, and is well.
    Whole(u64, u16),
    /// Whether it votes, the entries that it lacks, and its state.
    Other(u64, u16, bool, Option<u64>, ReplicaState),
}

/// What the manager knows now.
pub(super) async fn of(node: &Node) -> View {
    let Some(serving) = node.serving.get() else {
        let error = "the node is starting".to_owned();
        return View::Unknown { error };
    };
    match serving.api.cluster().await {
        Ok((status, ranges)) => known(status, ranges),
        Err(error) => View::Unknown {
            error: error.to_string(),
        },
    }
}

fn known(mut status: ClusterStatus, mut ranges: Vec<Range>) -> View {
    let reasons = status.reasons.len();
    status.reasons.truncate(REASONS_MAX);
    // The rows tell.
    status.replicas_in_trouble.clear();
    ranges.sort_by(|a, b| (!a.system, &a.start).cmp(&(!b.system, &b.start)));
    View::Known {
        status: Box::new(status),
        reasons,
        ranges: ranges.iter().map(row).collect(),
    }
}

fn row(range: &Range) -> Row {
    let replicas = range.replicas.iter();
    let places = replicas.map(|at| match (at.voter, at.lag, at.state) {
        (true, Some(0), ReplicaState::Ok) => Place::Whole(at.node, at.shard),
        (votes, lag, state) => Place::Other(at.node, at.shard, votes, lag, state),
    });
    (
        range.id,
        flags(range),
        shown(&range.start),
        range.leader_node,
        range.leader_shard,
        range.term,
        range.applied,
        places.collect(),
        load(&range.stats),
    )
}

fn load(stats: &RangeStats) -> Load {
    (
        stats.bytes,
        stats.live_bytes,
        stats.reads_per_second,
        stats.writes_per_second,
        stats.cpu_millis_per_second,
    )
}

/// 1: a range of the system; 2: under-replicated; 4: unavailable; 8: it is being split.
fn flags(range: &Range) -> u8 {
    u8::from(range.system)
        | u8::from(range.under_replicated) << 1
        | u8::from(range.unavailable) << 2
        | u8::from(range.state == BoundsState::Splitting) << 3
}

/// A key as text, as `rangedb range ls` prints it; its begin if it is long.
fn shown(key: &[u8]) -> String {
    let (begin, rest) = key.split_at(key.len().min(KEY_SHOWN_MAX));
    let more = if rest.is_empty() { "" } else { "..." };
    format!("{}{more}", begin.escape_ascii())
}

#[cfg(test)]
mod tests {
    use rangedb_protocol::admin::Replica;

    use super::*;

    #[test]
    fn keys_are_short_printable_text() {
        assert_eq!(shown(b"user/7"), "user/7");
        assert_eq!(shown(b"a\n\0\xff\"<script>"), "a\\n\\x00\\xff\\\"<script>");
        let long = shown(&[0xff; 4096]);
        assert!(long.ends_with("\\xff..."), "{long}");
        assert_eq!(long.len(), KEY_SHOWN_MAX * 4 + 3);
    }

    #[test]
    fn a_replica_that_does_its_part_is_its_place() {
        let mut range = Range::default();
        for (node, lag) in [(1, Some(0)), (2, None)] {
            let mut replica = Replica::default();
            (replica.node, replica.voter, replica.lag) = (node, true, lag);
            replica.state = ReplicaState::Ok;
            range.replicas.push(replica);
        }
        let places = serde_json::to_string(&row(&range).7).expect("JSON");
        assert_eq!(places, r#"[[1,0],[2,0,true,null,"ok"]]"#);
    }

    #[test]
    fn ranges_are_in_the_order_of_keys_after_those_of_the_system() {
        let range = |id, system, start: &[u8]| {
            let mut range = Range::default();
            (range.id, range.system, range.start) = (id, system, start.to_vec());
            range.unavailable = id == 9;
            if id == 3 {
                range.state = BoundsState::Splitting;
            }
            range
        };
        let ranges = vec![
            range(3, false, b"m"),
            range(9, false, b""),
            range(1, true, b""),
        ];
        let View::Known { ranges, .. } = known(ClusterStatus::default(), ranges) else {
            panic!("it is known");
        };
        let ids: Vec<(u64, u8)> = ranges.iter().map(|row| (row.0, row.1)).collect();
        assert_eq!(ids, [(1, 1), (9, 4), (3, 8)]);
    }
}
