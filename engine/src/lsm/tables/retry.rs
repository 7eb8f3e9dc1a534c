//! Writes of tables are tried again when the disk lacked room, or the process file descriptors or
//! memory, and what a failed one left behind is removed.

use std::fs;
use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{AbstractTree, Shared, Table, TreeError, failed};
use crate::disk_fault::Lack;

/// A write for which the disk lacked something is tried again after this.
const LACK_RETRY: Duration = Duration::from_millis(200);
/// File descriptors that a flush or a compaction needs at a time. It does not begin without them:
/// one that fails in the middle leaves files behind.
const DESCRIPTORS: usize = 16;
/// The file that names the version of the tree which an opening finds, in its first eight bytes.
const CURRENT: &str = "current";

fn lack(error: &TreeError) -> Option<Lack> {
    match error {
        TreeError::Io(error) => Lack::of(error),
        _ => None,
    }
}

impl Shared {
    /// After a failed write `lsm-tree` leaves unfinished files until the next opening, so each
    /// try would fill the disk further. Does nothing while another write runs. Says whether the tree
    /// on the disk is the one in memory; if not, this process cannot go on with it. `None`: another
    /// write runs, and it cannot be told.
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
                tracing::warn!(%error, file = %file.path().display(), "an unfinished table stays");
            }
        }
        Ok(Some(true))
    }

    /// The same, as soon as it can be told: another try before that might write over the version that
    /// the disk has by now.
    fn may_try_again(&self) -> bool {
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(LACK_RETRY);
            if let Ok(Some(is_current)) = self.remove_leftovers() {
                return is_current;
            }
        }
        true
    }

    /// Whether an opening would find the version that this process goes by. A step that fails late
    /// may have named the next one already, which a second try must not write over.
    fn is_current(&self) -> io::Result<bool> {
        let mut named = [0; 8];
        fs::File::open(self.options.folder.join(CURRENT))?.read_exact(&mut named)?;
        Ok(u64::from_le_bytes(named) == self.tree.current_version().id())
    }

    /// Whether there are the file descriptors that a step needs.
    fn has_descriptors(&self) -> io::Result<()> {
        let opened = (0..DESCRIPTORS).map(|_| fs::File::open(&self.options.folder));
        opened.collect::<io::Result<Vec<_>>>().map(drop)
    }

    /// Says once what is lacking.
    fn note(&self, action: &'static str, lack: Lack, error: &TreeError) {
        let (flag, meaning) = match lack {
            Lack::Room => (&self.disk_full, "the disk is full: writes are refused"),
            Lack::Resources => (&self.starved, "no file can be opened: it is tried again"),
        };
        if !flag.swap(true, Ordering::SeqCst) {
            tracing::error!(action, ?error, "{meaning}");
            self.publish(None, None);
        }
    }

    /// Tries until it is done, unless it fails for another reason than a lack.
    pub(super) fn write(
        &self,
        action: &'static str,
        mut write: impl FnMut() -> Result<(), TreeError>,
    ) -> bool {
        while !self.stop.load(Ordering::SeqCst) {
            let done = self.has_descriptors().map_err(Into::into);
            let error = match done.and_then(|()| write()) {
                Ok(()) => {
                    self.disk_full.store(false, Ordering::SeqCst);
                    self.starved.store(false, Ordering::SeqCst);
                    return true;
                }
                Err(error) => error,
            };
            let goes_on = lack(&error).is_some_and(|lack| {
                self.note(action, lack, &error);
                self.may_try_again()
            });
            if !goes_on {
                self.publish(None, Some(failed(&self.options.folder, action, &error)));
                return false;
            }
        }
        false
    }
}
