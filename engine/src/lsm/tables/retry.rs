//! Retries flushes and compactions that failed because the disk was full, or because the process
//! could not get file descriptors or memory, and removes the files that a failed one left behind.

use std::fs;
use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::failure::failed;
use super::{AbstractTree, Shared, Table, TreeError};
use crate::disk_fault::Lack;

/// Pause before a flush or compaction that lacked something is retried.
const LACK_RETRY: Duration = Duration::from_millis(200);
/// File descriptors that a flush or a compaction may need at once. It does not begin without them,
/// because one that fails halfway leaves files behind.
const DESCRIPTORS: usize = 16;
/// The file whose first eight bytes name the version of the tree that the next open reads.
const CURRENT: &str = "current";

fn lack(error: &TreeError) -> Option<Lack> {
    match error {
        TreeError::Io(error) => Lack::of(error),
        _ => None,
    }
}

impl Shared {
    /// Removes the files of a failed write. `lsm-tree` keeps them until the store is opened again,
    /// so every retry would fill the disk further. Returns whether the tree on disk is the one in
    /// memory; if it is not, nothing is removed and this process cannot go on with the tree.
    /// Returns `None`, and removes nothing, while another write runs.
    fn remove_leftovers(&self) -> io::Result<Option<bool>> {
        let Ok(_alone) = self.writing.try_write() else {
            return Ok(None);
        };
        if !self.is_current()? {
            return Ok(Some(false));
        }
        let live: Vec<u64> = self
            .tree
            .current_version()
            .iter_tables()
            .map(Table::id)
            .collect();
        let files = fs::read_dir(self.options.folder.join("tables"));
        for file in files.into_iter().flatten().flatten() {
            let id = file.file_name().to_str().and_then(|name| name.parse().ok());
            if id.is_some_and(|id| !live.contains(&id))
                && let Err(error) = fs::remove_file(file.path())
            {
                tracing::warn!(%error, file = %file.path().display(), "an unfinished file remains");
            }
        }
        Ok(Some(true))
    }

    /// Repeats [`Shared::remove_leftovers`] until it gives an answer, or the store is closed. A
    /// retry before that could overwrite the version that is on disk by now.
    fn may_try_again(&self) -> bool {
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(LACK_RETRY);
            if let Ok(Some(is_current)) = self.remove_leftovers() {
                return is_current;
            }
        }
        true
    }

    /// Whether the next open would read the version of the tree that this process uses. A write
    /// that failed late may have named the next version already, and a retry must not overwrite
    /// that one.
    fn is_current(&self) -> io::Result<bool> {
        let mut named = [0; 8];
        fs::File::open(self.options.folder.join(CURRENT))?.read_exact(&mut named)?;
        Ok(u64::from_le_bytes(named) == self.tree.current_version().id())
    }

    /// Whether the file descriptors for a flush or a compaction are available.
    fn has_descriptors(&self) -> io::Result<()> {
        let opened = (0..DESCRIPTORS).map(|_| fs::File::open(&self.options.folder));
        opened.collect::<io::Result<Vec<_>>>().map(drop)
    }

    /// Logs a lack once, when it begins.
    fn note(&self, action: &'static str, lack: Lack, error: &TreeError) {
        let flag = match lack {
            Lack::Room => &self.disk_full,
            Lack::Resources => &self.starved,
        };
        if flag.swap(true, Ordering::SeqCst) {
            return;
        }
        match lack {
            Lack::Room => tracing::error!(
                event = "disk_full",
                %error,
                "the disk of the tables is full, so that a {action} waits: writes are refused until there \
                 is room"
            ),
            Lack::Resources => tracing::error!(
                event = "resources_lacking",
                %error,
                "a {action} lacks file descriptors or memory: it is tried again until they are there"
            ),
        }
        self.tell();
    }

    /// Logs the end of a lack.
    fn note_end(&self) {
        if self.disk_full.swap(false, Ordering::SeqCst) {
            tracing::info!(
                event = "disk_free",
                "the disk of the tables has room again: writes go on"
            );
        }
        if self.starved.swap(false, Ordering::SeqCst) {
            tracing::info!(
                event = "resources_back",
                "the tables have what they lacked, and go on"
            );
        }
    }

    /// Runs `write` until it succeeds, and returns whether it did. Lacks are waited for; any other
    /// error is published for the shard and ends the attempts.
    pub(super) fn write(
        &self,
        action: &'static str,
        mut write: impl FnMut() -> Result<(), TreeError>,
    ) -> bool {
        while !self.stop.load(Ordering::SeqCst) {
            let done = self.has_descriptors().map_err(Into::into);
            let error = match done.and_then(|()| write()) {
                Ok(()) => {
                    self.note_end();
                    return true;
                }
                Err(error) => error,
            };
            let goes_on = lack(&error).is_some_and(|lack| {
                self.note(action, lack, &error);
                self.may_try_again()
            });
            if !goes_on {
                self.report(failed(&self.options.folder, action, &error));
                return false;
            }
        }
        false
    }
}
