//! Reads of clients that need a block of a table from the disk.
//!
//! Such a read never waits within its turn of the shard's thread: [`Store::try_newest`] names the block,
//! [`Store::fetch`] has it fetched, the read's task waits with [`Store::fetched`], and then it reads again.
//! So it delays nobody but its own client. Reads that need the same block share one fetch. When the disk
//! has read a block, only the reads that wait for it are woken. The number of blocks that are fetched at a
//! time is limited, and shared fairly by the ranges ([`crate::fair_share`]); a block counts for the range
//! whose read was the first. Scans use the same fetches, in a way of their own: [`super::cold_scans`].
//!
//! After the wait the caller must check again what it relies on: the lease may have run out, the replica
//! may be gone, and even the block may have left the memory again. A block that cannot be read, or is
//! damaged, fails all reads that wait for it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::Store;
use crate::distribution::Distribution;
use crate::env::Env;
use crate::error::Error;
use crate::fair_share::{Part, Shared};
use crate::limits::COLD_BLOCKS_MAX;
use crate::lsm::{LsmError, PREFETCH_MAX, TableStore, keys};
use crate::notify::Notify;
use crate::types::{ColdBlock, DataId, RangeId, Timestamp};

/// Most microseconds of a wait in the histogram, a minute; longer ones count as this.
const MICROS_MAX: u64 = 60_000_000;
/// When a read that met [`COLD_BLOCKS_MAX`] may try again.
const RETRY_AFTER_MS: u32 = 20;

/// Counters of reads that needed the disk.
#[derive(Clone, Debug)]
pub struct ColdReadStats {
    /// How often reads have waited for a block, or wait.
    pub reads: u64,
    /// How many blocks are waited for now.
    pub blocks: usize,
    /// How long reads waited for a block, in microseconds.
    pub wait_micros: Distribution,
    /// How many reads failed because a block of a table could not be read, or was damaged.
    pub failed: u64,
}

/// The content of a block of the shard's tables.
pub(super) type Block<E> = <<E as Env>::Tables as TableStore>::Block;

/// How a fetch of a block of the type `B` has ended: with none if its table is gone.
type Ended<B> = Result<Option<B>, LsmError>;

/// A block that is on its way from the disk.
pub(super) struct Fetch<B> {
    ended: RefCell<Option<Ended<B>>>,
    done: Notify,
    /// Whether the block cache takes it in.
    is_cached: Cell<bool>,
    /// Its place, while it is on its way.
    place: Cell<Option<Part<RangeId>>>,
}

impl<B: Clone> Fetch<B> {
    /// How it has ended, if it has.
    pub(super) fn ended(&self) -> Option<Ended<B>> {
        self.ended.borrow().clone()
    }
}

/// The blocks of the type `B` that reads wait for.
pub(super) struct ColdReads<B> {
    fetches: RefCell<FxHashMap<ColdBlock, Rc<Fetch<B>>>>,
    places: Rc<Shared<RangeId>>,
    reads: Cell<u64>,
    failed: Cell<u64>,
    wait_micros: RefCell<Distribution>,
}

impl<B> Default for ColdReads<B> {
    fn default() -> ColdReads<B> {
        ColdReads {
            fetches: RefCell::default(),
            places: Rc::new(Shared::new(COLD_BLOCKS_MAX)),
            reads: Cell::new(0),
            failed: Cell::new(0),
            wait_micros: RefCell::new(Distribution::new(MICROS_MAX)),
        }
    }
}

impl<B: Clone> ColdReads<B> {
    /// Notes that a range needs a block, which the block cache takes in if `is_cached`; gives whether it must
    /// be fetched, because no other read has asked for it.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: the range has its share of the [`COLD_BLOCKS_MAX`] that may be on their way.
    pub(super) fn begin(
        &self,
        range: RangeId,
        block: ColdBlock,
        is_cached: bool,
    ) -> Result<bool, Error> {
        let mut fetches = self.fetches.borrow_mut();
        if let Some(fetch) = fetches.get(&block) {
            fetch.is_cached.set(fetch.is_cached.get() | is_cached);
            return Ok(false);
        }
        let Some(place) = self.places.take(range, 1) else {
            let reason =
                "as many reads wait for the disk as may, and those of the range have their share";
            return Err(Error::overloaded(reason, RETRY_AFTER_MS));
        };
        let fetch = Fetch {
            ended: RefCell::default(),
            done: Notify::default(),
            is_cached: Cell::new(is_cached),
            place: Cell::new(Some(place)),
        };
        fetches.insert(block, Rc::new(fetch));
        Ok(true)
    }

