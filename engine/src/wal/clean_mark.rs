//! The mark of a clean stop: a sealed block in a file of its own, which names the last batch.

use std::io;

use crate::env::{Disk, Env, File};
use crate::limits::BLOCK_LEN;
use crate::wal::WalError;
use crate::wal::batch::FORMAT;
use crate::wal::sealed::{self, Opened, Sealed};
use crate::wal::segment::CLEAN;

/// Writes the mark of a clean stop. `next` is the number that the next batch would have.
///
/// # Errors
/// The disk refuses.
pub async fn write<E: Env>(disk: &E::Disk, generation: u64, next: u64) -> Result<(), WalError> {
    let failed = |e: io::Error| WalError::io(CLEAN, "write", &e);
    // Written under another name, so that a crash leaves no half mark.
    const DRAFT: &str = "clean.draft";
    let file = disk.create(DRAFT, BLOCK_LEN as u64).await.map_err(failed)?;
    let mut buffer = file.buffer(BLOCK_LEN);
    let mark = Sealed {
        format: FORMAT,
        generation,
        number: next,
        body: &(next - 1).to_le_bytes(),
    };
    sealed::seal(mark, buffer.as_mut());
    file.write_at(buffer, 0).await.map_err(failed)?;
    drop(file);
    disk.rename(DRAFT, CLEAN).await.map_err(failed)
}

/// The number of the last batch, from the mark of a clean stop.
pub async fn read<E: Env>(disk: &E::Disk) -> Result<u64, WalError> {
    let failed = |e: io::Error| WalError::io(CLEAN, "read", &e);
    let file = disk.open(CLEAN).await.map_err(failed)?;
    let bytes = file.read_at(0, BLOCK_LEN).await.map_err(failed)?;
    match sealed::open(&bytes) {
        Opened::Whole(mark) if mark.format > FORMAT => Err(WalError::OtherFormat {
            file: CLEAN.to_owned(),
            found: mark.format,
        }),
        Opened::Whole(mark) if mark.number > 0 => Ok(mark.number - 1),
        _ => Err(WalError::Corrupt {
            file: CLEAN.to_owned(),
            offset: 0,
            what: "the mark cannot be read".to_owned(),
        }),
    }
}
