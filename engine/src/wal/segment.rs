//! Segments: their names, their first blocks, and which of them are still needed.
//!
//! The first block of a segment is a sealed block ([`super::sealed`]). Nothing else is ever written there,
//! whatever the file is used for later. Its header has the number of the segment's first batch, and its
//! body two numbers:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | the segment's secret: the seed of its batches' checksums |
//! | 8 | length of the file in bytes |
//!
//! A spare segment gets this block before it is renamed to a segment in use, so every segment of format 2
//! and later has one.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use crate::env::{Disk, File};
use crate::limits::BLOCK_LEN;
use crate::wal::WalError;
use crate::wal::batch::{self, FORMAT, FORMAT_WITHOUT_KEY, Key};
use crate::wal::sealed::{self, Opened, Sealed, field};

/// How many spare segments, made and zeroed ahead of use, are kept ready.
pub const SPARES: usize = 1;
/// The file that marks a clean stop.
pub const CLEAN: &str = "clean";

/// The file name of a segment in use.
pub fn name(generation: u64) -> String {
    format!("{generation:012}.wal")
}

/// The file name of a spare segment.
pub fn spare_name(number: u64) -> String {
    format!("{number:012}.spare")
}

/// The kinds of files in the log's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A segment in use, with its generation.
    Segment(u64),
    /// A spare segment, with its number.
    Spare(u64),
    /// The mark of a clean stop.
    Clean,
    /// A file that is not the log's.
    Foreign,
}

/// Tells the kind of a file by its name.
pub fn kind(name: &str) -> Kind {
    let number = |suffix: &str| name.strip_suffix(suffix).and_then(|n| n.parse().ok());
    match (number(".wal"), number(".spare")) {
        _ if name == CLEAN => Kind::Clean,
        (Some(generation), _) => Kind::Segment(generation),
        (_, Some(number)) => Kind::Spare(number),
        _ => Kind::Foreign,
    }
}

/// What a segment's first block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The secret of the segment: the seed of its batches' checksums.
    pub secret: u64,
    /// Number of its first batch.
    pub first: u64,
    /// The format of the log in which it was begun.
    pub format: u16,
}

/// Takes a spare segment into use under a generation: writes its first block, then renames it.
///
/// # Errors
/// The disk refuses.
pub async fn begin<D: Disk>(
    disk: &D,
    spare: &str,
    generation: u64,
    beginning: Beginning,
) -> Result<D::File, WalError> {
    let file = disk.open(spare).await;
    let file = file.map_err(|e| WalError::io(spare, "open", &e))?;
    let mut body = beginning.secret.to_le_bytes().to_vec();
    body.extend_from_slice(&file.len().to_le_bytes());
    let block = Sealed {
        format: FORMAT,
        generation,
        number: beginning.first,
        body: &body,
    };
    let mut buffer = file.buffer(BLOCK_LEN);
    sealed::seal(block, buffer.as_mut());
    let written = file.write_at(buffer, 0).await;
    written.map_err(|e| WalError::io(spare, "durable write", &e))?;
    let name = name(generation);
    let renamed = disk.rename(spare, &name).await;
    renamed.map_err(|e| WalError::io(&name, "rename", &e))?;
    Ok(file)
}

/// Reads the first block of a segment of `len` bytes, of which `blocks` are the first two. `None`:
/// there is no first block, so the segment is of format 1, if it is sound.
///
/// # Errors
/// The format is unknown to this version, or the block is damaged.
pub fn beginning(generation: u64, len: u64, blocks: &[u8]) -> Result<Option<Beginning>, WalError> {
    let damaged = |what: String| {
        Err(WalError::Corrupt {
            file: name(generation),
            offset: 0,
            what,
        })
    };
    let (first, second) = blocks.split_at(blocks.len().min(BLOCK_LEN));
    match sealed::open(first) {
        Opened::Whole(block) if block.format > FORMAT => Err(WalError::OtherFormat {
            file: name(generation),
            found: block.format,
        }),
        Opened::Whole(block) if block.format == FORMAT_WITHOUT_KEY => Ok(None),
        Opened::Whole(block) if block.generation != generation => damaged(format!(
            "the first block is of segment {}",
            name(block.generation)
        )),
        Opened::Whole(block) => {
            let Ok(body) = <&[u8; 16]>::try_from(block.body) else {
                return damaged("the first block makes no sense".to_owned());
            };
            let made_with = u64::from_le_bytes(field(body, 8));
            if made_with != len {
                return damaged(format!(
                    "the file has {len} bytes, but was made with {made_with}"
                ));
            }
            Ok(Some(Beginning {
                secret: u64::from_le_bytes(field(body, 0)),
                first: block.number,
                format: block.format,
            }))
        }
        Opened::Longer(_) | Opened::Nothing if batch::seems_keyed(second) => {
            damaged("the first block is bad, but was durable before what follows it".to_owned())
        }
        Opened::Longer(_) | Opened::Nothing => Ok(None),
    }
}

