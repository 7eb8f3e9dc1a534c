//! A node of several shards that the simulation starts, stops, and crashes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::cluster::{HighestIds, NodeRecord};
use rangedb_engine::env::{AsyncRuntime, Clock, World};
use rangedb_engine::error::Fatal;
use rangedb_engine::gateway::Gateway;
use rangedb_engine::hlc::Hlc;
use rangedb_engine::lsm::{MemoryDisk, MemoryTables};
use rangedb_engine::range::apply::observer::ApplyObservers;
use rangedb_engine::range::{Keyspace, ReplicaPlace};
use rangedb_engine::shard::{DigestOptions, FolderMark, InitialRange, Opened, Shard, ShardOptions};
use rangedb_engine::types::{
    KeyRange, Location, NodeId, RangeId, ReplicaId, SYSTEM_RANGE, ShardId,
};
use tokio::sync::oneshot;

use super::cold_blocks::ColdBlocks;
use super::disk::{Platter, SimDisk};
use super::executor::{self, Host};
use super::faults::Part;
use super::network::Network;
use super::random::Random;
use super::runtime::SimRuntime;
use super::sim_env::{SimClock, SimEnv};
use crate::invariants;

/// Sizes of the cluster and its nodes, which depend on the seed.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The number of shards of each node.
    pub shards: u16,
    /// The size of a memtable, in bytes.
    pub memtable_bytes: usize,
    /// The size of a log segment, in bytes.
    pub segment_bytes: usize,
    /// The number of nodes.
    pub nodes: u16,
    /// Whether the first node begins alone and the others join its cluster.
    pub grows: bool,
    /// The size of the log's cache, in bytes.
    pub entry_cache_bytes: usize,
    /// The size of the row cache, in bytes; with 0 there is none.
    pub row_cache_bytes: usize,
    /// Log entries that are kept for replicas that are behind.
    pub entries_kept: u64,
    /// Appends that are longer than this, in bytes, belong to the bulk class.
    pub small_append_bytes: usize,
    /// How long old versions of values are kept, in milliseconds.
    pub gc_retention_ms: u64,
    /// Whether some reads of blocks of tables are very slow.
    pub has_very_slow_reads: bool,
}

impl Sizes {
    /// Three nodes of one shard each, with small memtables and segments, so that these are replaced
    /// often.
    pub const THREE_SMALL: Sizes = Sizes {
        shards: 1,
        nodes: 3,
        grows: false,
        memtable_bytes: 1 << 13,
        segment_bytes: 1 << 16,
        entry_cache_bytes: 1 << 12,
        row_cache_bytes: 1 << 14,
        entries_kept: 64,
        gc_retention_ms: 2_000,
        small_append_bytes: 1 << 12,
        has_very_slow_reads: true,
    };
}

/// The part of a shard that survives a crash.
struct Medium {
    platter: Rc<Platter>,
    tables: Rc<MemoryDisk>,
    /// The node's start at which the shard was last opened; 0 if it never was. A real node keeps it
    /// in `node.json`.
    opened: Cell<u64>,
}

/// A copy of everything on a node's disks.
pub struct Copied {
    shards: Vec<(BTreeMap<String, Vec<u8>>, MemoryDisk, u64)>,
    starts: u64,
}

/// A node with its disks.
pub struct SimNode {
    /// The node's id.
    pub id: u16,
    /// The number of the machine that the node runs on, from 1: the id of the first node there.
    pub machine: u16,
    /// The sizes of this node.
    pub sizes: Sizes,
    seed: u64,
    network: Rc<Network>,
    /// The machine's wall clock.
    pub clock: SimClock,
    media: Vec<Medium>,
    /// How often nodes were started on the machine.
    lives: Cell<u16>,
    /// How often a node was started on these disks. A real node keeps it in `node.json`.
    starts: Cell<u64>,
    /// How many of the shards this life gives up, the last ones.
    leaving_shards: Cell<u16>,
    /// Whether the disk is lost, and the node with it: only another node can run on the machine.
    is_lost: Cell<bool>,
    running: RefCell<Option<NodeShards>>,
    fatal: Rc<RefCell<Option<String>>>,
    /// Where the node last knew the system range; a real node keeps it on disk.
    system: Rc<RefCell<Vec<Location>>>,
}

