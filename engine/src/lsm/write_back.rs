//! Has tables written to the disk piece by piece while they are made.
//!
//! `lsm-tree` writes a table into the page cache and syncs it once it is whole. Then the disk has tens
//! of megabytes before it at once, and whoever waits for the log, which lies on the same disk, waits
//! for them. Lives on the threads that flush and compact.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Rows between two pushes, in bytes.
const PIECE: usize = 512 << 10;
/// So many tables were begun last: those that are being made, and a few that are done, which costs
/// nothing.
const NEWEST: usize = 8;

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

    /// Which table is being made `lsm-tree` alone knows; their names are numbers that rise.
    fn push_out(&self) -> io::Result<()> {
        let names = fs::read_dir(&self.folder)?.flatten();
        let ids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        let mut ids: Vec<u64> = ids.collect();
        ids.sort_unstable();
        for id in ids.iter().rev().take(NEWEST) {
            (self.push_out)(&File::open(self.folder.join(id.to_string()))?);
        }
        Ok(())
    }
}