/// The key and the offset of a segment's first batch.
pub fn first_batch(beginning: Option<Beginning>) -> (Key, u64) {
    match beginning {
        Some(beginning) => (
            Key::Secret(beginning.secret, beginning.format),
            BLOCK_LEN as u64,
        ),
        None => (Key::None, 0),
    }
}

/// Reads exactly `len` bytes: fewer would look like the end of the log.
///
/// # Errors
/// The disk refuses, or gives fewer bytes.
pub async fn read_exactly<F: File>(
    file: &F,
    name: &str,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, WalError> {
    // A disk reads whole blocks, but a file that was cut may end within one.
    let read = file.read_at(offset, len.next_multiple_of(BLOCK_LEN)).await;
    let mut bytes = read.map_err(|e| WalError::io(name, "read", &e))?;
    if bytes.len() < len {
        let what = format!("{} of {len} bytes at byte {offset}", bytes.len());
        let short = io::Error::new(io::ErrorKind::UnexpectedEof, what);
        return Err(WalError::io(name, "read", &short));
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// A segment in use.
pub struct Segment<F> {
    /// The open file, for reads of its entries.
    pub file: Rc<F>,
    /// How many entries in it are not purged by a durable record.
    pub live: usize,
}

/// The segments in use, by generation. The last is the one that is written to.
pub struct Segments<F> {
    in_use: BTreeMap<u64, Segment<F>>,
    /// Bytes of the entries in them that are not purged.
    live_bytes: u64,
}

impl<F> Default for Segments<F> {
    fn default() -> Segments<F> {
        Segments {
            in_use: BTreeMap::new(),
            live_bytes: 0,
        }
    }
}

impl<F> Segments<F> {
    /// Adds the segment to which the log is written from now on.
    pub fn add(&mut self, generation: u64, file: Rc<F>) {
        self.in_use.insert(generation, Segment { file, live: 0 });
    }

    /// How many segments are in use.
    pub fn len(&self) -> usize {
        self.in_use.len()
    }

    /// A segment's file.
    pub fn file(&self, generation: u64) -> Option<Rc<F>> {
        self.in_use
            .get(&generation)
            .map(|segment| segment.file.clone())
    }

    /// The generation of the oldest segment, unless that is the one written to.
    pub fn oldest_full(&self) -> Option<u64> {
        let (oldest, _) = self.in_use.first_key_value()?;
        (self.in_use.len() > 1).then_some(*oldest)
    }

    /// Bytes of the entries that are not purged, in all segments.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Notes that an entry of `len` bytes lies in this segment.
    pub fn hold(&mut self, generation: u64, len: usize) {
        self.live_bytes += len as u64;
        if let Some(segment) = self.in_use.get_mut(&generation) {
            segment.live += 1;
        }
    }

    /// Notes that an entry of `len` bytes in this segment is no longer needed.
    pub fn release(&mut self, generation: u64, len: usize) {
        self.live_bytes = self.live_bytes.saturating_sub(len as u64);
        if let Some(segment) = self.in_use.get_mut(&generation) {
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// Removes from the list, oldest first, the segments that nothing needs, and gives them.
    pub fn take_unneeded(&mut self) -> Vec<u64> {
        let mut unneeded = Vec::new();
        while let Some(oldest) = self.oldest_full() {
            if self
                .in_use
                .get(&oldest)
                .is_some_and(|segment| segment.live > 0)
            {
                break;
            }
            self.in_use.remove(&oldest);
            unneeded.push(oldest);
        }
        unneeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(kind(&name(7)), Kind::Segment(7));
        assert_eq!(kind(&spare_name(8)), Kind::Spare(8));
        assert_eq!(kind(CLEAN), Kind::Clean);
        assert_eq!(kind("x.wal"), Kind::Foreign);
    }

    #[test]
    fn only_the_old_end_goes_and_never_the_last() {
        let mut segments = Segments::default();
        (1..=4).for_each(|generation| segments.add(generation, Rc::new(())));
        segments.hold(2, 5);
        assert_eq!(segments.take_unneeded(), [1]);
        segments.release(2, 5);
        assert_eq!(segments.live_bytes(), 0);
        assert_eq!(segments.take_unneeded(), [2, 3]);
        assert_eq!(segments.len(), 1);
    }
}