/// The shards of a running node, and the gateway of each.
#[derive(Clone)]
struct NodeShards {
    shards: Rc<Vec<Shard<SimEnv>>>,
    gateways: Rc<Vec<Gateway<SimEnv>>>,
}

/// How often a shard tells the others of its node about its routes, if they have changed.
const ROUTES_INTERVAL: Duration = Duration::from_millis(25);

/// Tells the gateways of a node the routes of its shards whenever they change.
async fn tell_routes(gateways: Rc<Vec<Gateway<SimEnv>>>) {
    let mut told = vec![None; gateways.len()];
    loop {
        for (from, told) in gateways.iter().zip(&mut told) {
            let shard = from.shard();
            let version = Some(shard.routes_version());
            if std::mem::replace(told, version) != version {
                let (number, routes) = (shard.location().shard, shard.routes());
                let learn = |to: &Gateway<SimEnv>| to.learn_routes(number, routes.clone());
                gateways.iter().for_each(learn);
            }
        }
        SimRuntime::sleep(ROUTES_INTERVAL).await;
    }
}

/// The number of a random stream for one shard of a node.
fn purpose(kind: u64, id: u16, shard: u16) -> u64 {
    kind * 100 + u64::from(id) * 10 + u64::from(shard)
}

fn empty_media(id: u16, sizes: Sizes, seed: u64) -> Vec<Medium> {
    let medium = |shard| Medium {
        platter: Platter::new(Random::new(seed, purpose(1, id, shard))),
        tables: Rc::default(),
        opened: Cell::new(0),
    };
    (0..sizes.shards).map(medium).collect()
}

/// How long a range must rest before its replicas compare digests, and how often they do otherwise.
const DIGEST_REST: Duration = Duration::from_secs(1);
const DIGEST_INTERVAL: Duration = Duration::from_secs(3);

/// The key at which the range of a shard begins: one letter.
pub fn border(shard: u16) -> Vec<u8> {
    vec![b'a' + (shard * 26 / 4) as u8]
}

impl SimNode {
    /// Makes a node that has never run.
    pub fn new(id: u16, sizes: Sizes, seed: u64, network: Rc<Network>) -> Rc<SimNode> {
        network.place(NodeId(id.into()), id);
        Rc::new(SimNode {
            id,
            machine: id,
            sizes,
            seed,
            network,
            clock: SimClock::new(Random::new(seed, purpose(2, id, 0))),
            media: empty_media(id, sizes, seed),
            lives: Cell::new(0),
            starts: Cell::new(0),
            leaving_shards: Cell::new(0),
            is_lost: Cell::new(false),
            running: RefCell::default(),
            fatal: Rc::default(),
            system: Rc::new(RefCell::new(vec![Location {
                node: NodeId(1),
                shard: ShardId(0),
            }])),
        })
    }

    /// Makes the node that replaces this one on its machine after the disk was lost. The cluster
    /// has given it its id and the place of the system range.
    pub fn successor(&self, id: u16, system: Vec<Location>) -> Rc<SimNode> {
        self.network.place(NodeId(id.into()), self.machine);
        Rc::new(SimNode {
            id,
            machine: self.machine,
            sizes: self.sizes,
            seed: self.seed,
            network: self.network.clone(),
            clock: self.clock.clone(),
            media: empty_media(id, self.sizes, self.seed),
            lives: self.lives.clone(),
            starts: Cell::new(0),
            leaving_shards: Cell::new(0),
            is_lost: Cell::new(false),
            running: RefCell::default(),
            fatal: Rc::default(),
            system: Rc::new(RefCell::new(system)),
        })
    }

    /// Loses the disk, and with it the node.
    pub fn lose_disk(&self) {
        self.crash();
        *self.fatal.borrow_mut() = None;
        self.is_lost.set(true);
    }

