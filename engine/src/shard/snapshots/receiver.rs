//! Receives a snapshot: stages its rows under a new data id, and installs them only when all are
//! durable in the tree.
//!
//! The order: rows into the tree; a flush; one durable record in the log that switches data, state and log
//! at once ([`crate::wal::GroupLog::install_snapshot`]); then the replica in memory. The last two are in
//! [`crate::range::raft_adapter::state_machine`], which openraft calls. A crash before the record leaves rows
//! without an owner, which compactions drop.
//!
//! A snapshot is refused while a replica of another range on this shard still holds some of its keys,
//! because that replica has not yet applied the split that takes them away, and while another snapshot with
//! some of its keys is being installed. The leader sends it again later.
//!
//! A part may come again, because its answer was lost or late. It is stored once; every copy is
//! answered when it is stored.

use std::cell::RefCell;

use crate::env::Env;
use crate::error::Fatal;
use crate::lsm::LiveData;
use crate::lsm::keys::{self, InSnapshot};
use crate::mutant::{self, Mutant};
use crate::notify::Notify;
use crate::raft::{Envelope, RaftResponse, SnapshotPart, SnapshotRow};
use crate::range::raft_adapter::state_machine::StagedSnapshot;
use crate::range::state::RangeState;
use crate::range::{Descriptor, Keyspace, RaftGroup};
use crate::shard::{Shard, ShardInner, gc};
use crate::types::{DataId, KeyRange, ReplicaId, Timestamp};
use crate::wal::{Group, LogId, WalError};

/// How many data ids are reserved in the log at a time.
pub(in crate::shard) const DATA_ID_BLOCK: u64 = 64;

/// The snapshots that a shard is receiving.
#[derive(Default)]
pub(in crate::shard) struct ReceivedSnapshots {
    all: RefCell<Vec<ReceivedSnapshot>>,
    /// Notified when a part is taken, and when one begins or ends.
    changed: Notify,
}

/// A snapshot that is being received.
struct ReceivedSnapshot {
    /// The replica here that receives it.
    to: ReplicaId,
    /// The replica that sends it, and its id of the snapshot.
    from: (ReplicaId, u64),
    /// The data id of the rows, protected from compactions.
    live: LiveData,
    /// How many parts have come.
    parts: u64,
    /// How many of them are not wholly in the tree yet.
    taking: u64,
    /// All parts have come, and the replica is installing them. Until that is done, nothing else
    /// protects the rows from compactions.
    ending: bool,
    /// The range's keys, once it is being installed.
    installs: Option<KeyRange>,
}

/// What to do with a part.
enum Met {
    /// It is the next one: its rows go under this data id.
    Next(DataId),
    /// It was taken before.
    Before,
    /// It, or one before it, is still being taken.
    Wait,
    /// It belongs to no snapshot that is being received.
    Unknown,
}

impl<E: Env> ShardInner<E> {
    /// A data id that was never used. The row cache relies on that: it knows rows by keys that begin
    /// with their data id, and keeps those of replicas that are gone until others push them out.
    pub(in crate::shard) async fn new_data_id(&self) -> Result<DataId, Fatal> {
        let (next, reserved) = self.data_ids.get();
        let reserved = if next > reserved {
            let up_to = next + DATA_ID_BLOCK - 1;
            // Other callers must not take this id while the log is being written.
            self.data_ids.set((next + 1, reserved));
            self.wal.reserve_data_ids(DataId(up_to)).await?;
            up_to
        } else {
            reserved
        };
        let next_now = self.data_ids.get().0.max(next + 1);
        self.data_ids
            .set((next_now, reserved.max(self.data_ids.get().1)));
        Ok(DataId(next))
    }

    /// Ends the staging of a snapshot for a replica: it was installed, or is given up.
    pub(in crate::shard) fn end_staging(&self, to: ReplicaId) {
        self.staging.all.borrow_mut().retain(|s| s.to != to);
        self.staging.changed.notify();
        self.store.set_gc(gc::rules(self));
    }

    /// How many snapshots are being received.
    pub(in crate::shard) fn receiving(&self) -> usize {
        self.staging.all.borrow().len()
    }

    /// The data of snapshots that are being received.
    pub(in crate::shard) fn staged(&self) -> Vec<LiveData> {
        let staging = self.staging.all.borrow();
        staging.iter().map(|staging| staging.live.clone()).collect()
    }
}

