//! The options and the environment of one shard's engine.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rangedb_engine::cluster::NodeRecord;
use rangedb_engine::env::World;
use rangedb_engine::limits::{ENTRIES_KEPT, SEGMENT_LEN, SMALL_APPEND_LEN_MAX};
use rangedb_engine::lsm::{LsmTables, TableOptions};
use rangedb_engine::shard::{DigestOptions, FolderMark, InitialRange, ShardOptions};
use rangedb_engine::types::{Location, NodeId, ShardId};

use crate::config::{Config, ShardMemory};
use crate::data_dir::{DataDir, FOUNDER};
use crate::env::{RingDisk, SystemClock, push_out, read_fault, room, threads};
use crate::fatal::{die, refuse};
use crate::glommio_env::GlommioEnv;
use crate::peers::Peers;
use crate::peers::link::Links;
use crate::shard::ShardError;

/// The parts that a shard's engine is built from; they move to the shard's thread.
pub(super) struct Engine {
    location: Location,
    memory: ShardMemory,
    gc_retention: Duration,
    wal: PathBuf,
    tables: PathBuf,
    folder: FolderMark,
    initial: Vec<InitialRange>,
    record: NodeRecord,
    cluster: u128,
    peers: Arc<Peers>,
}

impl Engine {
    /// The parts for one shard of a node with this folder and record.
    pub(super) fn new(
        config: &Config,
        folder: &DataDir,
        record: &NodeRecord,
        shard: u16,
        peers: Arc<Peers>,
    ) -> Engine {
        // Only the founder's shards make the first ranges; other nodes receive replicas later.
        let initial = match folder.identity.node {
            FOUNDER => {
                let shards = folder.identity.first_shards();
                super::first::initial_ranges(&folder.split_at(), shards, shard)
            }
            _ => Vec::new(),
        };
        Engine {
            cluster: folder.identity.cluster_id(),
            record: record.clone(),
            peers,
            location: Location {
                node: NodeId(folder.identity.node),
                shard: ShardId(shard),
            },
            memory: config.shard_memory(),
            gc_retention: config.gc_retention,
            wal: folder.wal(shard),
            tables: folder.tables(shard),
            folder: folder.identity.mark(shard),
            initial,
        }
    }

    /// Opens the shard's tables; runs on the shard's thread. The threads of the tables stay on these
    /// processors.
    ///
    /// # Errors
    /// The tables cannot be opened.
    pub(super) fn build(
        self,
        cpus: &[usize],
    ) -> Result<(ShardOptions, World<GlommioEnv>), ShardError> {
        let shard = self.location.shard.0;
        let peers = self.peers.clone();
        let cpus = cpus.to_vec();
        // The shards share the disk.
        let shards = self.record.shards.max(1);
        let tables = LsmTables::open(TableOptions {
            folder: self.tables,
            memtable_bytes: self.memory.memtable,
            cache_bytes: self.memory.block_cache,
            on_start: Arc::new(move |work| {
                threads::name_this_thread(&format!("{work}-{shard}"));
                // The thread inherited its shard's processor; let it use all processors of the
                // node.
                if let Err(error) = threads::stay_on(&cpus) {
                    tracing::warn!(%error, work, "a background thread could not leave the processor of its shard");
                }
                // Clients wait for blocks that are fetched.
                if work != "fetch" {
                    threads::be_nice();
                }
            }),
            push_out,
            read_fault,
            free_bytes: Arc::new(move |folder: &Path| {
                let room = room(folder)?;
                // Some file systems have no figures.
                Ok(match room.total {
                    0 => u64::MAX,
                    _ => room.free / u64::from(shards),
                })
            }),
        });
        let tables = tables.map_err(|error| ShardError::of(error.into(), &peers))?;
        let system = self.peers.system();
        let seen = self.peers.highest_ids();
        let (met, me) = (self.peers.clone(), self.location.node);
        let world = World {
            clock: SystemClock,
            disk: RingDisk::new(self.wal),
            tables,
            transport: Links::new(self.cluster, self.location.node, self.peers),
        };
        let options = ShardOptions {
            location: self.location,
            entry_cache_bytes: self.memory.entry_cache,
            row_cache_bytes: self.memory.row_cache,
            segment_bytes: SEGMENT_LEN,
            entries_kept: ENTRIES_KEPT,
            small_append_bytes: SMALL_APPEND_LEN_MAX,
            gc_retention_ms: self.gc_retention.as_millis() as u64,
            folder: self.folder,
            initial: self.initial,
            node: self.record,
            system,
            digests: DigestOptions::default(),
            seen,
            is_at: Rc::new(move |node, address| node == me || met.claim(node, address)),
            on_fatal: Rc::new(move |fatal| {
                peers.give_up_folder_after(&fatal);
                if fatal.gives_up_folder() {
                    refuse(&ShardError::of(fatal, &peers));
                }
                die(&format!("shard {shard}"), &ShardError::of(fatal, &peers));
            }),
        };
        Ok((options, world))
    }
}
