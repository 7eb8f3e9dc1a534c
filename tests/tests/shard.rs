//! A shard on a real disk: acknowledged writes are there after a stop and after a crash.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rangedb_engine::cluster::{HighestIds, NodeRecord};
use rangedb_engine::env::{AsyncRuntime, Env, World};
use rangedb_engine::error::Error;
use rangedb_engine::gateway::Gateway;
use rangedb_engine::gateway::request::{Call, Caller};
use rangedb_engine::gateway::responder::{Responder, Response, Scanning};
use rangedb_engine::hlc::Hlc;
use rangedb_engine::limits::{
    LEADER_WAIT_LEN_MAX, MAX_CLOCK_OFFSET_MS, SEGMENT_LEN, SMALL_APPEND_LEN_MAX,
};
use rangedb_engine::lsm::{LsmTables, TableOptions, no_read_fault, unbounded};
use rangedb_engine::raft::{Message, encode};
use rangedb_engine::range::Keyspace;
use rangedb_engine::range::proposer::sink::Once;
use rangedb_engine::request::{Batch, Outcome, Read, RequestId, ScanRequest, Target};
use rangedb_engine::shard::{
    DigestOptions, FolderMark, InitialRange, Opened, RangeStatus, Shard, ShardOptions, WriteRequest,
};
use rangedb_engine::types::{
    ClientId, Epoch, KeyRange, Location, NodeId, RangeId, ReplicaId, ReplicaPlace, ShardId,
    Timestamp,
};
use rangedb_server::env::{GlommioRuntime, RingDisk, SystemClock};
use rangedb_server::glommio_env::GlommioEnv;
use rangedb_server::peers::Peers;
use rangedb_server::peers::link::Links;
use tokio::sync::oneshot;

const MEMTABLE_BYTES: usize = 1 << 20;

async fn open(folder: &Path) -> Shard<GlommioEnv> {
    open_with(folder, &[], &[]).await
}

/// Opens a shard whose users' ranges begin at the first key and at these. The first ones have each one of these
/// voters besides the one of this shard.
async fn open_with(folder: &Path, borders: &[&str], others: &[ReplicaPlace]) -> Shard<GlommioEnv> {
    let tables = TableOptions {
        folder: folder.join("tables"),
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: 1 << 20,
        on_start: Arc::new(|_| ()),
        push_out: |_| (),
        read_fault: no_read_fault,
        free_bytes: unbounded(),
    };
    let wal = folder.join("wal");
    std::fs::create_dir_all(&wal).expect("a folder");
    let world = World {
        clock: SystemClock,
        disk: RingDisk::new(wal),
        tables: LsmTables::open(tables).expect("tables open"),
        transport: Links::new(7, NodeId(1), Arc::new(Peers::none())),
    };
    let initial = |range, keyspace, others, keys| InitialRange {
        range: RangeId(range),
        replica: ReplicaId(range),
        others,
        leads: true,
        keyspace,
        keys,
    };
    let system = initial(1, Keyspace::System, Vec::new(), KeyRange::all());
    let starts = std::iter::once("").chain(borders.iter().copied());
    let users = starts.enumerate().map(|(place, start)| {
        let keys = KeyRange {
            start: start.into(),
            end: borders.get(place).map(|end| end.as_bytes().to_vec()),
        };
        let others = others.get(place).copied().into_iter().collect();
        initial(2 + place as u64, Keyspace::User, others, keys)
    });
    let options = ShardOptions {
        location: Location {
            node: NodeId(1),
            shard: ShardId(0),
        },
        entry_cache_bytes: 8 << 20,
        row_cache_bytes: 1 << 20,
        segment_bytes: SEGMENT_LEN,
        entries_kept: 0,
        small_append_bytes: SMALL_APPEND_LEN_MAX,
        gc_retention_ms: 600_000,
        folder: FolderMark {
            log: 1,
            opened: Opened::Never,
            start: 1,
        },
        initial: std::iter::once(system).chain(users).collect(),
        node: NodeRecord {
            id: NodeId(1),
            shards: 1,
            ..NodeRecord::default()
        },
        system: Vec::new(),
        seen: HighestIds::default(),
        is_at: Rc::new(|_, _| true),
        digests: DigestOptions::default(),
        on_fatal: Rc::new(|fatal| panic!("{fatal}")),
    };
    Shard::open(options, world, Hlc::new(), Default::default())
        .await
        .expect("the shard opens")
}