    /// Loses a shard's log or tables while the power is off. Returns whether the shard had ever
    /// been opened.
    pub fn lose_part(&self, shard: u16, part: Part) -> bool {
        let Some(medium) = self.media.get(usize::from(shard)) else {
            return false;
        };
        match part {
            Part::Log => medium.platter.put_back(&BTreeMap::new()),
            Part::Tables => medium.tables.put_back(&MemoryDisk::default()),
        }
        medium.opened.get() > 0
    }

    /// Copies the disks of a node that is off.
    pub fn copy_disks(&self) -> Copied {
        let copy = |medium: &Medium| {
            let (log, tables) = (medium.platter.copy(), medium.tables.copy());
            (log, tables, medium.opened.get())
        };
        Copied {
            shards: self.media.iter().map(copy).collect(),
            starts: self.starts.get(),
        }
    }

    /// Replaces the contents of the disks by a copy, for a node that is off.
    pub fn put_back(&self, copied: &Copied) {
        for (medium, (log, tables, opened)) in self.media.iter().zip(&copied.shards) {
            medium.platter.put_back(log);
            medium.tables.put_back(tables);
            medium.opened.set(*opened);
        }
        self.starts.set(copied.starts);
    }

    /// Whether a disk has failed as a fault demanded.
    pub fn has_failed_disk(&self) -> bool {
        let failed =
            |medium: &Medium| medium.platter.has_failed.get() || medium.tables.has_failed.get();
        self.media.iter().any(failed)
    }

    /// Ends all faults of the disks.
    pub fn mend_disks(&self) {
        for Medium {
            platter, tables, ..
        } in &self.media
        {
            platter.mend();
            tables.failing.set(false);
            tables.has_failed.set(false);
        }
        self.make_room();
    }

    /// Makes room on all disks.
    pub fn make_room(&self) {
        for Medium {
            platter, tables, ..
        } in &self.media
        {
            platter.full.set(false);
            tables.full.set(false);
        }
    }

    /// Whether the disk is lost.
    pub fn is_lost(&self) -> bool {
        self.is_lost.get()
    }

    /// The disks of the logs.
    pub fn platters(&self) -> impl Iterator<Item = &Rc<Platter>> {
        self.media.iter().map(|medium| &medium.platter)
    }

    /// The disks of the tables.
    pub fn table_disks(&self) -> impl Iterator<Item = &Rc<MemoryDisk>> {
        self.media.iter().map(|medium| &medium.tables)
    }

    /// The host of the node's current life.
    pub fn host(&self) -> Host {
        Host::of(self.machine, self.lives.get())
    }

    /// The node's shards while it runs.
    pub fn shards(&self) -> Option<Rc<Vec<Shard<SimEnv>>>> {
        let running = self.running.borrow();
        running.as_ref().map(|running| running.shards.clone())
    }

    /// The gateways of the node's shards while it runs.
    pub fn gateways(&self) -> Option<Rc<Vec<Gateway<SimEnv>>>> {
        let running = self.running.borrow();
        running.as_ref().map(|running| running.gateways.clone())
    }

    /// Why the node stopped by itself, if it did.
    pub fn fatal(&self) -> Option<String> {
        self.fatal.borrow().clone()
    }

    /// Starts the node. Returns after all shards are open, or after the node has stopped by itself.
    pub async fn start(self: &Rc<SimNode>) {
        self.lives.set(self.lives.get() + 1);
        self.starts.set(self.starts.get() + 1);
        self.leaving_shards.set(self.draw_leaving_shards());
        *self.fatal.borrow_mut() = None;
        invariants::deadlines::starts(self.record().id);
        let (sender, receiver) = oneshot::channel();
        let node = self.clone();
        executor::current().spawn_on(self.host(), async move {
            let hlc = Hlc::new();
            let mut gateways = Vec::new();
            for shard in 0..node.sizes.shards {
                match node.open(shard, hlc.clone()).await {
                    Ok(opened) => {
                        invariants::log_read_back(&opened.logs());
                        let (location, host) = (node.location(shard), node.host());
                        let gateway = Gateway::new(opened.clone());
                        node.network.attach(location, host, gateway.clone());
                        let system = node.system.clone();
                        opened.on_view(move |view| {
                            if !view.system.is_empty() {
                                system.borrow_mut().clone_from(&view.system);
                            }
                        });
                        gateways.push(gateway);
                    }
                    Err(fatal) => {
                        node.fatal.borrow_mut().get_or_insert(fatal.to_string());
                        return;
                    }
                }
            }
            let gateways = Rc::new(gateways);
            // The receiver lives as long as this task.
            let _ = sender.send(gateways.clone());
            tell_routes(gateways).await;
        });
        // If the node crashes meanwhile, the sender is dropped.
        if let Ok(gateways) = receiver.await {
            let shards = gateways.iter().map(|gateway| gateway.shard().clone());
            let shards = Rc::new(shards.collect());
            *self.running.borrow_mut() = Some(NodeShards { shards, gateways });
        }
    }

