//! openraft's own storage suite on the engine's log and state machine: in the simulation and on a
//! real disk.
//!
//! Each test of the suite gets a replica of its own with an empty log, and all replicas share one
//! log, as those of a shard do. So the suite also runs over a log in which other groups' records
//! lie between. Afterwards the log is closed and read back: it must say of each group what it said
//! before.
//!
//! Four tests of the suite are left out, and with them `Suite::test_all`, which cannot skip any:
//!
//! - `snapshot_meta` wants a snapshot to speak of what was applied just before. Ours speaks of what
//!   the tree has made durable: that is what the log may be purged up to.
//! - `transfer_snapshot` installs a snapshot on another replica. Ours are handles of a replica's
//!   own state; a replica refuses to install one.
//! - `last_applied_state` applies entry 5 after entry 3, which a replica refuses: see
//!   [`apply_refuses_what_is_not_the_next_entry_of_its_leader`].
//! - `get_initial_state_re_apply_committed` purges entries that no snapshot covers, for which openraft
//!   then has a snapshot built. Ours covers nothing yet, and in the engine nothing is purged before
//!   the tree has it. [`re_applies_what_was_committed`] is the same test without the purge.

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftLogReader, StorageError, StorageHelper};
use rangedb_engine::env::{AsyncRuntime, Env};
use rangedb_engine::error::Fatal;
use rangedb_engine::hlc::Hlc;
use rangedb_engine::lsm::{Lsm, LsmTables, MemoryTables, TableOptions, no_read_fault, unbounded};
use rangedb_engine::raft::{LogStore, StateMachine, TypeConfig};
use rangedb_engine::range::command;
use rangedb_engine::range::replica::{Home, Replica, ReplicaParts};
use rangedb_engine::range::rows::data_parts::DataParts;
use rangedb_engine::range::split_merge::newborns::Newborns;
use rangedb_engine::range::state::RangeState;
use rangedb_engine::range::{Descriptor, Keyspace};
use rangedb_engine::tree::Store;
use rangedb_engine::types::{DataId, Epoch, KeyRange, Location, RangeId, ReplicaId};
use rangedb_engine::wal::{
    Body, Created, Group, GroupLog, LogEntry, LogId, LogState, Payload, Wal, WalOptions,
};
use rangedb_server::env::{GlommioRuntime, RingDisk, SystemClock};
use rangedb_server::glommio_env::GlommioEnv;
use rangedb_tests::sim::disk::{Platter, SimDisk};
use rangedb_tests::sim::random::Random;
use rangedb_tests::sim::runtime::SimRuntime;
use rangedb_tests::sim::sim_env::{SimClock, SimEnv};

type Types<E> = TypeConfig<Replica<E>>;
type Log<E> = LogStore<Replica<E>>;
type Machine<E> = StateMachine<Replica<E>>;

const MEMTABLE_BYTES: usize = 1 << 20;
/// Small enough that the suite fills several segments.
const OPTIONS: WalOptions = WalOptions {
    segment_bytes: 256 << 10,
    // Also entries that only the disk has are read.
    entry_cache_bytes: 0,
    segments_max: 4,
    must_exist: false,
};

/// One shard's log and tree, on which replicas are made.
struct Bench<E: Env> {
    wal: Wal<E>,
    store: Rc<Store<E>>,
    clock: E::Clock,
    logs: Vec<(Group, GroupLog<E>)>,
}

impl<E: Env> Bench<E> {
    async fn open(disk: E::Disk, tables: E::Tables, clock: E::Clock) -> Bench<E> {
        let (wal, _) = Wal::open(disk, OPTIONS).await.expect("the log opens");
        let lsm = Lsm::new(tables, 0);
        let store = Store::new(lsm, wal.clone(), Rc::new(|fatal| panic!("{fatal}")));
        Bench {
            wal,
            store: Rc::new(store),
            clock,
            logs: Vec::new(),
        }
    }

    async fn replica(&mut self) -> (Log<E>, Machine<E>) {
        let (replica, log) = self.bare_replica().await;
        (
            LogStore::new(log.clone()),
            StateMachine::new(replica, log, Rc::default(), Rc::default()),
        )
    }