impl<E: Env> Shard<E> {
    /// Takes a part of a snapshot; gives the answer.
    pub(in crate::shard) async fn take_part(
        &self,
        group: &RaftGroup<E>,
        envelope: Envelope,
        part: SnapshotPart,
    ) -> RaftResponse {
        match self.try_take_part(group, envelope, part).await {
            Ok(response) => response,
            // The shard is being closed.
            Err(Fatal::Wal(WalError::Closed)) => RaftResponse::Refused,
            Err(fatal) => {
                self.inner.store.fail(fatal);
                RaftResponse::Refused
            }
        }
    }

    async fn try_take_part(
        &self,
        group: &RaftGroup<E>,
        envelope: Envelope,
        part: SnapshotPart,
    ) -> Result<RaftResponse, Fatal> {
        match part {
            SnapshotPart::Rows {
                number,
                place,
                rows,
                checksum: _,
            } => {
                let from = (envelope.from, number);
                let is_new = place == 0 && !self.is_staging(envelope.to, from);
                // A snapshot that is being installed is not replaced by a new one, even if its sender
                // has given it up.
                if is_new && !self.begin_staging(envelope, from).await? {
                    return Ok(RaftResponse::Refused);
                }
                let data_id = match self.meet(envelope.to, from, place, false).await {
                    Met::Next(data_id) => data_id,
                    Met::Before => return Ok(RaftResponse::Done),
                    Met::Wait | Met::Unknown => return Ok(RaftResponse::Refused),
                };
                if !self.stage(data_id, rows).await? {
                    self.inner.end_staging(envelope.to);
                    tracing::error!(from = %envelope.from, "a snapshot has a row of a kind that snapshots do not carry: it is refused");
                    return Ok(RaftResponse::Refused);
                }
                self.part_taken(data_id);
                Ok(RaftResponse::Done)
            }
            SnapshotPart::End {
                number,
                parts,
                vote,
                last,
                state,
                gc_threshold,
            } => {
                let from = (envelope.from, number);
                let data_id = match self.meet(envelope.to, from, parts, true).await {
                    Met::Next(data_id) => data_id,
                    // It is installed, and the answer may have been lost.
                    _ if self.has_applied(envelope, last) => return Ok(group.installed()),
                    _ => return Ok(RaftResponse::Refused),
                };
                let response = match RangeState::decode(&state) {
                    Ok((mut state, _))
                        if state.range() == envelope.range
                            && state.applied == Some(last)
                            && self.claim_keys(envelope, &state.descriptor) =>
                    {
                        self.make_staged_durable().await?;
                        state.gc_threshold = state.gc_threshold.max(gc_threshold);
                        let covers = state.applied_state();
                        let state = Box::new(state);
                        let staged = StagedSnapshot { data_id, state };
                        let response = group.install(vote, &covers, staged).await;
                        self.count_installed(&response);
                        // From now on the range is found by key.
                        self.inner.ranges.version().add(1);
                        response
                    }
                    _ => RaftResponse::Refused,
                };
                self.inner.end_staging(envelope.to);
                Ok(response)
            }
        }
    }

    fn count_installed(&self, response: &RaftResponse) {
        if matches!(response, RaftResponse::Installed(_)) {
            let counters = &self.inner.around.counters;
            counters.count(|stats| stats.snapshots_installed += 1);
        }
    }

    /// Claims a range's keys for the replica that is about to install its snapshot. `false` if another
    /// replica has some of these keys, or is about to have them.
    fn claim_keys(&self, envelope: Envelope, descriptor: &Descriptor) -> bool {
        if descriptor.keyspace == Keyspace::System {
            return true;
        }
        let keys = &descriptor.keys;
        let group = Group {
            range: envelope.range,
            replica: envelope.to,
        };
        if let Some(holder) = self.inner.ranges.holder_of_any(keys, group) {
            tracing::info!(
                range = %group.range,
                holder = %holder.range,
                "a snapshot must wait: another range holds keys of it here"
            );
            return false;
        }
        if self.inner.home.newborns.holds_any(keys) {
            tracing::info!(
                range = %group.range,
                "a snapshot must wait: a range that was split off just now holds keys of it here"
            );
            return false;
        }
        let mut all = self.inner.staging.all.borrow_mut();
        let is_claimed = |staging: &ReceivedSnapshot| {
            let claimed = staging.installs.as_ref();
            staging.to != group.replica && claimed.is_some_and(|claimed| claimed.overlaps(keys))
        };
        if all.iter().any(is_claimed) {
            return false;
        }
        if let Some(staging) = all.iter_mut().find(|s| s.to == group.replica) {
            staging.installs = Some(keys.clone());
        }
        true
    }

