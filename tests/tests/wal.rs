//! The shard's log on a simulated disk, byte by byte: damage is told from a torn tail, a recycled
//! segment's old records never count, what was acknowledged is recovered, and the format stays.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::rc::Rc;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::{DataId, RangeId, ReplicaId};
use rangedb_engine::wal::{
    Created, Group, GroupLog, LogEntry, LogId, Payload, Recovered, Vote, Wal, WalError, WalOptions,
};
use rangedb_tests::sim::disk::{Platter, SimDisk};
use rangedb_tests::sim::executor::{self, Host};
use rangedb_tests::sim::random::Random;
use rangedb_tests::sim::runtime::SimRuntime;
use rangedb_tests::sim::world::SimEnv;
use tokio::sync::oneshot;

const SEGMENT_BYTES: u64 = 256 << 10;
const GROUPS: u64 = 4;

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: SEGMENT_BYTES,
        entry_cache_bytes: 64 << 10,
        ..WalOptions::default()
    }
}

async fn open(platter: &Rc<Platter>) -> Result<(Wal<SimEnv>, Recovered<SimEnv>), WalError> {
    Wal::open(SimDisk(platter.clone()), options()).await
}

fn group(number: u64) -> Group {
    Group {
        range: RangeId(number),
        replica: ReplicaId(number),
    }
}

fn created(number: u64) -> Created {
    Created {
        group: group(number),
        data_id: DataId(number),
        descriptor: bytes::Bytes::from_static(b"descriptor"),
        membership: bytes::Bytes::from_static(b"membership"),
        first: None,
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        term,
        leader: ReplicaId(1),
        index,
    }
}

fn entry(term: u64, index: u64, len: usize) -> LogEntry {
    let payload = if len == 0 {
        Payload::Blank
    } else {
        Payload::Commands(vec![(term + index) as u8 | 1; len].into())
    };
    let id = log_id(term, index);
    LogEntry { id, payload }
}

/// Appends, and waits until it is durable.
async fn append(log: &GroupLog<SimEnv>, entries: Vec<LogEntry>) {
    let (sender, receiver) = oneshot::channel();
    log.append(entries, Box::new(move |result| drop(sender.send(result))));
    receiver.await.expect("completed").expect("durable");
}

/// A log of one group with `count` writes, one entry each.
async fn write_some(platter: &Rc<Platter>, count: u64) -> Wal<SimEnv> {
    let (wal, _) = open(platter).await.expect("a new log");
    let log = wal.create_replica(created(1)).await.expect("a replica");
    for index in 0..count {
        append(&log, vec![entry(1, index, 100)]).await;
    }
    wal
}

fn new_platter(seed: u64) -> Rc<Platter> {
    Platter::new(Random::new(seed, 1))
}

/// Name and used length of the segment that is written to.
fn active(platter: &Platter) -> (String, usize) {
    let names = platter.files().into_iter().map(|(name, _)| name);
    let name = names
        .filter(|name| name.ends_with(".wal"))
        .max()
        .expect("a segment");
    let bytes = platter.read(&name);
    let used = bytes.iter().rposition(|&byte| byte != 0).expect("bytes") + 1;
    (name, used)
}

async fn last_index(platter: &Rc<Platter>) -> Result<Option<u64>, WalError> {
    let (wal, recovered) = open(platter).await?;
    let last = recovered.replicas[0].1.state().last.map(|id| id.index);
    drop((wal, recovered));
    Ok(last)
}

#[test]
fn a_flipped_bit_is_corruption_unless_it_is_in_the_last_write() {
    for clean in [false, true] {
        for place in [0.3, 0.6, 1.0] {
            SimRuntime::new(7).block_on(async {
                let platter = new_platter(7);
                let wal = write_some(&platter, 12).await;
                if clean {
                    wal.close().await.expect("closes");
                }
                drop(wal);
                let (name, used) = active(&platter);
                // Zeros between two writes only fill a block up; nobody reads them.
                let bytes = platter.read(&name);
                let from = ((used - 1) as f64 * place) as usize;
                let at = (from..used).find(|&at| bytes[at] != 0).expect("a byte");
                platter.flip(&name, at, 3);
                let found = last_index(&platter).await;
                if place < 1.0 || clean {
                    let Err(WalError::Corrupt { file, offset, .. }) = found else {
                        panic!("clean {clean}, at {place}: {found:?}");
                    };
                    assert_eq!(file, name);
                    assert!(offset < used as u64);
                } else {
                    assert_eq!(found, Ok(Some(10)), "the last write is cut, no other");
                }
            });
        }
    }
}

