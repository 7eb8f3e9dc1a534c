//! Entries that memory no longer has, read from the segments that hold them.

use crate::env::{Env, File};
use crate::limits::BLOCK_LEN;
use crate::wal::log::Place;
use crate::wal::record::{self, Record};
use crate::wal::writer::Core;
use crate::wal::{LogEntry, LogId, WalError, segment};

impl<E: Env> Core<E> {
    /// Reads the record of one entry.
    pub(super) async fn read_entry(&self, id: LogId, place: Place) -> Result<LogEntry, WalError> {
        let mut page = self.read_page(&[(id, place)]).await?;
        page.pop().ok_or(WalError::Closed)
    }

    /// Reads the records of entries that lie in one segment, by one read.
    pub(super) async fn read_page(
        &self,
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
        let block = BLOCK_LEN as u64;
        let start = first.offset / block * block;
        let ends = places
            .iter()
            .map(|(_, place)| place.offset + place.len as u64);
        let len = (ends.max().unwrap_or(start) - start) as usize;
        let page = file.read_at(start, len.next_multiple_of(BLOCK_LEN)).await;
        let page = page.map_err(|e| WalError::io(&name, "read", &e))?;
        let mut entries = Vec::with_capacity(places.len());
        for (id, place) in places {
            let from = (place.offset - start) as usize;
            let bytes = page.get(from..from + place.len).unwrap_or_default();
            match record::Reader::new(bytes).next() {
                Ok(Some(Record::Entry(_, entry))) if entry.id == *id => entries.push(entry),
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