    /// Puts rows of a snapshot into the tree. `false` if one is of a kind that snapshots do not carry.
    async fn stage(&self, data_id: DataId, rows: Vec<SnapshotRow>) -> Result<bool, Fatal> {
        let store = &self.inner.store;
        let mut key = Vec::new();
        for row in rows {
            let len = row.key.len() + row.value.as_ref().map_or(0, bytes::Bytes::len);
            store.make_room(1, len).await?;
            keys::with_data_id(data_id, &row.key, &mut key);
            let rule = keys::parse(&key).map(|(kind, _)| kind.rule());
            if rule.is_none_or(|rule| rule.in_snapshot == InSnapshot::No) {
                return Ok(false);
            }
            store.insert_row(&key, row.version, row.value.as_deref());
        }
        Ok(true)
    }

    /// Begins to stage a snapshot, in place of an incomplete one. `false` if one is being
    /// installed.
    async fn begin_staging(
        &self,
        envelope: Envelope,
        from: (ReplicaId, u64),
    ) -> Result<bool, Fatal> {
        if self.is_installing(envelope.to) {
            return Ok(false);
        }
        let data_id = self.inner.new_data_id().await?;
        // The state may have changed while the log was written.
        if self.is_installing(envelope.to) {
            return Ok(false);
        }
        let mut all = self.inner.staging.all.borrow_mut();
        let staging = ReceivedSnapshot {
            to: envelope.to,
            from,
            live: LiveData {
                replica: envelope.to,
                data_id,
                keys: KeyRange::all(),
                threshold: Timestamp::ZERO,
            },
            parts: 0,
            taking: 0,
            ending: false,
            installs: None,
        };
        all.retain(|staging| staging.to != envelope.to);
        all.push(staging);
        drop(all);
        self.inner.staging.changed.notify();
        // Before the first row: a flush or compaction must not take its rows for ownerless.
        self.inner.store.set_gc(gc::rules(&self.inner));
        Ok(true)
    }

    fn is_installing(&self, to: ReplicaId) -> bool {
        let all = self.inner.staging.all.borrow();
        all.iter().any(|staging| staging.to == to && staging.ending)
    }

    fn is_staging(&self, to: ReplicaId, from: (ReplicaId, u64)) -> bool {
        let all = self.inner.staging.all.borrow();
        all.iter()
            .any(|staging| staging.to == to && staging.from == from)
    }

    /// Whether the receiving replica has applied an entry.
    fn has_applied(&self, envelope: Envelope, last: LogId) -> bool {
        let here = self.inner.of_range(envelope.range);
        here.is_some_and(|here| {
            let is_it = here.replica.group.replica == envelope.to;
            let applied = here.replica.with_state(|state| state.applied);
            is_it && applied.is_some_and(|applied| applied.index >= last.index)
        })
    }

    /// What to do with a part, or with the end, once everything before it is done.
    async fn meet(&self, to: ReplicaId, from: (ReplicaId, u64), place: u64, is_end: bool) -> Met {
        let mut met = Met::Wait;
        let goes_on = || {
            met = self.try_to_meet(to, from, place, is_end);
            !matches!(met, Met::Wait)
        };
        self.inner.staging.changed.until(goes_on).await;
        met
    }

    fn try_to_meet(&self, to: ReplicaId, from: (ReplicaId, u64), place: u64, is_end: bool) -> Met {
        let mut all = self.inner.staging.all.borrow_mut();
        let mut all = all.iter_mut();
        let Some(staging) = all.find(|s| s.to == to && s.from == from) else {
            return Met::Unknown;
        };
        let is_next = place == staging.parts;
        match is_end {
            _ if staging.ending || staging.taking > 0 => Met::Wait,
            true if is_next => {
                staging.ending = true;
                Met::Next(staging.live.data_id)
            }
            false if is_next => {
                staging.parts += 1;
                staging.taking += 1;
                Met::Next(staging.live.data_id)
            }
            false if place < staging.parts => Met::Before,
            _ => Met::Unknown,
        }
    }

    /// Notes that the rows of a part are in the tree.
    fn part_taken(&self, data_id: DataId) {
        let mut all = self.inner.staging.all.borrow_mut();
        let staging = all.iter_mut().find(|s| s.live.data_id == data_id);
        if let Some(staging) = staging {
            staging.taking -= 1;
        }
        drop(all);
        self.inner.staging.changed.notify();
    }

    /// Flushes all memtables, and waits for that.
    async fn make_staged_durable(&self) -> Result<(), Fatal> {
        if mutant::is(Mutant::SnapshotBeforeDurable) {
            return Ok(());
        }
        self.inner.store.flush().await
    }
}