async fn put(
    shard: &Shard<GlommioEnv>,
    (client, sequence): (u128, u64),
    key: &str,
    value: &str,
) -> Timestamp {
    let (sender, receiver) = oneshot::channel();
    let session = RequestId {
        client: ClientId(client),
        sequence,
        lowest_unanswered: sequence,
        first_tried: shard.now(),
    };
    let write = Batch::put(key.to_owned().into(), value.to_owned().into());
    let request = WriteRequest {
        target: None,
        session,
        deadline: None,
    };
    shard.write(
        write,
        request,
        Rc::new(Once::new(|result| drop(sender.send(result)))),
        7,
    );
    match receiver.await.expect("answered").expect("written") {
        Outcome::Done { version, .. } => version,
        other => panic!("{other:?}"),
    }
}

fn get(shard: &Shard<GlommioEnv>, key: &str) -> Option<String> {
    let read = shard.get(key.as_bytes(), None, |found| {
        found.map(|(value, _)| String::from_utf8_lossy(value).into_owned())
    });
    match read.expect("readable") {
        Read::Done(found) => found,
        Read::Wait(wait) => panic!("the read waits for {wait:?}"),
    }
}

fn user_range(shard: &Shard<GlommioEnv>) -> RangeStatus {
    let mut ranges = shard.ranges().into_iter();
    ranges.find(|range| !range.system).expect("there is one")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (path, new) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &new);
        } else {
            std::fs::copy(&path, &new).expect("it is copied");
        }
    }
}

#[test]
fn writes_outlive_stops_and_crashes() {
    let mut folder = tempfile::tempdir().expect("a temporary folder");
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let mut sequence = 0;
    for round in 0..6 {
        GlommioRuntime::new(1).block_on(async {
            let shard = open(folder.path()).await;
            for (key, value) in &model {
                assert_eq!(
                    get(&shard, key).as_ref(),
                    Some(value),
                    "{key} in round {round}"
                );
            }
            let mut last = Timestamp::ZERO;
            for i in 0..200 {
                sequence += 1;
                let (key, value) = (format!("k{:03}", i * 7 % 150), format!("v{sequence}"));
                let version = put(&shard, (9, sequence), &key, &value).await;
                assert!(version > last);
                last = version;
                assert_eq!(get(&shard, &key).as_ref(), Some(&value));
                model.insert(key, value);
            }
            assert_eq!(get(&shard, "absent"), None);
            let reply = (shard.scan(ScanRequest::default(), None, None).await).expect("scans");
            let rows: BTreeMap<String, String> = reply
                .rows
                .iter()
                .map(|row| {
                    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
                    (text(row.key), text(row.value))
                })
                .collect();
            assert_eq!(rows, model);
            assert_eq!(reply.next, None);
            if round % 2 == 0 {
                shard.close().await.expect("closes");
            }
            // Otherwise everything is dropped where it stands, as a crash leaves it.
        });
        if round % 2 == 1 {
            // What was dropped still holds its files' locks, since the process goes on.
            let next = tempfile::tempdir().expect("a temporary folder");
            copy(folder.path(), next.path());
            folder = next;
        }
    }
}

#[test]
fn a_heartbeat_raises_the_time_of_the_cluster_within_a_bound() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    GlommioRuntime::new(1).block_on(async {
        let shard = open(folder.path()).await;
        let beat = |now: Timestamp| {
            encode(&Message::Heartbeat {
                from: Location {
                    node: NodeId(2),
                    shard: ShardId(0),
                },
                leads: Vec::new(),
                write_p99_micros: None,
                now,
            })
        };
        let ahead = shard.now().plus_ms(MAX_CLOCK_OFFSET_MS / 2);
        shard.answer(beat(ahead)).await;
        assert!(shard.now() >= ahead, "it follows");
        let too_far = shard.now().plus_ms(MAX_CLOCK_OFFSET_MS * 10);
        shard.answer(beat(too_far)).await;
        assert!(shard.now() < too_far, "that node's clock is wrong");
        shard.close().await.expect("closes");
    });
}

