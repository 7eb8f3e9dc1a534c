//! Opens a shard: recovers the log, the tree and every replica, and starts the groups.
//!
//! The log says which replicas exist, the tree says how far each is applied, and nothing else
//! decides. openraft applies the rest of the log again, from the entry after the one in the
//! replica's state row. Replicas start one after the other; one that finds a merge in its log has the replica
//! that it takes over start first ([`Recovery`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::FutureExt;
use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::env::{AsyncRuntime, Env, World};
use crate::error::Fatal;
use crate::hlc::Hlc;
use crate::lsm::{Lsm, keys};
use crate::mutant::{self, Mutant};
use crate::raft::{GroupDeps, StartMode, encode_membership, members};
use crate::range::apply::observer::ApplyObservers;
use crate::range::raft_adapter::proposer_task;
use crate::range::replica::{Home, Replica, ReplicaParts};
use crate::range::rows::data_parts::DataParts;
use crate::range::split_merge::absorbed_replicas::Replay;
use crate::range::split_merge::newborns::Newborns;
use crate::range::state::{FIRST, RangeState};
use crate::range::storage::recovery::recover_state;
use crate::range::{Descriptor, RaftGroup};
use crate::shard::cluster_agent::ClusterAgent;
use crate::shard::lifecycle::background::{self, Tasks};
use crate::shard::lifecycle::folder;
use crate::shard::liveness::Liveness;
use crate::shard::range_map::{RangeHandle, RangeMap};
use crate::shard::replicas::digests::Digests;
use crate::shard::snapshots::receiver::{DATA_ID_BLOCK, ReceivedSnapshots};
use crate::shard::split_merge::{freeze, split};
use crate::shard::{InitialRange, Shard, ShardInner, ShardOptions};
use crate::tree::Store;
use crate::types::{DataId, Epoch, RangeId};
use crate::wal::{Created, Group, GroupLog, Recovered, Wal, WalError, WalOptions};

impl<E: Env> Shard<E> {
    /// Opens a shard. Returns when every range is recovered, and this replica leads where it is the
    /// only voter. The observers are called with each entry that a replica applies, also with those
    /// that it applies again after a restart.
    ///
    /// # Errors
    /// The folder's content is damaged or cannot be read or written.
    pub async fn open(
        options: ShardOptions,
        world: World<E>,
        hlc: Hlc,
        observers: ApplyObservers,
    ) -> Result<Shard<E>, Fatal> {
        let wal_options = WalOptions {
            segment_bytes: options.segment_bytes as u64,
            entry_cache_bytes: options.entry_cache_bytes,
            must_exist: folder::must_have_log(&options.folder),
            ..WalOptions::default()
        };
        let (wal, mut recovered) = Wal::<E>::open(world.disk.clone(), wal_options).await?;
        let lsm = Lsm::new(world.tables, options.row_cache_bytes);
        let store = Rc::new(Store::new(lsm, wal.clone(), options.on_fatal.clone()));
        folder::check_and_mark(&store, &wal, &recovered, &options).await?;
        let (made, data_ids) = create_missing(&wal, &mut recovered, &options).await?;
        let around = GroupDeps::<E> {
            transport: world.transport,
            clock: world.clock,
            entries_kept: options.entries_kept,
            small_append_bytes: options.small_append_bytes,
            driver: Rc::default(),
            counters: Rc::default(),
            snapshot_pace: Rc::default(),
            leaves: Rc::default(),
        };
        let home = Home {
            location: options.location,
            store: store.clone(),
            hlc: hlc.clone(),
            clock: around.clock.clone(),
            observers,
            newborns: Rc::new(Newborns::new(wal.clone())),
            absorption: Rc::default(),
        };
        let inner = Rc::new(ShardInner {
            location: options.location,
            gc_retention_ms: options.gc_retention_ms,
            hlc,
            home,
            around,
            wal,
            store,
            ranges: RangeMap::default(),
            background: RefCell::new(Tasks::default()),
            liveness: Liveness::default(),
            agent: ClusterAgent::new(options.node, options.system, options.seen, options.is_at),
            closing: Cell::new(false),
            staging: ReceivedSnapshots::default(),
            data_ids: Cell::new(data_ids),
            digests: Digests::new(options.digests),
        });
        inner
            .recover_all(recovered, (&options.initial, &made))
            .await?;
        background::start(&inner);
        split::start(&inner);
        freeze::start(&inner);
        // With other voters, the leader may be elsewhere, or late; requests then wait for it.
        for (replica, raft) in inner.ranges.groups() {
            if raft.is_alone() {
                replica.led().await;
            }
        }
        Ok(Shard { inner })
    }
}

