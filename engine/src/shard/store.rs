//! The shard's tree as its ranges use it, and the rule by which memtables freeze.
//!
//! One memtable serves all ranges of the shard. Before it freezes, each range that has changed
//! writes its state row and what changed of its session table, so that what a flush makes durable
//! speaks of exactly one position in each range's log. A log entry is applied into one memtable
//! whole: [`Store::make_room`] freezes before an entry that does not fit, never within it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::env::{AsyncRuntime, Env, Lack, yield_now};
use crate::error::Fatal;
use crate::limits::{
    REPLAY_LEN_FREEZE, REPLAY_LEN_MAX, SESSION_ROWS_PER_TURN, SESSION_ROWS_UNSAVED_MAX,
};
use crate::lsm::keys::{self, RowKey};
use crate::lsm::{Bounds, GcRules, Lsm, LsmError, LsmStats, MemtableId, Part, Scan};
use crate::range::budget::WriteBudget;
use crate::range::replica::{Durable, Replica, SavedRow};
use crate::range::sessions::SessionRow;
use crate::range::state::RangeState;
use crate::shard::folder::TreeMark;
use crate::types::{DataId, ReplicaId, Timestamp};
use crate::wal::{Position, Wal};

/// Whoever waits for room looks at least this often.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_millis(20);

/// A session row takes about this.
const SESSION_ROW_LEN: usize = 160;

/// Told of what must end the process.
pub type OnFatal = Rc<dyn Fn(Fatal)>;

/// A frozen memtable that is not in tables yet.
struct Frozen {
    id: MemtableId,
    /// What its flush makes durable.
    covers: Vec<(ReplicaId, Durable)>,
    /// Where the log stood: all before it is in this memtable or an older one.
    log: Position,
    /// Which of the tree's flushes it is.
    flush: u64,
}

/// The shard's tree.
pub struct Store<E: Env> {
    lsm: RefCell<Lsm<E::Tables>>,
    wal: Wal<E>,
    replicas: RefCell<BTreeMap<ReplicaId, Weak<Replica<E>>>>,
    frozen: RefCell<VecDeque<Frozen>>,
    /// Where the log stood when the newest installed memtable froze: a start replays from here.
    replay_from: Cell<Position>,
    /// What the tree says of its log; its flushes as of the last freeze.
    mark: Cell<TreeMark>,
    waiting_for_room: RefCell<Vec<Waker>>,
    key: RefCell<Vec<u8>>,
    on_fatal: OnFatal,
    /// Rows of session tables that the next freeze would have to write.
    unsaved: Cell<usize>,
    /// Memory of writes that wait or are in flight.
    pub(crate) writes: Rc<WriteBudget>,
}

impl<E: Env> Store<E> {
    /// The tree of a shard whose replicas are yet to be added.
    pub fn new(lsm: Lsm<E::Tables>, wal: Wal<E>, on_fatal: OnFatal) -> Store<E> {
        let replay_from = wal.position();
        let told = on_fatal.clone();
        wal.on_failure(move |error| told(error.into()));
        Store {
            lsm: RefCell::new(lsm),
            wal,
            replicas: RefCell::default(),
            frozen: RefCell::default(),
            replay_from: Cell::new(replay_from),
            mark: Cell::default(),
            waiting_for_room: RefCell::default(),
            key: RefCell::default(),
            on_fatal,
            unsaved: Cell::new(0),
            writes: Rc::default(),
        }
    }

    /// The tree belongs to this log, and has taken this many flushes.
    pub(super) fn belongs_to(&self, log: u128, flushes: u64) {
        let batch = 0;
        self.mark.set(TreeMark {
            log,
            flushes,
            batch,
        });
    }

    /// Adds a replica, whose state is saved from now on.
    pub fn add(&self, replica: &Rc<Replica<E>>) {
        let mut replicas = self.replicas.borrow_mut();
        replicas.retain(|_, replica| replica.strong_count() > 0);
        replicas.insert(replica.group.replica, Rc::downgrade(replica));
    }

    /// Ends the process through the shard's owner.
    pub fn fail(&self, fatal: Fatal) {
        (self.on_fatal)(fatal);
    }

