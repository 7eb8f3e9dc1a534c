//! openraft's own suite for log stores, on the shard's log and a replica's state machine, in both
//! environments: the simulated one and the real one.
//!
//! Left out: `snapshot_meta`, `snapshot_meta_optional` and `transfer_snapshot`, which expect a
//! snapshot of what was applied a moment ago, where ours names what the tree has made durable; and
//! for the same reason the three of `get_initial_state` that purge entries which no snapshot covers.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use rangedb_engine::env::{AsyncRuntime, Env, World};
use rangedb_engine::hlc::Hlc;
use rangedb_engine::limits::SEGMENT_LEN;
use rangedb_engine::lsm::{Lsm, LsmOptions, LsmTables, MemoryTables, TableOptions};
use rangedb_engine::raft::{LogStore, StateMachine, TypeConfig};
use rangedb_engine::range::replica::{Replica, ReplicaParts};
use rangedb_engine::range::state::RangeState;
use rangedb_engine::range::{Descriptor, Keyspace};
use rangedb_engine::shard::store::Store;
use rangedb_engine::types::{
    DataId, Epoch, KeyRange, Location, NodeId, RangeId, ReplicaId, ShardId,
};
use rangedb_engine::wal::{Created, Group, Wal, WalOptions};
use rangedb_server::env::{GlommioDisk, GlommioEnv, GlommioRuntime, SystemClock};
use rangedb_server::peers::Peers;
use rangedb_server::peers::link::Links;
use rangedb_tests::sim::disk::{Platter, SimDisk};
use rangedb_tests::sim::network::Network;
use rangedb_tests::sim::random::Random;
use rangedb_tests::sim::runtime::SimRuntime;
use rangedb_tests::sim::world::{SimClock, SimEnv};

const MEMTABLE_BYTES: usize = 1 << 20;

/// What keeps a store's folder as long as it is used.
struct Kept(#[expect(dead_code, reason = "it is kept, not looked at")] Option<tempfile::TempDir>);

/// A replica that waits for its first entry, in a world of its own.
async fn build<E: Env>(world: World<E>, segment_bytes: u64) -> (LogStore<E>, StateMachine<E>) {
    let options = WalOptions {
        segment_bytes,
        ..WalOptions::default()
    };
    let (wal, _) = Wal::<E>::open(world.disk, options).await.expect("a log");
    let memtable_bytes = MEMTABLE_BYTES;
    let lsm = Lsm::new(world.tables, LsmOptions { memtable_bytes });
    let store = Store::new(lsm, wal.clone(), Rc::new(|fatal| panic!("{fatal}")));
    let store = Rc::new(store);
    let group = Group {
        range: RangeId(2),
        replica: ReplicaId(2),
    };
    let descriptor = Descriptor {
        range: group.range,
        epoch: Epoch::default(),
        keyspace: Keyspace::User,
        keys: KeyRange::all(),
        replicas: Vec::new(),
    };
    let created = Created {
        group,
        data_id: DataId(1),
        descriptor: descriptor.encode().expect("bytes").into(),
        membership: bytes::Bytes::new(),
        first: None,
    };
    let log = wal.create_replica(created).await.expect("a replica");
    let replica = Rc::new(Replica::new(ReplicaParts {
        group,
        data_id: DataId(1),
        location: Location {
            node: NodeId(1),
            shard: ShardId(0),
        },
        state: RangeState::created(descriptor, bytes::Bytes::new(), None),
        term_before: 0,
        store: store.clone(),
        hlc: Hlc::new(),
        clock: world.clock,
    }));
    store.add(&replica);
    (LogStore::new(log.clone()), StateMachine::new(replica, log))
}

/// Builds stores in the simulated world.
struct Simulated;

type Built<E> = (Kept, LogStore<E>, StateMachine<E>);

impl StoreBuilder<TypeConfig<SimEnv>, LogStore<SimEnv>, StateMachine<SimEnv>, Kept> for Simulated {
    async fn build(&self) -> Result<Built<SimEnv>, StorageError<TypeConfig<SimEnv>>> {
        let world = World {
            clock: SimClock::new(Random::new(1, 1)),
            disk: SimDisk(Platter::new(Random::new(1, 2))),
            tables: MemoryTables::open(Rc::default(), MEMTABLE_BYTES),
            transport: Network::new(Random::new(1, 3)).link(Location::default()),
        };
        let (log, machine) = build(world, 1 << 20).await;
        Ok((Kept(None), log, machine))
    }
}

/// Builds stores on a real disk.
struct Real;

impl StoreBuilder<TypeConfig<GlommioEnv>, LogStore<GlommioEnv>, StateMachine<GlommioEnv>, Kept>
    for Real
{
    async fn build(&self) -> Result<Built<GlommioEnv>, StorageError<TypeConfig<GlommioEnv>>> {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = |name: &str| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).expect("a folder");
            path
        };
        let tables = TableOptions {
            folder: inside("tables"),
            memtable_bytes: MEMTABLE_BYTES,
            cache_bytes: 1 << 20,
            on_start: Arc::new(|_| ()),
        };
        let world = World {
            clock: SystemClock,
            disk: GlommioDisk::new(inside("wal")),
            tables: LsmTables::open(tables).expect("tables"),
            transport: Links::new(7, NodeId(1), Arc::new(Peers::none())),
        };
        let (log, machine) = build(world, SEGMENT_LEN as u64).await;
        Ok((Kept(Some(folder)), log, machine))
    }
}

/// Runs each test of the suite on a store of its own.
macro_rules! run_suite {
    ($env:ty, $builder:ident, [$($name:ident)*]) => {{
        $({
            let (_kept, log, machine) = $builder.build().await.expect("a store");
            type Tests = Suite<TypeConfig<$env>, LogStore<$env>, StateMachine<$env>, $builder, Kept>;
            let result = Tests::$name(log, machine).await;
            result.unwrap_or_else(|error| panic!("{}: {error}", stringify!($name)));
        })*
    }};
}

macro_rules! run_all {
    ($env:ty, $builder:ident) => {
        run_suite!($env, $builder, [
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
            get_initial_state_with_state
            get_initial_state_last_log_gt_sm
            get_initial_state_last_log_lt_sm
            get_initial_state_inverted_log_order
            get_initial_state_conflict_at_same_index
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
            last_applied_state
            purge_logs_upto_0
            purge_logs_upto_5
            purge_logs_upto_20
            delete_logs_after_11
            delete_logs_after_5
            delete_logs_after_0
            delete_logs_after_none
            append_to_log
            apply_single
            apply_multiple
        ])
    };
}

#[test]
fn the_log_conforms_to_openraft_in_the_simulation() {
    SimRuntime::new(1).block_on(async { run_all!(SimEnv, Simulated) });
}

#[test]
fn the_log_conforms_to_openraft_on_a_real_disk() {
    GlommioRuntime::new(1).block_on(async { run_all!(GlommioEnv, Real) });
}