    /// In one seed of four each start but the first gives up other shards, or none.
    fn draw_leaving_shards(&self) -> u16 {
        // Streams of their own: the rest of a run does not depend on them.
        if self.starts.get() == 1 || !Random::new(self.seed, 8).once_in(4) {
            return 0;
        }
        let purpose = purpose(9, self.id, 0) + self.starts.get() * 1000;
        Random::new(self.seed, purpose).below(self.sizes.shards.into()) as u16
    }

    async fn open(self: &Rc<SimNode>, shard: u16, hlc: Hlc) -> Result<Shard<SimEnv>, Fatal> {
        let medium = &self.media[usize::from(shard)];
        let mut tables = MemoryTables::open(medium.tables.clone(), self.sizes.memtable_bytes);
        tables.observe_cache(invariants::row_cached);
        let random = Random::new(
            self.seed,
            purpose(4, self.id, shard) + self.starts.get() * 1000,
        );
        let has_very_slow = self.sizes.has_very_slow_reads;
        tables.read_from(Box::new(ColdBlocks {
            random,
            has_very_slow,
        }));
        let world = World {
            clock: self.clock.clone(),
            disk: SimDisk(medium.platter.clone()),
            tables,
            transport: self.network.link(self.location(shard)),
        };
        let (fatal, node) = (self.fatal.clone(), self.record().id);
        let options = ShardOptions {
            location: self.location(shard),
            entry_cache_bytes: self.sizes.entry_cache_bytes,
            row_cache_bytes: self.sizes.row_cache_bytes,
            segment_bytes: self.sizes.segment_bytes,
            entries_kept: self.sizes.entries_kept,
            small_append_bytes: self.sizes.small_append_bytes,
            gc_retention_ms: self.sizes.gc_retention_ms,
            folder: self.folder(shard),
            initial: self.initial(shard),
            node: self.record(),
            system: self.system.borrow().clone(),
            seen: HighestIds::default(),
            is_at: Rc::new(|_, _| true),
            digests: DigestOptions {
                rest: DIGEST_REST,
                every: DIGEST_INTERVAL,
                ..DigestOptions::default()
            },
            on_fatal: Rc::new(move |why| {
                invariants::deadlines::failed(node);
                fatal.borrow_mut().get_or_insert(why.to_string());
            }),
        };
        let observers: ApplyObservers = Rc::new([Rc::new(invariants::EachEntry)]);
        let opened = Shard::open(options, world, hlc, observers).await?;
        medium.opened.set(self.starts.get());
        Ok(opened)
    }

    /// The mark of a shard's folder, which a real node keeps in `node.json`.
    fn folder(&self, shard: u16) -> FolderMark {
        FolderMark {
            log: u128::from(self.id) << 16 | u128::from(shard),
            opened: match self.media[usize::from(shard)].opened.get() {
                0 => Opened::Never,
                start => Opened::At(start),
            },
            start: self.starts.get(),
        }
    }

    fn record(&self) -> NodeRecord {
        NodeRecord {
            id: NodeId(u64::from(self.id)),
            address: format!("machine-{}", self.machine),
            shards: self.sizes.shards,
            leaving_shards: self.leaving_shards.get(),
            incarnation: NodeRecord::incarnation(self.starts.get(), 0),
            started_ms: self.clock.wall_ms(),
            ..NodeRecord::default()
        }
    }