    /// Hands the newest version of a user's key to `look`: its timestamp, and its value unless it
    /// is a delete mark.
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
        let found = lsm.get(&row_key, Timestamp::MAX)?;
        Ok(look(found.as_ref().map(|f| (f.version(), f.value()))))
    }

    /// Hands the newest value of a row that is not a user's to `look`.
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

    /// The replicas of which there are rows by their id, in order.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub(super) fn replicas_with_rows(&self) -> Result<Vec<ReplicaId>, LsmError> {
        let mut found = Vec::new();
        let mut from = Some(0);
        let (mut low, mut high) = (Vec::new(), Vec::new());
        while let Some(next) = from {
            keys::by_replica_from(ReplicaId(next), &mut low, &mut high);
            let bounds = (
                Bound::Included(low.as_slice()),
                Bound::Excluded(high.as_slice()),
            );
            // One replica may have a million rows: the next one is sought, not scanned for.
            let replica = self.scan(bounds, Timestamp::MAX, |scan| {
                let row = scan.next_row()?;
                Ok(row.and_then(|row| match keys::parse(row.key()) {
                    Some(RowKey::ByReplica(replica)) => Some(replica),
                    _ => None,
                }))
            })?;
            found.extend(replica);
            from = replica.and_then(|replica| replica.0.checked_add(1));
        }
        Ok(found)
    }

    /// Has `call` called, from any thread, when the background has news for [`Store::poll`].
    pub fn on_install(&self, call: Arc<dyn Fn() + Send + Sync>) {
        self.lsm.borrow_mut().on_install(call);
    }

    /// Adds a version of a user's key; room was made before.
    pub fn insert(&self, data_id: DataId, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        let mut row_key = self.key.borrow_mut();
        keys::user_key(data_id, key, &mut row_key);
        self.lsm.borrow_mut().insert(&row_key, version, value);
    }

    /// Adds a version of any row; room was made before.
    pub fn insert_row(&self, row_key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        self.lsm.borrow_mut().insert(row_key, version, value);
    }

    /// Rows of a range as of `at`, from `start` to before `end`, handed to `visit` until it says
    /// no. The tree is borrowed meanwhile: `visit` must not call back.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn scan<R>(
        &self,
        bounds: Bounds<'_>,
        at: Timestamp,
        visit: impl FnOnce(&mut Scan<'_, E::Tables>) -> Result<R, LsmError>,
    ) -> Result<R, LsmError> {
        let lsm = self.lsm.borrow();
        let mut scan = lsm.scan(bounds, at)?;
        visit(&mut scan)
    }

    /// Rows of an interval for another thread to go through, all but those of the active memtable.
    pub fn part(&self, bounds: Bounds<'_>) -> Part<E::Tables> {
        self.lsm.borrow().part(bounds)
    }

    /// Freezes what is in the active memtable, unless the flusher is too far behind; says whether
    /// nothing is in it now.
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

    /// Waits until the memtable can take an entry.
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
            // At a start the background does not run yet: whoever waits looks for himself, too.
            if !self.poll()? {
                let _ = E::Runtime::timeout(LOOK_FOR_ROOM_EVERY, self.news()).await;
            }
        }
    }

    /// Waits for the next install.
    async fn news(&self) {
        let mut registered = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut registered, true) {
                return Poll::Ready(());
            }
            self.waiting_for_room.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// A replica has so many session rows that are not saved, in place of others.
    pub(crate) fn count_unsaved(&self, before: usize, now: usize) {
        self.unsaved.set(self.unsaved.get() + now - before);
    }

    /// Writes session rows ahead of the next freeze as long as that would have many to write in its one
    /// turn: a few at a time, and between them others run.
    ///
    /// # Errors
    /// A row cannot be encoded, or the tree has failed.
    pub async fn save_sessions_ahead(&self) -> Result<(), Fatal> {
        while self.unsaved.get() > SESSION_ROWS_UNSAVED_MAX {
            // It may freeze for that, and then all is saved.
            self.make_room(
                SESSION_ROWS_PER_TURN,
                SESSION_ROWS_PER_TURN * SESSION_ROW_LEN,
            )
            .await?;
            let Some(most) = self.replica_with_most_unsaved() else {
                return Ok(());
            };
            let (mut key, mut failed) = (Vec::new(), None);
            let saved = most.save_some(&mut |row| {
                if let Err(error) = self.put_saved(&mut key, row) {
                    failed.get_or_insert(error);
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            if saved == 0 {
                return Ok(());
            }
            yield_now().await;
        }
        Ok(())
    }

    fn replica_with_most_unsaved(&self) -> Option<Rc<Replica<E>>> {
        let replicas = self.replicas.borrow();
        let replicas = replicas.values().filter_map(Weak::upgrade);
        replicas.max_by_key(|replica| replica.unsaved())
    }

    /// Writes all session rows of a state that is not a replica's yet, a few at a time. Their pairs are
    /// in the tree already.
    ///
    /// # Errors
    /// The tree has failed.
    pub async fn save_snapshot_sessions(
        &self,
        replica: ReplicaId,
        data_id: DataId,
        state: &mut RangeState,
    ) -> Result<(), Fatal> {
        let mut key = Vec::new();
        loop {
            self.make_room(
                SESSION_ROWS_PER_TURN,
                SESSION_ROWS_PER_TURN * SESSION_ROW_LEN,
            )
            .await?;
            let rows = state.sessions.save(SESSION_ROWS_PER_TURN);
            if rows.is_empty() {
                return Ok(());
            }
            for row in &rows {
                let row = SavedRow::Session {
                    replica,
                    data_id,
                    version: state.last_ts,
                    row,
                };
                self.put_saved(&mut key, row)?;
            }
            yield_now().await;
        }
    }

    /// Freezes the memtable with the state of all ranges in it, and has it flushed.
    ///
    /// # Errors
    /// A state row cannot be encoded.
    pub fn freeze(&self) -> Result<MemtableId, Fatal> {
        let replicas: Vec<Rc<Replica<E>>> = self
            .replicas
            .borrow()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let mut covers = Vec::new();
        let mut key = Vec::new();
        let mut failed = None;
        for replica in &replicas {
            let saved = replica.save(&mut |row| {
                if let Err(error) = self.put_saved(&mut key, row) {
                    failed.get_or_insert(error);
                }
            })?;
            covers.extend(saved.map(|durable| (replica.group.replica, durable)));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let log = self.wal.position();
        let flush = self.put_mark();
        let id = self.lsm.borrow_mut().freeze();
        self.frozen.borrow_mut().push_back(Frozen {
            id,
            covers,
            log,
            flush,
        });
        Ok(id)
    }

    /// Has the next flush say which log the tree belongs to; gives its number.
    fn put_mark(&self) -> u64 {
        let before = self.mark.get();
        let mark = TreeMark {
            flushes: before.flushes + 1,
            batch: self.wal.last_batch(),
            ..before
        };
        self.mark.set(mark);
        // Flushes are counted from 1 over the tree's life, so versions of the row rise.
        let version = Timestamp(mark.flushes);
        let mut lsm = self.lsm.borrow_mut();
        lsm.insert(keys::TREE_MARK, version, Some(&mark.encode()));
        mark.flushes
    }

    /// Freezes the memtable and waits until it is in tables.
    ///
    /// # Errors
    /// A state row cannot be encoded, or the tree has failed.
    pub(super) async fn flush(&self) -> Result<(), Fatal> {
        let id = self.freeze()?;
        while !self.is_installed(id) {
            if !self.poll()? {
                let _ = E::Runtime::timeout(LOOK_FOR_ROOM_EVERY, self.news()).await;
            }
        }
        Ok(())
    }

    fn put_saved(&self, key: &mut Vec<u8>, row: SavedRow<'_>) -> Result<(), Fatal> {
        let mut lsm = self.lsm.borrow_mut();
        match row {
            SavedRow::State {
                replica,
                version,
                row,
            } => {
                keys::state_key(replica, key);
                lsm.insert(key, version, Some(row));
            }
            SavedRow::Session {
                replica,
                version,
                row: SessionRow::Client(id, marks),
                ..
            } => {
                keys::client_key(replica, *id, key);
                let row = marks.map(|marks| marks.encode());
                lsm.insert(key, version, row.as_deref());
            }
            SavedRow::Session {
                data_id,
                version,
                row,
                ..
            } => {
                let SessionRow::Pair {
                    first_key,
                    client,
                    sequence,
                    saved,
                } = row
                else {
                    return Ok(());
                };
                keys::pair_key(data_id, first_key, *client, *sequence, key);
                let row = saved.as_ref().map(|saved| saved.encode()).transpose();
                let row = row.map_err(|e| Fatal::Inconsistent(format!("a session pair: {e}")))?;
                lsm.insert(key, version, row.as_deref());
            }
        }
        Ok(())
    }

    /// Takes over what the background has done. Says whether there was news.
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
            // Before anything is purged because of it.
            self.wal.flushed(done.flush);
            for (replica, durable) in done.covers {
                self.made_durable(replica, durable);
            }
        }
        self.wake_waiting();
        Ok(true)
    }

    /// Lets those who wait for room look again.
    pub fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut *self.waiting_for_room.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    fn made_durable(&self, replica: ReplicaId, durable: Durable) {
        let replica = self.replicas.borrow().get(&replica).and_then(Weak::upgrade);
        if let Some(replica) = replica {
            replica.made_durable(durable);
        }
    }

    /// The longest entry but for one of a single write.
    pub fn entry_len_max(&self) -> usize {
        self.wal.entry_len_max()
    }

    /// Log bytes that a start would have to apply again.
    pub fn replay_len(&self) -> u64 {
        self.wal.bytes_since(self.replay_from.get())
    }

    /// Log bytes since the last freeze.
    fn unfrozen_len(&self) -> u64 {
        let from = self
            .frozen
            .borrow()
            .back()
            .map_or(self.replay_from.get(), |f| f.log);
        self.wal.bytes_since(from)
    }

    /// Freezes when the log since the last freeze has grown long.
    ///
    /// # Errors
    /// A state row cannot be encoded.
    pub fn freeze_if_log_is_long(&self) -> Result<(), Fatal> {
        if self.unfrozen_len() > REPLAY_LEN_FREEZE && !self.lsm.borrow().pressure().stopped {
            self.freeze()?;
        }
        Ok(())
    }

    /// How far the tree is behind its writers: 0 not at all, 1 as far as it may be.
    pub fn pressure(&self) -> f32 {
        let tree = self.lsm.borrow().pressure().level;
        // Beyond two freezes' worth of log the flusher is behind.
        let slack = (REPLAY_LEN_MAX - REPLAY_LEN_FREEZE) as f32;
        let log = self.replay_len().saturating_sub(REPLAY_LEN_FREEZE) as f32 / slack;
        tree.max((log * 2.0 - 1.0).clamp(0.0, 1.0))
    }

    /// Whether the log may be given more, of what others lead.
    pub fn log_has_room(&self) -> bool {
        self.wal.has_room()
    }

    /// Waits until it may.
    pub async fn room_in_log(&self) {
        self.wal.room().await;
    }

    /// Whether writes must be refused because the disk is full.
    pub fn disk_full(&self) -> bool {
        self.lsm.borrow().pressure().disk_full || self.wal.lack() == Some(Lack::Room)
    }

    /// Whether the log or the tables wait for file descriptors or memory.
    pub fn is_starved(&self) -> bool {
        self.stats().tables.starved || self.wal.lack() == Some(Lack::Resources)
    }

    /// Whether a memtable that was frozen is in tables.
    pub fn is_installed(&self, id: MemtableId) -> bool {
        self.frozen
            .borrow()
            .front()
            .is_none_or(|first| first.id > id)
    }

    /// Whether anything is in memtables only.
    pub fn is_flushed(&self) -> bool {
        self.frozen.borrow().is_empty()
    }

    /// Tells compactions which rows are live.
    pub fn set_gc(&self, rules: GcRules) {
        self.lsm.borrow_mut().set_gc(rules);
    }

    /// Has everything compacted, so that old versions go where nobody writes.
    pub fn collect_garbage(&self) {
        self.lsm.borrow_mut().collect_garbage();
    }

    /// Counters of the tree.
    pub fn stats(&self) -> LsmStats {
        self.lsm.borrow().stats()
    }
}