#[test]
fn a_segment_of_another_format_is_refused() {
    SimRuntime::new(8).block_on(async {
        let platter = new_platter(8);
        drop(write_some(&platter, 3).await);
        let (name, _) = active(&platter);
        let mut bytes = platter.read(&name);
        let fixture = bytes.clone();
        // Each of the first bytes may be the format's; a header that is none is damage.
        for at in 0..8 {
            bytes[at] = bytes[at].wrapping_add(1);
            platter.put(&name, bytes.clone());
            assert!(last_index(&platter).await.is_err(), "byte {at}");
            bytes.clone_from(&fixture);
        }
    });
}

/// What a group's log holds: vote, purge position, ids and lengths of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, (LogId, usize)>,
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.or(self.purged.map(|id| id.index))
            .map_or(0, |index| index + 1)
    }
}

async fn observe(log: &GroupLog<SimEnv>) -> Model {
    let state = log.state();
    let from = state.purged.map_or(0, |id| id.index + 1);
    let to = state.last.map_or(0, |id| id.index + 1);
    let mut entries = BTreeMap::new();
    let mut next = from;
    while next < to {
        let read = log.read(next, to, 64 << 10).await.expect("readable");
        assert!(!read.is_empty(), "entry {next} is missing");
        for found in read {
            assert_eq!(
                found,
                entry(found.id.term, found.id.index, found.payload.len())
            );
            assert_eq!(found.id.index, next, "no gap");
            entries.insert(next, (found.id, found.payload.len()));
            next += 1;
        }
    }
    Model {
        vote: state.vote,
        purged: state.purged,
        entries,
    }
}

/// One life of a log: random work, of which each step's outcome is one of the states that a crash
/// may leave.
struct Life {
    models: BTreeMap<u64, Model>,
    /// The states after each step that may not be durable yet, the durable one first.
    possible: Vec<BTreeMap<u64, Model>>,
}

impl Life {
    /// One random step; says whether it was waited for.
    async fn step(&mut self, logs: &BTreeMap<u64, GroupLog<SimEnv>>, random: &Random) {
        let number = 1 + random.below(GROUPS);
        let (log, model) = (&logs[&number], self.models.get_mut(&number).expect("known"));
        let term = model.vote.map_or(1, |vote| vote.term);
        let mut durable = false;
        match random.below(10) {
            0 => {
                let vote = Vote {
                    term: term + random.below(2),
                    leader: ReplicaId(1 + random.below(3)),
                    committed: random.once_in(2),
                };
                model.vote = Some(vote);
                log.save_vote(vote).await.expect("durable");
                durable = true;
            }
            1 => {
                let after = model.next().saturating_sub(1 + random.below(5));
                let keep = model.entries.get(&after).map(|(id, _)| *id);
                let keep = keep.or(model.purged);
                log.truncate_after(keep);
                model
                    .entries
                    .retain(|index, _| keep.is_some_and(|id| *index <= id.index));
            }
            2 | 3 => {
                let middle = model.entries.len() / 2;
                if let Some((id, _)) = model.entries.values().nth(middle).copied() {
                    log.purge(id);
                    model.purged = Some(id);
                    model.entries.retain(|index, _| *index > id.index);
                }
            }
            _ => {
                let first = model.next();
                let entries: Vec<LogEntry> = (first..=first + random.below(4))
                    .map(|index| entry(term, index, random.below(12_000) as usize))
                    .collect();
                let known = entries
                    .iter()
                    .map(|e| (e.id.index, (e.id, e.payload.len())));
                model.entries.extend(known);
                durable = random.once_in(2);
                if durable {
                    append(log, entries).await;
                } else {
                    log.append(entries, Box::new(|_| ()));
                }
            }
        }
        if durable {
            self.possible.clear();
        }
        self.possible.push(self.models.clone());
    }
}

