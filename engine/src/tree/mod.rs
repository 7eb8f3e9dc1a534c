//! The shard's tree as its ranges use it, and the rule by which memtables freeze.
//!
//! One memtable serves all ranges of the shard. Before it freezes, each [`Participant`], a replica,
//! that has changed writes its state row and its changed session rows. So a flush makes exactly one
//! position in each range's log durable. A log entry is applied into one memtable as a whole:
//! [`Store::make_room`] freezes before an entry that does not fit, never within one.

pub mod budget;
pub mod cold_reads;
pub mod cold_scans;
pub mod departures;
mod flush_turns;
mod mark;
mod sizes;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::disk_fault::Lack;
use crate::env::{AsyncRuntime, Env, yield_now};
use crate::error::Fatal;
use crate::limits::{
    REPLAY_LEN_FREEZE, REPLAY_LEN_MAX, SESSION_ROWS_PER_TURN, SESSION_ROWS_UNSAVED_MAX,
};
use crate::line_limit::LineLimit;
use crate::lsm::keys::{self, Owner};
use crate::lsm::{Bounds, GcRules, Lsm, LsmError, LsmStats, MemtableId, Part, Scan, ScanStop};
use crate::memory::MemoryUse;
use crate::notify::Notify;
use crate::tree::budget::WriteBudget;
use crate::tree::cold_reads::{Block, ColdReads};
use crate::tree::departures::Departures;
use crate::tree::flush_turns::FlushTurns;
use crate::types::{DataId, ReplicaId, Timestamp};
use crate::wal::{Position, Wal};
pub use mark::TreeMark;

/// How often, at least, a task that waits for room checks for it.
/// Each flush that is installed notifies them; by time besides, since a disk that gets room again
/// notifies nobody, and during a start no task runs that would.
const ROOM_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The room in the memtables, in parts of one, that puts leave while the disk is short of room. It is for what
/// must go on without a flush: deletes and the commands of ranges, such as splits, merges and moves.
const RESERVE: f32 = 1.5;
/// The part of it that deletes leave to the commands of ranges.
const RESERVE_OF_ORDERS: f32 = 0.5;

/// About how many bytes a session row takes.
const SESSION_ROW_LEN: usize = 160;

/// Called with an error that must end the process.
pub type OnFatal = Rc<dyn Fn(Fatal)>;

/// Puts a row into the memtable: its key, its version, and its value unless it is deleted.
pub type PutRow<'a> = dyn FnMut(&[u8], Timestamp, Option<&[u8]>) + 'a;

/// Called when what was saved is in tables.
pub type WhenDurable = Box<dyn FnOnce()>;

/// Something that keeps rows of its own state in the tree: a replica. It holds changed rows back
/// until the memtable freezes.
pub trait Participant {
    /// The replica's id.
    fn replica(&self) -> ReplicaId;