/// The keys and versions of a scan in pages of this many rows. Other writes and flushes go on between
/// the pages.
async fn pages(
    shard: &Shard<GlommioEnv>,
    scan: ScanRequest,
    sequence: &mut u64,
) -> Vec<(String, Timestamp)> {
    let filler = "x".repeat(2000);
    let mut seen = Vec::new();
    let mut next = Some(scan);
    while let Some(scan) = next {
        let (rows_max, keys_only) = (scan.rows_max, scan.keys_only);
        let reply = shard.scan(scan, None, None).await.expect("scans");
        assert!(rows_max == 0 || reply.rows.len() <= rows_max);
        for row in reply.rows.iter() {
            assert_eq!(row.value.is_empty(), keys_only);
            seen.push((String::from_utf8_lossy(row.key).into_owned(), row.version));
        }
        for _ in 0..40 {
            *sequence += 1;
            let key = format!("k{:04}", *sequence % 1300);
            put(shard, (9, *sequence), &key, &filler).await;
        }
        next = reply.next;
    }
    seen
}

#[test]
fn a_scan_in_reverse_gives_the_rows_of_a_forward_one_backwards() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    GlommioRuntime::new(1).block_on(async {
        let shard = open(folder.path()).await;
        let mut sequence = 0;
        // More than one turn of a scan reads.
        for number in 0..1200 {
            sequence += 1;
            let key = format!("k{:04}", number * 7 % 1200);
            put(&shard, (9, sequence), &key, "v").await;
        }
        let now = shard.scan(ScanRequest::default(), None, None).await;
        let at = Some(now.expect("scans").at);
        for (start, end, count) in [
            (None, None, 1200),
            (Some("k0100"), Some("k0900"), 800),
            (None, Some("k"), 0),
        ] {
            let scan = ScanRequest {
                start: start.map(Into::into),
                end: end.map(Into::into),
                at,
                ..ScanRequest::default()
            };
            let forward = pages(&shard, scan.clone(), &mut sequence).await;
            assert_eq!(forward.len(), count);
            for (rows_max, keys_only) in [(0, false), (190, true)] {
                let scan = ScanRequest {
                    reverse: true,
                    rows_max,
                    keys_only,
                    ..scan.clone()
                };
                let mut found = pages(&shard, scan, &mut sequence).await;
                found.reverse();
                assert_eq!(found, forward, "{start:?} to {end:?}");
            }
        }
        shard.close().await.expect("closes");
    });
}

#[test]
fn writers_that_were_answered_together_go_together_again() {
    const WRITES: u64 = 200;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let entries_for = |writers: u128| {
        GlommioRuntime::new(1).block_on(async {
            let shard = open(&folder.path().join(writers.to_string())).await;
            let before = user_range(&shard).applied;
            let all = (1..=writers).map(|writer| {
                let shard = &shard;
                let range = || user_range(shard);
                async move {
                    // All others come when the first one's entry is on its way.
                    while writer > 1 && range().load.in_flight == 0 {
                        GlommioRuntime::sleep(Duration::from_micros(10)).await;
                    }
                    for sequence in 1..=WRITES {
                        put(shard, (writer, sequence), "key", "value").await;
                        // As over a network, the next write comes when the proposer has looked.
                        GlommioRuntime::sleep(Duration::from_micros(1)).await;
                    }
                }
            });
            join_all(all).await;
            let entries = user_range(&shard).applied - before;
            shard.close().await.expect("closes");
            entries
        })
    };
    // Without waiting for one another there would be two crowds, each in every other entry.
    assert!(entries_for(1) >= WRITES);
    let shared = entries_for(4);
    assert!(
        shared < WRITES + WRITES / 2,
        "{shared} entries of four writers"
    );
}