    /// A block that is on its way.
    pub(super) fn fetch(&self, block: ColdBlock) -> Option<Rc<Fetch<B>>> {
        self.fetches.borrow().get(&block).cloned()
    }

    /// Lets the reads go on that wait for a block, which has come or cannot be read. Gives the content that
    /// the block cache takes in.
    fn end(&self, block: ColdBlock, ended: Ended<B>) -> Option<B> {
        let fetch = self.fetches.borrow_mut().remove(&block)?;
        let content = ended.as_ref().ok().and_then(Option::as_ref);
        let cached = content.filter(|_| fetch.is_cached.get()).cloned();
        fetch.ended.replace(Some(ended));
        drop(fetch.place.take());
        fetch.done.notify();
        cached
    }

    /// Waits until a block that was asked for has come, or cannot be read; `None` if it was no longer on
    /// its way.
    async fn fetched(&self, block: ColdBlock) -> Option<Result<(), LsmError>> {
        let fetch = self.fetch(block)?;
        self.reads.set(self.reads.get() + 1);
        fetch.done.until(|| fetch.ended.borrow().is_some()).await;
        let ended = fetch.ended.borrow();
        let ended = ended.as_ref()?;
        Some(ended.as_ref().map(|_| ()).map_err(LsmError::clone))
    }
}