    /// The location of one of the node's shards.
    pub fn location(&self, shard: u16) -> Location {
        Location {
            node: NodeId(u64::from(self.id)),
            shard: ShardId(shard),
        }
    }

    fn initial(&self, shard: u16) -> Vec<InitialRange> {
        if self.id != self.machine || self.sizes.grows && self.id != 1 {
            return Vec::new();
        }
        let start = if shard == 0 {
            Vec::new()
        } else {
            border(shard)
        };
        let end = (shard + 1 < self.sizes.shards).then(|| border(shard + 1));
        let user = self.range(
            SYSTEM_RANGE.0 + 1 + u64::from(shard),
            Keyspace::User,
            KeyRange { start, end },
            shard,
        );
        let system = self.range(SYSTEM_RANGE.0, Keyspace::System, KeyRange::all(), 0);
        if shard == 0 {
            vec![user, system]
        } else {
            vec![user]
        }
    }

    /// A range with a replica on each node, on the shard with the same number.
    fn range(&self, id: u64, keyspace: Keyspace, keys: KeyRange, shard: u16) -> InitialRange {
        let replica = |node: u16| ReplicaId(id * 100 + u64::from(node));
        let nodes = if self.sizes.grows {
            1
        } else {
            self.sizes.nodes
        };
        let others = (1..=nodes).filter(|node| *node != self.id);
        let others = others.map(|node| ReplicaPlace {
            replica: replica(node),
            location: Location {
                node: NodeId(u64::from(node)),
                shard: ShardId(shard),
            },
        });
        InitialRange {
            range: RangeId(id),
            replica: replica(self.id),
            others: others.collect(),
            leads: self.id == 1,
            keyspace,
            keys,
        }
    }

    /// Pauses the process.
    pub async fn pause(&self, time: Duration) {
        executor::current().pause(self.machine);
        SimRuntime::sleep(time).await;
        executor::current().resume(self.machine);
    }

    /// Stops the machine, and also its clocks unless the node leads a range.
    pub async fn stand_still(&self, time: Duration) {
        let shards = self.shards();
        let leads = executor::current().on_host(self.host(), || {
            let shards = shards.iter().flat_map(|shards| shards.iter());
            let mut ranges = shards.flat_map(|shard| shard.ranges());
            ranges.any(|status| status.leads || status.leased.is_some())
        });
        self.pause(time).await;
        if !leads {
            executor::current().hold_clock(self.machine, time);
            self.clock.jump(time.as_millis() as i64);
        }
    }

    /// Cuts the power: memory is lost, and the seed decides what becomes of writes in flight.
    pub fn crash(&self) {
        let running = self.running.borrow_mut().take();
        self.network.detach(NodeId(self.id.into()));
        executor::current().resume(self.machine);
        executor::current().crash(self.host());
        drop(running);
        self.platters().for_each(|platter| platter.crash());
    }

    /// Stops the node cleanly; `false` if it stopped by itself instead.
    pub async fn stop(self: &Rc<SimNode>) -> bool {
        let Some(NodeShards { gateways, .. }) = self.running.borrow_mut().take() else {
            return false;
        };
        let (sender, receiver) = oneshot::channel();
        let fatal = self.fatal.clone();
        executor::current().spawn_on(self.host(), async move {
            for gateway in gateways.iter() {
                let stopped = async {
                    gateway.shard().transfer_leaders().await?;
                    gateway.shut_down();
                    gateway.shard().clone().close().await
                };
                if let Err(why) = stopped.await {
                    fatal.borrow_mut().get_or_insert(why.to_string());
                    return;
                }
            }
            // The receiver lives as long as this task.
            let _ = sender.send(());
        });
        let stopped = receiver.await.is_ok();
        self.network.detach(NodeId(self.id.into()));
        executor::current().crash(self.host());
        self.platters().for_each(|platter| platter.process_ended());
        stopped
    }
}