#[test]
fn a_key_whose_range_has_changed_is_refused_with_the_routes_of_its_neighbours() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    GlommioRuntime::new(1).block_on(async {
        let shard = open_with(folder.path(), &["g", "p", "t"], &[]).await;
        let target = |range, version| Target {
            range: RangeId(range),
            epoch: Epoch { version, conf: 1 },
        };
        let now = shard.routes();
        let version = now[0].epoch.version;
        let ids = |error: Error| {
            let Error::Moved(routes) = error else {
                panic!("{error}");
            };
            let ids = routes.iter().map(|route| {
                assert!(now.contains(route), "{route:?}");
                route.range.0
            });
            ids.collect::<Vec<u64>>()
        };
        let get = |key: &str, target| {
            let read = shard.get(key.as_bytes(), Some(target), |_| ());
            ids(read.expect_err("another range"))
        };
        // Who believes in an older version looks for keys in all of them, whoever in this one does not.
        assert_eq!(get("m", target(9, version - 1)), [3, 4, 5, 2]);
        assert_eq!(get("a", target(2, version - 1)), [2, 3, 4, 5]);
        assert_eq!(get("z", target(2, version)), [5]);
        let stale = Some(target(4, version - 1));
        let scan = ScanRequest {
            start: Some("p".into()),
            ..ScanRequest::default()
        };
        let scanned = shard.scan(scan, stale, None).await;
        assert_eq!(ids(scanned.expect_err("another version")), [4, 5, 3, 2]);
        let (sender, receiver) = oneshot::channel();
        let request = WriteRequest {
            target: stale,
            session: RequestId {
                client: ClientId(9),
                sequence: 1,
                lowest_unanswered: 1,
                first_tried: shard.now(),
            },
            deadline: None,
        };
        let sink = Once::new(|result| drop(sender.send(result)));
        shard.write(
            Batch::put("q".into(), "v".into()),
            request,
            Rc::new(sink),
            7,
        );
        let written = receiver.await.expect("answered");
        assert_eq!(ids(written.expect_err("another version")), [4, 5, 3, 2]);
        shard.close().await.expect("it closes");
    });
}

/// What a gateway answers to a request: the error, if it is one.
type Answer = Result<(), Error>;

/// Takes the answer to one request.
struct Asker(RefCell<Option<oneshot::Sender<Answer>>>);

impl Responder for Asker {
    type Ticket = ();
    type Refusal = Error;

    fn answer(&self, (): &(), _: Option<Timestamp>, response: Result<Response<'_>, Error>) {
        let sender = self.0.borrow_mut().take().expect("one answer");
        let failed = |values: &rangedb_engine::gateway::values::Values| {
            values.errors().first().cloned().map_or(Ok(()), Err)
        };
        let answer = match response {
            Ok(Response::Values(values)) => failed(values),
            other => other.map(|_| ()),
        };
        sender.send(answer).expect("somebody waits");
    }

    fn hold(&self, (): ()) -> Result<u64, Error> {
        Ok(0)
    }

    fn release(&self, _: u64) -> Option<()> {
        Some(())
    }