    /// A replica that waits for its first leader: nothing in its log, nothing applied.
    async fn bare_replica(&mut self) -> (Rc<Replica<E>>, GroupLog<E>) {
        let number = self.logs.len() as u64 + 1;
        let group = Group {
            range: RangeId(number),
            replica: ReplicaId(number),
        };
        let descriptor = Descriptor {
            range: group.range,
            epoch: Epoch {
                version: 1,
                conf: 1,
            },
            keyspace: Keyspace::User,
            keys: KeyRange::all(),
            replicas: Vec::new(),
        };
        let created = Created {
            group,
            data_id: DataId(number),
            descriptor: descriptor.encode().expect("encodes").into(),
            membership: Default::default(),
            first: None,
            birth: None,
        };
        let membership = created.membership.clone();
        let log = self.wal.create_replica(created).await.expect("created");
        self.logs.push((group, log.clone()));
        let replica = Replica::new(ReplicaParts {
            group,
            parts: DataParts::one(DataId(number)),
            state: RangeState::created(descriptor, membership, None),
            term_before: 0,
            last_before: 0,
            home: Home {
                absorption: Rc::default(),
                location: Location::default(),
                store: self.store.clone(),
                hlc: Hlc::new(),
                clock: self.clock.clone(),
                observers: Default::default(),
                newborns: Rc::new(Newborns::new(self.wal.clone())),
            },
        });
        (Rc::new(replica), log)
    }
}

/// Fills a type parameter of the suite: its tests are called one by one, with replicas of one
/// [`Bench`], which a builder could not share.
struct NoBuilder<E>(PhantomData<fn() -> E>);

impl<E: Env> StoreBuilder<Types<E>, Log<E>, Machine<E>> for NoBuilder<E> {
    async fn build(&self) -> Result<((), Log<E>, Machine<E>), StorageError<Types<E>>> {
        unreachable!("only the tests that are left out build stores")
    }
}

type Tests<E> = Suite<Types<E>, Log<E>, Machine<E>, NoBuilder<E>, ()>;

async fn passes(name: &str, test: impl Future<Output = io::Result<()>>) {
    test.await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

macro_rules! run_tests {
    ($bench:ident: $($test:ident)*) => {
        $({
            let (store, machine) = $bench.replica().await;
            passes(stringify!($test), Tests::<E>::$test(store, machine)).await;
        })*
    };
}

/// Every test of the suite but four, see the head of this file.
async fn run_suite<E: Env>(bench: &mut Bench<E>) {
    run_tests!(bench:
        last_membership_in_log_initial
        last_membership_in_log
        last_membership_in_log_multi_step
        get_membership_initial
        get_membership_from_log_and_empty_sm
        get_membership_from_empty_log_and_sm
        get_membership_from_log_le_sm_last_applied
        get_membership_from_log_gt_sm_last_applied_1
        get_membership_from_log_gt_sm_last_applied_2
        get_initial_state_without_init
        get_initial_state_membership_from_empty_log_and_sm
        get_initial_state_membership_from_sm_inlog_is_smaller
        get_initial_state_membership_from_log_insm_is_smaller
        get_initial_state_with_state
        get_initial_state_last_log_gt_sm
        get_initial_state_last_log_lt_sm
        get_initial_state_inverted_log_order
        get_initial_state_conflict_at_same_index
        get_initial_state_log_ids
        save_vote
        get_log_entries
        limited_get_log_entries
        leader_bounded_stream
        entries_stream
        try_get_log_entry
        log_reader_reads_new_entries
        initial_logs
        get_log_state
        get_log_id
        last_id_in_log
        purge_logs_upto_0
        purge_logs_upto_5
        purge_logs_upto_20
        delete_logs_after_11
        delete_logs_after_5
        delete_logs_after_0
        delete_logs_after_none
        append_to_log
        snapshot_meta_optional
        apply_single
        apply_multiple
    );
    let (store, machine) = bench.replica().await;
    passes(
        "re_applies_what_was_committed",
        re_applies_what_was_committed(store, machine),
    )
    .await;
}

/// What the log knows to be committed is applied at the start, and no more.
async fn re_applies_what_was_committed<E: Env>(
    mut store: Log<E>,
    mut machine: Machine<E>,
) -> io::Result<()> {
    Tests::<E>::feed_10_logs_vote_self(&mut store).await?;
    let seventh = store.try_get_log_entries(7..8).await?.pop();
    let seventh = seventh.map(|entry| entry.log_id);
    store.save_committed(seventh).await?;
    let mut helper = StorageHelper::new(&mut store, &mut machine).with_id(ReplicaId(0));
    helper.get_initial_state().await.map_err(io::Error::other)?;
    let (applied, _) = machine.applied_state().await?;
    assert!(seventh.is_some());
    assert_eq!(applied, seventh);
    Ok(())
}

type Content = (Group, LogState, Vec<LogEntry>);

async fn contents<E: Env>(logs: &[(Group, GroupLog<E>)]) -> Vec<Content> {
    let mut contents = Vec::new();
    for (group, log) in logs {
        let entries = log.read(0, u64::MAX, usize::MAX).await.expect("readable");
        contents.push((*group, log.state(), entries));
    }
    contents
}

/// Runs the suite; `again` gives the disk that is read back.
async fn conforms<E: Env>(
    disk: E::Disk,
    tables: E::Tables,
    clock: E::Clock,
    again: impl FnOnce() -> E::Disk,
) {
    let mut bench = Bench::<E>::open(disk, tables, clock).await;
    run_suite(&mut bench).await;
    let before = contents(&bench.logs).await;
    bench.wal.close().await.expect("closes");
    let (_, recovered) = Wal::<E>::open(again(), OPTIONS).await.expect("opens again");
    assert!(recovered.clean);
    let replicas = recovered.replicas.into_iter();
    let logs: Vec<_> = replicas.map(|(made, log)| (made.group, log)).collect();
    assert_eq!(contents(&logs).await, before);
}

#[test]
fn log_store_conforms_to_openraft_in_the_simulation() {
    for seed in 1..=5 {
        SimRuntime::new(1).block_on(async {
            let disk = SimDisk(Platter::new(Random::new(seed, 1)));
            let tables = MemoryTables::open(Rc::default(), MEMTABLE_BYTES);
            let (clock, same) = (SimClock::new(Random::new(seed, 2)), disk.clone());
            conforms::<SimEnv>(disk, tables, clock, || same).await;
        });
    }
}

#[test]
fn log_store_conforms_to_openraft_on_a_real_disk() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    GlommioRuntime::new(1).block_on(on_real_disk(folder.path()));
}

