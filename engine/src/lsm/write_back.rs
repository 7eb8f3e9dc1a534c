//! Has tables written to the disk piece by piece while they are made.
//!
//! `lsm-tree` writes a table into the page cache and syncs it once it is whole. Then the disk has tens
//! of megabytes before it at once, and whoever waits for the log, which lies on the same disk, waits
//! for them. Lives on the threads that flush and compact.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Rows between two looks, in bytes.
const PIECE: usize = 512 << 10;
/// A file that was changed within this may be one that is being made.
const RECENT: Duration = Duration::from_secs(10);

/// Has what was written to a file written to the disk, and returns when it is.
pub type PushOut = fn(&File);

/// Follows how much one writer has written.
#[derive(Clone)]
pub struct WriteBack {
    folder: PathBuf,
    push_out: PushOut,
    written: usize,
}

impl WriteBack {
    /// For a store in `folder`.
    pub fn new(folder: &Path, push_out: PushOut) -> WriteBack {
        WriteBack {
            folder: folder.join("tables"),
            push_out,
            written: 0,
        }
    }

    /// So many bytes more were given to the writer.
    pub fn wrote(&mut self, len: usize) {
        self.written += len;
        if self.written >= PIECE {
            self.written = 0;
            // The sync at the table's end is what counts, and tells of errors.
            let _ = self.push_out();
        }
    }

    /// The name of the table that is being made is known to `lsm-tree` alone.
    fn push_out(&self) -> io::Result<()> {
        let now = SystemTime::now();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let changed = entry.metadata()?.modified()?;
            if now.duration_since(changed).is_ok_and(|age| age > RECENT) {
                continue;
            }
            (self.push_out)(&File::open(entry.path())?);
        }
        Ok(())
    }
}