    fn scan(self: &Rc<Self>, _: u64, scanning: Scanning) {
        drop(GlommioRuntime::spawn(scanning));
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Get,
    Write,
    Scan,
    MultiGet,
}

/// Asks a gateway for the key "k", and says how long the answer took.
async fn ask(
    gateway: &Gateway<GlommioEnv>,
    asked: Asked,
    how: (bool, Option<Duration>),
) -> (Answer, Duration) {
    ask_for(gateway, asked, "k", how).await
}

/// The same for any key.
async fn ask_for(
    gateway: &Gateway<GlommioEnv>,
    asked: Asked,
    key: &'static str,
    (follows_routes, deadline): (bool, Option<Duration>),
) -> (Answer, Duration) {
    let (sender, receiver) = oneshot::channel();
    let asker = Rc::new(Asker(RefCell::new(Some(sender))));
    let now = GlommioEnv::now();
    let call = Call {
        caller: Caller { follows_routes },
        deadline: deadline.map(|deadline| now + deadline),
        token: Timestamp::ZERO,
        target: None,
    };
    let begun = Instant::now();
    let taken = match asked {
        Asked::Get => gateway.get(&asker, &call, (), key.as_bytes()),
        Asked::Write => {
            let session = RequestId {
                client: ClientId(9),
                sequence: 1,
                lowest_unanswered: 1,
                first_tried: Timestamp::ZERO,
            };
            let write = (Batch::put(key.into(), "v".into()), session);
            gateway.write(&asker, &call, (), write)
        }
        Asked::Scan => gateway.scan(&asker, &call, (), ScanRequest::default()),
        Asked::MultiGet => gateway.multi_get(&asker, &call, (), &[key.as_bytes()]),
    };
    let answer = match taken {
        Ok(()) => receiver.await.expect("an answer"),
        Err(error) => Err(error),
    };
    (answer, begun.elapsed())
}

/// A voter that does not exist: nobody is ever elected in a range that has it.
fn nobody(replica: u64) -> ReplicaPlace {
    ReplicaPlace {
        replica: ReplicaId(replica),
        location: Location {
            node: NodeId(2),
            shard: ShardId(0),
        },
    }
}

#[test]
fn a_range_without_a_leader_that_is_flooded_takes_no_other_range_along() {
    /// Requests that wait, of which half fill the share of one range.
    const FLOOD: usize = LEADER_WAIT_LEN_MAX / (8 << 10);
    let folder = tempfile::tempdir().expect("a temporary folder");
    GlommioRuntime::new(1).block_on(async {
        // The first two ranges have no leader, the third one leads here.
        let shard = open_with(folder.path(), &["m", "w"], &[nobody(77), nobody(78)]).await;
        let gateway = Gateway::new(shard.clone());
        let deadline = Some(Duration::from_millis(800));
        let waits = |key| ask_for(&gateway, Asked::Get, key, (false, deadline));
        let flood = join_all((0..FLOOD).map(|_| waits("k")));
        let others = async {
            // The flood has its places by now.
            GlommioRuntime::sleep(Duration::from_millis(100)).await;
            let unled = join_all((0..100).map(|_| waits("n")));
            let led = join_all((0..100).map(|_| waits("x")));
            futures_util::future::join(unled, led).await
        };
        let (flood, (unled, led)) = futures_util::future::join(flood, others).await;
        let refused = flood.iter().filter(|(answer, _)| {
            matches!(answer, Err(Error::Overloaded { retry_after_ms, .. }) if *retry_after_ms > 0)
        });
        let refused = refused.count();
        assert!(
            (FLOOD / 2..FLOOD * 3 / 5).contains(&refused),
            "{refused} of {FLOOD}"
        );
        for (answer, took) in unled {
            assert_eq!(
                answer,
                Err(Error::DeadlineExceeded),
                "it waits like any other"
            );
            assert!(took > Duration::from_millis(700), "{took:?}");
        }
        assert!(led.iter().all(|(answer, _)| *answer == Ok(())), "{led:?}");
        assert_eq!(gateway.overloaded(), refused as u64);
        assert_eq!(gateway.in_flight(), 0);
        drop(gateway);
        shard.close().await.expect("it closes");
    });
}

#[test]
fn a_request_waits_for_a_leader_until_its_deadline_unless_its_sender_follows_routes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    GlommioRuntime::new(1).block_on(async {
        let shard = open_with(folder.path(), &[], &[nobody(77)]).await;
        let gateway = Gateway::new(shard.clone());
        let all = [Asked::Get, Asked::Write, Asked::Scan, Asked::MultiGet];
        for asked in all {
            let (answer, took) = ask(&gateway, asked, (true, None)).await;
            assert!(
                matches!(answer, Err(Error::NotLeader(Some(_)))),
                "{asked:?}: {answer:?}"
            );
            assert!(took < Duration::from_millis(50), "{asked:?}: {took:?}");
        }
        let deadline = Duration::from_millis(120);
        let waiting = all.map(|asked| ask(&gateway, asked, (false, Some(deadline))));
        for (answer, took) in join_all(waiting).await {
            assert_eq!(answer, Err(Error::DeadlineExceeded));
            assert!(took >= deadline - Duration::from_millis(2), "{took:?}");
            assert!(took < deadline * 2, "{took:?}");
        }
        // Without a deadline it ends when there has been no majority for a while.
        let waiting = all.map(|asked| ask(&gateway, asked, (false, None)));
        for (answer, took) in join_all(waiting).await {
            assert!(matches!(answer, Err(Error::NoQuorum(_))), "{answer:?}");
            assert!(took < Duration::from_millis(1300), "{took:?}");
        }
        assert_eq!(gateway.in_flight(), 0);
        drop(gateway);
        shard.close().await.expect("it closes");
    });
}