async fn live(platter: &Rc<Platter>, life: &mut Life, steps: u64, random: &Random) {
    let (wal, recovered) = open(platter).await.expect("it recovers");
    let mut logs: BTreeMap<u64, GroupLog<SimEnv>> = recovered
        .replicas
        .into_iter()
        .map(|(created, log)| (created.group.range.0, log))
        .collect();
    let mut found = BTreeMap::new();
    for (number, log) in &logs {
        found.insert(*number, observe(log).await);
    }
    if !logs.is_empty() {
        assert!(
            life.possible.contains(&found),
            "found {found:#?}\nof these states: {:#?}",
            life.possible
        );
        life.models = found;
    }
    for number in 1..=GROUPS {
        if life.models.contains_key(&number) {
            continue;
        }
        let log = wal.create_replica(created(number)).await;
        logs.insert(number, log.expect("a replica"));
        life.models.insert(number, Model::default());
    }
    life.possible = vec![life.models.clone()];
    for _ in 0..steps {
        life.step(&logs, random).await;
    }
    let segments = platter.files().len();
    assert!(
        segments <= 12,
        "{segments} files: segments are not used again"
    );
}

#[test]
fn what_was_durable_is_recovered_after_each_of_many_crashes() {
    for seed in 1..=400_u64 {
        SimRuntime::new(seed as usize).block_on(async {
            let platter = new_platter(seed);
            let random = Random::new(seed, 2);
            let mut life = Life {
                models: BTreeMap::new(),
                possible: Vec::new(),
            };
            for number in 0..6 {
                // Each life on a host of its own, that is then crashed.
                let steps = random.below(120);
                let host = Host(10 + number);
                let (sender, receiver) = oneshot::channel();
                let (on, by) = (platter.clone(), random.clone());
                executor::current().spawn_on(host, async move {
                    live(&on, &mut life, steps, &by).await;
                    let _ = sender.send(life);
                });
                life = receiver.await.expect("it ends");
                executor::current().crash(host);
                platter.crash();
            }
        });
    }
}

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/wal-version-1")
}

/// The records that the fixture holds.
async fn write_fixture(platter: &Rc<Platter>) {
    let (wal, _) = open(platter).await.expect("a new log");
    let log = wal.create_replica(created(1)).await.expect("a replica");
    let vote = Vote {
        term: 3,
        leader: ReplicaId(2),
        committed: true,
    };
    log.save_vote(vote).await.expect("durable");
    append(&log, (0..9).map(|index| entry(3, index, 40)).collect()).await;
    log.truncate_after(Some(log_id(3, 7)));
    log.purge(log_id(3, 2));
    let gone = wal.create_replica(created(2)).await.expect("a replica");
    append(&gone, vec![entry(1, 0, 10)]).await;
    wal.remove_replica(group(2)).await.expect("removed");
    wal.reserve_data_ids(DataId(64)).await.expect("reserved");
    wal.close().await.expect("closes");
}

/// Makes the fixture of a new format; it then gets a name of its own in [`fixture`].
async fn make_fixture() {
    let platter = new_platter(1);
    write_fixture(&platter).await;
    std::fs::create_dir_all(fixture()).expect("a folder");
    for (name, _) in platter.files() {
        let mut bytes = platter.read(&name);
        // The zeros at the end are put back when it is read.
        let used = bytes.iter().rposition(|&byte| byte != 0);
        bytes.truncate(used.map_or(0, |at| at + 1));
        std::fs::write(fixture().join(name), bytes).expect("written");
    }
}

/// With `RANGEDB_MAKE_FIXTURES` the fixture is made first.
#[test]
fn a_log_of_the_first_version_is_read() {
    SimRuntime::new(1).block_on(async {
        if std::env::var_os("RANGEDB_MAKE_FIXTURES").is_some() {
            make_fixture().await;
        }
        let platter = new_platter(1);
        for file in std::fs::read_dir(fixture()).expect("the fixture") {
            let file = file.expect("an entry");
            let name = file.file_name().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            let mut content = std::fs::File::open(file.path()).expect("a file");
            content.read_to_end(&mut bytes).expect("readable");
            let len = if name == "clean" {
                4096
            } else {
                SEGMENT_BYTES as usize
            };
            bytes.resize(len, 0);
            platter.put(&name, bytes);
        }
        let (_wal, recovered) = open(&platter).await.expect("it is read");
        assert!(recovered.clean);
        assert_eq!(recovered.removed, [group(2)]);
        assert_eq!(recovered.data_ids_reserved, DataId(64));
        let [(first, log)] = &recovered.replicas[..] else {
            panic!("one replica");
        };
        assert_eq!(*first, created(1));
        let model = observe(log).await;
        let ids: Vec<u64> = model.entries.keys().copied().collect();
        assert_eq!(ids, [3, 4, 5, 6, 7]);
        assert_eq!(model.purged, Some(log_id(3, 2)));
        assert_eq!(
            model.vote.map(|vote| (vote.term, vote.committed)),
            Some((3, true))
        );
    });
}