    /// Puts all rows that it holds back into the memtable that is about to freeze. Gives `None` if
    /// nothing has changed since the last time.
    ///
    /// # Errors
    /// A row cannot be encoded.
    fn save(self: Rc<Self>, put: &mut PutRow<'_>) -> Result<Option<WhenDurable>, Fatal>;

    /// Puts up to [`SESSION_ROWS_PER_TURN`] session rows into the memtable ahead of the next freeze;
    /// gives how many.
    ///
    /// # Errors
    /// A row cannot be encoded.
    fn save_some(&self, put: &mut PutRow<'_>) -> Result<usize, Fatal>;

    /// How many session rows it holds back.
    fn unsaved(&self) -> usize;
}

/// A frozen memtable that is not yet in tables.
struct Frozen {
    id: MemtableId,
    /// Called when it is in tables.
    when_durable: Vec<WhenDurable>,
    /// The log's position at the freeze: everything before it is in this memtable or an older one.
    log: Position,
    /// The number of its flush.
    flush: u64,
}

/// The shard's tree.
pub struct Store<E: Env> {
    lsm: RefCell<Lsm<E::Tables>>,
    wal: Wal<E>,
    replicas: RefCell<BTreeMap<ReplicaId, Weak<dyn Participant>>>,
    frozen: RefCell<VecDeque<Frozen>>,
    flush_turns: FlushTurns,
    /// The log's position when the newest installed memtable froze: a start replays from here.
    replay_from: Cell<Position>,
    /// What the tree records of its log; `flushes` as of the last freeze.
    mark: Cell<TreeMark>,
    /// Notified when there may be room, or a memtable may be in tables.
    changed: Notify,
    key: RefCell<Vec<u8>>,
    cold_reads: ColdReads<Block<E>>,
    on_fatal: OnFatal,
    /// How many session rows the next freeze would have to write.
    unsaved: Cell<usize>,
    /// The memory of writes that wait or are in flight.
    pub(crate) writes: Rc<WriteBudget>,
    /// The departures of the entries of all ranges.
    pub(crate) departures: Rc<Departures>,
    /// The limit on log lines about leaders of ranges.
    pub(crate) leader_lines: LineLimit,
}

impl<E: Env> Store<E> {
    /// The tree of a shard; its replicas are added later.
    pub fn new(lsm: Lsm<E::Tables>, wal: Wal<E>, on_fatal: OnFatal) -> Store<E> {
        let replay_from = wal.position();
        let told = on_fatal.clone();
        wal.on_failure(move |error| told(error.into()));
        Store {
            lsm: RefCell::new(lsm),
            wal,
            replicas: RefCell::default(),
            frozen: RefCell::default(),
            flush_turns: FlushTurns::default(),
            replay_from: Cell::new(replay_from),
            mark: Cell::default(),
            changed: Notify::default(),
            key: RefCell::default(),
            cold_reads: ColdReads::default(),
            on_fatal,
            unsaved: Cell::new(0),
            writes: Rc::default(),
            departures: Rc::new(Departures::new(E::now)),
            leader_lines: LineLimit::default(),
        }
    }

    /// Sets the log to which the tree belongs, and how many flushes it has taken.
    pub fn belongs_to(&self, log: u128, flushes: u64) {
        let batch = 0;
        self.mark.set(TreeMark {
            log,
            flushes,
            batch,
        });
    }

    /// Adds a replica; from now on its state is saved at each freeze.
    pub fn add(&self, replica: Rc<dyn Participant>) {
        let mut replicas = self.replicas.borrow_mut();
        replicas.retain(|_, replica| replica.strong_count() > 0);
        replicas.insert(replica.replica(), Rc::downgrade(&replica));
    }

    /// Reports an error that must end the process.
    pub fn fail(&self, fatal: Fatal) {
        (self.on_fatal)(fatal);
    }

    /// Passes the newest version of a user's key to `look`: its timestamp, and its value unless it
    /// is a tombstone. `look` must not call back into the tree. May wait for the disk: for apply.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn newest<R>(
        &self,
        data_id: DataId,
        key: &[u8],
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<R, LsmError> {
        let mut row_key = self.key.borrow_mut();
        keys::user_key(data_id, key, &mut row_key);
        let lsm = self.lsm.borrow();
        lsm.newest(&row_key, |found| {
            look(found.map(|row| (row.version, row.value)))
        })
    }

    /// Passes the newest value of a row that is not a user's to `look`.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn newest_row<R>(
        &self,
        row_key: &[u8],
        look: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R, LsmError> {
        let lsm = self.lsm.borrow();
        let found = lsm.get(row_key, Timestamp::MAX)?;
        Ok(look(found.as_ref().and_then(|f| f.value())))
    }

    /// The replicas that have rows by replica id, in order.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn replicas_with_rows(&self) -> Result<Vec<ReplicaId>, LsmError> {
        let mut found = Vec::new();
        let mut from = Some(0);
        let (mut low, mut high) = (Vec::new(), Vec::new());
        while let Some(next) = from {
            keys::by_replica_from(ReplicaId(next), &mut low, &mut high);
            let bounds = (
                Bound::Included(low.as_slice()),
                Bound::Excluded(high.as_slice()),
            );
            // A replica may have a million rows: seek the next replica instead of scanning.
            let replica = self.scan(bounds, Timestamp::MAX, |scan| {
                let row = scan.next_row()?;
                Ok(row.and_then(|row| match keys::parse(row.key()) {
                    Some((_, Owner::Replica(replica))) => Some(replica),
                    _ => None,
                }))
            })?;
            found.extend(replica);
            from = replica.and_then(|replica| replica.0.checked_add(1));
        }
        Ok(found)
    }

    /// Has `call` called, from any thread, when the background has something for [`Store::poll`].
    pub fn on_install(&self, call: Arc<dyn Fn() + Send + Sync>) {
        self.lsm.borrow_mut().on_install(call);
    }

    /// Adds a version of a user's key. The caller has made room.
    pub fn insert(&self, data_id: DataId, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        let mut row_key = self.key.borrow_mut();
        keys::user_key(data_id, key, &mut row_key);
        self.lsm.borrow_mut().insert(&row_key, version, value);
    }

    /// Adds a version of any row. The caller has made room.
    pub fn insert_row(&self, row_key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        self.lsm.borrow_mut().insert(row_key, version, value);
    }

    /// Opens a scan of row keys as of `at`, in key order, and passes it to `visit`, which must not call
    /// back into the tree. May wait for the disk: for a start, and for the records of the cluster. Others use
    /// [`Store::try_scan`].
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn scan<R>(
        &self,
        bounds: Bounds<'_>,
        at: Timestamp,
        visit: impl FnOnce(&mut Scan<'_, E::Tables>) -> Result<R, ScanStop>,
    ) -> Result<R, LsmError> {
        let lsm = self.lsm.borrow();
        let scan = lsm.scan(bounds, at);
        let visited = scan.and_then(|mut scan| visit(&mut scan));
        visited.map_err(ScanStop::of_waiting)
    }

    /// The rows of an interval for another thread to read, without those of the active memtable.
    pub fn part(&self, bounds: Bounds<'_>) -> Part<E::Tables> {
        self.lsm.borrow().part(bounds)
    }

    /// Freezes the active memtable, unless the flusher is too far behind. Gives whether it is empty
    /// now.
    ///
    /// # Errors
    /// A state row cannot be encoded.
    pub fn freeze_all(&self) -> Result<bool, Fatal> {
        if self.lsm.borrow().is_fresh() {
            return Ok(true);
        }
        if self.lsm.borrow().pressure().stopped {
            return Ok(false);
        }
        self.freeze().map(|_| true)
    }

    /// Waits until the memtable can take an entry of this many rows and bytes.
    ///
    /// # Errors
    /// A state row cannot be written, or the tree has failed.
    pub async fn make_room(&self, rows: usize, bytes: usize) -> Result<(), Fatal> {
        loop {
            let log_is_long = self.unfrozen_len() > REPLAY_LEN_FREEZE;
            let stopped = self.lsm.borrow().pressure().stopped;
            if self.lsm.borrow().has_room(rows, bytes) && (!log_is_long || stopped) {
                return Ok(());
            }
            if !stopped {
                self.freeze()?;
                continue;
            }
            // During a start the background task does not run yet, so a waiting task polls, too.
            if !self.poll()? {
                let _ = E::Runtime::timeout(ROOM_POLL_INTERVAL, self.changed.next()).await;
            }
        }
    }

    /// Replaces a replica's part in the count of unsaved session rows.
    pub(crate) fn count_unsaved(&self, before: usize, now: usize) {
        self.unsaved.set(self.unsaved.get() + now - before);
    }

    /// Writes session rows ahead of the next freeze while that would have too many to write in one
    /// turn. A few are written at a time; other tasks run in between.
    ///
    /// # Errors
    /// A row cannot be encoded, or the tree has failed.
    pub async fn save_sessions_ahead(&self) -> Result<(), Fatal> {
        while self.unsaved.get() > SESSION_ROWS_UNSAVED_MAX {
            // This may freeze the memtable, and then all rows are saved.
            self.make_room_for_sessions().await?;
            let Some(most) = self.replica_with_most_unsaved() else {
                return Ok(());
            };
            if most.save_some(&mut self.put_row())? == 0 {
                return Ok(());
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Waits until the memtable can take the session rows that are saved in one turn,
    /// [`SESSION_ROWS_PER_TURN`].
    ///
    /// # Errors
    /// See [`Store::make_room`].
    pub async fn make_room_for_sessions(&self) -> Result<(), Fatal> {
        let bytes = SESSION_ROWS_PER_TURN * SESSION_ROW_LEN;
        self.make_room(SESSION_ROWS_PER_TURN, bytes).await
    }

    fn replica_with_most_unsaved(&self) -> Option<Rc<dyn Participant>> {
        let replicas = self.replicas.borrow();
        let replicas = replicas.values().filter_map(Weak::upgrade);
        replicas.max_by_key(|replica| replica.unsaved())
    }

    fn put_row(&self) -> impl FnMut(&[u8], Timestamp, Option<&[u8]>) {
        move |key, version, value| self.insert_row(key, version, value)
    }

    /// Writes the state of all ranges into the memtable, freezes it, and lets it be flushed.
    ///
    /// # Errors
    /// A state row cannot be encoded.
    pub fn freeze(&self) -> Result<MemtableId, Fatal> {
        let replicas: Vec<Rc<dyn Participant>> = self
            .replicas
            .borrow()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let mut when_durable = Vec::new();
        for replica in replicas {
            when_durable.extend(replica.save(&mut self.put_row())?);
        }
        let log = self.wal.position();
        let flush = self.put_mark();
        let id = self.lsm.borrow_mut().freeze();
        self.frozen.borrow_mut().push_back(Frozen {
            id,
            when_durable,
            log,
            flush,
        });
        Ok(id)
    }

    /// Writes the mark of the tree for the next flush; gives the flush's number.
    fn put_mark(&self) -> u64 {
        let before = self.mark.get();
        let mark = TreeMark {
            flushes: before.flushes + 1,
            batch: self.wal.last_batch(),
            ..before
        };
        self.mark.set(mark);
        // Flushes are numbered from 1 over the tree's life, so the versions of this row rise.
        let version = Timestamp(mark.flushes);
        let mut lsm = self.lsm.borrow_mut();
        lsm.insert(keys::TREE_MARK, version, Some(&mark.encode()));
        mark.flushes
    }

    /// Freezes the memtable and waits until it is in tables.
    ///
    /// # Errors
    /// A state row cannot be encoded, or the tree has failed.
    pub async fn flush(&self) -> Result<(), Fatal> {
        let Some(turn) = self.flush_turns.next().await else {
            return Ok(());
        };
        let id = self.freeze()?;
        while !self.is_installed(id) {
            if !self.poll()? {
                let _ = E::Runtime::timeout(ROOM_POLL_INTERVAL, self.changed.next()).await;
            }
        }
        turn.done();
        Ok(())
    }

    /// Takes in finished flushes. Gives whether there were any.
    ///
    /// # Errors
    /// The background has failed for good.
    pub fn poll(&self) -> Result<bool, Fatal> {
        let installed = self.lsm.borrow_mut().poll()?;
        let Some(installed) = installed else {
            return Ok(false);
        };
        loop {
            let mut frozen = self.frozen.borrow_mut();
            if frozen.front().is_none_or(|f| f.id > installed) {
                break;
            }
            let Some(done) = frozen.pop_front() else {
                break;
            };
            drop(frozen);
            self.replay_from.set(done.log);
            // Before anything is purged because of this flush.
            self.wal.flushed(done.flush);
            for tell in done.when_durable {
                tell();
            }
        }
        self.wake_waiting();
        Ok(true)
    }

    /// Makes tasks that wait for room check again.
    pub fn wake_waiting(&self) {
        self.changed.notify();
    }

    /// Most bytes of an entry, except for an entry of a single write.
    pub fn entry_len_max(&self) -> usize {
        self.wal.entry_len_max()
    }

    /// Bytes of log that a start would have to apply again.
    pub fn replay_len(&self) -> u64 {
        self.wal.bytes_since(self.replay_from.get())
    }

    /// Bytes of log since the last freeze.
    fn unfrozen_len(&self) -> u64 {
        let from = self
            .frozen
            .borrow()
            .back()
            .map_or(self.replay_from.get(), |f| f.log);
        self.wal.bytes_since(from)
    }

    /// Freezes if the log since the last freeze has become long.
    ///
    /// # Errors
    /// A state row cannot be encoded.
    pub fn freeze_if_log_is_long(&self) -> Result<(), Fatal> {
        if self.unfrozen_len() > REPLAY_LEN_FREEZE && !self.lsm.borrow().pressure().stopped {
            self.freeze()?;
        }
        Ok(())
    }

    /// How far the tree is behind its writers: from 0, not at all, to 1, as far as it may be.
    pub fn pressure(&self) -> f32 {
        let tree = self.lsm.borrow().pressure().level;
        // With more log than for two freezes, the flusher is behind.
        let slack = (REPLAY_LEN_MAX - REPLAY_LEN_FREEZE) as f32;
        let log = self.replay_len().saturating_sub(REPLAY_LEN_FREEZE) as f32 / slack;
        tree.max((log * 2.0 - 1.0).clamp(0.0, 1.0))
    }

    /// Whether the log may take entries from other leaders.
    pub fn log_has_room(&self) -> bool {
        self.wal.has_room()
    }

    /// Waits until the log may take more.
    pub async fn room_in_log(&self) {
        self.wal.room().await;
    }

    /// Whether a full disk still takes deletes: the memtables and the log have room without it, and what
    /// they keep besides is for the commands of ranges, such as moves and splits.
    pub fn has_reserve(&self) -> bool {
        self.lsm.borrow().room_left(0) > RESERVE_OF_ORDERS && self.wal.has_reserve()
    }

    /// Whether the log or the tables may not get the room that they need on the disk. Asked before each entry.
    pub fn is_short_of_room(&self) -> bool {
        self.lsm.borrow().is_short_of_room() || self.wal.lack() == Some(Lack::Room)
    }

    /// Whether the memtables have room for puts besides the reserve and the bytes that are on their way already.
    pub fn has_room_for_puts(&self, in_flight: usize) -> bool {
        self.lsm.borrow().room_left(in_flight) > RESERVE
    }

    /// Waits for as long as `waits` says: until a flush has made room, or it is found that none can, so that puts
    /// are refused.
    pub async fn spare_reserve(&self, waits: impl Fn() -> bool) {
        while waits() && !self.disk_full() && !self.is_stuck() {
            let _ = E::Runtime::timeout(ROOM_POLL_INTERVAL, self.changed.next()).await;
        }
    }

    /// Whether writes must be refused because the disk is full.
    pub fn disk_full(&self) -> bool {
        self.lsm.borrow().pressure().disk_full || self.wal.lack() == Some(Lack::Room)
    }

    /// Whether the tables take no more writes until their disk is mended: compactions fail, mostly because of a
    /// block that cannot be read or is damaged, and level 0 is full.
    pub fn is_stuck(&self) -> bool {
        self.lsm.borrow().pressure().stuck
    }

    /// Whether the log or the tables wait for file descriptors or memory.
    pub fn is_starved(&self) -> bool {
        self.stats().tables.starved || self.wal.lack() == Some(Lack::Resources)
    }

    /// Whether a frozen memtable is in tables.
    fn is_installed(&self, id: MemtableId) -> bool {
        self.frozen
            .borrow()
            .front()
            .is_none_or(|first| first.id > id)
    }

    /// Whether every frozen memtable is in tables.
    pub fn is_flushed(&self) -> bool {
        self.frozen.borrow().is_empty()
    }

    /// Tells compactions which rows are live.
    pub fn set_gc(&self, rules: GcRules) {
        self.lsm.borrow_mut().set_gc(rules);
    }

    /// Compacts everything, so that old versions are collected even where nobody writes.
    pub fn collect_garbage(&self) {
        self.lsm.borrow_mut().collect_garbage();
    }

    /// The memory that the tree uses.
    pub fn memory(&self) -> Vec<MemoryUse> {
        self.lsm.borrow().memory()
    }

    /// Counters of the tree.
    pub fn stats(&self) -> LsmStats {
        self.lsm.borrow().stats()
    }
}