impl<E: Env> Store<E> {
    /// Passes the newest version of a user's key at or below `at` to `look`, as [`Store::newest`]
    /// does, but never waits for the disk. The inner error is a block that the read needs:
    /// [`Store::fetch`] has it fetched. [`Timestamp::MAX`] means the newest version of all.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn try_newest<R>(
        &self,
        data_id: DataId,
        key: &[u8],
        at: Timestamp,
        look: impl FnOnce(Option<(Timestamp, Option<&[u8]>)>) -> R,
    ) -> Result<Result<R, ColdBlock>, LsmError> {
        let mut row_key = self.key.borrow_mut();
        keys::user_key(data_id, key, &mut row_key);
        let lsm = self.lsm.borrow();
        lsm.try_newest(&row_key, at, |found| {
            look(found.map(|row| (row.version, row.value)))
        })
    }

    /// Brings what reads of the newest versions of these users' keys need soon into the processor's caches.
    /// The first [`PREFETCH_MAX`] keys count.
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = (DataId, &'k [u8])>) {
        let mut row_key = self.key.borrow_mut();
        let mut hashes = [0; PREFETCH_MAX];
        let mut count = 0;
        for ((data_id, key), hash) in keys.zip(&mut hashes) {
            keys::user_key(data_id, key, &mut row_key);
            *hash = keys::row_hash(&row_key);
            count += 1;
        }
        let hashes = hashes.get(..count).unwrap_or_default();
        self.lsm.borrow().prefetch(hashes);
    }

    /// Has a block fetched that a read of a range needs, unless it is on its way.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many blocks are on their way, and the range has its share of them.
    pub fn fetch(&self, range: RangeId, block: ColdBlock) -> Result<(), Error> {
        if self.cold_reads.begin(range, block, true)? {
            self.lsm.borrow().fetch(&[block]);
        }
        Ok(())
    }

    /// Waits until a block that [`Store::fetch`] or [`Store::fetch_for_scan`] was asked for has come.
    ///
    /// # Errors
    /// The block cannot be read, or is damaged.
    pub async fn fetched(&self, block: ColdBlock) -> Result<(), LsmError> {
        let begun = E::now();
        let Some(ended) = self.cold_reads.fetched(block).await else {
            return Ok(());
        };
        let micros = u64::try_from((E::now() - begun).as_micros()).unwrap_or(u64::MAX);
        let mut wait_micros = self.cold_reads.wait_micros.borrow_mut();
        wait_micros.record(micros);
        ended
    }

    /// Takes in the blocks that have been read, and lets the reads go on that wait for them.
    pub fn take_fetched(&self) {
        let mut lsm = self.lsm.borrow_mut();
        for (block, ended) in lsm.fetched() {
            if let Some(content) = self.cold_reads.end(block, ended) {
                lsm.cache(block, content);
            }
        }
    }

    /// Counts a read that failed because a block of a table cannot be read or is damaged.
    pub(crate) fn count_unreadable(&self) {
        self.cold_reads.failed.set(self.cold_reads.failed.get() + 1);
    }

    /// Has `call` called, from any thread, when there is something for [`Store::take_fetched`].
    pub fn on_fetched(&self, call: Arc<dyn Fn() + Send + Sync>) {
        self.lsm.borrow_mut().on_fetched(call);
    }

    /// How many reads were refused because their range has its share of the blocks on their way.
    pub fn cold_reads_refused(&self) -> u64 {
        self.cold_reads.places.refused()
    }

    /// Counters of reads that needed the disk.
    pub fn cold_reads(&self) -> ColdReadStats {
        ColdReadStats {
            reads: self.cold_reads.reads.get(),
            blocks: self.cold_reads.fetches.borrow().len(),
            wait_micros: self.cold_reads.wait_micros.borrow().clone(),
            failed: self.cold_reads.failed.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const RANGE: RangeId = RangeId(1);

    fn block(number: u64) -> ColdBlock {
        ColdBlock {
            table: number / 1000,
            offset: number,
            len: 1,
        }
    }

    #[test]
    fn reads_of_one_block_share_its_fetch_and_no_other_read_goes_on_with_them() {
        let reads = ColdReads::default();
        let begins = [1, 2, 1].map(|number| reads.begin(RANGE, block(number), true));
        assert_eq!(begins, [Ok(true), Ok(true), Ok(false)]);
        let mut of_one = pin!(async {
            let both = [reads.fetched(block(1)), reads.fetched(block(1))];
            futures_util::future::join_all(both).await
        });
        let mut of_other = pin!(reads.fetched(block(2)));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(of_one.as_mut().poll(cx).is_pending());
        assert!(of_other.as_mut().poll(cx).is_pending());
        assert_eq!(reads.end(block(1), Ok(Some("content"))), Some("content"));
        assert!(of_other.as_mut().poll(cx).is_pending());
        assert_eq!(
            of_one.as_mut().poll(cx),
            Poll::Ready(vec![Some(Ok(())), Some(Ok(()))])
        );
        assert_eq!(
            reads.begin(RANGE, block(1), true),
            Ok(true),
            "it may leave the memory"
        );
        let failed = || LsmError::Unreadable {
            file: "7".to_owned(),
            message: "input/output error".to_owned(),
        };
        reads.end(block(2), Err(failed()));
        assert_eq!(of_other.as_mut().poll(cx), Poll::Ready(Some(Err(failed()))));
        assert_eq!(reads.reads.get(), 3);
    }

    #[test]
    fn a_block_is_cached_if_any_read_of_it_wants_that() {
        for asked in [[false, false], [false, true], [true, false]] {
            let reads = ColdReads::default();
            let begins = asked.map(|is_cached| reads.begin(RANGE, block(1), is_cached));
            assert_eq!(begins, [Ok(true), Ok(false)]);
            let cached = reads.end(block(1), Ok(Some("content")));
            assert_eq!(cached.is_some(), asked.contains(&true));
        }
        let reads = ColdReads::<&str>::default();
        assert_eq!(reads.begin(RANGE, block(1), true), Ok(true));
        assert_eq!(reads.end(block(1), Ok(None)), None, "its table is gone");
    }

    #[test]
    fn a_block_that_has_come_before_the_wait_is_not_waited_for() {
        let reads = ColdReads::default();
        assert_eq!(reads.begin(RANGE, block(1), true), Ok(true));
        reads.end(block(1), Ok(Some("content")));
        let mut late = pin!(reads.fetched(block(1)));
        let cx = &mut Context::from_waker(Waker::noop());
        assert_eq!(late.as_mut().poll(cx), Poll::Ready(None));
    }

    #[test]
    fn no_more_blocks_than_the_limit_are_on_their_way_and_one_range_does_not_take_all_places() {
        let reads = ColdReads::default();
        let begin = |range, number| reads.begin(range, block(number), true);
        let share = COLD_BLOCKS_MAX as u64 / 2;
        assert!((0..share).all(|number| begin(RANGE, number) == Ok(true)));
        let more = begin(RANGE, share);
        assert!(
            matches!(more, Err(Error::Overloaded { retry_after_ms, .. }) if retry_after_ms > 0),
            "{more:?}"
        );
        assert_eq!(begin(RANGE, 0), Ok(false), "others may join");
        // Other ranges have places, until there are none.
        let other = RangeId(2);
        assert!((share..share * 3 / 2).all(|number| begin(other, number) == Ok(true)));
        assert!(begin(other, share * 2).is_err());
        assert_eq!(begin(RangeId(3), share * 2), Ok(true));
        assert_eq!(reads.places.refused(), 2);
        // A range that gets blocks may have more, also while a scan holds what has come.
        let held: Vec<_> = (0..share)
            .filter_map(|number| reads.fetch(block(number)))
            .collect();
        for number in 0..share {
            reads.end(block(number), Ok(Some("content")));
        }
        assert_eq!(begin(RANGE, share * 3), Ok(true));
        assert_eq!(held.len() as u64, share);
    }
}
