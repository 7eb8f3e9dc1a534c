//! Reads entries that are no longer in memory from the segments that hold them.
//!
//! While a read is under way its entries may be purged or written again further on, and their
//! segment may be recycled. So a read that fails counts as damage only if the entries still lie in
//! the same places ([`Log::holds`]).

use std::cell::RefCell;

use crate::env::Env;
use crate::limits::BLOCK_LEN;
use crate::wal::log::{Log, RecordLocation};
use crate::wal::record::{self, Record};
use crate::wal::shared::SharedWal;
use crate::wal::{Group, LogEntry, LogId, WalError, segment};

impl<E: Env> SharedWal<E> {
    /// Reads the records of entries of one group that lie in one segment, with one read. `None` if
    /// the entries have left their places meanwhile.
    ///
    /// # Errors
    /// The disk refuses, or its bytes are no longer what was written.
    pub(super) async fn read_page(
        &self,
        (group, log): (Group, &RefCell<Log>),
        locations: &[(LogId, RecordLocation)],
    ) -> Result<Option<Vec<LogEntry>>, WalError> {
        match self.read_locations(group, locations).await {
            Ok(entries) => Ok(Some(entries)),
            Err(_) if !log.borrow().holds(locations) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_locations(
        &self,
        group: Group,
        locations: &[(LogId, RecordLocation)],
    ) -> Result<Vec<LogEntry>, WalError> {
        let Some((_, first)) = locations.first() else {
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
        let ends = locations
            .iter()
            .map(|(_, location)| location.offset + location.len as u64);
        let len = (ends.max().unwrap_or(start) - start) as usize;
        let len = len.next_multiple_of(BLOCK_LEN);
        let page = segment::read_exactly(&*file, &name, start, len).await?;
        let mut entries = Vec::with_capacity(locations.len());
        for (id, location) in locations {
            let from = (location.offset - start) as usize;
            let bytes = page.get(from..from + location.len).unwrap_or_default();
            match record::Reader::new(bytes).next() {
                Ok(Some(Record::Entry(of, entry))) if of == group && entry.id == *id => {
                    entries.push(entry);
                }
                Ok(_) => {
                    let what = "another record stands where an entry was written".to_owned();
                    return Err(lost(location.offset, what));
                }
                Err(bad) => return Err(lost(location.offset, bad.to_string())),
            }
        }
        Ok(entries)
    }
}