/// A replica that is to be started, its log, and whether it was made just now.
type ToStart<E> = (Rc<Replica<E>>, GroupLog<E>, StartMode);

/// The replicas that are to be started while a shard is opened.
struct Recovery<E: Env>(RefCell<BTreeMap<RangeId, ToStart<E>>>);

impl<E: Env> ShardInner<E> {
    /// Starts all replicas that the log names. `initial` are the ranges of a new folder, of which `made`
    /// were made just now.
    async fn recover_all(
        self: &Rc<Self>,
        recovered: Recovered<E>,
        (initial, made): (&[InitialRange], &[Group]),
    ) -> Result<(), Fatal> {
        // A replica that was born and that no flush covers is made anew when its parent is replayed.
        let mut replicas = Vec::with_capacity(recovered.replicas.len());
        for (created, log) in recovered.replicas {
            match self.is_to_be_born(&created, &log)? {
                true => self.home.newborns.expect(created.group, log),
                false => replicas.push((created, log)),
            }
        }
        let recovery = Rc::new(Recovery(RefCell::default()));
        let (mut frozen, mut others) = (Vec::new(), Vec::new());
        for (created, log) in replicas {
            let mut initial = initial.iter();
            let initial = initial.find(|initial| initial.range == created.group.range);
            let initial = initial.filter(|_| made.contains(&created.group));
            let made = initial.map_or(StartMode::Before, |initial| StartMode::Now {
                leads: initial.leads,
            });
            let replica = self.recover(&created, &log).await?;
            let range = created.group.range;
            match replica.frozen() {
                Some(_) => frozen.push(range),
                None => others.push(range),
            }
            recovery.0.borrow_mut().insert(range, (replica, log, made));
        }
        let replay = self.replay_for_merges(&recovery);
        self.home.absorption.replay_by(&replay);
        for range in others {
            self.start_recovered(&recovery, range).await?;
        }
        self.raise_newborns().await?;
        // Those that are frozen come last: their left neighbours may take them over when they apply their
        // logs again.
        for range in frozen {
            self.start_recovered(&recovery, range).await?;
        }
        match self.home.newborns.unborn() {
            None => Ok(()),
            Some(group) => Err(Fatal::Inconsistent(format!(
                "replica {} of range {} was born when its range was split off another one, and \
                 neither the tables nor the log of that range have it; the folder is damaged: \
                 restore it, or start this node anew with an empty one",
                group.replica, group.range
            ))),
        }
    }

    /// A replica that the log names, from its state in the tree.
    async fn recover(&self, created: &Created, log: &GroupLog<E>) -> Result<Rc<Replica<E>>, Fatal> {
        let installed = log.installed_snapshot();
        let (state, parts) = recover_state(&self.store, created, installed.as_ref()).await?;
        folder::check_replica(created.group, log.state().purged, state.applied)?;
        Ok(self.add_replica(created.group, (parts, state), log))
    }

