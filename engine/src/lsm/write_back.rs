//! Writes tables back to disk piece by piece while they are made.
//!
//! `lsm-tree` writes a table into the page cache and syncs it when it is complete. Then the disk
//! has to write tens of megabytes at once, and writes to the log, which is on the same disk, wait
//! for them. The code here runs on the flusher and the compactor.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of rows between two write-backs.
const PIECE: usize = 512 << 10;
/// Number of the newest tables that are written back. These are the tables that are being made, and
/// a few complete ones, for which it costs nothing.
const NEWEST: usize = 8;

/// Writes the dirty pages of a file to disk, and returns when they are written.
pub type PushOut = fn(&File);

/// Counts the bytes that one writer has written, and writes tables back after every piece.
#[derive(Clone)]
pub struct WriteBack {
    folder: PathBuf,
    push_out: PushOut,
    written: usize,
}

impl WriteBack {
    /// A counter for a store in `folder`.
    pub fn new(folder: &Path, push_out: PushOut) -> WriteBack {
        WriteBack {
            folder: folder.join("tables"),
            push_out,
            written: 0,
        }
    }

    /// Counts `len` more bytes that the writer has been given.
    pub fn wrote(&mut self, len: usize) {
        self.written += len;
        if self.written >= PIECE {
            self.written = 0;
            // Errors are ignored here. The sync at the end of the table is what makes the table
            // durable, and it reports errors.
            let _ = self.push_out();
        }
    }

    /// Writes back the newest tables. Only `lsm-tree` knows which tables are being made, but their
    /// names are ascending numbers.
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
