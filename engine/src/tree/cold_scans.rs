//! Scans that need blocks of tables from the disk.
//!
//! A scan that must not wait stops where it needs a block that is not in memory ([`Store::try_scan`]).
//! [`Store::fetch_for_scan`] has that block fetched, with those that come next in its table, in one read of a
//! helper thread; the scan's task waits with [`Store::fetched`] and goes on in a new turn. One mechanism
//! fetches the blocks of gets and of scans ([`super::cold_reads`]): they share fetches and places.
//!
//! The blocks of a scan go from turn to turn in its [`ScanBlocks`], so that the scan advances whatever the
//! block cache drops meanwhile. It has one read in flight at a time, and holds little more than what it
//! read ahead: some 32 KiB for each run of tables. After the wait the caller must check again what it
//! relies on: the range may have other bounds, and versions may have been collected.

use std::rc::Rc;

use super::Store;
use super::cold_reads::{Block, Fetch};
use crate::env::Env;
use crate::error::Error;
use crate::lsm::{Bounds, ColdStop, Direction, HeldBlocks, Scan, ScanStop};
use crate::types::{ColdBlock, RangeId, Timestamp};

/// The blocks that were fetched for one scan, over all its turns.
pub struct ScanBlocks<E: Env> {
    held: HeldBlocks<Block<E>>,
    /// Those that were on their way at the last stop.
    fetches: Vec<(ColdBlock, Rc<Fetch<Block<E>>>)>,
    /// The row key at which the scan has stopped last.
    stopped_at: Option<Vec<u8>>,
}

impl<E: Env> Default for ScanBlocks<E> {
    fn default() -> ScanBlocks<E> {
        ScanBlocks {
            held: HeldBlocks::default(),
            fetches: Vec::new(),
            stopped_at: None,
        }
    }
}

impl<E: Env> ScanBlocks<E> {
    /// Takes in the blocks that have come. One that cannot be read fails the scan once that needs it.
    fn take_in(&mut self) {
        self.fetches.retain(|(block, fetch)| match fetch.ended() {
            None => true,
            Some(ended) => {
                if let Ok(Some(content)) = ended {
                    self.held.insert(*block, content);
                }
                false
            }
        });
    }

    /// Drops what a scan does not need any more that has ended its turn so.
    fn end_turn<R>(&mut self, turn: &Result<R, ScanStop>) {
        if let Err(ScanStop::Cold(stop)) = turn {
            let has_come_further = stop.next.is_some() && stop.next != self.stopped_at;
            if !has_come_further {
                return;
            }
            self.stopped_at.clone_from(&stop.next);
        }
        self.held.end_turn();
    }
}

impl<E: Env> Store<E> {
    /// Opens a scan of row keys as of `at`, in this direction, and passes it to `visit`, which must not call
    /// back into the tree. Never waits for the disk.
    ///
    /// # Errors
    /// The tables cannot be read, or a block is not in memory.
    pub fn try_scan<R>(
        &self,
        direction: Direction,
        bounds: Bounds<'_>,
        at: Timestamp,
        blocks: &mut ScanBlocks<E>,
        visit: impl FnOnce(&mut Scan<'_, E::Tables>) -> Result<R, ScanStop>,
    ) -> Result<R, ScanStop> {
        blocks.take_in();
        let lsm = self.lsm.borrow();
        let scan = lsm.try_scan(direction, bounds, at, &blocks.held);
        let turn = scan.and_then(|mut scan| visit(&mut scan));
        blocks.end_turn(&turn);
        turn
    }

    /// Has the blocks fetched that a scan of a range needs, unless they are on their way.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: too many blocks are on their way, and the range has its share of them.
    pub fn fetch_for_scan(
        &self,
        range: RangeId,
        blocks: &mut ScanBlocks<E>,
        stop: &ColdStop,
    ) -> Result<(), Error> {
        let mut lacking = Vec::new();
        if self.cold_reads.begin(range, stop.block, stop.is_cached)? {
            lacking.push(stop.block);
        }
        for block in &stop.ahead {
            // What is read ahead can do without a place.
            match self.cold_reads.begin(range, *block, false) {
                Ok(true) => lacking.push(*block),
                Ok(false) => {}
                Err(_) => break,
            }
        }
        if !lacking.is_empty() {
            self.lsm.borrow().fetch(&lacking);
        }
        for block in std::iter::once(&stop.block).chain(&stop.ahead) {
            let is_new = blocks.fetches.iter().all(|(known, _)| known != block);
            if is_new && let Some(fetch) = self.cold_reads.fetch(*block) {
                blocks.fetches.push((*block, fetch));
            }
        }
        Ok(())
    }
}