    /// How a replica that finds a merge in its log starts the one that it takes over. That is a task of its own:
    /// it may find merges, too.
    fn replay_for_merges(self: &Rc<Self>, recovery: &Rc<Recovery<E>>) -> Rc<Replay> {
        let (shard, recovery) = (Rc::downgrade(self), recovery.clone());
        let replay = move |range| {
            let (shard, recovery) = (shard.clone(), recovery.clone());
            let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
            drop(E::Runtime::spawn(async move {
                let Some(inner) = shard.upgrade() else { return };
                let mut started = inner.start_recovered(&recovery, range).await;
                if started.is_ok() {
                    started = inner.raise_newborn_of(range).await;
                }
                drop(sender.send(started));
            }));
            // The task ends without an answer if the shard is being closed.
            async { receiver.await.unwrap_or(Err(WalError::Closed.into())) }.boxed_local()
        };
        let replay: Replay = Box::new(replay);
        Rc::new(replay)
    }

    /// Starts a replica of a range, if it is still to be started and no other one has taken it over. A flush
    /// covers that if the other one had its keys before it applied its log again; then the log forgets it.
    async fn start_recovered(
        self: &Rc<Self>,
        recovery: &Recovery<E>,
        range: RangeId,
    ) -> Result<(), Fatal> {
        let found = recovery.0.borrow_mut().remove(&range);
        let Some((replica, log, made)) = found else {
            // Another task may be starting it, and who takes it over must wait until its log is applied.
            self.ranges.created(range).await;
            return Ok(());
        };
        if replica.is_absorbed() {
            return Ok(());
        }
        let (start, version) = replica.with_state(|state| {
            let descriptor = &state.descriptor;
            (descriptor.keys.start.clone(), descriptor.epoch.version)
        });
        let is_newer = |holder: &RangeHandle<E>| {
            let holder = &holder.replica;
            holder.with_state(|state| state.descriptor.epoch.version > version)
        };
        let is_frozen = replica.frozen().is_some();
        if is_frozen && self.ranges.with(&start, is_newer) == Some(true) {
            return Ok(self.wal.remove_replica(replica.group).await?);
        }
        self.ranges.begin_creating(range);
        let started = self.start_replica(replica, log, made).await;
        self.ranges.end_creating(range);
        started
    }

    /// Whether a replica was born when its range was split off, and neither a flush nor a snapshot has
    /// its state.
    fn is_to_be_born(&self, created: &Created, log: &GroupLog<E>) -> Result<bool, Fatal> {
        let mut key = Vec::new();
        keys::state_key(created.group.replica, &mut key);
        let was_born = created.birth.is_some() && log.installed_snapshot().is_none();
        Ok(was_born && self.store.newest_row(&key, |row| row.is_none())?)
    }

    /// Makes a replica, which is a part of the tree from now on.
    pub(in crate::shard) fn add_replica(
        &self,
        group: Group,
        (parts, state): (DataParts, RangeState),
        log: &GroupLog<E>,
    ) -> Rc<Replica<E>> {
        // The clock must not be behind what was written, even if the wall clock was set back. The
        // range's ceiling counts only when this replica leads: see [`Replica::apply`].
        self.hlc.observe(state.last_ts);
        let replica = Rc::new(Replica::new(ReplicaParts {
            group,
            parts,
            state,
            term_before: log.state().vote.map_or(0, |vote| vote.term),
            last_before: log.state().last.map_or(0, |id| id.index),
            home: self.home.clone(),
        }));
        self.store.add(replica.clone());
        self.home.absorption.add(group.range, &replica);
        replica
    }

    /// Starts the group and the proposer of a replica, and adds it to the ranges of the shard.
    pub(in crate::shard) async fn start_replica(
        &self,
        replica: Rc<Replica<E>>,
        log: GroupLog<E>,
        made: StartMode,
    ) -> Result<(), Fatal> {
        let running = self.start_group(replica, log, made).await?;
        self.take_in(running).await
    }

    /// Adds a replica whose group has started to the ranges of the shard, unless another one has taken it over
    /// meanwhile. While the shard is opened, the replica of the left neighbour may do that as soon as this one
    /// has applied its freeze, so before its group has started; a lone voter leads at once, and applies a merge
    /// that its log does not call committed yet. Then the other one has these keys, and this group ends.
    pub(in crate::shard) async fn take_in(&self, running: RangeHandle<E>) -> Result<(), Fatal> {
        if running.replica.is_absorbed() && !mutant::is(Mutant::RunsThoughTakenOver) {
            running.raft.retire();
            running.replica.proposer.close();
            running.raft.stop().await;
            return Ok(());
        }
        // While the shard is opened nobody else does that.
        self.take_out_absorbed();
        self.ranges.insert(running)
    }

