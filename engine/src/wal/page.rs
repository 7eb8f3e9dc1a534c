//! Reads entries that are no longer in memory from the segments that hold them.
//!
//! While a read is under way its entries may be purged or written again further on, and their
//! segment may be recycled. So a read that fails counts as damage only if the entries still lie in
//! the same places ([`Log::holds`]).

use std::cell::RefCell;

use crate::env::Env;
use crate::limits::BLOCK_LEN;
use crate::wal::log::{Log, Place};
use crate::wal::record::{self, Record};
use crate::wal::shared::Core;
use crate::wal::{Group, LogEntry, LogId, WalError, segment};

impl<E: Env> Core<E> {
    /// Reads the records of entries of one group that lie in one segment, with one read. `None` if
    /// the entries have left their places meanwhile.
    ///
    /// # Errors
    /// The disk refuses, or its bytes are no longer what was written.
    pub(super) async fn read_page(
        &self,
        (group, log): (Group, &RefCell<Log>),
        places: &[(LogId, Place)],
    ) -> Result<Option<Vec<LogEntry>>, WalError> {
        match self.read_places(group, places).await {
            Ok(entries) => Ok(Some(entries)),
            Err(_) if !log.borrow().holds(places) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_places(
        &self,
        group: Group,
        places: &[(LogId, Place)],
    ) -> Result<Vec<LogEntry>, WalError> {
        let Some((_, first)) = places.first() else {
            return Ok(Vec::new());
        };
        let name = segment::name(first.generation);
        let lost = |offset: u64, what: String| WalError::Corrupt {
            file: name.clone(),
            offset,
            what,
        };
        let Some(file) = self.segment_file(first.generation) else {
            return Err(lost(
                first.offset,
                "the segment of a live entry is gone".to_owned(),
            ));
        };
        // A disk reads whole blocks: one read covers all of the places, which lie near each other.
        let block = BLOCK_LEN as u64;
        let start = first.offset / block * block;
        let ends = places
            .iter()
            .map(|(_, place)| place.offset + place.len as u64);
        let len = (ends.max().unwrap_or(start) - start) as usize;
        let len = len.next_multiple_of(BLOCK_LEN);
        let page = segment::read_exactly(&*file, &name, start, len).await?;
        let mut entries = Vec::with_capacity(places.len());
        for (id, place) in places {
            let from = (place.offset - start) as usize;
            let bytes = page.get(from..from + place.len).unwrap_or_default();
            match record::Reader::new(bytes).next() {
                Ok(Some(Record::Entry(of, entry))) if of == group && entry.id == *id => {
                    entries.push(entry);
                }
                Ok(_) => {
                    let what = "another record stands where an entry was written".to_owned();
                    return Err(lost(place.offset, what));
                }
                Err(bad) => return Err(lost(place.offset, bad.to_string())),
            }
        }
        Ok(entries)
    }
}
