//! Tests of the table, of `METRICS.md`, and of the number of series.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_engine::cluster::NodeHealth;
use rangedb_engine::lsm::LsmStats;
use rangedb_engine::memory::MemoryUse;
use rangedb_engine::raft::RaftStats;
use rangedb_engine::range::Route;
use rangedb_engine::range::usage::RangeLoad;
use rangedb_engine::shard::{
    Availability, BoundsChangeStats, DigestStats, MoveStats, PeerStatus, RangeStatus,
    ReplicationStatus, ShardStatus, SlowDiskStatus,
};
use rangedb_engine::tree::cold_reads::ColdReadStats;
use rangedb_engine::types::{
    DataId, Epoch, KeyRange, Location, NodeId, RangeId, ReplicaId, ShardId, Timestamp,
};
use rangedb_engine::wal::WalStats;

use super::*;
use crate::admin::api::Api;
use crate::descriptors::{ConnectionLimit, Needs, Shares};
use crate::env::reactor::Load;
use crate::history::History;
use crate::node_settings::Settings;
use crate::peers::Peers;
use crate::probe::{Bytes, ShardProbe};

/// More ranges than a shard has in practice.
const RANGES: u64 = 10_000;
/// Other nodes of a large cluster.
const PEERS: u64 = 100;
/// More tasks than have ever stalled.
const TASKS: usize = 100;
/// The budgets of memory of a real shard.
const BUDGETS: [&str; 6] = [
    "memtables",
    "row_cache",
    "block_cache",
    "log_entries",
    "requests",
    "replies",
];

fn all() -> impl Iterator<Item = &'static Metric> {
    GROUPS.into_iter().flatten()
}

#[test]
fn names_and_helps_are_as_prometheus_wants_them() {
    let mut names = BTreeSet::new();
    for Metric {
        name,
        kind,
        help,
        labels,
        ..
    } in all()
    {
        assert!(names.insert(name), "{name} is there twice");
        assert!(name.starts_with("rangedb_") || name.starts_with("process_"));
        let is_counter = matches!(kind, Kind::Counter);
        assert_eq!(is_counter, name.ends_with("_total"), "{name}");
        assert!(
            help.ends_with('.') && !help.contains(['\n', '|', '\\']),
            "{name}: {help}"
        );
        let forbidden = ["range", "user", "client", "le", "instance", "job"];
        assert!(
            *name == "rangedb_file_descriptors_share"
                || labels.iter().all(|label| !forbidden.contains(label)),
            "{name}: {labels:?}"
        );
    }
}

#[test]
fn the_page_for_operators_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("METRICS.md");
    if std::env::var("RANGEDB_GOLDEN").is_ok_and(|mode| mode == "update") {
        std::fs::write(&path, document::page()).expect("written");
    }
    let found = std::fs::read_to_string(&path).expect("the page");
    assert!(
        found == document::page(),
        "server/METRICS.md is another: RANGEDB_GOLDEN=update cargo test -p rangedb-server --lib metrics"
    );
}

fn range(id: u64) -> RangeStatus {
    RangeStatus {
        route: Route {
            range: RangeId(id),
            keys: KeyRange::all(),
            epoch: Epoch {
                version: 1,
                conf: 1,
            },
            leader: None,
        },
        system: false,
        replica: ReplicaId(id),
        leads: id.is_multiple_of(3),
        leased: Some(KeyRange::all()),
        frozen: None,
        parts: (DataId(id), 1),
        term: 1,
        applied: 1,
        durable: 1,
        last_ts: Timestamp(1),
        gc_threshold: Timestamp::ZERO,
        load: RangeLoad {
            waiting: 1,
            in_flight: 2,
            ..RangeLoad::default()
        },
        session_clients: 100_000,
        availability: Availability::Available,
    }
}