async fn on_real_disk(folder: &Path) {
    let wal = folder.join("wal");
    std::fs::create_dir_all(&wal).expect("a folder");
    let tables = TableOptions {
        folder: folder.join("tables"),
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: 1 << 20,
        on_start: Arc::new(|_| ()),
        push_out: |_| (),
        read_fault: no_read_fault,
        free_bytes: unbounded(),
    };
    let tables = LsmTables::open(tables).expect("tables open");
    let again = folder.join("again");
    let copied = || {
        // What was open still holds its files' locks, since the process goes on.
        std::fs::create_dir(&again).expect("a folder");
        for file in std::fs::read_dir(&wal).expect("a folder") {
            let file = file.expect("an entry");
            std::fs::copy(file.path(), again.join(file.file_name())).expect("copied");
        }
        RingDisk::new(again.clone())
    };
    let disk = RingDisk::new(wal.clone());
    conforms::<GlommioEnv>(disk, tables, SystemClock, copied).await;
}

#[test]
fn apply_refuses_what_is_not_the_next_entry_of_its_leader() {
    SimRuntime::new(1).block_on(async {
        let disk = SimDisk(Platter::new(Random::new(1, 1)));
        let tables = MemoryTables::open(Rc::default(), MEMTABLE_BYTES);
        let clock = SimClock::new(Random::new(1, 2));
        let mut bench = Bench::<SimEnv>::open(disk, tables, clock).await;
        let (replica, _) = bench.bare_replica().await;
        let entry = |index, payload| LogEntry {
            id: LogId {
                term: 1,
                leader: ReplicaId(1),
                index,
            },
            payload,
        };
        let refused = |entry: &LogEntry, why: &str| match replica.apply(entry) {
            Err(Fatal::Inconsistent(what)) => assert!(what.contains(why), "{what}"),
            other => panic!("{other:?}"),
        };
        let applied = || replica.with_state(|state| state.applied.map(|id| id.index));
        for index in 4..7 {
            replica
                .apply(&entry(index, Payload::Blank))
                .expect("applied");
        }
        for index in [0, 3, 5, 6, 8, 9, 100] {
            refused(&entry(index, Payload::Blank), "comes after entry 6");
        }
        let commands = command::Entry {
            ceiling: 5,
            commands: Vec::new(),
        };
        let good = command::encode(&commands, 0).expect("encodes");
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let body = Body::with_checksum(bad.into(), good.checksum());
            refused(
                &entry(7, Payload::Commands(body)),
                "do not match the checksum",
            );
        }
        assert_eq!(applied(), Some(6));
        let sound = Payload::Commands(good);
        replica.apply(&entry(7, sound)).expect("applied");
        assert_eq!(applied(), Some(7));
    });
}