    /// Starts the Raft group and the proposer of a replica.
    pub(in crate::shard) async fn start_group(
        &self,
        replica: Rc<Replica<E>>,
        log: GroupLog<E>,
        made: StartMode,
    ) -> Result<RangeHandle<E>, Fatal> {
        let raft = RaftGroup::start(replica.clone(), log, self.around.clone(), made).await?;
        let (watched, version) = (Rc::downgrade(&replica), self.ranges.version().clone());
        let counters = self.around.counters.clone();
        let led_by = Cell::new(None);
        raft.watch_leader(move |leader, term| {
            // Between two leaders openraft knows none for a while.
            if leader.is_some() && led_by.replace(leader) != leader {
                counters.count(|stats| stats.leader_changes += 1);
            }
            if let Some(replica) = watched.upgrade() {
                replica.follow(leader, term);
                version.add(1);
            }
        });
        let (owner, group) = (replica.clone(), raft.clone());
        drop(E::Runtime::spawn(async move {
            let store = owner.store.clone();
            if let Err(fatal) = proposer_task::run(owner, group).await {
                store.fail(fatal);
            }
        }));
        Ok(RangeHandle { replica, raft })
    }
}

/// Makes the ranges of a new shard; those that were made before a crash stay. In a folder that was
/// used before it makes none: whatever is missing there was lost. Gives the groups that were made,
/// the next data id and the highest reserved one.
async fn create_missing<E: Env>(
    wal: &Wal<E>,
    recovered: &mut Recovered<E>,
    options: &ShardOptions,
) -> Result<(Vec<Group>, (u64, u64)), Fatal> {
    let mut made = Vec::new();
    let mut next = recovered.data_ids_reserved.0 + 1;
    let mut reserved = recovered.data_ids_reserved.0;
    let initial = options.initial.iter();
    for initial in initial.filter(|_| folder::is_new(&options.folder)) {
        let group = Group {
            range: initial.range,
            replica: initial.replica,
        };
        let known = recovered
            .replicas
            .iter()
            .any(|(created, _)| created.group == group)
            || recovered
                .removed
                .iter()
                .any(|gone| gone.range == group.range && gone.replica >= group.replica);
        if known {
            continue;
        }
        if next > reserved {
            reserved = next + DATA_ID_BLOCK - 1;
            wal.reserve_data_ids(DataId(reserved)).await?;
        }
        let created = created(initial, DataId(next), options)?;
        next += 1;
        let log = wal.create_replica(created.clone()).await?;
        recovered.replicas.push((created, log));
        made.push(group);
    }
    Ok((made, (next, reserved)))
}

fn created(
    initial: &InitialRange,
    data_id: DataId,
    options: &ShardOptions,
) -> Result<Created, Fatal> {
    let descriptor = Descriptor {
        range: initial.range,
        epoch: Epoch {
            version: 1,
            conf: 1,
        },
        keyspace: initial.keyspace,
        keys: initial.keys.clone(),
        replicas: initial.voters(options.location),
    };
    let inconsistent = |what: &str, error: String| Fatal::Inconsistent(format!("{what}: {error}"));
    let descriptor = descriptor
        .encode()
        .map_err(|e| inconsistent("a descriptor", e.to_string()))?;
    let members = members(&initial.voters(options.location));
    let membership =
        encode_membership(&members).map_err(|e| inconsistent("a membership", e.to_string()))?;
    Ok(Created {
        group: Group {
            range: initial.range,
            replica: initial.replica,
        },
        data_id,
        descriptor: descriptor.into(),
        membership: membership.into(),
        first: Some(FIRST),
        birth: None,
    })
}