fn report(shard: u16) -> ShardReport {
    let spread = || Distribution::new(60_000_000);
    let at = |node| Location {
        node: NodeId(node),
        shard: ShardId(shard),
    };
    let peer = |node| PeerStatus {
        at: at(node),
        answers: true,
        round_trip: Some(Duration::from_micros(50)),
    };
    let memory = |name| MemoryUse {
        name,
        ..MemoryUse::default()
    };
    let status = ShardStatus {
        ranges: (1..=RANGES).map(range).collect(),
        cluster: (shard == 0).then(|| ClusterStatus {
            nodes: NodeHealth::ALL.map(|state| (state, 3)).to_vec(),
            ranges: 3,
            moves: 0,
            under_replicated: 0,
            unavailable: 0,
            in_trouble: 0,
        }),
        replay_bytes: 0,
        pinned_bytes: 0,
        pressure: 0.0,
        disk_full: false,
        starved: false,
        slow_disk: SlowDiskStatus::default(),
        leaves: false,
        wal: WalStats {
            writes: 0,
            bytes: 0,
            records: 0,
            pending_bytes: 0,
            segments: 0,
            live_bytes: 0,
            cache: MemoryUse::default(),
            write_micros: spread(),
            batch_records: spread(),
            batch_bytes: spread(),
        },
        lsm: LsmStats::default(),
        cold_reads: ColdReadStats {
            reads: 0,
            blocks: 0,
            wait_micros: spread(),
            failed: 0,
        },
        memory: BUDGETS.map(memory).to_vec(),
        digests: DigestStats::default(),
        replication: ReplicationStatus {
            lag: 7,
            changing: 0,
            receiving: 0,
            bounds_changes: BoundsChangeStats::default(),
            moves: MoveStats::default(),
            stats: RaftStats::default(),
            peers: (2..2 + PEERS).map(peer).collect(),
            round_trip_micros: spread(),
        },
    };
    ShardReport {
        probe: ShardProbe::new(),
        status,
        connections: 10_000,
        handshakes_evicted: 0,
        stalled: 0,
        in_flight: 0,
        overloaded: 0,
        damaged_frames: 0,
        links_broken: 0,
        client_bytes: Bytes::default(),
        peer_bytes: Bytes::default(),
        cpu: 0.5,
        load: Load {
            busy: Duration::ZERO,
            longest_stall: Duration::ZERO,
            stalls: (0..TASKS).map(|task| (format!("task{task}"), 1)).collect(),
            stall_micros: spread(),
        },
    }
}

fn serving() -> Serving {
    let needs = Needs {
        shards: 8,
        tables: 0,
        has_peers: true,
    };
    Serving {
        id: 1,
        started: Instant::now(),
        shards: Vec::new(),
        cluster: "00".to_owned(),
        api: Api::new(
            ([127, 0, 0, 1], 7400).into(),
            History::new(),
            Settings::of_test(),
        ),
        data_dir: "/".into(),
        peers: Arc::new(Peers::none()),
        descriptors: Shares::new(1 << 20, needs).expect("it suffices"),
        client_limit: ConnectionLimit::new(1),
        peer_limit: ConnectionLimit::new(1),
    }
}

/// The series of a page, of shards and of the node.
fn series(page: &str) -> (usize, usize) {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let (of_shards, of_node): (Vec<&str>, Vec<&str>) =
        lines.partition(|line| line.contains("{shard=") && !line.starts_with("rangedb_shard_up"));
    (of_shards.len(), of_node.len())
}

#[test]
fn the_number_of_series_does_not_grow_with_ranges_or_clients() {
    let node = serving();
    for shards in [1, 8] {
        let reports: Vec<_> = (0..shards).map(|shard| Some(report(shard))).collect();
        let page = Scrape::new(Some(&node), Phase::Ready, &reports).render();
        let (of_shards, of_node) = series(&page);
        let each = of_shards / usize::from(shards);
        assert!(each < 200, "{each} series a shard");
        assert!(of_node < 2000, "{of_node} series of the node");
        assert!(page.len() < 1 << 20, "{} bytes", page.len());
        let replicas = "rangedb_replicas{shard=\"0\",state=\"available\"} 10000\n";
        assert!(page.contains(replicas), "{page}");
    }
}

#[test]
fn a_shard_that_does_not_answer_has_only_that_series() {
    let node = serving();
    let reports = [Some(report(0)), None];
    let page = Scrape::new(Some(&node), Phase::ShuttingDown, &reports).render();
    assert!(page.contains("rangedb_shard_up{shard=\"1\"} 0\n"), "{page}");
    assert_eq!(page.matches("shard=\"1\"").count(), 1);
    assert!(page.contains("rangedb_node_ready 0\n"));
    // Every metric of the table is there for the shard that answers.
    for Metric { name, .. } in all() {
        assert!(page.contains(&format!("# TYPE {name} ")), "{name}");
    }
}

#[test]
fn a_node_without_shards_shows_that_it_is_not_ready() {
    let page = Scrape::new(None, Phase::Starting, &[]).render();
    let has = |start: &str| page.lines().any(|line| line.starts_with(start));
    assert!(has("rangedb_node_ready 0"), "{page}");
    assert!(has("rangedb_build_info{"), "{page}");
    assert!(has("process_start_time_seconds "), "{page}");
    assert!(!has("rangedb_shard_up"), "{page}");
}
